// test_rng_device.cu -- common/rng.h gives the same values in kernels as on the host, and cuRAND's words.
//
//     make test, or: nvcc -std=c++17 -O3 -I. test/test_rng_device.cu -o test_rng_device
#include <stdint.h>

#include "common/cuda_common.h"
#include "common/rng.h"
#include "test.h"
#if DEVICE_IS_GPU
#include <curand_kernel.h>
#endif

// Thread i: the words at counter i, element i of the uniform and normal numbers and of the permutation of n.
static __global__ void device_values(uint32_t *words, float *uniform, float *normal, uint32_t *order, int n,
                                     uint64_t seed, uint64_t stream, uint64_t key) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    rng_philox(seed, stream, (uint64_t)i, words + 4 * (size_t)i);
    uniform[i] = rng_uniform_range(rng_word_at(seed, stream, (uint64_t)i), -0.3f, 0.4f);
    normal[i] = rng_normal_at(seed, stream, (uint64_t)i);
    order[i] = rng_permute((uint32_t)i, (uint32_t)n, key);
}

#if DEVICE_IS_GPU
// Thread i: cuRAND's words at counter i.
static __global__ void curand_values(uint32_t *words, int n, uint64_t seed, uint64_t stream) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    curandStatePhilox4_32_10_t state;
    curand_init(seed, stream, 4ull * (unsigned)i, &state);
    const uint4 w = curand4(&state);
    words[4 * i] = w.x;
    words[4 * i + 1] = w.y;
    words[4 * i + 2] = w.z;
    words[4 * i + 3] = w.w;
}
#endif

static void *host_array(size_t bytes) {
    void *const p = malloc(bytes);
    if (!p) exit(1);
    return p;
}

static void *device_array(size_t bytes) {
    void *p = NULL;
    CUDA_CHECK(cudaMalloc(&p, bytes));
    return p;
}

static void compare(int n) {
    const size_t count = (size_t)n;
    const uint64_t seed = 0x123456789abcdefull, stream = rng_stream(RNG_TEST, 77), key = rng_permute_key(seed, 4);
    uint32_t *const words = (uint32_t *)host_array(16 * count), *const order = (uint32_t *)host_array(4 * count);
    float *const uniform = (float *)host_array(4 * count), *const normal = (float *)host_array(4 * count);
    float *const want_uniform = (float *)host_array(4 * count), *const want_normal = (float *)host_array(4 * count);
    uint32_t *const d_words = (uint32_t *)device_array(16 * count);
    uint32_t *const d_order = (uint32_t *)device_array(4 * count);
    float *const d_uniform = (float *)device_array(4 * count), *const d_normal = (float *)device_array(4 * count);

    device_values<<<ceil_div(n, 128), 128>>>(d_words, d_uniform, d_normal, d_order, n, seed, stream, key);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(words, d_words, 16 * count, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(uniform, d_uniform, 4 * count, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(normal, d_normal, 4 * count, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(order, d_order, 4 * count, cudaMemcpyDeviceToHost));

    rng_fill_uniform(want_uniform, count, -0.3f, 0.4f, seed, stream);
    rng_fill_normal(want_normal, count, 0, 1, seed, stream);
    int same_words = 1, same_order = 1, different = 0;
    double worst = 0;
    for (int i = 0; i < n; i++) {
        uint32_t w[4];
        rng_philox(seed, stream, (uint64_t)i, w);
        same_words &= !memcmp(w, words + 4 * (size_t)i, 16);
        same_order &= order[i] == rng_permute((uint32_t)i, (uint32_t)n, key);
        different += normal[i] != want_normal[i];
        const double d = fabs((double)normal[i] - want_normal[i]) / fmax(fabs((double)want_normal[i]), 1e-3);
        if (!(d <= worst)) worst = d;
    }
    CHECK(same_words, "words on the device equal the host's");
    CHECK(!memcmp(want_uniform, uniform, 4 * count), "uniform numbers on the device equal the host's bit for bit");
    CHECK(same_order, "permutations on the device equal the host's");
    CHECK(worst < 2.5e-7 && different <= n / 100000 + 1, "normal numbers on the device differ in rounding at most");
    if (different) printf("n = %d: %d normal numbers differ in the last bit\n", n, different);
#if DEVICE_IS_GPU
    uint32_t *const curand_words = (uint32_t *)host_array(16 * count);
    curand_values<<<ceil_div(n, 128), 128>>>(d_words, n, seed, stream);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(curand_words, d_words, 16 * count, cudaMemcpyDeviceToHost));
    CHECK(!memcmp(words, curand_words, 16 * count), "words equal cuRAND's");
    free(curand_words);
#endif
    free(words);
    free(order);
    free(uniform);
    free(normal);
    free(want_uniform);
    free(want_normal);
    CUDA_CHECK(cudaFree(d_words));
    CUDA_CHECK(cudaFree(d_order));
    CUDA_CHECK(cudaFree(d_uniform));
    CUDA_CHECK(cudaFree(d_normal));
}

int main(void) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        test_skip("comparison with the GPU: there is none");
        test_summary();
        return 77;
    }
    static const int sizes[] = {1, 5, 200, 257, 60000, 1 << 20};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) compare(sizes[s]);
    return test_summary();
}
