// kernels.h -- the harness of dev/kernels: declares problems, checks, times and lists every variant of an operation.
//
// A file of dev/kernels describes its operations in one table and hands over:
//
//     enum { A, B, C };                                      // the buffers, in the order of declaration
//     static void gemm_problem(problem *p) {                 // for the shape p->dim and the precision of p->storage
//         input(p, "A", p->storage, (size_t)m * k, -1, 1);   //     uniform random numbers; returns them for changes
//         output(p, "C", F32, (size_t)m * n, 1e-6, 1e-5);    //     an element may be off by abs + rel * |wanted|
//         p->bytes = ...;                                    //     what must at least be moved
//         p->flops = ...;                                    //     and computed
//     }
//     static void gemm_reference(problem *p) { ... wanted(p, C)[i] = ... given(p, A)[j] ... }   // in double
//     static void run_naive(const call *c) {
//         naive<<<..., c->block>>>(FLOATS(c, C), FLOATS(c, A), ..., c->dim[0], ...);
//     }
//     static const variant gemm_variants[] = {
//         {"naive", "one thread per element of C", run_naive, FP32, 0, {64, 256}, NULL, 0}, ...};
//     static const operation operations[] = {
//         {"gemm", "C[m][n] = A[m][k] B[k][n]", "m n k", gemm_problem, gemm_reference, VARIANTS(gemm_variants),
//          "1x1x1 33x65x17", "512x512x512", "4096x4096x4096"}};
//     int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
//
// The program then has three commands, with --op, --variant (part of the name), --shape MxNxK, --block as filters:
//     list     one line per variant, from the same table that test and bench run
//     test     every variant, shape and block size: from poisoned outputs and scratch memory, twice (same bits both
//              times). Prints a hash of all results, so that runs in other thread orders can be compared. Exit status 1
//              on a failure.
//     bench    CSV on stdout: for every variant the best block size (all are tried), median, p10, p90, percent of the
//              floor. At least 20 runs and --seconds 1, at most 3 times as many seconds. --smoke: next to no runs, to
//              test the harness itself.
//
// What a run must survive, before the timing and after it (a variant that only works once fails, too):
//   - every output element is written (poison is all ones: NaN, -1), finite and within its tolerance (test.h compares);
//   - the 256 bytes on both sides of every buffer keep their bits, and so do inputs and all that is not an output.
//     Under AddressSanitizer these guards are its own.
// Inputs rotate: the sets of buffers together are 4 times the last-level cache, so no run finds its input there.
// The floor is the larger of two times: bytes over the rate of a plain copy, and flops over the rate of the best matrix
// product at hand. Both rates are measured in the same run. An operation that needs the second one has
// `#define KERNELS_PRODUCT` before the include.
#pragma once
#include "common/cuda_common.h"
#include "common/mma.cuh"
#include "common/cli.h"
#include "test/test.h"
#include "dev/timing.h"
#include <sys/time.h>
#ifdef KERNELS_PRODUCT
#include "common/gemm.h"
#endif

enum { F32, BF16, F64, I32, U8 };                        // element types; a problem's storage is F32 or BF16
enum { FP32, TF32, BF16_STORAGE };                       // precision of a variant: fp32, TF32 products, bf16 inputs
enum { GPU_ONLY = 1, EMULATED = 2, ATOMICS = 4, CPU_ONLY = 8 };  // a variant's flags
enum { MAX_BUFFERS = 16, MAX_DIMS = 8, MAX_BLOCKS = 6, MAX_SETS = 512, MAX_RUNS = 4000 };

#if DEVICE_IS_GPU
#define ON_GPU(launch) (launch)
#define ON_CPU(launch) NULL
#else
#define ON_GPU(launch) NULL                              // launchers that need a library or an instruction of the GPU
#define ON_CPU(launch) (launch)
#endif
#ifdef CUDA_CPU_ASAN
enum { GUARD = 0 };
#else
enum { GUARD = 256 };                                    // bytes before and after a buffer; keeps its alignment
#endif

// A grid with a row per block along y, and along z beyond y's limit; BLOCK_ROW: the row, which may lie past the end.
static inline dim3 row_grid(int blocks, int rows) {
    const int deep = ceil_div(rows, 65535);
    return dim3((unsigned)blocks, (unsigned)ceil_div(rows, deep), (unsigned)deep);
}
#define BLOCK_ROW ((int)(blockIdx.z * gridDim.y + blockIdx.y))

// Set by more_shared_memory: bytes that the last launcher needed and this device does not have; 0 when it had enough.
static int shared_memory_missing;
// Lets a kernel use that much dynamic shared memory. Returns 0, and the launcher must launch nothing, where the device
// has less: the harness then leaves this block size out, and says so.
template <class K> static int more_shared_memory(K *kernel, int bytes) {
    int device = 0, most = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (bytes > most) {
        shared_memory_missing = bytes;
        return 0;
    }
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    return 1;
}

// What a launcher gets.
typedef struct call {
    const int *dim;
    void *const *at;     // the buffers, in the order of their declaration
    int block;           // 0 for variants without block sizes
} call;
#define FLOATS(c, i) ((float *)(c)->at[i])
#define DOUBLES(c, i) ((double *)(c)->at[i])
#define INTS(c, i) ((int *)(c)->at[i])
#define BYTES(c, i) ((unsigned char *)(c)->at[i])
#define BF16S(c, i) ((__nv_bfloat16 *)(c)->at[i])

typedef struct variant {
    const char *name;                // one word
    const char *idea;                // what it adds to the one before, in one line
    void (*launch)(const call *c);   // queues its kernels
    int precision;                   // FP32, TF32, BF16_STORAGE
    int flags;                       // GPU_ONLY: a library of the GPU; EMULATED: tensor cores, which a CPU emulates and
                                     // does not time; ATOMICS: sums in no fixed order; CPU_ONLY
    int blocks[MAX_BLOCKS];          // block sizes to try, up to the first 0; none: the launcher knows
    int (*fits)(const int *dim);     // NULL: every shape
    double slack;                    // multiplies the tolerances; 0 means 1
} variant;

typedef struct buffer {
    const char *name;
    int role, type;                  // role: 1 given, 2 wanted, 3 both (changed in place), 0 scratch
    size_t n;
    double *given, *wanted;          // [n] what the variants start from, exactly as stored; what they must leave
    double rel, abs;
    unsigned char *image;            // as stored at the start, guards included
} buffer;

typedef struct problem {
    const int *dim;
    int precision;                   // of the variants it is for
    int storage;                     // F32 or BF16, for buffers that follow it
    buffer buffers[MAX_BUFFERS];
    int n_buffers;
    double bytes, flops;             // the least that must be moved to and from memory, and computed
    int sampled;                     // the reference left NaN in wanted: there only "written and finite" is checked
} problem;

typedef struct operation {
    const char *name, *what;
    const char *dims;                // names of the dimensions, "m n k"
    void (*problem_of)(problem *p);
    void (*reference)(problem *p);
    const variant *variants;
    int n_variants;
    const char *test_shapes, *cpu_shapes, *gpu_shapes;
} operation;
#define VARIANTS(table) table, (int)(sizeof(table) / sizeof *(table))
#define OPERATIONS(table) table, (int)(sizeof(table) / sizeof *(table))

// ---------------------------------------------------------------------------------------------------------- problems

static inline size_t type_size(int type) {
    static const size_t sizes[] = {4, 2, 8, 4, 1};  // F32, BF16, F64, I32, U8
    return sizes[type];
}

static inline double load_element(int type, const void *data, size_t i) {
    switch (type) {
    case F32: return (double)((const float *)data)[i];
    case F64: return ((const double *)data)[i];
    case I32: return ((const int *)data)[i];
    case U8: return ((const unsigned char *)data)[i];
    default: return (double)__bfloat162float(((const __nv_bfloat16 *)data)[i]);
    }
}
static inline void store_element(int type, void *data, size_t i, double v) {
    switch (type) {
    case F32: ((float *)data)[i] = (float)v; break;
    case F64: ((double *)data)[i] = v; break;
    case I32: ((int *)data)[i] = (int)v; break;
    case U8: ((unsigned char *)data)[i] = (unsigned char)v; break;
    default: ((__nv_bfloat16 *)data)[i] = __float2bfloat16_rn((float)v);
    }
}

static inline void *allocate(size_t bytes) {
    void *p = calloc(1, bytes ? bytes : 1);
    if (p) return p;
    fprintf(stderr, "kernels: out of memory\n");
    exit(1);
}

static inline buffer *add_buffer(problem *p, const char *name, int role, int type, size_t n) {
    if (p->n_buffers == MAX_BUFFERS) {
        fprintf(stderr, "kernels: too many buffers\n");
        exit(1);
    }
    buffer *b = &p->buffers[p->n_buffers++];
    b->name = name;
    b->role = role;
    b->type = type;
    b->n = n;
    if (role & 1) b->given = (double *)allocate(n * sizeof(double));
    if (role & 2) b->wanted = (double *)allocate(n * sizeof(double));
    return b;
}

// Uniform random numbers of [lo, hi), as the type holds them; integers from lo to hi - 1.
static inline double *fill(buffer *b, double lo, double hi) {
    for (size_t i = 0; i < b->n; i++) {
        const double v = lo + (hi - lo) * 0.5 * (test_random() + 1);
        store_element(b->type, b->image + GUARD, 0, b->type == I32 || b->type == U8 ? floor(v) : v);
        b->given[i] = load_element(b->type, b->image + GUARD, 0);
    }
    return b->given;
}
static inline buffer *with_image(buffer *b) {
    b->image = (unsigned char *)allocate(2 * GUARD + (b->n ? b->n : 1) * type_size(b->type));
    return b;
}

// Buffers of a problem. What input and in_place return may be changed by the caller, to values that the type holds.
static inline double *input(problem *p, const char *name, int type, size_t n, double lo, double hi) {
    return fill(with_image(add_buffer(p, name, 1, type, n)), lo, hi);
}
static inline void output(problem *p, const char *name, int type, size_t n, double rel, double abs) {
    buffer *b = with_image(add_buffer(p, name, 2, type, n));
    b->rel = rel;
    b->abs = abs;
}
static inline double *in_place(problem *p, const char *name, int type, size_t n, double lo, double hi, double rel,
                               double abs) {
    buffer *b = with_image(add_buffer(p, name, 3, type, n));
    b->rel = rel;
    b->abs = abs;
    return fill(b, lo, hi);
}
static inline void scratch(problem *p, const char *name, int type, size_t n) {
    with_image(add_buffer(p, name, 0, type, n));
}

static inline double *given(problem *p, int i) { return p->buffers[i].given; }
static inline double *wanted(problem *p, int i) { return p->buffers[i].wanted; }
static inline size_t image_bytes(const buffer *b) { return 2 * GUARD + b->n * type_size(b->type); }

// Declares the problem of a shape, computes what is wanted, and the images of all buffers: values or poison.
static inline problem make_problem(const operation *op, const int *dim, int precision) {
    problem p;
    memset(&p, 0, sizeof p);
    p.dim = dim;
    p.precision = precision;
    p.storage = precision == BF16_STORAGE ? BF16 : F32;
    op->problem_of(&p);
    op->reference(&p);
    for (int i = 0; i < p.n_buffers; i++) {
        buffer *b = &p.buffers[i];
        memset(b->image, 0xff, image_bytes(b));
        for (size_t k = 0; k < b->n && b->given; k++) store_element(b->type, b->image + GUARD, k, b->given[k]);
    }
    return p;
}
static inline void free_problem(problem *p) {
    for (int i = 0; i < p->n_buffers; i++) {
        free(p->buffers[i].given);
        free(p->buffers[i].wanted);
        free(p->buffers[i].image);
    }
}

// One copy of all buffers on the device; scratch memory is shared by all sets.
typedef struct set {
    void *at[MAX_BUFFERS];
} set;

static inline void make_set(const problem *p, set *s, const set *first) {
    for (int i = 0; i < p->n_buffers; i++) {
        char *base = NULL;
        if (first != s && p->buffers[i].role == 0) {
            s->at[i] = first->at[i];
            continue;
        }
        CUDA_CHECK(cudaMalloc((void **)&base, image_bytes(&p->buffers[i]) ? image_bytes(&p->buffers[i]) : 1));
        s->at[i] = base + GUARD;
    }
}
static inline void free_set(const problem *p, set *s, const set *first) {
    for (int i = 0; i < p->n_buffers; i++)
        if (first == s || p->buffers[i].role) CUDA_CHECK(cudaFree((char *)s->at[i] - GUARD));
}
// Puts all buffers into the state from which a variant starts.
static inline void restore_set(const problem *p, const set *s) {
    for (int i = 0; i < p->n_buffers; i++) {
        const buffer *b = &p->buffers[i];
        if (image_bytes(b))
            CUDA_CHECK(cudaMemcpy((char *)s->at[i] - GUARD, b->image, image_bytes(b), cudaMemcpyHostToDevice));
    }
}

// -------------------------------------------------------------------------------------------------------- validation

// Checks one buffer of a set against what is wanted; adds its bits to *hash. Returns 1 if all is well.
static inline int check_buffer(const problem *p, int i, const set *s, const char *where, double slack, uint64_t *hash) {
    const buffer *b = &p->buffers[i];
    const size_t bytes = b->n * type_size(b->type);
    char name[512];
    int ok = 1;
    unsigned char *got = (unsigned char *)allocate(image_bytes(b));
    if (image_bytes(b)) CUDA_CHECK(cudaMemcpy(got, (char *)s->at[i] - GUARD, image_bytes(b), cudaMemcpyDeviceToHost));
    snprintf(name, sizeof name, "%s: %s", where, b->name);
    if (memcmp(got, b->image, GUARD) || memcmp(got + GUARD + bytes, b->image + GUARD + bytes, GUARD)) {
        printf("%s: writes outside of the buffer\n", name);
        ok = 0;
    }
    if (b->role == 1 && memcmp(got, b->image, image_bytes(b))) {
        printf("%s: writes to its input\n", name);
        ok = 0;
    }
    if (b->role & 2) {
        double *value = (double *)allocate(b->n * sizeof(double)), *want = (double *)allocate(b->n * sizeof(double));
        size_t known = 0, unwritten = 0;
        for (size_t k = 0; k < b->n; k++) {
            const double v = load_element(b->type, got + GUARD, k);
            if (isnan(b->wanted[k]) && p->sampled) {
                unwritten += !isfinite(v);
                continue;
            }
            value[known] = v;
            want[known++] = b->wanted[k];
        }
        if (unwritten) printf("%s: %zu elements are not finite or not written\n", name, unwritten);
        ok = !unwritten && test_close_d(name, value, want, known, slack * b->rel, slack * b->abs) && ok;
        for (size_t k = 0; k < bytes; k++) *hash = (*hash ^ got[GUARD + k]) * UINT64_C(0x100000001b3);
        free(value);
        free(want);
    }
    free(got);
    return ok;
}

// Runs a variant once (run = 0: looks at what the last run left) and checks everything. Counts one check.
// Returns 1 if all is well, 0 if not. -1: this device has too little shared memory for the block size; it says so and
// counts as skipped.
static inline int validate(const operation *op, const problem *p, const variant *v, const set *s, int block, int run,
                           const char *when, uint64_t *hash) {
    const int passed = test_passed, failed = test_failed;
    const double slack = v->slack > 0 ? v->slack : 1;
    char where[256];
    int ok = 1, at = snprintf(where, sizeof where, "%s/%s", op->name, v->name);
    for (int i = 0; i < MAX_DIMS && p->dim[i] >= 0; i++)
        at += snprintf(where + at, sizeof where - (size_t)at, "%c%d", i ? 'x' : ' ', p->dim[i]);
    if (block) at += snprintf(where + at, sizeof where - (size_t)at, " block %d", block);
    snprintf(where + at, sizeof where - (size_t)at, "%s", when);
    if (run) {
        const call c = {p->dim, s->at, block};
        restore_set(p, s);
        shared_memory_missing = 0;
        v->launch(&c);
        CUDA_CHECK_LAUNCH();
        device_synchronize();
        if (shared_memory_missing) {
            fprintf(stderr, "SKIP %s: needs %d bytes of shared memory, more than this device has\n", where,
                    shared_memory_missing);
            test_skipped++;
            return -1;
        }
    }
    for (int i = 0; i < p->n_buffers; i++) ok = check_buffer(p, i, s, where, slack, hash) && ok;
    test_passed = passed + ok;
    test_failed = failed + !ok;
    return ok;
}

// ------------------------------------------------------------------------------------------------------------ timing

// Size of the last-level cache in bytes.
static inline double cache_bytes(void) {
    cudaDeviceProp prop;
    double kib = 0;
    CUDA_CHECK(cudaGetDeviceProperties(&prop, 0));
    if (prop.l2CacheSize > 0) return prop.l2CacheSize;
    FILE *f = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r");
    const int found = f && fscanf(f, "%lf", &kib) == 1;
    if (f) fclose(f);
    return found ? 1024 * kib : 32e6;
}

// Times f(i), i = 0, 1, 2, ...: samples of at least 0.2 ms, until there are `least` of them and `seconds` have passed,
// or 3 times as many seconds. Milliseconds; .runs counts calls of f.
template <class F> static timing time_runs(F f, double seconds, int least) {
    static double ms[MAX_RUNS];
    cudaEvent_t start, stop;
    float elapsed = 0;
    double total = 0;
    int samples = 0, runs = 0, inner = 1;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&stop));
    while (samples < MAX_RUNS && total < 3e3 * seconds && (samples < least || total < 1e3 * seconds)) {
        CUDA_CHECK(cudaEventRecord(start));
        for (int i = 0; i < inner; i++) f(runs + i);
        CUDA_CHECK(cudaEventRecord(stop));
        CUDA_CHECK(cudaEventSynchronize(stop));
        CUDA_CHECK(cudaEventElapsedTime(&elapsed, start, stop));
        runs += inner;
        if (elapsed < 0.2f && inner < 1000 && samples < 3) {  // too short to time: more runs in a sample
            inner = elapsed > 0.02f ? (int)(inner * 0.25f / elapsed) + 1 : 10 * inner;
            samples = 0;
            continue;
        }
        ms[samples++] = (double)elapsed / inner;
        total += elapsed;
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(stop));
    if (!samples) ms[samples++] = (double)elapsed / inner;
    timing t = summarise(ms, samples);
    t.runs = runs;
    return t;
}

// Bytes read and written per millisecond by a plain copy of memory much larger than the caches. A CPU's ordinary stores
// read the line first, so there an update in place counts where it is faster. The memory is not zero, since processors
// move zeros faster.
static inline double copy_ceiling(void) {
    const size_t n = (size_t)256 << 20;
    char *from, *to;
    CUDA_CHECK(cudaMalloc((void **)&from, n));
    CUDA_CHECK(cudaMalloc((void **)&to, n));
    CUDA_CHECK(cudaMemset(from, 1, n));
    double ms = HUGE_VAL;
#if DEVICE_IS_GPU
    ms = time_runs([=](int) { CUDA_CHECK(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice)); }, 0.3, 10).median;
#else
    for (int in_place = 0; in_place < 2; in_place++) {
        const timing t = time_runs([=](int) {
            const size_t parts = 64, part = n / parts;
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
            for (size_t i = 0; i < parts; i++) {
                if (!in_place) memcpy(to + part * i, from + part * i, part);
                for (size_t k = 0; k < part / 4 && in_place; k++) ((float *)(to + part * i))[k] *= -1.0f;
            }
        }, 0.3, 10);
        ms = fmin(ms, t.median);
    }
#endif
    CUDA_CHECK(cudaFree(from));
    CUDA_CHECK(cudaFree(to));
    return 2.0 * (double)n / ms;
}

// Flops per millisecond of the best matrix product at hand in a precision; 0 where there is none.
static inline double product_ceiling(int precision) {
#ifdef KERNELS_PRODUCT
    const int n = DEVICE_IS_GPU ? 4096 : 1024;
    const size_t bytes = (size_t)n * (size_t)n * sizeof(float);
    float *m[3];
    char err[256];
    gemm_context g;
    if (!DEVICE_IS_GPU && precision != FP32) return 0;
    if (gemm_create(&g, precision == TF32 ? GEMM_TF32 : GEMM_FP32, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        exit(1);
    }
    float *random = (float *)allocate(bytes);  // values between -1 and 1, as fp32 and, in pairs, as bf16
    for (size_t i = 0; i < bytes / 4; i++) {
        __nv_bfloat16 pair[2];
        for (int k = 0; k < 2; k++) pair[k] = __float2bfloat16_rn((float)test_random());
        memcpy(random + i, pair, sizeof pair);
    }
    for (int i = 0; i < 3; i++) CUDA_CHECK(cudaMalloc((void **)&m[i], bytes));
    for (int i = 0; i < 2; i++) CUDA_CHECK(cudaMemcpy(m[i], random, bytes, cudaMemcpyHostToDevice));
    const timing t = time_runs([&](int) {
#if DEVICE_IS_GPU
        const float one = 1, zero = 0;
        if (precision == BF16_STORAGE) {
            GEMM_CUBLAS_CHECK(cublasGemmEx(g.handle, CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, m[0], CUDA_R_16BF, n,
                                           m[1], CUDA_R_16BF, n, &zero, m[2], CUDA_R_32F, n, CUBLAS_COMPUTE_32F,
                                           CUBLAS_GEMM_DEFAULT));
            return;
        }
#endif
        gemm(&g, 0, 0, n, n, n, 1.0f, m[0], n, m[1], n, 0.0f, m[2], n);
    }, 0.3, 10);
    for (int i = 0; i < 3; i++) CUDA_CHECK(cudaFree(m[i]));
    free(random);
    gemm_destroy(&g);
    return 2.0 * n * n * n / t.median;
#else
    (void)precision;
    return 0;
#endif
}

// ---------------------------------------------------------------------------------------------------------- commands

static struct {
    const char *op, *variant, *shape;
    double seconds;
    int block, smoke;
} options = {NULL, NULL, NULL, 1, 0, 0};

static const char *const precision_names[] = {"fp32", "tf32", "bf16"};

// Where a variant runs, in one word.
static inline const char *place_of(const variant *v) {
    if (v->flags & GPU_ONLY) return "gpu";
    if (v->flags & CPU_ONLY) return "cpu";
    return v->flags & EMULATED ? "gpu+emulated" : "cpu+gpu";
}
static inline int selected(const operation *op, const variant *v) {
    return (!options.op || !strcmp(options.op, op->name)) && (!options.variant || strstr(v->name, options.variant));
}

// Reads the next shape "AxBxC" of a list; the dimensions end with -1. Returns 0 at the end of the list.
static inline int next_shape(const char **list, int dim[MAX_DIMS + 1], const operation *op) {
    int n = 0, wanted_dims = 1;
    char *end;
    while (**list == ' ') (*list)++;
    if (!**list) return 0;
    for (const char *s = op->dims; *s; s++) wanted_dims += *s == ' ';
    for (;;) {
        const long v = strtol(*list, &end, 10);
        if (end == *list || v < 1 || v > 1 << 30 || n == MAX_DIMS) {
            n = -1;
            break;
        }
        dim[n++] = (int)v;
        *list = end;
        if (*end != 'x') break;
        (*list)++;
    }
    if (n == wanted_dims) dim[n] = -1;
    if (n != wanted_dims || (**list && **list != ' '))
        cli_usage_error(op->name, "a shape of %s is %d positive numbers with x between them: %s", op->name,
                        wanted_dims, op->dims);
    return 1;
}

static inline void list_operation(const operation *op) {
    for (int i = 0; i < op->n_variants; i++) {
        const variant *v = &op->variants[i];
        if (!selected(op, v)) continue;
        printf("%-26s %-22s %-5s %-13s %s\n", op->name, v->name, precision_names[v->precision], place_of(v), v->idea);
    }
}

static inline int block_matches(int block) { return !options.block || options.block == block; }
static inline int fits(const operation *op, const variant *v, const int *dim, int precision) {
    return selected(op, v) && v->precision == precision && v->launch && (!v->fits || v->fits(dim));
}

// All variants of an operation on one shape; *hash takes the results of those that add in a fixed order.
static inline void test_shape(const operation *op, const int *dim, uint64_t *hash) {
    for (int precision = FP32; precision <= BF16_STORAGE; precision++) {
        int used = 0;
        for (int i = 0; i < op->n_variants; i++) used += fits(op, &op->variants[i], dim, precision);
        if (!used) continue;
        problem p = make_problem(op, dim, precision);
        set s;
        make_set(&p, &s, &s);
        for (int i = 0; i < op->n_variants; i++) {
            const variant *v = &op->variants[i];
            if (!fits(op, v, dim, precision)) continue;
            for (int k = 0; k < MAX_BLOCKS && (v->blocks[k] || !k); k++) {
                uint64_t first = UINT64_C(0xcbf29ce484222325), again = first;
                if (!block_matches(v->blocks[k])) continue;
                if (validate(op, &p, v, &s, v->blocks[k], 1, "", &first) < 0) continue;
                validate(op, &p, v, &s, v->blocks[k], 1, ", again", &again);
                if (v->flags & ATOMICS) continue;
                if (first != again) printf("%s/%s: two runs give different bits\n", op->name, v->name);
                CHECK(first == again, "the same bits in two runs");
                *hash = (*hash ^ first) * UINT64_C(0x100000001b3);
            }
        }
        free_set(&p, &s, &s);
        free_problem(&p);
    }
}

static inline void test_operation(const operation *op) {
    int dim[MAX_DIMS + 1];
    uint64_t hash = 0;
    const char *list = options.shape ? options.shape : op->test_shapes;
    for (int i = 0; i < op->n_variants; i++) {
        const variant *v = &op->variants[i];
        if (!selected(op, v) || v->launch) continue;
        printf("SKIP %s/%s: %s\n", op->name, v->name, DEVICE_IS_GPU ? "CPU build only" : "needs a GPU");
        test_skipped++;
    }
    while (next_shape(&list, dim, op)) test_shape(op, dim, &hash);
    printf("bits %s %016llx\n", op->name, (unsigned long long)hash);
}

// One row of the CSV: the best block size, then the timing, with validations before and after.
static inline void bench_variant(const operation *op, const problem *p, const variant *v, set *sets, int n_sets,
                                 const char *shape, double copy, double product) {
    const double compute = product > 0 ? p->flops / product : 0, floor_ms = fmax(p->bytes / copy, compute);
    timing best = {0, 0, 0, 0};
    uint64_t hash = 0;
    int ok = 1, in_place_output = 0, best_block = 0;
    for (int i = 0; i < p->n_buffers; i++) in_place_output |= p->buffers[i].role == 3;
    for (int k = 0; k < MAX_BLOCKS && (v->blocks[k] || !k); k++) {
        const int block = v->blocks[k];
        const auto run = [&](int i) {
            const call c = {p->dim, sets[i % n_sets].at, block};
            v->launch(&c);
        };
        if (!block_matches(block)) continue;
        const int valid = validate(op, p, v, sets, block, 1, ", before timing", &hash);
        if (valid < 0) continue;
        ok = valid && ok;
        const timing t = time_runs(run, options.smoke ? 1e-4 : 0.1, 3);
        if (best.runs && t.median >= best.median) continue;
        best = t;
        best_block = block;
    }
    if (!best.runs) return;  // no block size that this device can run
    for (int i = 0; i < n_sets; i++) restore_set(p, &sets[i]);
    const auto run_best = [&](int i) {
        const call c = {p->dim, sets[i % n_sets].at, best_block};
        v->launch(&c);
    };
    best = options.smoke ? time_runs(run_best, 1e-4, 3) : time_runs(run_best, options.seconds, 20);
    CUDA_CHECK_LAUNCH();
    // What the last run left, and the first set (what is changed in place has to be run once more from the start).
    if (!in_place_output)
        ok = validate(op, p, v, &sets[(best.runs - 1) % n_sets], best_block, 0, ", after timing", &hash) && ok;
    ok = validate(op, p, v, sets, best_block, in_place_output, ", after timing", &hash) && ok;
    if (!ok) exit(test_summary());
    printf("%s,%s,%s,%s,%d,%.5g,%.5g,%.5g,%d,%.4g,%.4g,%.5g,%.4g\n", op->name, v->name, precision_names[v->precision],
           shape, best_block, best.median, best.p10, best.p90, best.runs, p->bytes / best.median * 1e-6,
           p->flops / best.median * 1e-6, floor_ms, 100 * floor_ms / best.median);
    fflush(stdout);
    fprintf(stderr, "%-26s %-22s %-22s %10.4f ms %6.1f%%\n", op->name, v->name, shape, best.median,
            100 * floor_ms / best.median);
}

// How many sets of buffers fill 4 times the last-level cache.
static inline int sets_needed(const problem *p) {
    double bytes = 0;
    for (int k = 0; k < p->n_buffers; k++) bytes += p->buffers[k].role ? (double)image_bytes(&p->buffers[k]) : 0;
    const double enough = options.smoke ? 2 : ceil(4 * cache_bytes() / bytes);
    return (int)fmin(fmax(enough, 2), MAX_SETS);
}

static inline void bench_operation(const operation *op, double copy, const double *product) {
    const char *usual = DEVICE_IS_GPU ? op->gpu_shapes : op->cpu_shapes;
    const char *list = options.shape ? options.shape : usual;
    int dim[MAX_DIMS + 1];
    char shape[128];
    while (next_shape(&list, dim, op)) {
        int at = 0;
        for (int i = 0; dim[i] >= 0; i++)
            at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%d", i ? "x" : "", dim[i]);
        for (int precision = FP32; precision <= BF16_STORAGE; precision++) {
            static set sets[MAX_SETS];
            problem p;
            int n_sets = 0;
            for (int i = 0; i < op->n_variants; i++) {
                const variant *v = &op->variants[i];
                if (!fits(op, v, dim, precision) || (!DEVICE_IS_GPU && v->flags & EMULATED)) continue;
                if (!n_sets) {
                    p = make_problem(op, dim, precision);
                    n_sets = sets_needed(&p);
                    for (int k = 0; k < n_sets; k++) {
                        make_set(&p, &sets[k], &sets[0]);
                        restore_set(&p, &sets[k]);
                    }
                }
                bench_variant(op, &p, v, sets, n_sets, shape, copy, product[v->precision]);
            }
            for (int k = n_sets - 1; k >= 0; k--) free_set(&p, &sets[k], &sets[0]);
            if (n_sets) free_problem(&p);
        }
        if (options.smoke) break;
    }
}

static inline void bench_all(const operation *ops, int n) {
    char device[256], day[32];
    const char *commit = getenv("COMMIT");
    const time_t now = time(NULL);
    double product[3] = {0, 0, 0};
    int driver = 0, runtime = 0, used[3] = {0, 0, 0};
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    device_describe(device, sizeof device);
    strftime(day, sizeof day, "%Y-%m-%d", gmtime(&now));
    for (int i = 0; i < n; i++)
        for (int k = 0; k < ops[i].n_variants; k++) used[ops[i].variants[k].precision] = 1;
    const double copy = copy_ceiling();
    for (int i = 0; i < 3; i++) product[i] = used[i] ? product_ceiling(i) : 0;
    printf("# %s", device);
    if (DEVICE_IS_GPU)
        printf(", driver %d.%d, CUDA %d.%d", driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    printf(", commit %s, %s\n# copy: %.1f GB/s", commit && *commit ? commit : "unknown", day, copy * 1e-6);
    for (int i = 0; i < 3; i++)
        if (product[i] > 0) printf("; %s matrix product: %.0f GFLOP/s", precision_names[i], product[i] * 1e-6);
    printf("\nop,variant,precision,shape,block,ms,p10,p90,runs,gb_per_s,gflops,floor_ms,percent\n");
    for (int i = 0; i < n; i++)
        if (!options.op || !strcmp(options.op, ops[i].name)) bench_operation(&ops[i], copy, product);
}

// main of every program here.
static inline int kernels_main(int argc, char **argv, const operation *ops, int n) {
    static cli_rest rest;
    static cli_option table[] = {
        CLI_REST(&rest, "list|test|bench", 1, 1, "what to do"),
        CLI_STRING("op", &options.op, "NAME", "only this operation of the file"),
        CLI_STRING("variant", &options.variant, "TEXT", "only variants whose name holds TEXT"),
        CLI_STRING("shape", &options.shape, "AxBxC", "this shape instead of the usual ones"),
        CLI_INT("block", &options.block, "N", 0, 1024, "only this block size"),
        CLI_DOUBLE("seconds", &options.seconds, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN,
                   "bench: seconds of timing for a variant"),
        CLI_FLAG("smoke", &options.smoke, "bench: next to no timing"),
    };
    const char *program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    if (argc > 1 && strcmp(argv[1], "list") && strncmp(argv[1], "-", 1)) device_require(program);
    int found = 0;
    cli_parse(program, "Variants of one operation: lists, checks and times them.", "1", table,
              (int)(sizeof table / sizeof *table), argc, argv);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < ops[i].n_variants; k++) found += selected(&ops[i], &ops[i].variants[k]);
    if (!found) cli_usage_error(program, "no variant is called so");
    const int list = !strcmp(rest.v[0], "list"), test = !strcmp(rest.v[0], "test");
    if (!list && !test && strcmp(rest.v[0], "bench"))
        cli_usage_error(program, "'%s' is none of list, test, bench", rest.v[0]);
    if (!list && !test) {
        bench_all(ops, n);
        return 0;
    }
    for (int i = 0; i < n; i++) {
        if (options.op && strcmp(options.op, ops[i].name)) continue;
        if (list) list_operation(&ops[i]);
        else test_operation(&ops[i]);
    }
    return test ? test_summary() : 0;
}
