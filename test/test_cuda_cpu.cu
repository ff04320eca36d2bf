// test_cuda_cpu.cu -- the CPU build's CUDA runtime (common/cuda_cpu.h), its source rewriting (common/cu2cpp.sh) and the
// reductions of common/cuda_common.h: kernels against plain loops, and the corner cases of the scheduler.
//
// It is ordinary CUDA: built with nvcc the same checks run on a GPU. With CUDA_CPU_ORDER=reverse and random:N the same
// results are expected.
#include "common/cuda_common.h"
#include "test/test.h"

enum { N = 1 << 16 };  // elements of the largest arrays

// Pseudo-random numbers in [-1, 1).
static void fill(float *x, int n, unsigned seed) {
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / (1 << 23) - 1.0f;
    }
}

// Device copy of n elements of size bytes.
static void *upload(const void *host, size_t n, size_t size) {
    void *p;
    CUDA_CHECK(cudaMalloc(&p, n * size));
    CUDA_CHECK(cudaMemcpy(p, host, n * size, cudaMemcpyHostToDevice));
    return p;
}

// Device array of n floats, all NaN.
static float *device_floats(size_t n) {
    float *p;
    CUDA_CHECK(cudaMalloc(&p, n * sizeof *p));
    CUDA_CHECK(cudaMemset(p, 0xff, n * sizeof *p));
    return p;
}

// Compares a device array with what is expected, and frees it.
static void check_device(const char *name, float *device, const double *want, size_t n, double tol) {
    float *got = (float *)malloc(n * sizeof *got);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(got, device, n * sizeof *got, cudaMemcpyDeviceToHost));
    test_close(name, got, want, n, tol, tol);
    CUDA_CHECK(cudaFree(device));
    free(got);
}

static float x[N], y[N];
static double want[N];

// ---------------------------------------------------------------------------------------------------- elementwise
__global__ void bias_relu_1d(float *out, const float *in, const float *bias, int n, int cols) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = in[i] + bias[i % cols];
    out[i] = v > 0.0f ? v : 0.0f;
}
__global__ void bias_relu_2d(float *__restrict__ out, const float *__restrict__ in, const float *__restrict__ bias,
                             int cols) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c >= cols) return;
    out[r * cols + c] = fmaxf(in[r * cols + c] + bias[c], 0.0f);
}
__global__ void bias_relu_float4(float4 *out, const float4 *in, const float4 *bias, int n4, int cols4) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n4) return;
    float4 v = in[i], b = bias[i % cols4];
    v.x = fmaxf(v.x + b.x, 0.0f);
    v.y = fmaxf(v.y + b.y, 0.0f);
    v.z = fmaxf(v.z + b.z, 0.0f);
    v.w = fmaxf(v.w + b.w, 0.0f);
    out[i] = v;
}
__global__ void scale_grid_stride(float *__restrict__ out, const float *__restrict__ in, int n, float s) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) out[i] = in[i] * s;
}
__global__ void fill_3d(float *out, int w, int h, int d) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y * blockDim.y + threadIdx.y;
    int k = blockIdx.z * blockDim.z + threadIdx.z;
    if (i < w && j < h && k < d) out[(k * h + j) * w + i] = (float)(i + 100 * j + 10000 * k);
}

static void test_elementwise(void) {
    const int rows = 24, cols = 1020, n = rows * cols;
    fill(x, n, 1);
    fill(y, cols, 2);
    float *in = (float *)upload(x, n, 4), *bias = (float *)upload(y, cols, 4), *out;
    for (int i = 0; i < n; i++) want[i] = fmaxf(x[i] + y[i % cols], 0.0f);
    out = device_floats(n);
    bias_relu_1d<<<ceil_div(n, 256), 256>>>(out, in, bias, n, cols);
    check_device("bias_relu_1d", out, want, n, 0);
    out = device_floats(n);
    bias_relu_2d<<<dim3(ceil_div(cols, 128), rows), 128>>>(out, in, bias, cols);
    check_device("bias_relu_2d", out, want, n, 0);
    out = device_floats(n);
    bias_relu_float4<<<ceil_div(n / 4, 96), 96>>>((float4 *)out, (const float4 *)in, (const float4 *)bias, n / 4,
                                                  cols / 4);
    check_device("bias_relu_float4", out, want, n, 0);
    for (int i = 0; i < n; i++) want[i] = x[i] * 1.5f;
    out = device_floats(n);
    scale_grid_stride<<<7, 33>>>(out, in, n, 1.5f);
    check_device("scale_grid_stride", out, want, n, 0);
    const int w = 19, h = 7, d = 5;
    for (int i = 0; i < w * h * d; i++) want[i] = i % w + 100 * (i / w % h) + 10000 * (i / w / h);
    out = device_floats(w * h * d);
    fill_3d<<<dim3(3, 2, 2), dim3(8, 4, 3)>>>(out, w, h, d);
    check_device("fill_3d", out, want, w * h * d, 0);
    CUDA_CHECK(cudaFree(in));
    CUDA_CHECK(cudaFree(bias));
}

// ----------------------------------------------------------------------------------------------------- reductions
// One warp per row, several rows per block; the shuffles written out.
__global__ void softmax_shuffles(float *out, const float *in, int rows, int cols) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float m = -FLT_MAX, s = 0.0f;
    for (int c = lane; c < cols; c += 32) m = fmaxf(m, in[row * cols + c]);
    for (int o = 16; o > 0; o >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, o));
    for (int c = lane; c < cols; c += 32) s += expf(in[row * cols + c] - m);
    for (int o = 16; o > 0; o >>= 1) s += __shfl_down_sync(0xffffffffu, s, o);
    s = __shfl_sync(0xffffffffu, s, 0);
    for (int c = lane; c < cols; c += 32) out[row * cols + c] = expf(in[row * cols + c] - m) / s;
}
__global__ void softmax_warp_reduce(float *out, const float *in, int rows, int cols) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float m = -FLT_MAX, s = 0.0f;
    for (int c = lane; c < cols; c += 32) m = fmaxf(m, in[row * cols + c]);
    m = warp_reduce_max(m);
    for (int c = lane; c < cols; c += 32) s += expf(in[row * cols + c] - m);
    s = warp_reduce_sum(s);
    for (int c = lane; c < cols; c += 32) out[row * cols + c] = expf(in[row * cols + c] - m) / s;
}
__global__ void softmax_block_reduce(float *out, const float *in, int cols) {
    const float *row = in + blockIdx.x * cols;
    double m = -DBL_MAX, s = 0;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) m = fmax(m, (double)row[c]);
    m = block_reduce_max(m);
    for (int c = threadIdx.x; c < cols; c += blockDim.x) s += exp(row[c] - m);
    s = block_reduce_sum(s);
    for (int c = threadIdx.x; c < cols; c += blockDim.x) out[blockIdx.x * cols + c] = (float)(exp(row[c] - m) / s);
}
// Every thread writes what it got from each of the reductions; t is the thread's number in its block.
__global__ void all_reductions(float *out, const float *in) {
    int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int n = blockDim.x * blockDim.y * blockDim.z;
    float v = in[t];
    double d = v;
    out[t] = warp_reduce_sum(v);
    out[n + t] = warp_reduce_max(v);
    out[2 * n + t] = (float)warp_reduce_sum(d);
    out[3 * n + t] = (float)warp_reduce_max(d);
    out[4 * n + t] = block_reduce_sum(v);
    out[5 * n + t] = block_reduce_max(v);
    out[6 * n + t] = (float)block_reduce_sum(d);
    out[7 * n + t] = (float)block_reduce_max(d);
}
// The same bits as the five shuffles: 1 if so.
__global__ void same_bits(float *out, const float *in) {
    float v = in[threadIdx.x], s = v;
    for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(0xffffffffu, s, o);
    out[threadIdx.x] = s == warp_reduce_sum(v) ? 1.0f : 0.0f;
}
__global__ void block_sum_tree(float *out, const float *in, int n) {
    extern __shared__ float part[];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    part[t] = i < n ? in[i] : 0.0f;
    __syncthreads();
    for (int o = blockDim.x / 2; o > 0; o >>= 1) {
        if (t < o) part[t] += part[t + o];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = part[0];
}
// Column sums of 16 rows, the idiom of cuda_cpu.h.
__global__ void column_sums_16(float *__restrict__ out, const float *__restrict__ in, int rows, int cols) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, chunk = blockIdx.y, r0 = chunk * 16, last = rows - 1 - r0;
    if (c >= cols) return;
    const float *first = in + r0 * cols;
    float s = 0.0f;
    for (int k = 0; k < 16; k++) s += (k <= last ? 1.0f : 0.0f) * first[min(k, last) * cols + c];
    out[chunk * cols + c] = s;
}

static void reference_softmax(double *out, const float *in, int rows, int cols) {
    for (int r = 0; r < rows; r++) {
        double m = in[r * cols], s = 0;
        for (int c = 1; c < cols; c++) m = in[r * cols + c] > m ? in[r * cols + c] : m;
        for (int c = 0; c < cols; c++) s += exp(in[r * cols + c] - m);
        for (int c = 0; c < cols; c++) out[r * cols + c] = exp(in[r * cols + c] - m) / s;
    }
}

static void test_softmax(void) {
    const int rows = 37, all_cols[] = {10, 32, 777};
    for (int cols : all_cols) {
        const int n = rows * cols;
        fill(x, n, 3);
        reference_softmax(want, x, rows, cols);
        float *in = (float *)upload(x, n, 4), *out = device_floats(n);
        softmax_shuffles<<<ceil_div(rows, 4), 128>>>(out, in, rows, cols);
        check_device("softmax_shuffles", out, want, n, 1e-6);
        out = device_floats(n);
        softmax_warp_reduce<<<ceil_div(rows, 4), 128>>>(out, in, rows, cols);
        check_device("softmax_warp_reduce", out, want, n, 1e-6);
        out = device_floats(n);
        softmax_block_reduce<<<rows, 96>>>(out, in, cols);
        check_device("softmax_block_reduce", out, want, n, 1e-6);
        CUDA_CHECK(cudaFree(in));
    }
}

static void test_reductions(void) {
    const dim3 shapes[] = {dim3(32), dim3(8, 4), dim3(96), dim3(16, 3, 4), dim3(1024), dim3(4, 4, 64)};
    fill(x, 1024, 4);
    float *in = (float *)upload(x, 1024, 4);
    for (const dim3 &shape : shapes) {
        const int n = shape.x * shape.y * shape.z;
        double sum = 0, max = -1;
        for (int t = 0; t < n; t++) {
            sum += x[t];
            max = x[t] > max ? x[t] : max;
        }
        for (int t = 0; t < n; t++) {
            double warp_sum = 0, warp_max = -1;
            for (int i = t / 32 * 32; i < t / 32 * 32 + 32; i++) {
                warp_sum += x[i];
                warp_max = x[i] > warp_max ? x[i] : warp_max;
            }
            want[t] = want[2 * n + t] = warp_sum;
            want[n + t] = want[3 * n + t] = warp_max;
            want[4 * n + t] = want[6 * n + t] = sum;
            want[5 * n + t] = want[7 * n + t] = max;
        }
        float *out = device_floats(8 * n);
        all_reductions<<<1, shape>>>(out, in);
        check_device("all_reductions", out, want, 8 * n, 1e-5);
    }
    for (int i = 0; i < 256; i++) want[i] = 1;
    float *out = device_floats(256);
    same_bits<<<1, 256>>>(out, in);
    check_device("same_bits", out, want, 256, 0);
    CUDA_CHECK(cudaFree(in));

    const int n = 10000, blocks = ceil_div(n, 256);
    fill(x, n, 5);
    in = (float *)upload(x, n, 4);
    for (int b = 0; b < blocks; b++) {
        want[b] = 0;
        for (int i = b * 256; i < n && i < (b + 1) * 256; i++) want[b] += x[i];
    }
    out = device_floats(blocks);
    block_sum_tree<<<blocks, 256, 256 * sizeof(float)>>>(out, in, n);
    check_device("block_sum_tree", out, want, blocks, 1e-5);
    CUDA_CHECK(cudaFree(in));
}

static void test_column_sums(void) {
    const int cols = 301, all_rows[] = {1, 15, 16, 17, 200};
    for (int rows : all_rows) {
        fill(x, rows * cols, 6);
        for (int c = 0; c < cols; c++) {
            want[c] = 0;
            for (int r = 0; r < rows; r++) want[c] += x[r * cols + c];
        }
        float *a = (float *)upload(x, rows * cols, 4), *b;
        for (int r = rows; a && (r > 1 || r == rows); r = ceil_div(r, 16)) {
            b = device_floats(ceil_div(r, 16) * cols);
            column_sums_16<<<dim3(ceil_div(cols, 64), ceil_div(r, 16)), 64>>>(b, a, r, cols);
            CUDA_CHECK(cudaFree(a));
            a = b;
            if (r == 1) break;
        }
        check_device("column_sums_16", a, want, cols, 1e-5);
    }
}

// ------------------------------------------------------------------------------------------- shared memory, atomics
template <int T>
__global__ void matmul_tiled(float *C, const float *A, const float *B, int M, int N_, int K) {
    __shared__ float As[T][T], Bs[T][T];
    const int tx = threadIdx.x, ty = threadIdx.y, row = blockIdx.y * T + ty, col = blockIdx.x * T + tx;
    float acc = 0.0f;
    for (int k0 = 0; k0 < K; k0 += T) {
        As[ty][tx] = row < M && k0 + tx < K ? A[row * K + k0 + tx] : 0.0f;
        Bs[ty][tx] = col < N_ && k0 + ty < K ? B[(k0 + ty) * N_ + col] : 0.0f;
        __syncthreads();
        for (int k = 0; k < T; k++) acc += As[ty][k] * Bs[k][tx];
        __syncthreads();
    }
    if (row < M && col < N_) C[row * N_ + col] = acc;
}

static void test_matmul(void) {
    const int M = 70, K = 45, cols = 51;
    fill(x, M * K, 7);
    fill(y, K * cols, 8);
    for (int i = 0; i < M * cols; i++) {
        want[i] = 0;
        for (int k = 0; k < K; k++) want[i] += (double)x[i / cols * K + k] * y[k * cols + i % cols];
    }
    float *a = (float *)upload(x, M * K, 4), *b = (float *)upload(y, K * cols, 4), *c = device_floats(M * cols);
    matmul_tiled<32><<<dim3(ceil_div(cols, 32), ceil_div(M, 32)), dim3(32, 32)>>>(c, a, b, M, cols, K);
    check_device("matmul_tiled<32>", c, want, M * cols, 1e-5);
    c = device_floats(M * cols);
    matmul_tiled<8><<<dim3(ceil_div(cols, 8), ceil_div(M, 8)), dim3(8, 8)>>>(c, a, b, M, cols, K);
    check_device("matmul_tiled<8>", c, want, M * cols, 1e-5);
    CUDA_CHECK(cudaFree(a));
    CUDA_CHECK(cudaFree(b));
}

struct Counters {
    int add, sub, low, high, cas;
    unsigned all, any, parity, wrap;
    unsigned long long big;
    float f;
    double d;
};
__global__ void count(Counters *c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicAdd(&c->add, i);
    atomicSub(&c->sub, 2);
    atomicMin(&c->low, -i);
    atomicMax(&c->high, i);
    atomicAnd(&c->all, ~(1u << i % 7));
    atomicOr(&c->any, 1u << i % 7);
    atomicXor(&c->parity, 1u << i % 32);
    atomicInc(&c->wrap, 9);
    atomicAdd(&c->big, 1ull << 33);
    atomicAdd(&c->f, 0.5f);
    atomicAdd(&c->d, 0.25);
    int old = 0, seen;
    while ((seen = atomicCAS(&c->cas, old, old + 3)) != old) old = seen;
}

static void test_atomics(void) {
    const int n = 1000;
    Counters c = {};
    c.all = ~0u;
    Counters *device = (Counters *)upload(&c, 1, sizeof c);
    count<<<ceil_div(n, 96), 96>>>(device, n);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(&c, device, sizeof c, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFree(device));
    CHECK(c.add == n * (n - 1) / 2, "atomicAdd on int");
    CHECK(c.sub == -2 * n, "atomicSub");
    CHECK(c.low == 1 - n && c.high == n - 1, "atomicMin and atomicMax");
    CHECK(c.all == ~0x7fu && c.any == 0x7fu, "atomicAnd and atomicOr");
    unsigned parity = 0;
    for (int i = 0; i < n; i++) parity ^= 1u << i % 32;
    CHECK(c.parity == parity, "atomicXor");
    CHECK(c.wrap == (unsigned)n % 10, "atomicInc wraps after 9");
    CHECK(c.big == (unsigned long long)n << 33, "atomicAdd on unsigned long long");
    CHECK(c.f == 0.5f * n && c.d == 0.25 * n, "atomicAdd on float and double");
    CHECK(c.cas == 3 * n, "atomicCAS loop");
}

// --------------------------------------------------------------------------------------------- scheduler's corners
// Threads that leave before the others meet, and blocks larger than the data.
__global__ void early_exit(float *out, int live) {
    __shared__ int arrived;
    if ((int)threadIdx.x >= live) return;
    if (threadIdx.x == 0) arrived = 0;
    __syncthreads();
    atomicAdd(&arrived, 1);
    __syncthreads();
    out[blockIdx.x * live + threadIdx.x] = (float)arrived;
}
// The first threads leave, the later ones meet.
__global__ void early_exit_low(float *out, int dead) {
    const int t = threadIdx.x;
    if (t < dead) return;
    __syncthreads();
    out[t - dead] = (float)t;
    __syncthreads();
}
// Only the last thread of the block ever synchronises.
__global__ void last_alone(float *out) {
    const int t = threadIdx.x;
    out[t] = (float)t;
    if (t != (int)blockDim.x - 1) return;
    __syncthreads();
    out[t] += 1000.0f;
}
// Warps leave one by one while the others go on meeting. (Lanes of one warp must not: see cuda_cpu.h.)
__global__ void leave_in_turn(float *out) {
    __shared__ int present;
    const int t = threadIdx.x, rounds = (blockDim.x + 31) / 32 - t / 32;
    if (t == 0) present = 0;
    __syncthreads();
    for (int round = 0; round < rounds; round++) {
        atomicAdd(&present, 1);
        __syncthreads();
    }
    if (t == 0) out[0] = (float)present;
}
// Warps use different intrinsics at the same time and then meet at one barrier.
__global__ void warps_differ(float *out) {
    const int t = threadIdx.x, warp = t / 32;
    float v = (float)t;
    if (warp == 0) {
        v = warp_reduce_sum(v);
    } else if (warp == 1) {
        v = __shfl_sync(0xffffffffu, v, 7);
    } else {
        v = (float)__popc(__ballot_sync(0xffffffffu, t % 4 == 0));
    }
    __syncthreads();
    out[t] = v;
}
// Masks of part of a warp, widths, all the shuffles, votes; the block has three dimensions.
__global__ void shuffles(float *out) {
    const int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x, lane = t % 32;
    int a = t;
    if (lane < 16) {
        for (int o = 8; o > 0; o /= 2) a += __shfl_xor_sync(0x0000ffffu, a, o);
    } else {
        for (int o = 4; o > 0; o /= 2) a += __shfl_xor_sync(0xffff0000u, a, o);
    }
    float *o = out + 10 * t;
    o[0] = (float)a;
    o[1] = (float)__shfl_up_sync(~0u, t, 3);
    o[2] = (float)__shfl_sync(~0u, t, 5, 8);
    o[3] = (float)__shfl_down_sync(~0u, t, 2, 4);
    o[4] = (float)(__ballot_sync(~0u, t % 3 == 0) & 0xffffu);
    __syncwarp();
    o[5] = (float)__shfl_xor_sync(~0u, 0.5 * t, 1);
    o[6] = (float)(__shfl_sync(~0u, (long long)t << 40, lane ^ 2) >> 40);
    o[7] = (float)__any_sync(~0u, t == 40);
    o[8] = (float)__all_sync(~0u, t >= 32);
    o[9] = (float)__shfl_up_sync(~0u, t, 1, 16);
}
// Shared memory starts afresh in every block, static and dynamic side by side.
__global__ void static_and_dynamic(float *out) {
    extern __shared__ __align__(16) unsigned char bytes[];
    __shared__ float s[64];
    float *d = (float *)bytes;
    const int t = threadIdx.x, n = blockDim.x;
    s[t] = (float)t;
    d[t] = (float)(blockIdx.x * 100 + t);
    __syncthreads();
    out[blockIdx.x * n + t] = s[n - 1 - t] + d[(t + 1) % n];
}
__global__ void many_barriers(float *out, int n) {
    __shared__ float ring[128];
    const int t = threadIdx.x;
    float v = (float)t;
    for (int i = 0; i < n; i++) {
        ring[t] = v;
        __syncthreads();
        v = ring[(t + 1) % 128];
        __syncthreads();
    }
    out[t] = v;
}
// A big frame on the fiber's stack.
__global__ void big_frame(float *out) {
    float a[2048];
    const int t = threadIdx.x;
    for (int i = 0; i < 2048; i++) a[i] = (float)(i + t);
    __syncthreads();
    float s = 0.0f;
    for (int i = t % 2; i < 2048; i += 512) s += a[i];
    out[t] = s;
}
__constant__ float factor[2];
__device__ int blocks_done;
// The last block to finish adds up what all have left.
__global__ void last_block(float *out, float *part, const float *in, int n) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        float s = 0.0f;
        for (int i = blockIdx.x; i < n; i += gridDim.x) s += in[i] * factor[1];
        part[blockIdx.x] = s;
        __threadfence();
        last = atomicAdd(&blocks_done, 1) == (int)gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    float s = 0.0f;
    for (int b = 0; b < (int)gridDim.x; b++) s += part[b];
    *out = s;
}

// Blocks and warps whose threads leave early, at different times, or take different ways.
static void test_exits(void) {
    for (int i = 0; i < 4 * 77; i++) want[i] = 77;
    float *out = device_floats(4 * 77);
    early_exit<<<4, 100>>>(out, 77);
    check_device("early_exit", out, want, 4 * 77, 0);
    for (int i = 0; i < 60; i++) want[i] = i + 40;
    out = device_floats(60);
    early_exit_low<<<1, 100>>>(out, 40);
    check_device("early_exit_low", out, want, 60, 0);
    for (int i = 0; i < 70; i++) want[i] = i == 69 ? 1069 : i;
    out = device_floats(70);
    last_alone<<<1, 70>>>(out);
    check_device("last_alone", out, want, 70, 0);
    want[0] = 32 * (5 + 4 + 3 + 2) + 22;
    out = device_floats(1);
    leave_in_turn<<<1, 150>>>(out);
    check_device("leave_in_turn", out, want, 1, 0);
    for (int i = 0; i < 32; i++) want[i] = 31 * 16;
    for (int i = 32; i < 96; i++) want[i] = i < 64 ? 39 : 8;
    out = device_floats(96);
    warps_differ<<<1, 96>>>(out);
    check_device("warps_differ", out, want, 96, 0);
}

static void test_shuffles(void) {
    for (int t = 0; t < 128; t++) {
        const int lane = t % 32, width = lane < 16 ? 16 : 8, first = t / 32 * 32;
        double *w = want + 10 * t;
        w[0] = 0;
        for (int i = 0; i < width; i++) w[0] += t / width * width + i;
        w[1] = lane >= 3 ? t - 3 : t;
        w[2] = t / 8 * 8 + 5;
        w[3] = t % 4 < 2 ? t + 2 : t;
        w[4] = 0;
        for (int i = 0; i < 16; i++) w[4] += (first + i) % 3 == 0 ? 1 << i : 0;
        w[5] = 0.5 * (t ^ 1);
        w[6] = t ^ 2;
        w[7] = t / 32 == 1;
        w[8] = t >= 32;
        w[9] = t % 16 ? t - 1 : t;
    }
    float *out = device_floats(1280);
    shuffles<<<1, dim3(8, 4, 4)>>>(out);
    check_device("shuffles", out, want, 1280, 0);
}

// Shared memory of both kinds, many barriers, large stack frames, a counter over blocks.
static void test_blocks(void) {
    for (int i = 0; i < 5 * 64; i++) want[i] = 63 - i % 64 + i / 64 * 100 + (i + 1) % 64;
    float *out = device_floats(5 * 64);
    static_and_dynamic<<<5, 64, 64 * sizeof(float)>>>(out);
    check_device("static_and_dynamic", out, want, 5 * 64, 0);
    for (int i = 0; i < 128; i++) want[i] = (i + 500) % 128;
    out = device_floats(128);
    many_barriers<<<1, 128>>>(out, 500);
    check_device("many_barriers", out, want, 128, 0);
    for (int t = 0; t < 64; t++) want[t] = 4.0 * (t + t % 2) + 512 * 6;
    out = device_floats(64);
    big_frame<<<2, 64>>>(out);
    check_device("big_frame", out, want, 64, 0);

    const float factors[2] = {0, 2};
    const int zero = 0, n = 10000;
    CUDA_CHECK(cudaMemcpyToSymbol(factor, factors, sizeof factors));
    CUDA_CHECK(cudaMemcpyToSymbol(blocks_done, &zero, sizeof zero));
    fill(x, n, 9);
    want[0] = 0;
    for (int i = 0; i < n; i++) want[0] += 2 * x[i];
    float *in = (float *)upload(x, n, 4), *part = device_floats(37);
    out = device_floats(1);
    last_block<<<37, 64>>>(out, part, in, n);
    check_device("last_block", out, want, 1, 1e-4);
    int done = 0;
    CUDA_CHECK(cudaMemcpyFromSymbol(&done, blocks_done, sizeof done));
    CHECK(done == 37, "every block was counted");
    CUDA_CHECK(cudaFree(in));
    CUDA_CHECK(cudaFree(part));
}

// ------------------------------------------------------------------------------------------------------ rewriting
template <int A, int B> __global__ void store_ab(float *out, float v) {
    out[threadIdx.x] = A * 10 + B + v;
}
template <class T> __global__ void store_size(float *out) {
    out[threadIdx.x] = (float)sizeof(T);
}
template <class T> struct Pair {
    T a, b;
};
namespace inner {
__global__ void store(float *out, int v) {
    out[threadIdx.x] = (float)v;
}
}  // namespace inner
#define STORE_TWICE(out, v)                                                                                            \
    inner::store<<<1, 1>>>(out, v);                                                                                  \
    inner::store<<<1, 1>>>((out) + 1, v);
/* A comment may hold a launch, whole or in parts: inner::store<<<1, 1>>>(out, 1);  kernel<<<grid,
   block>>>(x) and extern __shared__ float nothing[3]; "and a quote
 */

// Launches in every shape that cu2cpp.sed knows.
static void test_rewriting(void) {
    float *out = device_floats(16);
    const int shift = 64, a = 3, b = 4;
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreate(&stream));
    store_ab<1, 2><<<1, 1>>>(out, 0.5f);                          // <<<not a launch
    store_ab<3, 4> <<<dim3(1, 1), dim3(1), 0, stream>>> (out + 1, 0.25f);  /* store_ab<<< */
    inner::store<<<1, shift >> 6>>>(out + 2,
                                    /* the arguments may
                                       span lines <<< */
                                    a < b ? 7 : 8);
    if (a < b) inner::store<<<1, 1>>>(out + 3, 1 << 3); else inner::store<<<1, 1>>>(out + 3, 0);
    store_size<Pair<double>><<<1, 1>>>(out + 4);
    store_size<unsigned char><<<1, 1, 4 * sizeof(float)>>>(out + 5); store_size<float4><<<1, 1>>>(out + 6);
    STORE_TWICE(out + 7, 5)
    const char *text = "inner::store<<<1, 1>>>(out) \" /* in a string"; const char quote = '"';
    inner::store<<<1, 1>>>(out + 9, (int)strlen(text) + (quote == '"' ? 100'000 : 0));
    CUDA_CHECK(cudaStreamDestroy(stream));
    const double expected[] = {12.5, 34.25, 7, 8, 16, 1, 16, 5, 5, 100044};
    for (int i = 0; i < 10; i++) want[i] = expected[i];
    float *first = device_floats(10);
    CUDA_CHECK(cudaMemcpy(first, out, 10 * sizeof *out, cudaMemcpyDeviceToDevice));
    check_device("rewritten launches", first, want, 10, 0);
    CHECK(__LINE__ == 610, "line numbers are those of the source");
    CUDA_CHECK(cudaFree(out));
}

// ----------------------------------------------------------------------------------------- intrinsics, runtime API
// One value per intrinsic; the expected ones are in test_intrinsics in the same order.
__global__ void intrinsics(double *out) {
    int i = 0;
    const float nan = __uint_as_float(0x7fc00000u);
    out[i++] = fmaxf(nan, 1.0f);
    out[i++] = fminf(2.0f, nan);
    out[i++] = fmax(1.0, 2.0);
    out[i++] = fmin(__longlong_as_double(0x7ff8000000000000ll), -3.0);
    out[i++] = min(3, 4u) + max(2.5f, 1.0);
    out[i++] = rsqrtf(4.0f) + rsqrt(16.0);
    out[i++] = __float2int_rn(2.5f) * 1000 + __float2int_rz(-2.7f) * 100 + __float2int_ru(0.1f) * 10 +
               __float2int_rd(-0.1f);
    out[i++] = (double)__double2ll_rn(3.5e10 + 0.5);
    out[i++] = __int_as_float(__float_as_int(1.5f)) + __uint_as_float(__float_as_uint(-0.25f));
    out[i++] = (double)__double_as_longlong(0.0) + (double)__umulhi(0x80000000u, 6u);
    out[i++] = (double)__umul64hi(1ull << 63, 10ull);
    out[i++] = (double)(__umul64hi(0xfedcba9876543210ull, 0x123456789abcdef0ull) & 0xffffffffull);
    out[i++] = (double)(__umul64hi(0xfedcba9876543210ull, 0x123456789abcdef0ull) >> 32);
    out[i++] = (double)(0 - __umul64hi(~0ull, ~0ull));
    out[i++] = __popc(0xf0f0u) + 100 * __popcll(~0ull) + 10000 * __clz(1);
    out[i++] = __ffs(8) + 100 * __clz(0) + 10000 * __ffsll(1ll << 40) + 1000000 * __clzll(1ll);
    out[i++] = (double)__brev(1u) + __brev(6u);
    out[i++] = fmaf(2.0f, 3.0f, 4.0f) + __fdividef(1.0f, 4.0f) + __saturatef(7.0f);
    const double2 d = make_double2(1.0, 2.0);
    const uchar4 u = make_uchar4(1, 2, 3, 255);
    const uint4 w = make_uint4(1, 2, 3, 4);
    out[i++] = d.x + d.y + u.w + w.z;
    out[i++] = (double)(sizeof(double2) + 100 * alignof(float4) + 10000 * sizeof(uchar4) + 1000000 * sizeof(float3));
}

static void test_intrinsics(void) {
    const double expected[] = {1, 2, 2, -3, 5.5, 0.75, 1809, 3.5e10, 1.25, 3, 5, 3615323170.0, 304062474, 2, 316408,
                               63413204, 2147483648.0 + 1610612736.0, 11.25, 261, 12041616};
    enum { n = sizeof expected / sizeof *expected };
    double got[n], *device;
    CUDA_CHECK(cudaMalloc(&device, sizeof got));
    intrinsics<<<1, 1>>>(device);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(got, device, sizeof got, cudaMemcpyDeviceToHost));
    test_close_d("intrinsics", got, expected, n, 1e-6, 0);
    CUDA_CHECK(cudaFree(device));
}

static void test_queries(void) {
    char text[300];
    device_describe(text, sizeof text);
    printf("device: %s\n", text);
    CHECK(strlen(text) > 5, "the device has a description");
    CHECK(!strncmp(text, "CPU, ", 5) == !DEVICE_IS_GPU, "the description says CPU on a CPU");
    device_describe(text, 8);
    CHECK(strlen(text) == 7, "a description that does not fit is cut");
    CHECK(ceil_div(0, 5) == 0 && ceil_div(1, 5) == 1 && ceil_div(10, 5) == 2, "ceil_div");

    int devices = 0, device = -1, value = 0;
    size_t available = 0, total = 0;
    CUDA_CHECK(cudaGetDeviceCount(&devices));
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    CUDA_CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrWarpSize, 0));
    CHECK(devices >= 1 && device == 0 && available <= total && total > 0 && value == 32, "device queries");
    CHECK(cudaSetDevice(99) == cudaErrorInvalidDevice, "no device 99");
    CHECK(cudaPeekAtLastError() == cudaErrorInvalidDevice && cudaGetLastError() == cudaErrorInvalidDevice &&
              cudaGetLastError() == cudaSuccess,
          "an error is kept until cudaGetLastError");
}

static void test_streams(void) {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    float ms = -1.0f, *host, *memory, *result;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    CUDA_CHECK(cudaHostAlloc(&host, 256 * sizeof *host, cudaHostAllocDefault));
    CUDA_CHECK(cudaMalloc(&memory, 256 * sizeof *memory));
    CUDA_CHECK(cudaMalloc(&result, 256 * sizeof *result));
    for (int i = 0; i < 256; i++) host[i] = (float)i;
    CUDA_CHECK(cudaEventRecord(begin, stream));
    CUDA_CHECK(cudaMemcpyAsync(memory, host, 256 * sizeof *host, cudaMemcpyHostToDevice, stream));
    scale_grid_stride<<<1, 64, 0, stream>>>(result, memory, 256, 2.0f);
    CUDA_CHECK(cudaMemsetAsync(result, 0, sizeof *result, stream));
    CUDA_CHECK(cudaMemcpyAsync(host, result, 256 * sizeof *host, cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    for (int i = 0; i < 256; i++) want[i] = 2 * i;
    test_close("a stream's copies and kernel, in order", host, want, 256, 0, 0);
    CHECK(ms >= 0, "events give a time");
    cudaPointerAttributes attributes;
    CUDA_CHECK(cudaPointerGetAttributes(&attributes, memory + 255));
    CHECK(attributes.type == cudaMemoryTypeDevice, "a device pointer is known as one");
    CUDA_CHECK(cudaPointerGetAttributes(&attributes, host));
    CHECK(attributes.type == cudaMemoryTypeHost, "a pinned host pointer is known as one");
    CUDA_CHECK(cudaPointerGetAttributes(&attributes, want));
    CHECK(attributes.type == cudaMemoryTypeUnregistered, "an ordinary pointer is unregistered");
    CUDA_CHECK(cudaFreeHost(host));
    CUDA_CHECK(cudaFree(memory));
    CUDA_CHECK(cudaFree(result));
    CUDA_CHECK(cudaFree(nullptr));
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    CUDA_CHECK(cudaStreamDestroy(stream));
    device_synchronize();
}

int main(void) {
    test_elementwise();
    test_softmax();
    test_reductions();
    test_column_sums();
    test_matmul();
    test_atomics();
    test_exits();
    test_shuffles();
    test_blocks();
    test_rewriting();
    test_intrinsics();
    test_queries();
    test_streams();
    return test_summary();
}
