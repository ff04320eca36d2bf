// bench_gemm.c -- GFLOP/s of common/gemm.h on the shapes that the trainers use.
//
//     cc -std=c11 -D_GNU_SOURCE -O3 -march=native -fopenmp dev/bench/bench_gemm.c -o bench_gemm -lm            built-in
//     cc ... -DUSE_OPENBLAS dev/bench/bench_gemm.c -o bench_gemm_openblas -lopenblas -lm                       OpenBLAS
//     nvcc -O3 -arch=native -x cu dev/bench/bench_gemm.c -o bench_gemm_cuda -lcublas                             cuBLAS
//
// usage: bench_gemm [--threads N] [--only TEXT] [--rotate MIB] [--seconds S] [--library-threads] [--csv FILE]
//     --only TEXT         only shapes whose name contains TEXT
//     --rotate MIB        walk through copies of the operands that together fill MIB mebibytes, so that no product
//                         finds its operands in a cache smaller than that (default 64; 0: the same operands again and
//                         again)
//     --seconds S         at least this long per shape (default 0.3), and at least 20 products
//     --library-threads   OpenBLAS only: call cblas_sgemm with the library's own threads instead of gemm()
// Prints CSV: backend,threads,shape,trans,m,n,k,runs,median,p10,p90 (GFLOP/s; the median's p10 and p90 are over runs).
// Every product is checked against sums in double precision, before and after it was timed; a wrong one ends with
// status 1.
#include "../../common/gemm.h"
#include "../../common/message.h"
#include "../timing.h"
#include <getopt.h>
#include <math.h>

typedef struct shape {
    const char *name;
    int trans_a, trans_b, m, n, k;
} shape;

// The three products of a fully connected layer in -> out: forward, gradient of the input, gradient of the weights.
#define LAYER(name, batch, in, out)                                                                                    \
    {"forward " name, 0, 1, batch, out, in}, {"dX " name, 0, 0, batch, in, out}, { "dW " name, 1, 0, out, in, batch }

static const shape shapes[] = {
    LAYER("784-512 batch 128", 128, 784, 512),
    LAYER("512-512 batch 128", 128, 512, 512),
    LAYER("512-10 batch 128", 128, 512, 10),
    LAYER("3072-500 batch 128", 128, 3072, 500),
    LAYER("500-500 batch 128", 128, 500, 500),
    LAYER("500-10 batch 128", 128, 500, 10),
    LAYER("784-1000 batch 128", 128, 784, 1000),
    LAYER("1000-100 batch 128", 128, 1000, 100),
    LAYER("100-30 batch 128", 128, 100, 30),
    LAYER("2048-2048 batch 128", 128, 2048, 2048),
    LAYER("512-512 batch 1", 1, 512, 512),
    LAYER("784-512 batch 1", 1, 784, 512),
    LAYER("784-512 batch 60000", 60000, 784, 512),
    LAYER("512-10 batch 60000", 60000, 512, 10),
    LAYER("2-32 batch 1000", 1000, 2, 32),
    LAYER("32-32 batch 1000", 1000, 32, 32),
    LAYER("32-2 batch 1000", 1000, 32, 2),
    LAYER("384-1536 tokens 1024", 1024, 384, 1536),
    {"convolution 96x864 by 12544", 0, 0, 96, 12544, 864},
    {"square 1024", 0, 0, 1024, 1024, 1024},
    {"square 1024", 1, 0, 1024, 1024, 1024},
    {"square 1024", 0, 1, 1024, 1024, 1024},
    {"square 1024", 1, 1, 1024, 1024, 1024},
};

static void *bench_alloc(size_t bytes) {
    void *p = malloc(bytes);
    if (!p) {
        fprintf(stderr, "bench_gemm: out of memory (%zu bytes)\n", bytes);
        exit(1);
    }
    return p;
}

// Device copies of host data on a GPU; the host data itself on a CPU.
static float *to_device(float *host, size_t count) {
#ifdef __CUDACC__
    float *d;
    GEMM_CUDA_CHECK(cudaMalloc((void **)&d, count * sizeof(float)));
    GEMM_CUDA_CHECK(cudaMemcpy(d, host, count * sizeof(float), cudaMemcpyHostToDevice));
    return d;
#else
    (void)count;
    return host;
#endif
}
static void release(float *host, float *device) {
#ifdef __CUDACC__
    cudaFree(device);
#else
    (void)device;
#endif
    free(host);
}
static void synchronize(void) {
#ifdef __CUDACC__
    GEMM_CUDA_CHECK(cudaDeviceSynchronize());
#endif
}

// Checks 64 elements of C, spread over it, against sums in double. Returns the number of wrong ones.
static int count_wrong(const shape *s, const float *A, const float *B, const float *device_c, float *host_c) {
    const size_t m = (size_t)s->m, n = (size_t)s->n, k = (size_t)s->k;
#ifdef __CUDACC__
    GEMM_CUDA_CHECK(cudaMemcpy(host_c, device_c, m * n * sizeof(float), cudaMemcpyDeviceToHost));
#else
    (void)device_c;
#endif
    int wrong = 0;
    for (size_t t = 0; t < 64; t++) {
        const size_t e = t == 63 ? m * n - 1 : t * 2654435761u % (m * n), i = e / n, j = e % n;
        double sum = 0, size = 0;
        for (size_t l = 0; l < k; l++) {
            const double a = (double)A[s->trans_a ? l * m + i : i * k + l];
            const double b = (double)B[s->trans_b ? j * k + l : l * n + j];
            const double p = a * b;
            sum += p;
            size += fabs(p);
        }
        wrong += !(fabs((double)host_c[e] - sum) <= 1e-7 * (4 + sqrt((double)k)) * size);
    }
    return wrong;
}

static int library_threads;

// One product, through gemm() or, for comparison, through OpenBLAS's own threads.
static void product(gemm_context *g, const shape *s, const float *A, const float *B, float *C) {
    const int lda = s->trans_a ? s->m : s->k;
    const int ldb = s->trans_b ? s->k : s->n;
#ifdef USE_OPENBLAS
    if (library_threads) {
        const CBLAS_TRANSPOSE a = s->trans_a ? CblasTrans : CblasNoTrans;
        const CBLAS_TRANSPOSE b = s->trans_b ? CblasTrans : CblasNoTrans;
        cblas_sgemm(CblasRowMajor, a, b, s->m, s->n, s->k, 1, A, lda, B, ldb, 0, C, s->n);
        return;
    }
#endif
    gemm(g, s->trans_a, s->trans_b, s->m, s->n, s->k, 1, A, lda, B, ldb, 0, C, s->n);
}

// Measures one shape and prints its line. Returns 0, or 1 when a product was wrong.
static int bench_shape(gemm_context *g, const shape *s, double rotate_bytes, double min_seconds, int threads,
                       FILE *out) {
    enum { MAX_RUNS = 200000 };
    const size_t na = (size_t)s->m * (size_t)s->k, nb = (size_t)s->k * (size_t)s->n, nc = (size_t)s->m * (size_t)s->n;
    size_t copies = 1 + (size_t)(rotate_bytes / (double)((na + nb + nc) * sizeof(float)));
    if (copies > 4096) copies = 4096;
    float *A = (float *)bench_alloc(copies * na * sizeof(float));
    float *B = (float *)bench_alloc(copies * nb * sizeof(float));
    float *C = (float *)bench_alloc(copies * nc * sizeof(float));
    unsigned state = 1;
    for (size_t i = 0; i < copies * na; i++) {
        state = state * 1664525u + 1013904223u;
        A[i] = (float)(state >> 8) / 8388608.0f - 1;
    }
    for (size_t i = 0; i < copies * nb; i++) {
        state = state * 1664525u + 1013904223u;
        B[i] = (float)(state >> 8) / 8388608.0f - 1;
    }
    for (size_t i = 0; i < copies * nc; i++) C[i] = NAN;
    float *dA = to_device(A, copies * na), *dB = to_device(B, copies * nb), *dC = to_device(C, copies * nc);
    double *seconds = (double *)bench_alloc(MAX_RUNS * sizeof(double));
    product(g, s, dA, dB, dC);
    synchronize();
    int wrong = count_wrong(s, A, B, dC, C), runs = 0;
    for (int warm = 0; warm < 3; warm++) product(g, s, dA, dB, dC);
    synchronize();
    const double begin = gemm_clock();
    while (runs < MAX_RUNS && (runs < 20 || gemm_clock() - begin < min_seconds)) {
        const size_t c = (size_t)runs % copies;
        const double t = gemm_clock();
        product(g, s, dA + c * na, dB + c * nb, dC + c * nc);
        synchronize();
        seconds[runs++] = gemm_clock() - t;
    }
    const size_t last = (size_t)(runs - 1) % copies;
    wrong += count_wrong(s, A + last * na, B + last * nb, dC + last * nc, C + last * nc);
    const timing t = summarise(seconds, runs);
    const double gflop = 2e-9 * s->m * s->n * s->k;
    const char *threads_of = library_threads ? " own threads" : "";
    const char a = s->trans_a ? 'T' : 'N';
    const char b = s->trans_b ? 'T' : 'N';
    fprintf(out, "%s%s,%d,%s,%c%c,%d,%d,%d,%d,%.2f,%.2f,%.2f\n", gemm_backend(), threads_of, threads, s->name, a,
            b, s->m, s->n, s->k, runs, gflop / t.median, gflop / t.p90, gflop / t.p10);
    fflush(out);
    if (wrong) fprintf(stderr, "bench_gemm: %s: %d wrong elements\n", s->name, wrong);
    free(seconds);
    release(A, dA);
    release(B, dB);
    release(C, dC);
    return wrong != 0;
}

// A number of at least `low`, or a usage error.
static double number(const char *flag, const char *text, double low) {
    char *end;
    const double x = strtod(text, &end);
    if (end == text || *end || !(x >= low) || !isfinite(x)) {
        fprintf(stderr, "bench_gemm: --%s: expected a number >= %g, got '%s'\n", flag, low, text);
        exit(2);
    }
    return x;
}

static const char *only = "", *csv;
static double rotate = 64, seconds = 0.3;  // MiB of copies; for each shape
static int threads;

// The command line. Ends the program after --help and on a usage error.
static void parse(int argc, char **argv) {
    static const struct option options[] = {
        {"threads", required_argument, NULL, 't'}, {"only", required_argument, NULL, 'o'},
        {"rotate", required_argument, NULL, 'r'},  {"seconds", required_argument, NULL, 's'},
        {"library-threads", no_argument, NULL, 'l'}, {"csv", required_argument, NULL, 'c'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 't') threads = (int)number("threads", optarg, 1);
        else if (o == 'o') only = optarg;
        else if (o == 'r') rotate = number("rotate", optarg, 0);
        else if (o == 's') seconds = number("seconds", optarg, 0);
        else if (o == 'l') library_threads = 1;
        else if (o == 'c') csv = optarg;
        else {
            fprintf(o == 'h' ? stdout : stderr,
                    "usage: bench_gemm [--threads N] [--only TEXT] [--rotate MIB] [--seconds S] "
                    "[--library-threads] [--csv FILE]\n");
            exit(o == 'h' ? 0 : 2);
        }
    }
}

int main(int argc, char **argv) {
    message_guard("bench_gemm");
    parse(argc, argv);
    FILE *out = csv ? fopen(csv, "w") : stdout;
    if (!out) {
        perror(csv);
        return 1;
    }
    gemm_context g;
    char err[200];
    if (gemm_create(&g, GEMM_FP32, err, sizeof err)) {
        fprintf(stderr, "bench_gemm: %s\n", err);
        return 1;
    }
#ifdef __CUDACC__
    threads = 1;
#else
    if (threads) g.threads = threads;
    else threads = g.threads;
#endif
#ifdef USE_OPENBLAS
    if (library_threads) openblas_set_num_threads(threads);
#else
    if (library_threads) {
        fprintf(stderr, "bench_gemm: --library-threads needs a build with OpenBLAS\n");
        return 2;
    }
#endif
    fprintf(out, "backend,threads,shape,trans,m,n,k,runs,median,p10,p90\n");
    int failed = 0, measured = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strstr(shapes[i].name, only)) {
            failed += bench_shape(&g, &shapes[i], rotate * 1048576, seconds, threads, out);
            measured++;
        }
    if (!measured) {
        fprintf(stderr, "bench_gemm: no shape's name contains '%s'\n", only);
    }
    gemm_destroy(&g);
    if (csv && fclose(out)) {
        perror(csv);
        return 1;
    }
    if (!measured) return 2;
    return failed > 0;
}
