// test_cuda_cpu_errors.cu -- one deliberate mistake per run, named by the argument. test_cuda_cpu_errors.sh checks what
// the CPU build says about it. Prints the last error and a checksum of the result if the mistake lets it come so far.
#include "common/mma.cuh"

enum { N = 64 };  // elements of both arrays

__global__ void two_barriers(float *p) {
    if (threadIdx.x < 16) {
        p[threadIdx.x] = 1;
        __syncthreads();
    } else {
        __syncthreads();
    }
}
__global__ void barrier_and_shuffle(float *p) {
    float v = 1;
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    }
    p[threadIdx.x] = v;
}
__global__ void mask_mismatch(float *p) {
    float v = 1;
    if (threadIdx.x % 2) {
        v = __shfl_xor_sync(0xffffffffu, v, 2);
    } else {
        v = __shfl_xor_sync(0x7fffffffu, v, 2);
    }
    p[threadIdx.x] = v;
}
__global__ void vote_and_shuffle(float *p) {
    float v = 1;
    if (threadIdx.x % 2) {
        v = __shfl_xor_sync(0xffffffffu, v, 2);
    } else {
        v = (float)__any_sync(0xffffffffu, 1);
    }
    p[threadIdx.x] = v;
}
__global__ void half_warp(float *p) {
    p[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.0f, 16);
}
__global__ void not_in_mask(float *p) {
    p[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1);
}
__global__ void reduce_half_warp(float *p) {
    p[threadIdx.x] = warp_reduce_sum(1.0f);
}
__global__ void reduce_odd_block(float *p) {
    p[threadIdx.x] = block_reduce_sum(1.0f);
}
__global__ void reduce_after_exit(float *p) {
    if (threadIdx.x == 0) return;
    p[threadIdx.x] = block_reduce_sum(1.0f);
}
__global__ void reduce_and_barrier(float *p) {
    float v = 1;
    if (threadIdx.x < 32) {
        v = block_reduce_sum(v);
    } else {
        __syncthreads();
    }
    p[threadIdx.x] = v;
}
__global__ void mma_half_warp(float *p) {
    float d[4] = {0, 0, 0, 0};
    const unsigned a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    if (threadIdx.x < 16) mma_bf16(d, a, b);
    p[threadIdx.x] = d[0];
}
__global__ void ldmatrix_misaligned(float *p) {
    __shared__ __align__(16) float s[32 * 4];
    unsigned r[4];
    ldmatrix_x4(r, s + 2 * threadIdx.x);
    p[threadIdx.x] = (float)r[0];
}
__global__ void copy_misaligned(float *p) {
    __shared__ __align__(16) float s[N];
    async_copies c;
    c.copy16(s, p + 1, 16);
    c.commit();
    c.wait<0>();
}
__global__ void copy_never_waited(float *p) {
    __shared__ __align__(16) float s[N];
    async_copies c;
    c.copy16(s, p, 16);
    c.commit();
    c.wait<1>();
}
__global__ void oob_global(float *p, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) p[i] = 1;
}
__global__ void oob_dynamic(float *p) {
    extern __shared__ float s[];
    s[threadIdx.x + 1] = 1;
    p[0] = s[0];
}
__global__ void oob_static(float *p, int k) {
    __shared__ float s[32];
    s[threadIdx.x + k] = 1;
    p[0] = s[0];
}
__global__ void misaligned(float *p) {
    float4 *v = (float4 *)(p + 1);
    v->x = 5;
    *v = make_float4(1, 2, 3, 4);
}
// No barrier between the write and the read of a neighbour's value.
__global__ void missing_sync(float *out, const float *in) {
    __shared__ float s[N];
    s[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = s[(threadIdx.x + 1) % N];
}
// No barrier before s is overwritten.
__global__ void missing_sync_2(float *out, const float *in) {
    __shared__ float s[N];
    s[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    float v = s[N - 1 - threadIdx.x];
    s[threadIdx.x] = 2 * v;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
__device__ __attribute__((noinline)) float deep(float *p, int n) {
    volatile float a[1024];
    a[n % 1024] = p[0];
    return n ? deep(p, n - 1) + a[n % 1024] : 0.0f;
}
__global__ void big_stack(float *p) {
    __syncthreads();
    p[threadIdx.x] = deep(p, 100);
}
__global__ void fine(float *p) {
    p[threadIdx.x] = 1;
}
__global__ void fine_too(float *p) {
    p[threadIdx.x] = 1;
}
// The trip count differs within a warp.
__global__ void leave_between_barriers(float *p) {
    for (int round = 0; round <= (int)threadIdx.x; round++) __syncthreads();
    p[threadIdx.x] = 1;
}
// The two lanes that go on meet in another place than those that have left the loop would.
__global__ void return_between_barriers(float *p) {
    __syncthreads();
    if (threadIdx.x > 1) return;
    __syncthreads();
    p[threadIdx.x] = 1;
}

// Is this the mistake that was asked for?
static const char *mistake = "";
static int is(const char *name) {
    return !strcmp(mistake, name);
}

// Mistakes inside a kernel.
static void wrong_kernel(float *p, float *q) {
    if (is("none")) fine<<<1, N>>>(p);
    if (is("two_barriers")) two_barriers<<<1, 32>>>(p);
    if (is("barrier_and_shuffle")) barrier_and_shuffle<<<1, 64>>>(p);
    if (is("mask_mismatch")) mask_mismatch<<<1, 32>>>(p);
    if (is("vote_and_shuffle")) vote_and_shuffle<<<1, 32>>>(p);
    if (is("half_warp")) half_warp<<<1, 48>>>(p);
    if (is("not_in_mask")) not_in_mask<<<1, 32>>>(p);
    if (is("reduce_half_warp")) reduce_half_warp<<<1, 48>>>(p);
    if (is("reduce_odd_block")) reduce_odd_block<<<1, 33>>>(p);
    if (is("reduce_after_exit")) reduce_after_exit<<<1, 64>>>(p);
    if (is("reduce_and_barrier")) reduce_and_barrier<<<1, 64>>>(p);
    if (is("mma_half_warp")) mma_half_warp<<<1, 32>>>(p);
    if (is("ldmatrix_misaligned")) ldmatrix_misaligned<<<1, 32>>>(p);
    if (is("copy_misaligned")) copy_misaligned<<<1, 1>>>(p);
    if (is("copy_never_waited")) copy_never_waited<<<1, 1>>>(p);
    if (is("oob_global")) oob_global<<<1, 128>>>(p, N);
    if (is("oob_dynamic")) oob_dynamic<<<1, 32, 32 * sizeof(float)>>>(p);
    if (is("oob_static")) oob_static<<<1, 32>>>(p, 1);
    if (is("misaligned")) misaligned<<<1, 1>>>(p);
    if (is("missing_sync")) missing_sync<<<1, N>>>(p, q);
    if (is("missing_sync_2")) missing_sync_2<<<1, N>>>(p, q);
    if (is("big_stack")) big_stack<<<1, 32>>>(p);
    if (is("leave_between_barriers")) leave_between_barriers<<<1, 32>>>(p);
    if (is("return_between_barriers")) return_between_barriers<<<1, 32>>>(p);
}

// Mistakes of a launch.
static void wrong_launch(float *p) {
    if (is("too_many_threads")) fine<<<1, 2048>>>(p);
    if (is("no_block")) fine<<<0, 32>>>(p);
    if (is("too_much_shared")) fine<<<1, 32, 100000>>>(p);
    if (is("shared_of_another")) {
        CUDA_CHECK(cudaFuncSetAttribute(fine_too, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000));
        fine<<<1, 32, 100000>>>(p);
    }
    if (is("shared_asked")) {
        CUDA_CHECK(cudaFuncSetAttribute(fine, cudaFuncAttributeMaxDynamicSharedMemorySize, 108544));
        fine<<<1, 32, 108544>>>(p);
    }
    if (is("shared_asked_too_little")) {
        CUDA_CHECK(cudaFuncSetAttribute(fine, cudaFuncAttributeMaxDynamicSharedMemorySize, 99999));
        fine<<<1, 32, 100000>>>(p);
    }
    if (is("check_launch")) {
        fine<<<1, 2048>>>(p);
        CUDA_CHECK_LAUNCH();
    }
}

// Mistakes of the runtime's calls, with a device array *p of N floats and others on the host and on the device.
static cudaError_t wrong_call(float **p, float *host, float *q) {
    const size_t bytes = N * sizeof *host;
    cudaError_t e = cudaGetLastError();
    if (is("copy_overrun")) e = cudaMemcpy(*p, host, bytes + 4, cudaMemcpyHostToDevice);
    if (is("copy_direction")) e = cudaMemcpy(host, q, bytes, cudaMemcpyHostToDevice);
    if (is("copy_host_as_device")) e = cudaMemcpy(host, host, bytes, cudaMemcpyDeviceToDevice);
    if (is("memset_host")) e = cudaMemset(host, 0, bytes);
    if (is("free_host_pointer")) e = cudaFree(host);
    if (is("double_free")) {
        CUDA_CHECK(cudaFree(*p));
        e = cudaFree(*p);
        CUDA_CHECK(cudaMalloc(p, bytes));
        CUDA_CHECK(cudaMemset(*p, 0, bytes));
    }
    return e;
}

int main(int argc, char **argv) {
    if (argc > 1) mistake = argv[1];
    if (is("no_gpu")) device_require("test_cuda_cpu_errors");
    float *p, *q, h[N];
    for (int i = 0; i < N; i++) h[i] = (float)i;
    CUDA_CHECK(cudaMalloc(&p, sizeof h));
    CUDA_CHECK(cudaMalloc(&q, sizeof h));
    CUDA_CHECK(cudaMemcpy(q, h, sizeof h, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemset(p, 0, sizeof h));
    wrong_kernel(p, q);
    wrong_launch(p);
    if (is("check_call")) CUDA_CHECK(cudaMemset(p + 1, 0, sizeof h));
    const cudaError_t e = wrong_call(&p, h, q);
    printf("last error: %s\n", cudaGetErrorString(e));
    CUDA_CHECK(cudaMemcpy(h, p, sizeof h, cudaMemcpyDeviceToHost));
    double sum = 0;
    for (int i = 0; i < N; i++) sum = sum * 1.0001 + h[i];
    printf("checksum %.6f\n", sum);
    cudaFree(p);
    cudaFree(q);
    return 0;
}
