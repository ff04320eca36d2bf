// bench_cuda_cpu.cu -- what the CPU build's CUDA runtime (common/cuda_cpu.h) costs: kernels against plain OpenMP loops
// that do the same work, the time of an empty launch, and the time of a switch between fibers.
//
// CSV on stdout: name,unit,kernel,kernel_p10,kernel_p90,plain,ratio. Times are medians over at least 20 samples of 50
// us or more and 0.15 seconds; ratio is kernel / plain; plain is empty where there is nothing to compare with. Results
// are compared with the plain loop's before and after the timing; a difference is an error. Run it with
// OMP_NUM_THREADS=1 (then processor time is measured) and with 2.
#include "common/cuda_common.h"
#include "common/message.h"
#include "dev/timing.h"
#include <time.h>

#if DEVICE_IS_GPU
int main(void) {
    fprintf(stderr, "bench_cuda_cpu measures the CPU build only\n");
    return 77;
}
#else
#ifdef _OPENMP
#define PARALLEL_FOR _Pragma("omp parallel for")
#else
#define PARALLEL_FOR
#endif

enum { MAX = 1 << 20, MAX_RUNS = 20000 };

// With one thread processor time, so that other programs on the machine do not count.
static clockid_t the_clock = CLOCK_MONOTONIC;
static double seconds(void) {
    struct timespec t;
    clock_gettime(the_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// The time of one call, in microseconds.
template <class F> static timing measure(F run) {
    static double t[MAX_RUNS];
    int n = 0, batch = 0;
    run();
    for (const double begin = seconds(); !batch || seconds() - begin < 50e-6; batch++) run();
    for (const double end = seconds() + 0.15; n < 20 || (seconds() < end && n < MAX_RUNS); n++) {
        const double begin = seconds();
        for (int i = 0; i < batch; i++) run();
        t[n] = (seconds() - begin) * 1e6 / batch;
    }
    return summarise(t, n);
}

static void print_row(const char *name, const char *unit, timing k, double scale) {
    printf("%s,%s,%.4g,%.4g,%.4g,,\n", name, unit, k.median * scale, k.p10 * scale, k.p90 * scale);
}

// The results of kernel and loop, compared before and after the timing.
static float *got, *expected;
static void check(const char *name, int n) {
    for (int i = 0; i < n; i++) {
        const double g = got[i], e = expected[i];
        if (fabs(g - e) <= 1e-4 * (1 + fabs(e))) continue;
        fprintf(stderr, "%s: element %d is %g, the plain loop gives %g\n", name, i, g, e);
        exit(1);
    }
}

// timing a kernel that fills got[n] and a plain loop that fills expected[n].
template <class K, class P> static void race(const char *name, int n, K kernel, P plain) {
    memset(got, 0xff, (size_t)n * sizeof *got);
    kernel();
    plain();
    CUDA_CHECK_LAUNCH();
    check(name, n);
    const timing k = measure(kernel), p = measure(plain);
    CUDA_CHECK_LAUNCH();
    check(name, n);
    printf("%s,us,%.4g,%.4g,%.4g,%.4g,%.2f\n", name, k.median, k.p10, k.p90, p.median, k.median / p.median);
    fflush(stdout);
}

// -------------------------------------------------------------------------------------------------------- kernels
__global__ void empty(float *out) {
    if (threadIdx.x > 5000) out[0] = 1;
}
__global__ void barriers(float *out, int n, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = (float)i;
    for (int b = 0; b < count; b++) {
        __syncthreads();
        v += 1.0f;
    }
    if (i < n) out[i] = v;
}
__global__ void relu(float *__restrict__ y, const float *__restrict__ x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = fmaxf(x[i], 0.0f);
}
__global__ void bias_relu(float *__restrict__ y, const float *__restrict__ x, const float *__restrict__ b, int cols) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c < cols) y[r * cols + c] = fmaxf(x[r * cols + c] + b[c], 0.0f);
}
__global__ void adam(float *__restrict__ w, const float *__restrict__ g, float *__restrict__ m, float *__restrict__ v,
                     int n, float lr) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float mi = 0.9f * m[i] + 0.1f * g[i], vi = 0.999f * v[i] + 0.001f * g[i] * g[i];
    m[i] = mi;
    v[i] = vi;
    w[i] -= lr * mi / (sqrtf(vi) + 1e-8f);
}
__global__ void softmax_thread(float *__restrict__ y, const float *__restrict__ x, int rows, int cols) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const float *row = x + r * cols;
    float m = row[0], s = 0.0f;
    for (int c = 1; c < cols; c++) m = fmaxf(m, row[c]);
    for (int c = 0; c < cols; c++) s += expf(row[c] - m);
    for (int c = 0; c < cols; c++) y[r * cols + c] = expf(row[c] - m) / s;
}
__global__ void softmax_warp(float *__restrict__ y, const float *__restrict__ x, int rows, int cols) {
    int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *row = x + r * cols;
    float m = -FLT_MAX, s = 0.0f;
    for (int c = lane; c < cols; c += 32) m = fmaxf(m, row[c]);
    m = warp_reduce_max(m);
    for (int c = lane; c < cols; c += 32) s += expf(row[c] - m);
    s = warp_reduce_sum(s);
    for (int c = lane; c < cols; c += 32) y[r * cols + c] = expf(row[c] - m) / s;
}
__global__ void softmax_shuffle(float *__restrict__ y, const float *__restrict__ x, int rows, int cols) {
    int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *row = x + r * cols;
    float m = -FLT_MAX, s = 0.0f;
    for (int c = lane; c < cols; c += 32) m = fmaxf(m, row[c]);
    for (int o = 16; o > 0; o >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, o));
    for (int c = lane; c < cols; c += 32) s += expf(row[c] - m);
    for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(0xffffffffu, s, o);
    for (int c = lane; c < cols; c += 32) y[r * cols + c] = expf(row[c] - m) / s;
}
__global__ void row_sums_block(float *__restrict__ y, const float *__restrict__ x, int cols) {
    float s = 0.0f;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) s += x[blockIdx.x * cols + c];
    s = block_reduce_sum(s);
    if (threadIdx.x == 0) y[blockIdx.x] = s;
}
__global__ void column_sums_loop(float *__restrict__ y, const float *__restrict__ x, int rows, int cols) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float s = 0.0f;
    for (int r = 0; r < rows; r++) s += x[r * cols + c];
    y[c] = s;
}
__global__ void column_sums_16(float *__restrict__ y, const float *__restrict__ x, int rows, int cols) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, chunk = blockIdx.y, r0 = chunk * 16, last = rows - 1 - r0;
    if (c >= cols) return;
    const float *first = x + r0 * cols;
    float s = 0.0f;
    for (int k = 0; k < 16; k++) s += (k <= last ? 1.0f : 0.0f) * first[min(k, last) * cols + c];
    y[chunk * cols + c] = s;
}
__global__ void maxpool(float *__restrict__ y, const float *__restrict__ x, int w, int h) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y, p = blockIdx.z;
    if (i >= w / 2) return;
    const float *q = x + (p * h + 2 * j) * w + 2 * i;
    y[(p * (h / 2) + j) * (w / 2) + i] = fmaxf(fmaxf(q[0], q[1]), fmaxf(q[w], q[w + 1]));
}

// --------------------------------------------------------------------------------------------------- the same, plain
static void plain_relu(float *__restrict__ y, const float *__restrict__ x, int n) {
    PARALLEL_FOR
    for (int i = 0; i < n; i++) y[i] = x[i] > 0.0f ? x[i] : 0.0f;
}
static void plain_bias_relu(float *__restrict__ y, const float *__restrict__ x, const float *__restrict__ b, int rows,
                            int cols) {
    PARALLEL_FOR
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            const float v = x[r * cols + c] + b[c];
            y[r * cols + c] = v > 0.0f ? v : 0.0f;
        }
}
static void plain_adam(float *__restrict__ w, const float *__restrict__ g, float *__restrict__ m,
                       float *__restrict__ v, int n, float lr) {
    PARALLEL_FOR
    for (int i = 0; i < n; i++) {
        const float mi = 0.9f * m[i] + 0.1f * g[i], vi = 0.999f * v[i] + 0.001f * g[i] * g[i];
        m[i] = mi;
        v[i] = vi;
        w[i] -= lr * mi / (sqrtf(vi) + 1e-8f);
    }
}
static void plain_softmax(float *__restrict__ y, const float *__restrict__ x, int rows, int cols) {
    PARALLEL_FOR
    for (int r = 0; r < rows; r++) {
        const float *row = x + r * cols;
        float m = row[0], s = 0.0f;
        for (int c = 1; c < cols; c++) m = row[c] > m ? row[c] : m;
        for (int c = 0; c < cols; c++) s += expf(row[c] - m);
        for (int c = 0; c < cols; c++) y[r * cols + c] = expf(row[c] - m) / s;
    }
}
static void plain_row_sums(float *__restrict__ y, const float *__restrict__ x, int rows, int cols) {
    PARALLEL_FOR
    for (int r = 0; r < rows; r++) {
        float s[16] = {0};
        int c = 0;
        for (; c + 16 <= cols; c += 16)
            for (int k = 0; k < 16; k++) s[k] += x[r * cols + c + k];
        for (; c < cols; c++) s[0] += x[r * cols + c];
        for (int k = 1; k < 16; k++) s[0] += s[k];
        y[r] = s[0];
    }
}
static void plain_column_sums(float *__restrict__ y, const float *__restrict__ x, int rows, int cols) {
    PARALLEL_FOR
    for (int b = 0; b < cols; b += 128) {
        const int e = b + 128 < cols ? b + 128 : cols;
        for (int c = b; c < e; c++) y[c] = 0.0f;
        for (int r = 0; r < rows; r++)
            for (int c = b; c < e; c++) y[c] += x[r * cols + c];
    }
}
static void plain_maxpool(float *__restrict__ y, const float *__restrict__ x, int planes, int w, int h) {
    PARALLEL_FOR
    for (int p = 0; p < planes; p++)
        for (int j = 0; j < h / 2; j++)
            for (int i = 0; i < w / 2; i++) {
                const float *q = x + (p * h + 2 * j) * w + 2 * i;
                const float a = q[0] > q[1] ? q[0] : q[1];
                const float b = q[w] > q[w + 1] ? q[w] : q[w + 1];
                y[(p * (h / 2) + j) * (w / 2) + i] = a > b ? a : b;
            }
}

// Device array of MAX floats in [-1, 1).
static float *random_floats(unsigned seed) {
    float *p;
    CUDA_CHECK(cudaMalloc(&p, MAX * sizeof *p));
    for (int i = 0; i < MAX; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = (float)(seed >> 8) / (1 << 23) - 1.0f;
    }
    return p;
}

static void time_barriers(void) {
    char name[64];
    for (int block : {32, 256, 1024}) {
        const int n = 1 << 15;
        const timing t0 = measure([&] { barriers<<<n / block, block>>>(got, n, 0); });
        const timing t1 = measure([&] { barriers<<<n / block, block>>>(got, n, 1); });
        const timing t11 = measure([&] { barriers<<<n / block, block>>>(got, n, 11); });
        snprintf(name, sizeof name, "first barrier per thread; blocks of %d", block);
        print_row(name, "ns", {t1.median - t0.median, t1.p10 - t0.p10, t1.p90 - t0.p90, 0}, 1e3 / n);
        snprintf(name, sizeof name, "each further barrier per thread; blocks of %d", block);
        print_row(name, "ns", {t11.median - t1.median, t11.p10 - t1.p10, t11.p90 - t1.p90, 0}, 1e2 / n);
    }
}
static void race_softmax(const float *x) {
    char name[64];
    for (int cols : {10, 100, 1000}) {
        const int r = 100000 / cols;
        snprintf(name, sizeof name, "softmax of %d; thread per row", cols);
        race(name, r * cols, [&] { softmax_thread<<<ceil_div(r, 64), 64>>>(got, x, r, cols); },
             [&] { plain_softmax(expected, x, r, cols); });
        snprintf(name, sizeof name, "softmax of %d; warp_reduce", cols);
        race(name, r * cols, [&] { softmax_warp<<<ceil_div(r, 4), 128>>>(got, x, r, cols); },
             [&] { plain_softmax(expected, x, r, cols); });
        snprintf(name, sizeof name, "softmax of %d; shuffles", cols);
        race(name, r * cols, [&] { softmax_shuffle<<<ceil_div(r, 4), 128>>>(got, x, r, cols); },
             [&] { plain_softmax(expected, x, r, cols); });
    }
}
static void race_column_sums(const float *x, float *scratch, int rows) {
    char name[64];
    for (int cols : {128, 500, 1024}) {
        snprintf(name, sizeof name, "column sums of %dx%d; loop over rows", rows, cols);
        race(name, cols, [&] { column_sums_loop<<<ceil_div(cols, 64), 64>>>(got, x, rows, cols); },
             [&] { plain_column_sums(expected, x, rows, cols); });
        snprintf(name, sizeof name, "column sums of %dx%d; 16 rows a thread", rows, cols);
        race(name, cols,
             [&] {
                 float *part = scratch + rows / 16 * cols;
                 column_sums_16<<<dim3(ceil_div(cols, 256), 32), 256>>>(scratch, x, rows, cols);
                 column_sums_16<<<dim3(ceil_div(cols, 256), 2), 256>>>(part, scratch, 32, cols);
                 column_sums_16<<<dim3(ceil_div(cols, 256), 1), 256>>>(got, part, 2, cols);
             },
             [&] { plain_column_sums(expected, x, rows, cols); });
    }
}

int main(void) {
    char device[256];
    message_guard("bench_cuda_cpu");
    device_describe(device, sizeof device);
    fprintf(stderr, "%s\n", device);
    if (!strncmp(device, "CPU, 1 ", 7)) the_clock = CLOCK_PROCESS_CPUTIME_ID;
    puts("name,unit,kernel,kernel_p10,kernel_p90,plain,ratio");
    float *x = random_floats(1), *bias = random_floats(2), *scratch = random_floats(3);
    got = random_floats(4);
    expected = random_floats(5);

    print_row("empty launch 1 block of 32", "us", measure([&] { empty<<<1, 32>>>(got); }), 1);
    print_row("empty launch 2 blocks of 32", "us", measure([&] { empty<<<2, 32>>>(got); }), 1);
    print_row("empty launch 64 blocks of 256", "us", measure([&] { empty<<<64, 256>>>(got); }), 1);
    time_barriers();

    const int n = 1 << 18, rows = 512;
    race("relu", n, [&] { relu<<<n / 256, 256>>>(got, x, n); }, [&] { plain_relu(expected, x, n); });
    race("bias_relu 512x500", rows * 500,
         [&] { bias_relu<<<dim3(2, rows), 256>>>(got, x, bias, 500); },
         [&] { plain_bias_relu(expected, x, bias, rows, 500); });
    float *m = random_floats(6), *v = random_floats(7);
    plain_relu(v, x, n);
    CUDA_CHECK(cudaMemset(got, 0, n * sizeof *got));
    const timing ka = measure([&] { adam<<<n / 256, 256>>>(got, x, m, v, n, 1e-6f); });
    const timing pa = measure([&] { plain_adam(got, x, m, v, n, 1e-6f); });
    printf("adam,us,%.4g,%.4g,%.4g,%.4g,%.2f\n", ka.median, ka.p10, ka.p90, pa.median, ka.median / pa.median);
    race("maxpool 2x2 of 128 32x32", 128 * 256, [&] { maxpool<<<dim3(1, 16, 128), 16>>>(got, x, 32, 32); },
         [&] { plain_maxpool(expected, x, 128, 32, 32); });
    race_softmax(x);
    race("row sums of 256x1000; blocks of 256", 256, [&] { row_sums_block<<<256, 256>>>(got, x, 1000); },
         [&] { plain_row_sums(expected, x, 256, 1000); });
    race("row sums of 256x1000; blocks of 32", 256, [&] { row_sums_block<<<256, 32>>>(got, x, 1000); },
         [&] { plain_row_sums(expected, x, 256, 1000); });
    race_column_sums(x, scratch, rows);
    return 0;
}
#endif
