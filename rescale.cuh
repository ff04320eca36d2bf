// rescale.cuh -- rescale a freshly initialised ReLU network without changing its function, so that it trains faster.
//
// One header, nothing else of ours needed: copy it into your project. C99, C++11 and CUDA. Version RESCALE_VERSION.
//
// CONTENTS
//     1. What it does            2. A complete example       3. Describing a network     4. diag(G)
//     5. Options and report      6. Memory                   7. Errors                   8. Sources
//
// 1. WHAT IT DOES
//     A hidden unit h with a positively homogeneous activation (ReLU, leaky ReLU, identity; pooling commutes with it) may
//     be scaled: its incoming weights and bias times lambda_h > 0, its outgoing weights divided by lambda_h. The function
//     of the network stays the same, its gradients do not. Write lambda_h = exp(u_h / 2).
//
//     RESCALE_PATHCOND chooses u so that diag(G) of the path-lifting comes closest, in the log-det (Burg) divergence, to a
//     multiple of a reference r (the identity unless you say otherwise). That is the convex problem
//         F(u) = p log( sum_i g_i / r_i exp((B u)_i) ) - sum_i (B u)_i,        p = number of counted parameters,
//     with B[i][h] = -1 where parameter i enters unit h, +1 where it leaves it; parameter i becomes theta_i exp(-(B u)_i / 2).
//     Newton's method solves it to a certificate: max |dF/du| is reported, and is below tolerance * max(1, max |n_h|),
//     n_h = number of parameters leaving h minus number entering it.
//
//     RESCALE_ENORM is the baseline: it minimises the sum of squared weights (biases are scaled but not counted).
//
// 2. A COMPLETE EXAMPLE (the tests compile this very text as C99, C11, C++17, and with nvcc)
// EXAMPLE
// #include "rescale.cuh"
// #include <stdio.h>
// static float w1[64 * 8], b1[64], w2[3 * 64], b2[3];       // y = W2 relu(W1 x + b1) + b2, weights are [out][in]
// int main(void) {
//     for (int i = 0; i < 64 * 8; i++) w1[i] = (float)((i * 37) % 101 - 50) / 150;
//     for (int i = 0; i < 3 * 64; i++) w2[i] = (float)((i * 53) % 103 - 51) / 400;
//     rescale_group hidden[1] = {rescale_units("relu1", 64, RESCALE_RELU)};
//     rescale_tensor t[4] = {
//         rescale_weight("fc1.weight", w1, 64, 8, 1, 0, RESCALE_NONE),     // rows enter group 0
//         rescale_bias("fc1.bias", b1, 64, 0),
//         rescale_weight("fc2.weight", w2, 3, 64, 1, RESCALE_NONE, 0),     // columns leave group 0
//         rescale_bias("fc2.bias", b2, 3, RESCALE_NONE)};
//     rescale_net net = {hidden, 1, t, 4};
//     rescale_options options = rescale_default_options();
//     rescale_report report;
//     if (rescale_run(&net, &options, &report)) return fprintf(stderr, "%s\n", report.message), 1;
//     printf("F %.3f -> %.3f, max |dF/du| %.1e after %d Newton steps\n", report.objective_before, report.objective_after,
//            report.grad_inf, report.iterations);
//     return 0;
// }
// END
//
// 3. DESCRIBING A NETWORK
//     A *group* is a set of units that share a symmetry: a hidden layer's neurons, a feature map's channels, a residual
//     stream's channels. A *tensor* [n_out][n_in][kernel] enters at most one group by its rows and leaves at most one by
//     its columns; RESCALE_NONE where there is none. List every parameter tensor, also those outside every group
//     (the output bias): they count in F.
//         fully connected     rescale_weight(name, W, out, in, 1, group of the outputs, group of the inputs)
//         convolution         rescale_weight(name, W, C_out, C_in, kh * kw, ...)
//         linear after a flatten of C channels of H x W          rescale_weight(name, W, out, C, H * W, ...)
//         bias of a layer     rescale_bias(name, b, n, group)
//         BatchNorm           rescale_gain(name, gamma, n, group, running_mean, running_var, eps) and rescale_bias for beta;
//                             the layer BEFORE the BatchNorm enters RESCALE_NONE and so does its bias: exact in training
//                             and in evaluation mode, running statistics untouched
//         residual stream     one group; all tensors that write into it enter it, all that read it leave it
//         attention           values: rows of W_v enter, columns of W_o leave a group of linear units; queries and keys:
//                             rows of W_q enter, rows of W_k leave (flags RESCALE_ROWS_LEAVE)
//     flags: RESCALE_UNCOUNTED  scaled, but left out of F, p and n_h, and of a bias also its paths where the header computes
//     diag(G);  RESCALE_ROWS_LEAVE  the rows leave `enters` (row r is divided by lambda);  RESCALE_COLS_ENTER  the columns enter
//     `leaves` (an embedding that writes a stream).
//     reference / reference_each: r > 0 for the tensor, or per parameter [n_out][n_in][kernel].
//     moment1 / moment2: optimizer state of the tensor (SGD momentum or Adam's m; Adam's v), same shape and memory; it is
//     divided by the factor (by its square) that multiplies the parameter, so that training goes on consistently.
//     A group whose activation is not positively homogeneous (RESCALE_GELU, ...) is refused.
//
// 4. diag(G)
//     g_i = sum over paths p through i of (Phi_p / theta_i)^2. Three ways to provide it:
//     - nothing: if no tensor carries it, the tensors must be a sequential fully connected net in order (W1, b1, gamma1,
//       beta1, W2, ...), and rescale_run computes it by one squared forward and backward pass of one sample. Flags that turn
//       a side round, shared groups and any other net are refused: give their diag(G);
//     - g, the full array [n_out][n_in][kernel] in the same memory as the tensor: the gradient, with respect to the squared
//       parameters, of the summed outputs of the network with squared parameters on an input of ones. Where it leaves the range
//       of the type, multiply input and squared biases by a constant, the output gradient by another, and give their product
//       as reference, of a bias the second alone;
//     - g_out[n_out] and g_in[n_in * kernel], host vectors with g = g_out (x) g_in: a fully connected layer is rank one.
//
// 5. OPTIONS AND REPORT: see the structures below; every field has a comment. rescale_default_options() fills defaults.
//
// 6. MEMORY
//     Tensors are all in host memory (on_device = 0) or all in device memory (on_device = 1, CUDA builds). All working
//     memory is one arena of rescale_arena_bytes(&net, &options) bytes: yours (options.arena), else one malloc. It is
//     O(units), plus 8 bytes per row-column pair (not per kernel entry) of a tensor with a full g. On a device, scratch
//     of O(units), or of the largest such tensor, is allocated and freed with cudaMalloc.
//     `#define RESCALE_REAL double` before the include for double tensors (default float). OpenMP is used where enabled.
//
// 7. ERRORS
//     rescale_run returns RESCALE_OK or a status; report.message names the tensor or group. It never prints or exits, and
//     on any error no parameter has been changed. Arrays that are written (tensors, optimizer state, arena, u) must overlap
//     no other array.
//
// 8. SOURCES
//     Lebeurrier, Vayer, Gribonval, "Path-conditioned training: a principled way to rescale ReLU neural networks", ICML 2026,
//     arXiv 2602.19799. Stock, Graham, Gribonval, Jegou, "Equi-normalization of Neural Networks", ICLR 2019, arXiv 1902.10416.
//     Newton with a certificate, the per-group scalar equation of a sweep and the group-mean correction are this project's.
#ifndef RESCALE_CUH
#define RESCALE_CUH
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define RESCALE_VERSION "1.0"
#ifndef RESCALE_REAL
#define RESCALE_REAL float
#endif
typedef RESCALE_REAL rescale_real;
#ifdef __cplusplus
#define RSC_CAST(type, value) static_cast<type>(value)
#define RSC_ADDRESS(pointer) reinterpret_cast<uintptr_t>(pointer)
#else
#define RSC_CAST(type, value) ((type)(value))
#define RSC_ADDRESS(pointer) ((uintptr_t)(pointer))
#endif
// Only float and double: a float stays as small beside a long long, a double stays as large beside a float.
#define RSC_REAL_FITS(type) (sizeof(rescale_real) == sizeof(type) && sizeof(RSC_CAST(rescale_real, 0) + 0LL) == sizeof(type) && \
                             sizeof(RSC_CAST(rescale_real, 0) + 0.0f) == sizeof(type))
typedef char rescale_real_must_be_float_or_double[RSC_REAL_FITS(float) || RSC_REAL_FITS(double) ? 1 : -1];
#if defined(__CUDACC__) || defined(CUDA_CPU)
#define RESCALE_HAS_DEVICE 1  // kernels can be compiled: by nvcc, or by common/cuda_cpu.h which runs them on the CPU
#endif

// ------------------------------------------------------------------------------------------------------ public types

enum { RESCALE_NONE = -1 };  // a tensor side that belongs to no group

enum {  // status codes
    RESCALE_OK = 0,
    RESCALE_ERROR_ARGUMENT,     // the description is inconsistent; the message says where
    RESCALE_ERROR_ACTIVATION,   // a group's activation is not positively homogeneous
    RESCALE_ERROR_NON_FINITE,   // a tensor holds NaN or infinity
    RESCALE_ERROR_RANGE,        // diag(G) or a rescaled parameter leaves the range of its type
    RESCALE_ERROR_MEMORY,       // arena too small, or allocation failed
    RESCALE_ERROR_CONVERGENCE,  // no certificate: the optimum needs |log lambda| beyond 350, the range of exp
    RESCALE_ERROR_DEVICE        // a CUDA call failed
};
enum { RESCALE_PATHCOND, RESCALE_ENORM };   // method
enum { RESCALE_NEWTON, RESCALE_SWEEPS, RESCALE_UNIT_SWEEPS };  // solver
enum { RESCALE_RELU, RESCALE_LEAKY_RELU, RESCALE_IDENTITY, RESCALE_GELU, RESCALE_SILU, RESCALE_TANH, RESCALE_SIGMOID };
enum { RESCALE_WEIGHT, RESCALE_BIAS, RESCALE_GAIN };  // role of a tensor
enum { RESCALE_UNCOUNTED = 1, RESCALE_ROWS_LEAVE = 2, RESCALE_COLS_ENTER = 4 };  // flags

typedef struct rescale_group {
    const char *name;  // for messages
    int n;             // units
    int activation;    // RESCALE_RELU, ...
} rescale_group;

typedef struct rescale_tensor {
    const char *name;                    // for messages
    rescale_real *data;                  // [n_out][n_in][kernel], host or device
    int n_out, n_in, kernel;
    int enters, leaves;                  // groups of the rows and of the columns, or RESCALE_NONE
    int role;                            // RESCALE_WEIGHT, RESCALE_BIAS, RESCALE_GAIN
    unsigned flags;                      // RESCALE_UNCOUNTED | RESCALE_ROWS_LEAVE | RESCALE_COLS_ENTER
    const rescale_real *g;               // diag(G), full: [n_out][n_in][kernel], same memory as data; or NULL
    const double *g_out, *g_in;          // diag(G), rank one: host [n_out], [n_in * kernel]; or NULL
    double reference;                    // r > 0 for the whole tensor; 0 means 1
    const rescale_real *reference_each;  // r > 0 per parameter, same shape and memory as data; or NULL
    const rescale_real *mean, *var;      // of a gain: running statistics [n_out], same memory as data
    double eps;                          // of a gain: added to var
    rescale_real *moment1, *moment2;     // optimizer state, same shape and memory as data; or NULL
} rescale_tensor;

typedef struct rescale_net {
    const rescale_group *group;
    int n_groups;
    const rescale_tensor *tensor;
    int n_tensors;
} rescale_net;

typedef struct rescale_options {
    int method;          // RESCALE_PATHCOND (default) or RESCALE_ENORM
    int solver;          // RESCALE_NEWTON (default): to the optimum; RESCALE_SWEEPS: `sweeps` block sweeps, no more; _UNIT_SWEEPS:
                         // unit by unit, as published. Sweeps leave a group with a tensor from itself to itself alone
    int sweeps;          // 10
    int max_iterations;  // of Newton, 100; of ENorm sweeps when solver is RESCALE_NEWTON, 10 times that
    double tolerance;    // 1e-10: aim of max |dF/du| / max(1, max |n_h|); 1e-8 is accepted where rounding allows no more
    double max_log;      // bound on |log lambda|, enforced inside the optimisation; 0 (default) = none
    int pow2;            // 1: every lambda is a power of two, so that the function is preserved bit for bit; F ends below what it
                         // was, or nothing moves
    double enorm_c;      // ENorm's depth penalty c, 1 = none
    double strength;     // 1: u is the optimum; 0 to 1: that part of it
    int within;          // 1: the mean of u over the free units of every group is taken out: no layer as a whole grows or shrinks
    double max_trace;    // >= 1: F is minimised where sum of diag(G) / r is at most that many times what it was (to a thousandth, and
                         // before pow2 rounding); Newton only; 0 (default) = anywhere
    int dry_run;         // 1: solve and report, change no parameter
    int on_device;       // 1: tensors are in device memory
    int general;         // 1: always use conjugate gradients, also where the Woodbury solve applies
    void *arena;         // working memory of rescale_arena_bytes() bytes, or NULL: one malloc
    size_t arena_bytes;
    double *u;           // out: u of every unit, groups in order (host, one entry per unit), or NULL
} rescale_options;

typedef struct rescale_report {
    int status;
    char message[256];         // "" or one line that names the tensor or group: what is wrong; with RESCALE_OK a warning
    double objective_before, objective_after;  // F (PathCond) or the sum of squared weights (ENorm)
    double trace_ratio;        // sum of diag(G) / r after over before (PathCond): about how much faster the first steps are at one rate
    double grad_inf;           // max over units of |dF/du|, projected at bounds: the certificate (before pow2 rounding). Where max_trace
                               // binds: of F + mu log S, times p / (p + mu)
    double grad_tolerance;     // 1e-8 * max(1, max |n_h|): what grad_inf has to be below to be called the optimum
    int converged;             // grad_inf <= grad_tolerance
    int iterations;            // Newton steps on all units
    int sweeps;                // block sweeps
    int cg_steps;              // conjugate-gradient steps, 0 with the Woodbury solve
    double seconds_diag_g, seconds_solve, seconds_apply;
    double max_abs_log_lambda;
    int units, pinned_units, bounded_units;  // pinned: no incoming or no outgoing energy, lambda = 1
    long long parameters;      // counted parameters, p
    int tensors_touched;
} rescale_report;

// ---------------------------------------------------------------------------------------------- describing a network

// n units with a given activation (RESCALE_RELU, ...).
static inline rescale_group rescale_units(const char *name, int n, int activation) {
    rescale_group g;
    g.name = name;
    g.n = n;
    g.activation = activation;
    return g;
}

// A weight tensor [n_out][n_in][kernel] whose rows enter one group and whose columns leave another (or RESCALE_NONE).
static inline rescale_tensor rescale_weight(const char *name, rescale_real *data, int n_out, int n_in, int kernel,
                                            int enters, int leaves) {
    rescale_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.data = data;
    t.n_out = n_out;
    t.n_in = n_in;
    t.kernel = kernel;
    t.enters = enters;
    t.leaves = leaves;
    t.role = RESCALE_WEIGHT;
    return t;
}

// A bias [n] (of a layer, or BatchNorm's beta) that enters a group.
static inline rescale_tensor rescale_bias(const char *name, rescale_real *data, int n, int enters) {
    rescale_tensor t = rescale_weight(name, data, n, 1, 1, enters, RESCALE_NONE);
    t.role = RESCALE_BIAS;
    return t;
}

// BatchNorm's gamma [n] that enters a group, with the running statistics it is evaluated with (they are only read).
static inline rescale_tensor rescale_gain(const char *name, rescale_real *data, int n, int enters,
                                          const rescale_real *mean, const rescale_real *var, double eps) {
    rescale_tensor t = rescale_weight(name, data, n, 1, 1, enters, RESCALE_NONE);
    t.role = RESCALE_GAIN;
    t.mean = mean;
    t.var = var;
    t.eps = eps;
    return t;
}

static inline rescale_options rescale_default_options(void) {
    rescale_options o;
    memset(&o, 0, sizeof o);
    o.method = RESCALE_PATHCOND;
    o.solver = RESCALE_NEWTON;
    o.sweeps = 10;
    o.max_iterations = 100;
    o.tolerance = 1e-10;
    o.enorm_c = 1;
    o.strength = 1;
    return o;
}

// ------------------------------------------------------------------------------------------------- internal structures
// Names with rsc_ are internal. Energies are what F sums: g_i / r_i exp((B u)_i).

enum { RSC_MOST_PAIRS = 200, RSC_MOST_GROUPS = 200 };  // for the dense systems of Woodbury and of the group means
enum { RSC_UNUSED, RSC_RANK_ONE, RSC_MATRIX, RSC_DIRECT };  // how a tensor's energies are stored

typedef struct rsc_energy {
    int kind;              // _UNUSED: not counted; _RANK_ONE: also all one-sided tensors; _MATRIX; _DIRECT: ENorm, from data
    int row, col;          // first unit of the rows' / columns' group, or -1
    int row_sign, col_sign;  // of u in the exponent: -1 enters, +1 leaves
    double *out, *in;      // [n_out], [n_in] RSC_RANK_ONE: energies are out (x) in at u = 0; _MATRIX: row and column sums now
    double *p, *q;         // [n_out], [n_in] at the current u: out * row factor, in * column factor; _MATRIX: the factors
    double sum_p, sum_q;
    double *matrix;        // RSC_MATRIX: [n_out][n_in]
    double fixed;          // RSC_MATRIX: energy that no u changes (the diagonal of a tensor from a group to itself)
    double total;          // energy of the tensor at the current u
    double max_abs[3];     // of data, moment1, moment2
} rsc_energy;

typedef struct rsc_arena {
    char *base;            // NULL: only count
    size_t used, size;
} rsc_arena;

typedef struct rsc_solver {
    const rescale_net *net;
    const rescale_options *options;
    rescale_report *report;
    rsc_energy *energy;          // [n_tensors]
    int *first;                  // [n_groups + 1] first unit of each group
    int units;
    long long parameters;        // counted parameters
    double p;                    // as many; more where the trace is bounded
    double trace;                // S as initialised
    double *u, *x, *trial;       // [units] u, exp(u), a trial u
    double *leave, *enter;       // [units] O_h and I_h
    double *count;               // [units] n_h
    double *gradient, *step, *residual, *direction, *product, *diagonal;  // [units] Newton and conjugate gradients
    unsigned char *fixed;        // [units] 1: pinned, 2: at a bound in this iteration
    double bound;                // of |u|
    const double *given;         // [units] u to apply instead of solving, or NULL
    const char *underflow;       // name of a tensor whose full g holds numbers below the smallest normal one, or NULL
    double total;                // S
    int n_pairs;                 // two-sided rank-one tensors
    double *small;               // Woodbury: [m][m + 1], m = 2 n_pairs + 1; and the group-mean problem
    double *rows, *cols, *in_scale;  // [widest] scratch vectors
    double *wide;                // [largest one-sided full tensor] scratch matrix
} rsc_solver;

// Seconds from some start. Without C11's clock or OpenMP's the processor time of this one thread, which is as long.
static inline double rsc_seconds(void) {
#if defined(TIME_UTC) && !defined(_WIN32)
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return RSC_CAST(double, t.tv_sec) + 1e-9 * RSC_CAST(double, t.tv_nsec);
#elif defined(_OPENMP)
    return omp_get_wtime();
#else
    return RSC_CAST(double, clock()) / CLOCKS_PER_SEC;
#endif
}

// Records an error in the report and returns its status.
static inline int rsc_error(rescale_report *r, int status, const char *name, const char *what) {
    snprintf(r->message, sizeof r->message, "rescale: %s: %s", name ? name : "(unnamed)", what);
    return r->status = status;
}

// A 64-byte aligned piece of the arena; NULL, and a count that stays at the top, where it does not fit.
static inline void *rsc_take(rsc_arena *a, size_t bytes) {
    const size_t at = a->used;
    if (bytes > SIZE_MAX - 256 || at > SIZE_MAX - 256 - bytes) {
        a->used = SIZE_MAX - 255;
        return NULL;
    }
    a->used += (bytes + 63) / 64 * 64;
    return a->base && a->used <= a->size ? a->base + at : NULL;
}
static inline double *rsc_doubles(rsc_arena *a, size_t n) {
    return RSC_CAST(double *, rsc_take(a, n < SIZE_MAX / sizeof(double) ? n * sizeof(double) : SIZE_MAX));
}
static inline size_t rsc_n(int n) { return RSC_CAST(size_t, n); }  // n >= 0
static inline size_t rsc_at(int row, int width, int column) { return rsc_n(row) * rsc_n(width) + rsc_n(column); }
static inline int rsc_max(int a, int b) { return a > b ? a : b; }
static inline size_t rsc_columns(const rescale_tensor *t) { return rsc_n(t->n_in) * rsc_n(t->kernel); }
static inline size_t rsc_size(const rescale_tensor *t) { return rsc_n(t->n_out) * rsc_columns(t); }

#ifdef _OPENMP  // `work`, the number of elements touched, is a variable at the place of use
#define RSC_PARALLEL_FOR (void)work; _Pragma("omp parallel for schedule(static) if (work > 32768)")
#else
#define RSC_PARALLEL_FOR (void)work;
#endif

// ------------------------------------------------------------------------------------- passes over the tensors: host
// Five operations read or write a whole tensor; each exists for host memory here and for device memory below. Sums are in
// double; their order does not depend on the number of threads.

// Largest absolute value of data[n]; infinity if an element is not finite. Works on the bits, whose order without the sign is
// that of the values, with infinity and NaN at the top: integers vectorise, and no compiler flag can optimise NaN away.
static inline double rsc_host_max_abs(const rescale_real *data, size_t n) {
    const size_t block = 4096, n_blocks = (n + block - 1) / block, work = n;
    double result = 0;
    (void)work;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) reduction(max : result) if (work > 32768)
#endif
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t end = (b + 1) * block < n ? (b + 1) * block : n;
        double found;
        if (sizeof(rescale_real) == sizeof(uint32_t)) {
            uint32_t largest = 0, bits;
            float value;
            for (size_t i = b * block; i < end; i++) {
                memcpy(&bits, &data[i], sizeof bits);
                bits &= 0x7fffffffu;
                largest = bits > largest ? bits : largest;
            }
            memcpy(&value, &largest, sizeof value);
            found = largest < 0x7f800000u ? RSC_CAST(double, value) : RSC_CAST(double, INFINITY);
        } else {
            uint64_t largest = 0, bits;
            for (size_t i = b * block; i < end; i++) {
                memcpy(&bits, &data[i], sizeof bits);
                bits &= UINT64_C(0x7fffffffffffffff);
                largest = bits > largest ? bits : largest;
            }
            memcpy(&found, &largest, sizeof found);
            found = largest < UINT64_C(0x7ff0000000000000) ? found : RSC_CAST(double, INFINITY);
        }
        if (found > result) result = found;
    }
    return result;
}

// y[o] = sum_i W[o][i]^2 x[i], W [rows][columns].
static inline void rsc_host_square_rows(const rescale_real *W, size_t rows, size_t columns, const double *x, double *y) {
    const size_t work = rows * columns;
    RSC_PARALLEL_FOR
    for (size_t o = 0; o < rows; o++) {
        const rescale_real *w = W + o * columns;
        double part[8] = {0, 0, 0, 0, 0, 0, 0, 0}, tail = 0;
        size_t i = 0;
        for (; i + 8 <= columns; i += 8)
            for (size_t j = 0; j < 8; j++) part[j] += RSC_CAST(double, w[i + j]) * w[i + j] * x[i + j];
        for (; i < columns; i++) tail += RSC_CAST(double, w[i]) * w[i] * x[i];
        y[o] = ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7])) + tail;
    }
}

// y[i] = sum_o W[o][i]^2 x[o]: a strip of columns at a time, so that threads share nothing.
static inline void rsc_host_square_cols(const rescale_real *W, size_t rows, size_t columns, const double *x, double *y) {
    const size_t strip = 128, n_strips = (columns + strip - 1) / strip, work = rows * columns;
    RSC_PARALLEL_FOR
    for (size_t s = 0; s < n_strips; s++) {
        const size_t first = s * strip, width = first + strip <= columns ? strip : columns - first;
        double part[128];
        for (size_t i = 0; i < width; i++) part[i] = 0;
        for (size_t o = 0; o < rows; o++) {
            const rescale_real *w = W + o * columns + first;
            const double scale = x[o];
            for (size_t i = 0; i < width; i++) part[i] += RSC_CAST(double, w[i]) * w[i] * scale;
        }
        for (size_t i = 0; i < width; i++) y[first + i] = part[i];
    }
}

// M[o][i] = sum over the kernel of g / r: r = reference_each or 1; g full, or where it is NULL row[o] * column[i * kernel + k].
// NaN where a term is negative, -infinity where a reference is not positive and finite.
static inline void rsc_host_reduce(const rescale_real *g, const rescale_real *reference_each, size_t n_out, size_t n_in,
                                   size_t kernel, const double *row, const double *column, double *M) {
    const size_t work = n_out * n_in * kernel;
    RSC_PARALLEL_FOR
    for (size_t o = 0; o < n_out; o++)
        for (size_t i = 0; i < n_in; i++) {
            double sum = 0;
            int bad = 0;
            for (size_t k = 0; k < kernel; k++) {
                const size_t c = i * kernel + k, j = o * n_in * kernel + c;
                const double reference = reference_each ? RSC_CAST(double, reference_each[j]) : 1.0;
                const double v = (g ? RSC_CAST(double, g[j]) : row[o] * column[c]) / reference;
                sum += v >= 0 ? v : RSC_CAST(double, NAN);
                if (!(reference > 0 && reference <= DBL_MAX)) bad = 1;
            }
            M[o * n_in + i] = bad ? -RSC_CAST(double, INFINITY) : sum;
        }
}

// W[o][c] *= row[o] * column[c].
static inline void rsc_host_scale(rescale_real *W, size_t rows, size_t columns, const double *row, const double *column) {
    const size_t work = rows * columns;
    RSC_PARALLEL_FOR
    for (size_t o = 0; o < rows; o++) {
        rescale_real *w = W + o * columns;
        for (size_t c = 0; c < columns; c++) w[c] = RSC_CAST(rescale_real, RSC_CAST(double, w[c]) * (row[o] * column[c]));
    }
}

// ----------------------------------------------------------------------------------- passes over the tensors: device
// The same five on device memory. Vectors come from and go to the host: they are O(units).

#ifdef RESCALE_HAS_DEVICE
#define RSC_BLOCK 256

// Sum over the block's threads of v, in a fixed order; part is shared memory of RSC_BLOCK doubles. Valid in thread 0.
static __device__ __forceinline__ double rsc_block_sum(double v, double *part) {
    part[threadIdx.x] = v;
    __syncthreads();
    for (int i = RSC_CAST(int, threadIdx.x) + 16; threadIdx.x < 16 && i < RSC_BLOCK; i += 16) part[threadIdx.x] += part[i];
    __syncthreads();
    for (int i = 1; threadIdx.x == 0 && i < 16; i++) part[0] += part[i];
    return part[0];
}

// part[block] = largest |data| of a grid-stride share, infinity if not finite.
static __global__ void rsc_max_abs_kernel(const rescale_real *__restrict__ data, size_t n, double *__restrict__ part) {
    __shared__ double largest[RSC_BLOCK];
    double v = 0;
    for (size_t i = RSC_CAST(size_t, blockIdx.x) * RSC_BLOCK + threadIdx.x; i < n; i += RSC_CAST(size_t, gridDim.x) * RSC_BLOCK) {
        const double a = fabs(RSC_CAST(double, data[i]));
        if (!(a <= v)) v = a <= DBL_MAX ? a : RSC_CAST(double, INFINITY);
    }
    largest[threadIdx.x] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < RSC_BLOCK; i++) v = largest[i] > v ? largest[i] : v;
        part[blockIdx.x] = v;
    }
}

// One block per row: y[o] = sum_i W[o][i]^2 x[i].
static __global__ void rsc_square_rows_kernel(const rescale_real *__restrict__ W, int columns, const double *__restrict__ x,
                                              double *__restrict__ y) {
    __shared__ double part[RSC_BLOCK];
    const rescale_real *w = W + RSC_CAST(size_t, blockIdx.x) * RSC_CAST(size_t, columns);
    double sum = 0;
    for (int i = RSC_CAST(int, threadIdx.x); i < columns; i += RSC_BLOCK) sum += RSC_CAST(double, w[i]) * RSC_CAST(double, w[i]) * x[i];
    sum = rsc_block_sum(sum, part);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// A thread per column, a chunk of rows per blockIdx.y: part[chunk][i] = sum over its rows of W[o][i]^2 x[o].
static __global__ void rsc_square_cols_kernel(const rescale_real *__restrict__ W, int rows, int columns, int chunk,
                                              const double *__restrict__ x, double *__restrict__ part) {
    const int column = RSC_CAST(int, blockIdx.x * blockDim.x + threadIdx.x);
    const int first = RSC_CAST(int, blockIdx.y) * chunk;
    const size_t i = RSC_CAST(size_t, column), width = RSC_CAST(size_t, columns);
    if (column >= columns) return;
    double sum = 0;
    for (int o = first; o < first + chunk && o < rows; o++) {
        const double w = RSC_CAST(double, W[RSC_CAST(size_t, o) * width + i]);
        sum += w * w * x[o];
    }
    part[RSC_CAST(size_t, blockIdx.y) * width + i] = sum;
}

// y[i] = sum over chunks of part[chunk][i].
static __global__ void rsc_sum_chunks_kernel(const double *__restrict__ part, int chunks, int columns,
                                             double *__restrict__ y) {
    const int i = RSC_CAST(int, blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= columns) return;
    double sum = 0;
    for (int c = 0; c < chunks; c++) sum += part[RSC_CAST(size_t, c) * RSC_CAST(size_t, columns) + RSC_CAST(size_t, i)];
    y[i] = sum;
}

// A thread per row-column pair: M[o][i] = sum over the kernel of g / r, as rsc_host_reduce.
static __global__ void rsc_reduce_kernel(const rescale_real *__restrict__ g, const rescale_real *__restrict__ reference_each,
                                         size_t n_pairs, size_t n_in, size_t kernel, const double *__restrict__ row,
                                         const double *__restrict__ column, double *__restrict__ M) {
    const size_t pair = RSC_CAST(size_t, blockIdx.x) * blockDim.x + threadIdx.x;
    if (pair >= n_pairs) return;
    const size_t o = pair / n_in, i = pair % n_in;
    double sum = 0;
    int bad = 0;
    for (size_t k = 0; k < kernel; k++) {
        const size_t j = pair * kernel + k;
        const double reference = reference_each ? RSC_CAST(double, reference_each[j]) : 1.0;
        const double v = (g ? RSC_CAST(double, g[j]) : row[o] * column[i * kernel + k]) / reference;
        sum += v >= 0 ? v : RSC_CAST(double, NAN);
        if (!(reference > 0 && reference <= DBL_MAX)) bad = 1;
    }
    M[pair] = bad ? -RSC_CAST(double, INFINITY) : sum;
}

// Column tile x row: W[o][c] *= row[o] * column[c].
static __global__ void rsc_scale_kernel(rescale_real *__restrict__ W, int rows, int columns, const double *__restrict__ row,
                                        const double *__restrict__ column) {
    const int c = RSC_CAST(int, blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= columns) return;
    for (int o = RSC_CAST(int, blockIdx.y); o < rows; o += RSC_CAST(int, gridDim.y)) {
        const size_t i = RSC_CAST(size_t, o) * RSC_CAST(size_t, columns) + RSC_CAST(size_t, c);
        W[i] = RSC_CAST(rescale_real, RSC_CAST(double, W[i]) * (row[o] * column[c]));
    }
}

// Runs one pass over device memory: copies `in_a` and `in_b` up, launches, copies `out` down. which: 0 max_abs, 1 rows,
// 2 columns, 3 reduce, 4 scale. Returns 0, or a CUDA error code.
typedef struct rsc_pass {
    int which;
    const rescale_real *data;        // the tensor; reduce: the full g or NULL; scale: NULL
    rescale_real *scaled;            // scale: the tensor
    const rescale_real *second;      // reduce: reference_each or NULL
    size_t rows, columns, kernel;    // of the matrix; kernel only for reduce
    const double *in_a, *in_b;       // host vectors [n_a], [n_b]
    size_t n_a, n_b;
    double *out;                     // host vector [n_out]
    size_t n_out;
} rsc_pass;
static inline int rsc_device_pass(const rsc_pass *p) {
    const unsigned blocks = 264, tiles = RSC_CAST(unsigned, (p->columns + RSC_BLOCK - 1) / RSC_BLOCK);
    const int rows = RSC_CAST(int, p->rows), columns = RSC_CAST(int, p->columns);
    const int chunk = p->rows > 64 * 32 ? RSC_CAST(int, (p->rows + 63) / 64) : 32, chunks = (rows + chunk - 1) / chunk;
    const size_t n_part = p->which == 2 ? RSC_CAST(size_t, chunks) * p->columns : p->which == 0 ? blocks : 0;
    const size_t total = p->n_a + p->n_b + p->n_out + n_part;
    void *memory = NULL;
    cudaError_t e = cudaMalloc(&memory, (total ? total : 1) * sizeof(double));
    if (e != cudaSuccess) return RSC_CAST(int, e);
    double *scratch = RSC_CAST(double *, memory), *a = scratch, *b = a + p->n_a, *out = b + p->n_b, *part = out + p->n_out;
    if (e == cudaSuccess && p->n_a) e = cudaMemcpy(a, p->in_a, p->n_a * sizeof(double), cudaMemcpyHostToDevice);
    if (e == cudaSuccess && p->n_b) e = cudaMemcpy(b, p->in_b, p->n_b * sizeof(double), cudaMemcpyHostToDevice);
    if (e == cudaSuccess) {
        if (p->which == 0) {
            rsc_max_abs_kernel<<<blocks, RSC_BLOCK>>>(p->data, p->rows * p->columns, part);
        } else if (p->which == 1) {
            rsc_square_rows_kernel<<<RSC_CAST(unsigned, rows), RSC_BLOCK>>>(p->data, columns, a, out);
        } else if (p->which == 2) {
            rsc_square_cols_kernel<<<dim3(tiles, RSC_CAST(unsigned, chunks)), RSC_BLOCK>>>(p->data, rows, columns, chunk, a, part);
            rsc_sum_chunks_kernel<<<tiles, RSC_BLOCK>>>(part, chunks, columns, out);
        } else if (p->which == 3) {
            const unsigned grid = RSC_CAST(unsigned, (p->n_out + RSC_BLOCK - 1) / RSC_BLOCK);
            rsc_reduce_kernel<<<grid, RSC_BLOCK>>>(p->data, p->second, p->n_out, p->n_out / p->rows, p->kernel, a, b, out);
        } else {
            rsc_scale_kernel<<<dim3(tiles, RSC_CAST(unsigned, rows < 65535 ? rows : 65535)), RSC_BLOCK>>>(p->scaled, rows, columns, a, b);
        }
        e = cudaGetLastError();
    }
    if (e == cudaSuccess && p->which == 0) {
        double largest[264] = {0};
        e = cudaMemcpy(largest, part, sizeof largest, cudaMemcpyDeviceToHost);
        *p->out = 0;
        for (unsigned i = 0; i < blocks; i++) *p->out = largest[i] > *p->out ? largest[i] : *p->out;
    } else if (e == cudaSuccess && p->n_out) {
        e = cudaMemcpy(p->out, out, p->n_out * sizeof(double), cudaMemcpyDeviceToHost);
    } else if (e == cudaSuccess) {
        e = cudaDeviceSynchronize();
    }
    const cudaError_t freed = cudaFree(scratch);
    return RSC_CAST(int, e != cudaSuccess ? e : freed);
}
#endif

// ----------------------------------------------------------------------------------------- passes: host or device
// Each returns RESCALE_OK or RESCALE_ERROR_DEVICE with the message set.

#ifdef RESCALE_HAS_DEVICE
static inline int rsc_run_pass(rsc_solver *s, const char *name, rsc_pass p) {
    const int e = rsc_device_pass(&p);
    return e ? rsc_error(s->report, RESCALE_ERROR_DEVICE, name, cudaGetErrorString(RSC_CAST(cudaError_t, e))) : RESCALE_OK;
}
#define RSC_PASS(host_call, ...)                                                                                     \
    if (s->options->on_device) {                                                                                     \
        const rsc_pass pass = {__VA_ARGS__};                                                                         \
        return rsc_run_pass(s, name, pass);                                                                          \
    }                                                                                                                \
    host_call;                                                                                                       \
    return RESCALE_OK
#else
#define RSC_PASS(host_call, ...)                                                                                     \
    (void)s, (void)name, host_call;                                                                                  \
    return RESCALE_OK
#endif

static inline int rsc_max_abs(rsc_solver *s, const char *name, rescale_real *data, size_t n, double *result) {
    RSC_PASS(*result = rsc_host_max_abs(data, n), 0, data, NULL, NULL, 1, n, 1, NULL, NULL, 0, 0, result, 0);
}
static inline int rsc_square_rows(rsc_solver *s, const char *name, const rescale_real *W, size_t rows, size_t columns,
                                  const double *x, double *y) {
    RSC_PASS(rsc_host_square_rows(W, rows, columns, x, y), 1, W, NULL, NULL, rows, columns, 1, x, NULL, columns, 0, y, rows);
}
static inline int rsc_square_cols(rsc_solver *s, const char *name, const rescale_real *W, size_t rows, size_t columns,
                                  const double *x, double *y) {
    RSC_PASS(rsc_host_square_cols(W, rows, columns, x, y), 2, W, NULL, NULL, rows, columns, 1, x, NULL, rows, 0, y, columns);
}
static inline int rsc_reduce(rsc_solver *s, const char *name, const rescale_real *g, const rescale_real *reference_each,
                             size_t n_out, size_t n_in, size_t kernel, const double *row, const double *column, double *M) {
    RSC_PASS(rsc_host_reduce(g, reference_each, n_out, n_in, kernel, row, column, M), 3, g, NULL, reference_each, n_out,
             n_in * kernel, kernel, row, column, row ? n_out : 0, column ? n_in * kernel : 0, M, n_out * n_in);
}
static inline int rsc_scale(rsc_solver *s, const char *name, rescale_real *W, size_t rows, size_t columns, const double *row,
                            const double *column) {
    RSC_PASS(rsc_host_scale(W, rows, columns, row, column), 4, NULL, W, NULL, rows, columns, 1, row, column, rows, columns, NULL, 0);
}

// ------------------------------------------------------------------------------------------------ check and lay out

// Checks lists and sizes; the message names the group or tensor. What passes can be counted without overflow. Returns a status.
static inline int rsc_validate_sizes(const rescale_net *net, rescale_report *r) {
    double units = 0, parameters = 0;
    const char *wrong = NULL;
    if (!net) return rsc_error(r, RESCALE_ERROR_ARGUMENT, "network", "is NULL");
    if (net->n_groups < 0 || net->n_tensors <= 0) return rsc_error(r, RESCALE_ERROR_ARGUMENT, "network", "no tensors");
    if ((net->n_groups && !net->group) || !net->tensor)
        return rsc_error(r, RESCALE_ERROR_ARGUMENT, "network", "its list of groups or tensors is NULL");
    if (net->n_tensors > INT_MAX / 8) return rsc_error(r, RESCALE_ERROR_ARGUMENT, "network", "has too many tensors");
    for (int i = 0; i < net->n_groups; i++) {
        const rescale_group *g = net->group + i;
        if (g->n <= 0) return rsc_error(r, RESCALE_ERROR_ARGUMENT, g->name, "a group needs at least one unit");
        units += g->n;
        if (units > INT_MAX / 8) return rsc_error(r, RESCALE_ERROR_ARGUMENT, g->name, "the network has too many units");
    }
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        const double columns = 1.0 * t->n_in * t->kernel, size = columns * t->n_out;
        if (t->n_out <= 0 || t->n_in <= 0 || t->kernel <= 0) wrong = "needs data and a shape of positive sizes";
        else if (columns > 1e9 || size > 1e15 || size * sizeof(double) > 0.5 * RSC_CAST(double, SIZE_MAX)) wrong = "is too large";
        parameters += size;
        if (parameters > 1e18) wrong = "the network has too many parameters";
        if (wrong) return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, wrong);
    }
    return RESCALE_OK;
}

// Checks groups: activations.
static inline int rsc_validate_groups(const rescale_net *net, rescale_report *r) {
    static const char *const activation[] = {"ReLU", "leaky ReLU", "identity", "GELU", "SiLU", "tanh", "sigmoid"};
    char text[160];
    for (int i = 0; i < net->n_groups; i++) {
        const rescale_group *g = net->group + i;
        const int known = g->activation >= 0 && g->activation <= RESCALE_SIGMOID;
        if (g->activation >= RESCALE_RELU && g->activation <= RESCALE_IDENTITY) continue;
        snprintf(text, sizeof text, "%s is not positively homogeneous, so these units cannot be rescaled",
                 known ? activation[g->activation] : "this activation");
        return rsc_error(r, RESCALE_ERROR_ACTIVATION, g->name, text);
    }
    return RESCALE_OK;
}

static inline int rsc_validate_options(const rescale_options *o, rescale_report *r) {
    const char *wrong = NULL;
    if (o->method < RESCALE_PATHCOND || o->method > RESCALE_ENORM) wrong = "unknown method";
    if (o->solver < RESCALE_NEWTON || o->solver > RESCALE_UNIT_SWEEPS) wrong = "unknown solver";
    if (!(o->tolerance > 0) || o->max_iterations < 1 || o->sweeps < 0 || !(o->max_log >= 0) ||
        !(o->enorm_c > 0 && o->enorm_c <= DBL_MAX) || !(o->strength >= 0 && o->strength <= 1) ||
        !(o->max_trace == 0 || (o->max_trace >= 1 && o->max_trace <= DBL_MAX)))
        wrong = "tolerance, iterations, sweeps, max_log, enorm_c, strength or max_trace out of range";
    if (o->max_trace > 0 && (o->method != RESCALE_PATHCOND || o->solver != RESCALE_NEWTON))
        wrong = "max_trace needs PathCond and Newton's method";
    if (o->within && (o->max_log > 0 || o->max_trace > 0)) wrong = "within excludes max_log and max_trace";
#ifndef RESCALE_HAS_DEVICE
    if (o->on_device) wrong = "on_device needs a build with CUDA";
#endif
    return wrong ? rsc_error(r, RESCALE_ERROR_ARGUMENT, "options", wrong) : RESCALE_OK;
}

// Checks what one tensor says about itself and its groups.
static inline int rsc_validate_tensor(const rescale_net *net, const rescale_tensor *t, rescale_report *r) {
    const unsigned known = RESCALE_UNCOUNTED | RESCALE_ROWS_LEAVE | RESCALE_COLS_ENTER;
    const int side[2] = {t->enters, t->leaves}, n[2] = {t->n_out, t->n_in};
    const char *wrong = NULL;
    char text[160];
    if (!t->data) wrong = "needs data and a shape of positive sizes";
    else if (t->role < RESCALE_WEIGHT || t->role > RESCALE_GAIN) wrong = "has an unknown role";
    else if (t->flags & ~known) wrong = "has an unknown flag";
    else if (t->role == RESCALE_GAIN && !t->g && !t->g_out && (!t->mean || !t->var || !(t->eps >= 0)))
        wrong = "a gain needs running mean, running variance and eps >= 0";
    else if (!(t->reference >= 0) || t->reference > DBL_MAX) wrong = "the reference must be positive and finite";
    else if (!t->g_out != !t->g_in) wrong = "needs both g_out and g_in";
    else if (t->g && t->g_out) wrong = "has both a full and a rank-one diag(G)";
    if (wrong) return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, wrong);
    for (int k = 0; k < 2; k++) {
        if (side[k] < RESCALE_NONE || side[k] >= net->n_groups)
            return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, "names a group that does not exist");
        if (side[k] < 0 || net->group[side[k]].n == n[k]) continue;
        snprintf(text, sizeof text, "has %d %s, but group %.60s has %d units", n[k], k ? "columns" : "rows",
                 net->group[side[k]].name ? net->group[side[k]].name : "(unnamed)", net->group[side[k]].n);
        return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, text);
    }
    return RESCALE_OK;
}

// Arrays of a tensor, in this order: what is written (data, moment1, moment2), then what is only read.
enum { RSC_WRITTEN = 3, RSC_ARRAYS = 9 };
typedef struct rsc_range {
    uintptr_t begin, end;
} rsc_range;
static inline rsc_range rsc_range_of(const void *data, size_t bytes) {
    rsc_range a = {RSC_ADDRESS(data), RSC_ADDRESS(data) + bytes};
    if (!data) a.end = a.begin;
    return a;
}
static inline rsc_range rsc_array(const rescale_tensor *t, int which) {
    const size_t all = rsc_size(t) * sizeof(rescale_real), rows = rsc_n(t->n_out);
    switch (which) {
    case 0: return rsc_range_of(t->data, all);
    case 1: return rsc_range_of(t->moment1, all);
    case 2: return rsc_range_of(t->moment2, all);
    case 3: return rsc_range_of(t->g, all);
    case 4: return rsc_range_of(t->reference_each, all);
    case 5: return rsc_range_of(t->mean, rows * sizeof(rescale_real));
    case 6: return rsc_range_of(t->var, rows * sizeof(rescale_real));
    case 7: return rsc_range_of(t->g_out, rows * sizeof(double));
    default: return rsc_range_of(t->g_in, rsc_columns(t) * sizeof(double));
    }
}
static inline int rsc_overlap(rsc_range a, rsc_range b) {
    return a.begin < b.end && b.begin < a.end && a.begin < a.end && b.begin < b.end;
}

// What is written must overlap nothing else. `mine` 0 .. RSC_WRITTEN - 1 of tensor i against all arrays of tensors 0 .. i, and
// the written ones of those against all arrays of tensor i.
static inline const char *rsc_overlaps(const rescale_net *net, int i) {
    const rescale_tensor *t = net->tensor + i;
    for (int a = 0; a < RSC_ARRAYS; a++) {
        const rsc_range mine = rsc_array(t, a);
        if (mine.begin == mine.end) continue;
        for (int j = 0; j <= i; j++)
            for (int b = 0; b < (a < RSC_WRITTEN ? RSC_ARRAYS : RSC_WRITTEN); b++) {
                if ((j == i && b == a) || !rsc_overlap(mine, rsc_array(net->tensor + j, b))) continue;
                if (j < i && a == 0 && b == 0 && net->tensor[j].data == t->data) return "is listed twice";
                return j == i ? "two of its arrays overlap in memory" : "overlaps an earlier tensor in memory";
            }
    }
    return NULL;
}

// The memory of the options must not hold arrays of the network.
static inline const char *rsc_overlaps_options(const rescale_net *net, const rescale_options *o) {
    double units = 0;
    for (int i = 0; i < net->n_groups; i++) units += net->group[i].n;
    const rsc_range arena = rsc_range_of(o->arena, o->arena_bytes);
    const rsc_range u = rsc_range_of(o->u, RSC_CAST(size_t, units) * sizeof(double));
    if (rsc_overlap(arena, u)) return "arena and u overlap in memory";
    for (int i = 0; i < net->n_tensors; i++)
        for (int a = 0; a < RSC_ARRAYS; a++) {
            const rsc_range b = rsc_array(net->tensor + i, a);
            if (rsc_overlap(arena, b) || rsc_overlap(u, b)) return "arena or u overlaps an array of a tensor";
        }
    return NULL;
}

// Why tensor i does not continue a chain, or NULL. `units` is the group that the layer so far enters. Only in a chain is diag(G) what
// rescale_run computes from the weights: weight, its bias, BatchNorm's gain and bias, next weight; what makes the units of a layer
// enters their group, the next weight leaves it, nothing else does.
static inline const char *rsc_breaks_chain(const rescale_net *net, int i, int units) {
    const rescale_tensor *t = net->tensor + i;
    if (t->flags & (RESCALE_ROWS_LEAVE | RESCALE_COLS_ENTER)) return "without diag(G), rows enter and columns leave";
    if (i == 0 && t->role != RESCALE_WEIGHT) return "without diag(G), a weight comes first";
    if (t->role == RESCALE_WEIGHT) {
        if (t->leaves != units) return "without diag(G), it must leave the group that the layer before it enters";
    } else {
        if (t->leaves != RESCALE_NONE) return "without diag(G), a bias or a gain leaves no group";
        if (t->role == RESCALE_BIAS && t->enters != units) return "must enter the group that its layer enters";
        if (t->role == RESCALE_GAIN && units != RESCALE_NONE) return "what comes before BatchNorm must enter no group";
    }
    if (t->role == RESCALE_BIAS || t->enters == RESCALE_NONE) return NULL;
    for (int j = 0; j < i; j++)
        if (net->tensor[j].enters == t->enters) return "without diag(G), only one layer enters a group";
    return NULL;
}

static inline int rsc_validate_chain(const rescale_net *net, rescale_report *r) {
    int units = RESCALE_NONE;
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        const char *wrong = rsc_breaks_chain(net, i, units);
        if (wrong) return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, wrong);
        if (t->role != RESCALE_BIAS) units = t->enters;
    }
    if (units == RESCALE_NONE) return RESCALE_OK;
    return rsc_error(r, RESCALE_ERROR_ARGUMENT, net->tensor[net->n_tensors - 1].name, "the outputs must enter no group");
}

// Checks a description; the message names the group or tensor. Returns a status.
static inline int rsc_validate(const rescale_net *net, const rescale_options *o, rescale_report *r) {
    int with_g = 0;
    int status = rsc_validate_sizes(net, r);
    if (!status) status = rsc_validate_options(o, r);
    if (!status) status = rsc_validate_groups(net, r);
    for (int i = 0; !status && i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        status = rsc_validate_tensor(net, t, r);
        const char *wrong = status ? NULL : rsc_overlaps(net, i);
        if (wrong) status = rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, wrong);
        with_g += t->g || t->g_out;
    }
    if (status) return status;
    const char *wrong = rsc_overlaps_options(net, o);
    if (wrong) return rsc_error(r, RESCALE_ERROR_ARGUMENT, "options", wrong);
    if (o->method != RESCALE_PATHCOND) return RESCALE_OK;
    if (!with_g) return rsc_validate_chain(net, r);
    for (int i = 0; i < net->n_tensors && with_g < net->n_tensors; i++)
        if (!net->tensor[i].g && !net->tensor[i].g_out && !(net->tensor[i].flags & RESCALE_UNCOUNTED))
            return rsc_error(r, RESCALE_ERROR_ARGUMENT, net->tensor[i].name, "has no diag(G), but other tensors have");
    return RESCALE_OK;
}

// How the energies of a tensor are stored.
static inline int rsc_kind(const rescale_tensor *t, int method) {
    if (t->flags & RESCALE_UNCOUNTED || (method == RESCALE_ENORM && t->role == RESCALE_BIAS)) return RSC_UNUSED;
    if (method == RESCALE_ENORM) return RSC_DIRECT;
    const int two_sided = t->enters >= 0 && t->leaves >= 0;
    return two_sided && (t->g || t->reference_each || t->enters == t->leaves) ? RSC_MATRIX : RSC_RANK_ONE;
}
static inline int rsc_is_pair(const rsc_energy *e) { return e->kind == RSC_RANK_ONE && e->row >= 0 && e->col >= 0; }

// Lays the whole working memory out in an arena; with an arena without base it only counts the bytes.
static inline void rsc_layout(rsc_solver *s, rsc_arena *a) {
    const rescale_net *net = s->net;
    const int groups = net->n_groups;
    int units = 0, widest = 1, n_pairs = 0;
    size_t wide = 0;
    s->energy = RSC_CAST(rsc_energy *, rsc_take(a, rsc_n(net->n_tensors) * sizeof(rsc_energy)));
    s->first = RSC_CAST(int *, rsc_take(a, rsc_n(groups + 1) * sizeof(int)));
    for (int i = 0; i < groups; i++) units += net->group[i].n;
    double **vector[] = {&s->u, &s->x, &s->trial, &s->leave, &s->enter, &s->count, &s->gradient, &s->step, &s->residual,
                         &s->direction, &s->product, &s->diagonal};
    for (size_t i = 0; i < sizeof vector / sizeof *vector; i++) *vector[i] = rsc_doubles(a, rsc_n(units));
    s->fixed = RSC_CAST(unsigned char *, rsc_take(a, rsc_n(units)));
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        const int kind = rsc_kind(t, s->options->method), columns = RSC_CAST(int, rsc_columns(t));
        rsc_energy none, *e = s->energy ? s->energy + i : &none;
        memset(e, 0, sizeof *e);
        e->kind = kind;
        const size_t pairs = rsc_n(t->n_out) * rsc_n(t->n_in);
        if (s->options->method == RESCALE_PATHCOND) {
            e->out = rsc_doubles(a, rsc_n(t->n_out));
            e->in = rsc_doubles(a, rsc_n(columns));
            e->p = rsc_doubles(a, rsc_n(t->n_out));
            e->q = rsc_doubles(a, rsc_n(t->n_in));
        }
        n_pairs += kind == RSC_RANK_ONE && t->enters >= 0 && t->leaves >= 0;
        if (kind == RSC_MATRIX) e->matrix = rsc_doubles(a, pairs);
        else if (kind == RSC_RANK_ONE && (t->g || t->reference_each) && pairs > wide) wide = pairs;
        widest = rsc_max(widest, rsc_max(t->n_out, columns));
    }
    s->rows = rsc_doubles(a, rsc_n(widest));
    s->cols = rsc_doubles(a, rsc_n(widest));
    s->in_scale = rsc_doubles(a, rsc_n(widest));
    s->wide = rsc_doubles(a, wide);
    // Woodbury and the group means are for small systems only.
    const size_t m = rsc_n(rsc_max(n_pairs <= RSC_MOST_PAIRS ? 2 * n_pairs + 1 : 1, groups <= RSC_MOST_GROUPS ? groups : 1));
    s->small = rsc_doubles(a, m * (m + 2));
    s->units = units;
    s->n_pairs = n_pairs;
}

// Bytes of working memory that rescale_run needs for this network and these options; 0 where its sizes are not valid.
static inline size_t rescale_arena_bytes(const rescale_net *net, const rescale_options *options) {
    const rescale_options defaults = rescale_default_options();
    rsc_arena count = {NULL, 0, 0};
    rescale_report report;
    rsc_solver s;
    memset(&s, 0, sizeof s);
    memset(&report, 0, sizeof report);
    if (rsc_validate_sizes(net, &report)) return 0;
    s.net = net;
    s.options = options ? options : &defaults;
    rsc_layout(&s, &count);
    return count.used + 64;
}

// Fills units, parameter counts n_h and p, and the links from tensors to units.
static inline void rsc_link(rsc_solver *s) {
    const rescale_net *net = s->net;
    s->first[0] = 0;
    for (int i = 0; i < net->n_groups; i++) s->first[i + 1] = s->first[i] + net->group[i].n;
    for (int h = 0; h < s->units; h++) {
        s->u[h] = 0;
        s->count[h] = 0;
        s->fixed[h] = 0;
    }
    s->parameters = 0;
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        rsc_energy *e = s->energy + i;
        e->row = t->enters >= 0 ? s->first[t->enters] : -1;
        e->col = t->leaves >= 0 ? s->first[t->leaves] : -1;
        e->row_sign = t->flags & RESCALE_ROWS_LEAVE ? 1 : -1;
        e->col_sign = t->flags & RESCALE_COLS_ENTER ? -1 : 1;
        if (!e->kind) continue;
        s->parameters += RSC_CAST(long long, rsc_size(t));
        for (int o = 0; e->row >= 0 && o < t->n_out; o++) s->count[e->row + o] += e->row_sign * RSC_CAST(double, rsc_columns(t));
        for (int c = 0; e->col >= 0 && c < t->n_in; c++) s->count[e->col + c] += e->col_sign * RSC_CAST(double, t->n_out) * t->kernel;
    }
    s->p = RSC_CAST(double, s->parameters);
    s->bound = s->options->max_log > 0 ? 2 * s->options->max_log : RSC_CAST(double, INFINITY);
}

// Every tensor finite, and how large its largest element is.
static inline int rsc_check_finite(rsc_solver *s) {
    for (int i = 0; i < s->net->n_tensors; i++) {
        const rescale_tensor *t = s->net->tensor + i;
        rescale_real *const data[3] = {t->data, t->moment1, t->moment2};
        for (int k = 0; k < 3; k++) {
            s->energy[i].max_abs[k] = 0;
            if (!data[k]) continue;
            const int e = rsc_max_abs(s, t->name, data[k], rsc_size(t), &s->energy[i].max_abs[k]);
            if (e) return e;
            if (s->energy[i].max_abs[k] > DBL_MAX)
                return rsc_error(s->report, RESCALE_ERROR_NON_FINITE, t->name,
                                 k ? "its optimizer state holds NaN or infinity" : "holds NaN or infinity");
        }
    }
    return RESCALE_OK;
}

// ------------------------------------------------------------------------------------------------------------ diag(G)

// diag(G) of a sequential fully connected net: a = energies of the paths that arrive, d = of the paths that go on.
// Forward a -> W^2 a + b^2, backward d -> (W^2)^T d, squares taken on the fly. Leaves e->out = d and e->in = a of every
// tensor, so that g = out (x) in. BatchNorm counts as in evaluation mode: gain gamma / sqrt(var + eps), a fixed path from
// the running mean.
static inline int rsc_chain_diag_g(rsc_solver *s) {
    const rescale_net *net = s->net;
    const double one = 1;
    int n = net->tensor[0].role == RESCALE_WEIGHT ? RSC_CAST(int, rsc_columns(net->tensor)) : 0, status = RESCALE_OK;
    double *a = s->rows, *next = s->cols;
    for (int i = 0; i < n; i++) a[i] = 1;
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        rsc_energy *e = s->energy + i;
        const size_t columns = rsc_columns(t), rows = rsc_n(t->n_out);
        if ((t->role == RESCALE_WEIGHT ? RSC_CAST(int, columns) : t->n_out) != n || (t->role != RESCALE_WEIGHT && columns != 1))
            return rsc_error(s->report, RESCALE_ERROR_ARGUMENT, t->name,
                             "does not follow the tensor before it: without diag(G) the tensors must be a sequential net");
        if (t->role == RESCALE_WEIGHT) {
            memcpy(e->in, a, columns * sizeof(double));
            if ((status = rsc_square_rows(s, t->name, t->data, rows, columns, a, next))) return status;
            double *swap = a;
            a = next;
            next = swap;
            n = t->n_out;
            continue;
        }
        e->in[0] = 1;
        if ((status = rsc_square_rows(s, t->name, t->data, rows, 1, &one, next))) return status;  // squares
        if (t->role == RESCALE_BIAS) {  // its paths begin here
            for (int o = 0; o < n && !(t->flags & RESCALE_UNCOUNTED); o++) a[o] += next[o];
        } else {
            double *mean2 = s->in_scale, *var = e->p;
            if ((status = rsc_square_rows(s, t->name, t->mean, rows, 1, &one, mean2))) return status;
            if ((status = rsc_reduce(s, t->name, t->var, NULL, rows, 1, 1, NULL, NULL, var))) return status;
            for (int o = 0; o < n; o++) {
                const double rstd2 = 1 / (var[o] + t->eps);
                if (!(rstd2 > 0 && rstd2 <= DBL_MAX && mean2[o] <= DBL_MAX))
                    return rsc_error(s->report, RESCALE_ERROR_RANGE, t->name, "needs finite running mean and variance + eps > 0");
                e->out[o] = rstd2 * (a[o] + mean2[o]);  // what arrives at the gain
                a[o] = next[o] * e->out[o];
                e->p[o] = next[o] * rstd2;              // what the gain passes on backwards
            }
        }
    }
    double *d = a;
    for (int o = 0; o < n; o++) d[o] = 1;
    for (int i = net->n_tensors - 1; i >= 0; i--) {
        const rescale_tensor *t = net->tensor + i;
        rsc_energy *e = s->energy + i;
        if (t->role == RESCALE_GAIN) {
            for (int o = 0; o < t->n_out; o++) {
                e->out[o] *= d[o];
                d[o] *= e->p[o];
            }
            continue;
        }
        memcpy(e->out, d, rsc_n(t->n_out) * sizeof(double));
        if (t->role == RESCALE_BIAS) continue;
        if (i > 0 && (status = rsc_square_cols(s, t->name, t->data, rsc_n(t->n_out), rsc_columns(t), d, next))) return status;
        double *swap = d;
        d = next;
        next = swap;
    }
    return RESCALE_OK;
}

// Turns diag(G) / reference of one tensor into the energies the solver needs (see rsc_energy).
static inline int rsc_collect(rsc_solver *s, int i, int chain) {
    const rescale_tensor *t = s->net->tensor + i;
    rsc_energy *e = s->energy + i;
    const double inverse = 1 / (t->reference > 0 ? t->reference : 1);
    const int n_out = t->n_out, n_in = t->n_in, kernel = t->kernel;
    double all = 0, sum_out = 0, sum_in = 0;
    const double least = sizeof(rescale_real) == sizeof(float) ? RSC_CAST(double, FLT_MIN) : DBL_MIN;
    int valid = 1, bad_reference = 0;
    if (!e->kind) return RESCALE_OK;
    if (!chain && t->g_out) {
        memcpy(e->out, t->g_out, rsc_n(n_out) * sizeof(double));
        memcpy(e->in, t->g_in, rsc_columns(t) * sizeof(double));
    }
    if (t->g || t->reference_each || e->kind == RSC_MATRIX) {
        double *M = e->kind == RSC_MATRIX ? e->matrix : s->wide;
        const int status = rsc_reduce(s, t->name, t->g, t->reference_each, rsc_n(n_out), rsc_n(n_in), rsc_n(kernel),
                                      t->g ? NULL : e->out, t->g ? NULL : e->in, M);
        if (status) return status;
        for (int o = 0; o < n_out; o++) e->out[o] = 0;
        for (int c = 0; c < n_in; c++) e->in[c] = 0;
        for (int o = 0; o < n_out; o++)
            for (int c = 0; c < n_in; c++) {
                double *m = M + rsc_at(o, n_in, c);
                bad_reference = bad_reference || *m < -DBL_MAX;
                if (t->g && !t->reference_each && *m > 0 && *m < least) s->underflow = t->name ? t->name : "(unnamed)";
                *m *= inverse;
                e->out[o] += *m;
                e->in[c] += *m;
                all += *m;
                if (o == c && t->enters == t->leaves && t->enters >= 0 && e->row_sign != e->col_sign) {
                    e->fixed += *m;
                    *m = 0;
                }
            }
        // One-sided: the sums of the free side times the first unit vector.
        for (int c = 0; c < n_in && e->col < 0; c++) e->in[c] = c == 0;
        for (int o = 0; o < n_out && e->col >= 0; o++) e->out[o] = o == 0;
    } else {
        for (int c = 0; c < n_in; c++) {
            double sum = 0;
            for (int k = 0; k < kernel; k++) {
                valid = valid && e->in[c * kernel + k] >= 0;
                sum += e->in[c * kernel + k];
            }
            e->in[c] = sum;
            sum_in += sum;
        }
        for (int o = 0; o < n_out; o++) {
            valid = valid && e->out[o] >= 0;
            sum_out += e->out[o] *= inverse;
        }
        all = sum_out * sum_in;
        const double f = sqrt(sum_in / sum_out);  // balance, so that neither factor over- or underflows
        for (int o = 0; o < n_out && all > 0; o++) e->out[o] *= f;
        for (int c = 0; c < n_in && all > 0; c++) e->in[c] /= f;
    }
    e->total = all;
    if (bad_reference)
        return rsc_error(s->report, RESCALE_ERROR_ARGUMENT, t->name, "every reference must be positive and finite");
    if (!valid || !(all >= 0) || all > DBL_MAX)
        return rsc_error(s->report, RESCALE_ERROR_RANGE, t->name, "diag(G) / reference is negative, NaN or overflows");
    return RESCALE_OK;
}

// ------------------------------------------------------------------------------------------- energies at a given u

// What multiplies an energy: exp(sign * u), 1 outside every group.
static inline double rsc_factor(const rsc_solver *s, int first, int i, int sign) {
    return first < 0 ? 1 : sign > 0 ? s->x[first + i] : 1 / s->x[first + i];
}
static inline int rsc_touches(const rsc_energy *e, const rescale_tensor *t, int group) {
    return e->kind && (t->enters == group || t->leaves == group);
}

// Brings p, q, their sums and the total energy of tensor i up to date with s->x.
static inline void rsc_refresh(rsc_solver *s, int i) {
    const rescale_tensor *t = s->net->tensor + i;
    rsc_energy *e = s->energy + i;
    e->sum_p = e->sum_q = 0;
    for (int o = 0; o < t->n_out; o++) e->p[o] = rsc_factor(s, e->row, o, e->row_sign);
    for (int c = 0; c < t->n_in; c++) e->q[c] = rsc_factor(s, e->col, c, e->col_sign);
    if (e->kind == RSC_MATRIX) {
        e->total = e->fixed;
        for (int c = 0; c < t->n_in; c++) e->in[c] = 0;
        for (int o = 0; o < t->n_out; o++) {
            const double *m = e->matrix + rsc_at(o, t->n_in, 0);
            double sum = 0;
            for (int c = 0; c < t->n_in; c++) {
                const double energy = m[c] * e->p[o] * e->q[c];
                sum += energy;
                e->in[c] += energy;
            }
            e->total += e->out[o] = sum;
        }
        return;
    }
    for (int o = 0; o < t->n_out; o++) e->sum_p += e->p[o] *= e->out[o];
    for (int c = 0; c < t->n_in; c++) e->sum_q += e->q[c] *= e->in[c];
    e->total = e->sum_p * e->sum_q;
}

// Adds tensor i's energies to O (leave) and I (enter) of the units of the sides asked for. Needs rsc_refresh before.
static inline void rsc_accumulate(rsc_solver *s, int i, int rows, int cols) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    double *row = e->row_sign > 0 ? s->leave : s->enter, *col = e->col_sign > 0 ? s->leave : s->enter;
    const int matrix = e->kind == RSC_MATRIX;
    for (int o = 0; o < t->n_out && rows; o++) row[e->row + o] += matrix ? e->out[o] : e->p[o] * e->sum_q;
    for (int c = 0; c < t->n_in && cols; c++) col[e->col + c] += matrix ? e->in[c] : e->q[c] * e->sum_p;
}

// Everything at u: x, energies, O, I, S. Returns F(u), infinity or NaN when exp overflows.
static inline double rsc_evaluate(rsc_solver *s, const double *u) {
    double linear = 0;
    for (int h = 0; h < s->units; h++) {
        s->x[h] = exp(u[h]);
        s->leave[h] = s->enter[h] = 0;
        linear += s->count[h] * u[h];
    }
    s->total = 0;
    for (int i = 0; i < s->net->n_tensors; i++) {
        if (!s->energy[i].kind) continue;
        rsc_refresh(s, i);
        rsc_accumulate(s, i, s->energy[i].row >= 0, s->energy[i].col >= 0);
        s->total += s->energy[i].total;
    }
    return s->p * log(s->total) - linear;
}

// dF/du at the last evaluated u; returns the largest |.| over units that could still move (the certificate).
static inline double rsc_gradient(rsc_solver *s, const double *u) {
    const double scale = s->p / s->total;
    double largest = 0;
    for (int h = 0; h < s->units; h++) {
        const double g = scale * (s->leave[h] - s->enter[h]) - s->count[h];
        s->gradient[h] = g;
        if (s->fixed[h] == 1) continue;
        s->fixed[h] = (u[h] >= s->bound && g < 0) || (u[h] <= -s->bound && g > 0) ? 2 : 0;  // at a bound, pushed outwards
        if (!s->fixed[h] && !(fabs(g) <= largest)) largest = fabs(g);
    }
    return largest;
}

static inline double rsc_clip(double v, double bound) { return v > bound ? bound : v < -bound ? -bound : v; }

// ------------------------------------------------------------------------------------------------------ block sweeps

static inline double rsc_within(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// The units of a group together, the rest fixed. With c = n_h / p, B = O_h / x_h, C = I_h x_h (in s->leave and s->enter):
//     x_h = (c S + sqrt(c^2 S^2 + 4 B C)) / (2 B) within the bound,   S = rest + sum_h (B x_h + C / x_h),
// one scalar equation in S, decreasing, solved by safeguarded Newton from the S given.
static inline void rsc_update_together(rsc_solver *s, int group, double rest, double S, double low, double high) {
    double lower = 0, upper = INFINITY;
    for (int it = 0; it < 100; it++) {
        double value = rest - S, slope = -1;
        for (int h = s->first[group]; h < s->first[group + 1]; h++) {
            const double B = s->leave[h], C = s->enter[h], cS = s->count[h] / s->p * S;
            const double root = hypot(cS, 2 * sqrt(B) * sqrt(C)), x = cS >= 0 ? (cS + root) / (2 * B) : 2 * C / (root - cS);
            if (s->fixed[h] != 1 && x > low && x < high) {
                value += root;
                slope += cS * cS / (S * root);
                s->x[h] = x;
                continue;
            }
            if (s->fixed[h] != 1) s->x[h] = rsc_within(x, low, high);
            value += B * s->x[h] + C / s->x[h];
        }
        if (value > 0) lower = S;
        else upper = S;
        double next = S - value / slope;
        if (fabs(next - S) <= 1e-15 * S) break;
        if (!(next > lower && next < upper)) next = upper < INFINITY ? 0.5 * (lower + upper) : 2 * lower;
        S = next;
    }
}

// The units of a group in turn, each with all others fixed: with D, S without this unit, S = D + B x + C / x is quadratic in x.
static inline void rsc_update_in_turn(rsc_solver *s, int group, double S, double low, double high) {
    for (int h = s->first[group]; h < s->first[group + 1]; h++) {
        if (s->fixed[h] == 1) continue;
        const double B = s->leave[h], C = s->enter[h], c = s->count[h] / s->p, D = S - B * s->x[h] - C / s->x[h];
        const double root = hypot(c * D, 2 * sqrt((1 - c) * B) * sqrt((1 + c) * C));
        s->x[h] = rsc_within(c >= 0 ? (c * D + root) / (2 * (1 - c) * B) : 2 * (1 + c) * C / (root - c * D), low, high);
        S = D + B * s->x[h] + C / s->x[h];
    }
}

// F as a function of the units of one group: S = rest + sum_h (B x_h + C / x_h), B in s->leave, C in s->enter. Returns S now, or a
// negative number where a tensor goes from the group to itself, so that S is no such sum.
static inline double rsc_group_energies(rsc_solver *s, int group, double *at_rest) {
    const rescale_net *net = s->net;
    const int first = s->first[group], end = s->first[group + 1];
    double rest = 0, S;
    for (int i = 0; i < net->n_tensors; i++)
        if (rsc_touches(s->energy + i, net->tensor + i, group) && net->tensor[i].enters == net->tensor[i].leaves) return -1;
    for (int h = first; h < end; h++) s->leave[h] = s->enter[h] = 0;
    for (int i = 0; i < net->n_tensors; i++) {
        if (rsc_touches(s->energy + i, net->tensor + i, group))
            rsc_accumulate(s, i, net->tensor[i].enters == group, net->tensor[i].leaves == group);
        else if (s->energy[i].kind) rest += s->energy[i].total;
    }
    S = rest;
    for (int h = first; h < end; h++) {
        S += s->leave[h] + s->enter[h];
        s->leave[h] /= s->x[h];
        s->enter[h] *= s->x[h];
    }
    *at_rest = rest;
    return S;
}

// Minimises F over the units of one group.
static inline void rsc_block_update(rsc_solver *s, int group) {
    const rescale_net *net = s->net;
    const int first = s->first[group], end = s->first[group + 1];
    const double low = exp(-s->bound), high = exp(s->bound);
    double rest = 0;
    const double S = rsc_group_energies(s, group, &rest);
    if (S < 0) return;
    if (s->options->solver == RESCALE_UNIT_SWEEPS) rsc_update_in_turn(s, group, S, low, high);
    else rsc_update_together(s, group, rest, S, low, high);
    for (int h = first; h < end; h++)
        s->u[h] = s->x[h] <= low ? -s->bound : s->x[h] >= high ? s->bound : log(s->x[h]);
    for (int i = 0; i < net->n_tensors; i++)
        if (rsc_touches(s->energy + i, net->tensor + i, group)) rsc_refresh(s, i);
}

static inline void rsc_block_sweep(rsc_solver *s) {
    for (int g = 0; g < s->net->n_groups; g++) rsc_block_update(s, g);
    s->report->sweeps++;
}

// ------------------------------------------------------------------------------------------------- small linear solves

// Solves A y = b in place, A [n][n + 1] with b in the last column, by LU with partial pivoting; y replaces column n.
// Returns 0, or 1 when A is singular.
static inline int rsc_lu_solve(double *A, int n) {
    const int w = n + 1;
    for (int k = 0; k < n; k++) {
        int pivot = k;
        for (int i = k + 1; i < n; i++)
            if (fabs(A[rsc_at(i, w, k)]) > fabs(A[rsc_at(pivot, w, k)])) pivot = i;
        if (!(fabs(A[rsc_at(pivot, w, k)]) > 0)) return 1;
        for (int j = k; pivot != k && j <= n; j++) {
            const double swap = A[rsc_at(k, w, j)];
            A[rsc_at(k, w, j)] = A[rsc_at(pivot, w, j)];
            A[rsc_at(pivot, w, j)] = swap;
        }
        for (int i = k + 1; i < n; i++) {
            const double f = A[rsc_at(i, w, k)] / A[rsc_at(k, w, k)];
            if (f == 0) continue;
            for (int j = k + 1; j <= n; j++) A[rsc_at(i, w, j)] -= f * A[rsc_at(k, w, j)];
        }
    }
    for (int i = n - 1; i >= 0; i--) {
        double sum = A[rsc_at(i, w, n)];
        for (int j = i + 1; j < n; j++) sum -= A[rsc_at(i, w, j)] * A[rsc_at(j, w, n)];
        A[rsc_at(i, w, n)] = sum / A[rsc_at(i, w, i)];
    }
    return 0;
}

// ------------------------------------------------------------------------------------- Newton: the Hessian of F
// With energies divided by S and q_h = O_h - I_h:  H = p (A - q q^T), A = diag(O + I) minus, for a tensor that enters h and
// leaves k, its energy at [h][k] and [k][h]. Units with fixed[h] != 0 do not move: their rows and columns are left out.

// y = (A - q q^T) v, v zero on fixed units.
static inline void rsc_hessian_times(rsc_solver *s, const double *v, double *y) {
    const double scale = 1 / s->total;
    double qv = 0;
    for (int h = 0; h < s->units; h++) {
        y[h] = scale * (s->leave[h] + s->enter[h]) * v[h];
        qv += scale * (s->leave[h] - s->enter[h]) * v[h];
    }
    for (int i = 0; i < s->net->n_tensors; i++) {
        const rescale_tensor *t = s->net->tensor + i;
        const rsc_energy *e = s->energy + i;
        const double cross = e->row_sign * e->col_sign * scale;
        if (rsc_is_pair(e)) {
            double pv = 0, qw = 0;
            for (int o = 0; o < t->n_out; o++) pv += e->p[o] * v[e->row + o];
            for (int c = 0; c < t->n_in; c++) qw += e->q[c] * v[e->col + c];
            for (int o = 0; o < t->n_out; o++) y[e->row + o] += cross * e->p[o] * qw;
            for (int c = 0; c < t->n_in; c++) y[e->col + c] += cross * e->q[c] * pv;
        } else if (e->kind == RSC_MATRIX) {
            double *sum = s->cols;
            for (int c = 0; c < t->n_in; c++) {
                s->rows[c] = e->q[c] * v[e->col + c];
                sum[c] = 0;
            }
            for (int o = 0; o < t->n_out; o++) {
                const double *m = e->matrix + rsc_at(o, t->n_in, 0), pv = e->p[o] * v[e->row + o];
                double dot = 0;
                for (int c = 0; c < t->n_in; c++) {
                    dot += m[c] * s->rows[c];
                    sum[c] += m[c] * pv;
                }
                y[e->row + o] += cross * e->p[o] * dot;
            }
            for (int c = 0; c < t->n_in; c++) y[e->col + c] += cross * e->q[c] * sum[c];
        }
    }
    for (int h = 0; h < s->units; h++)
        y[h] = s->fixed[h] ? 0 : y[h] - scale * (s->leave[h] - s->enter[h]) * qv;
}

// A vector of the Woodbury update: scale * v[0..n) at units first..first+n. Number k of 2 n_pairs + 1: p and q of each
// two-sided rank-one tensor in turn, each scaled to the square root of the tensor's share of S, which bounds the entries of
// the small system by one; then O - I.
typedef struct rsc_span {
    const double *v;
    int first, n;
    double scale;
} rsc_span;
static inline rsc_span rsc_woodbury_vector(const rsc_solver *s, int k) {
    rsc_span r = {s->product, 0, s->units, 1};
    for (int i = 0, pair = 0; i < s->net->n_tensors && k < 2 * s->n_pairs; i++) {
        const rsc_energy *e = s->energy + i;
        if (!rsc_is_pair(e) || pair++ != k / 2) continue;
        r.v = k % 2 ? e->q : e->p;
        r.first = k % 2 ? e->col : e->row;
        r.n = k % 2 ? s->net->tensor[i].n_in : s->net->tensor[i].n_out;
        r.scale = e->total > 0 ? sqrt(e->total / s->total) / (k % 2 ? e->sum_q : e->sum_p) : 0;
        break;
    }
    return r;
}
static inline double rsc_weighted_dot(const rsc_span *a, const rsc_span *b, const double *weight) {
    const int first = rsc_max(a->first, b->first), ea = a->first + a->n, eb = b->first + b->n, end = ea < eb ? ea : eb;
    double sum = 0;
    for (int h = first; h < end; h++) sum += a->v[h - a->first] * weight[h] * b->v[h - b->first];
    return a->scale * b->scale * sum;
}

// y = H^-1 b / p for nets whose two-sided tensors are all rank one: A - q q^T = Delta + V K V^T, inverted by Woodbury:
// O(units * tensors + m^3), m = 2 n_pairs + 1. diagonal holds 1 / Delta (0 on fixed units). Returns 1 when singular.
static inline int rsc_woodbury(rsc_solver *s, const double *b, double *y) {
    const int m = 2 * s->n_pairs + 1;
    const int w = m + 1;
    const double scale = 1 / s->total;
    double *A = s->small;
    for (int h = 0; h < s->units; h++) {
        s->product[h] = scale * (s->leave[h] - s->enter[h]);
        s->diagonal[h] = s->fixed[h] ? 0 : s->total / (s->leave[h] + s->enter[h]);
    }
    const rsc_span rhs = {b, 0, s->units, 1};
    for (int i = 0; i < m; i++) {
        const rsc_span vi = rsc_woodbury_vector(s, i);
        for (int j = 0; j <= i; j++) {
            const rsc_span vj = rsc_woodbury_vector(s, j);
            A[rsc_at(i, w, j)] = A[rsc_at(j, w, i)] = rsc_weighted_dot(&vi, &vj, s->diagonal);
        }
        A[rsc_at(i, w, m)] = rsc_weighted_dot(&vi, &rhs, s->diagonal);
    }
    A[rsc_at(m - 1, w, m - 1)] -= 1;  // K^-1 of -q q^T
    for (int i = 0, k = 0; i < s->net->n_tensors; i++) {
        const rsc_energy *e = s->energy + i;
        if (!rsc_is_pair(e)) continue;
        const double inverse = e->row_sign * e->col_sign;  // K = K^-1 = +-[0 1; 1 0] for the scaled pair (p, q)
        A[rsc_at(k, w, k + 1)] += inverse;
        A[rsc_at(k + 1, w, k)] += inverse;
        k += 2;
    }
    if (rsc_lu_solve(A, m)) return 1;
    for (int h = 0; h < s->units; h++) y[h] = b[h];
    for (int i = 0; i < m; i++) {
        const rsc_span v = rsc_woodbury_vector(s, i);
        const double f = v.scale * A[rsc_at(i, w, m)];
        for (int h = 0; h < v.n; h++) y[v.first + h] -= f * v.v[h];
    }
    for (int h = 0; h < s->units; h++) y[h] *= s->diagonal[h];
    return 0;
}

// The same system by conjugate gradients, preconditioned with the diagonal, to a relative residual.
static inline void rsc_conjugate_gradients(rsc_solver *s, const double *b, double *y, double relative) {
    double *r = s->residual, *d = s->direction, *Ad = s->product, *inverse = s->diagonal;
    double rho = 0, target;
    for (int h = 0; h < s->units; h++) {
        inverse[h] = s->fixed[h] ? 0 : s->total / (s->leave[h] + s->enter[h]);
        y[h] = 0;
        r[h] = s->fixed[h] ? 0 : b[h];
        d[h] = inverse[h] * r[h];
        rho += r[h] * d[h];
    }
    target = relative * relative * rho;
    for (int it = 0; it < 2 * s->units + 100 && rho > target; it++) {
        double curvature = 0, next = 0;
        rsc_hessian_times(s, d, Ad);
        for (int h = 0; h < s->units; h++) curvature += d[h] * Ad[h];
        if (!(curvature > 0)) break;
        for (int h = 0; h < s->units; h++) {
            y[h] += rho / curvature * d[h];
            r[h] -= rho / curvature * Ad[h];
            next += r[h] * inverse[h] * r[h];
        }
        for (int h = 0; h < s->units; h++) d[h] = inverse[h] * r[h] + next / rho * d[h];
        rho = next;
        s->report->cg_steps++;
    }
}

// -------------------------------------------------------------------------------------------- Newton: group means
// The slow mode of sweeps is one shift per group. Galerkin step on it: minimise the quadratic model over a common shift of
// all free units of each group, a system of n_groups unknowns; used to start Newton, and cheap.

// Energy of the two-sided tensor i between free rows and free columns, at the last evaluated u.
static inline double rsc_free_energy(const rsc_solver *s, int i) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    double rows = 0, cols = 0;
    for (int c = 0; c < t->n_in; c++) cols += s->cols[c] = s->fixed[e->col + c] ? 0 : e->q[c];
    for (int o = 0; o < t->n_out; o++) {
        double sum = e->kind == RSC_MATRIX ? 0 : cols;
        for (int c = 0; e->kind == RSC_MATRIX && c < t->n_in; c++) sum += e->matrix[rsc_at(o, t->n_in, c)] * s->cols[c];
        rows += s->fixed[e->row + o] ? 0 : e->p[o] * sum;
    }
    return rows;
}

// step = the group-mean Newton step at the last evaluated u. Returns 1 when singular.
static inline int rsc_group_mean_step(rsc_solver *s) {
    const int n = s->net->n_groups;
    const int w = n + 1;
    const double scale = 1 / s->total;
    double *A = s->small, *q = s->direction, largest = 0;
    memset(A, 0, rsc_n(n) * rsc_n(w) * sizeof(double));
    for (int g = 0; g < n; g++) {
        q[g] = 0;
        for (int h = s->first[g]; h < s->first[g + 1]; h++) {
            if (s->fixed[h]) continue;
            A[rsc_at(g, w, g)] += scale * (s->leave[h] + s->enter[h]);
            A[rsc_at(g, w, n)] -= s->gradient[h] / s->p;
            q[g] += scale * (s->leave[h] - s->enter[h]);
        }
    }
    for (int i = 0; i < s->net->n_tensors; i++) {
        const rsc_energy *e = s->energy + i;
        if (e->kind != RSC_MATRIX && !rsc_is_pair(e)) continue;
        const double cross = scale * e->row_sign * e->col_sign * rsc_free_energy(s, i);
        A[rsc_at(s->net->tensor[i].enters, w, s->net->tensor[i].leaves)] += cross;
        A[rsc_at(s->net->tensor[i].leaves, w, s->net->tensor[i].enters)] += cross;
    }
    for (int g = 0; g < n; g++)
        for (int k = 0; k < n; k++) A[rsc_at(g, w, k)] -= q[g] * q[k];
    for (int g = 0; g < n; g++) largest = fmax(largest, A[rsc_at(g, w, g)]);
    for (int g = 0; g < n; g++) A[rsc_at(g, w, g)] += A[rsc_at(g, w, g)] > 0 ? 1e-14 * largest : 1;
    if (rsc_lu_solve(A, n)) return 1;
    for (int g = 0; g < n; g++)
        for (int h = s->first[g]; h < s->first[g + 1]; h++) s->step[h] = s->fixed[h] ? 0 : A[rsc_at(g, w, n)];
    return 0;
}

// Moves u along step within the bound with Armijo backtracking; evaluates F and the gradient there. Returns 0 when no step
// length decreases F (or, at rounding level, the gradient).
static inline int rsc_line_search(rsc_solver *s, double *F, double *grad_inf) {
    const double before = *F, gradient_before = *grad_inf;
    double slope = 0;
    for (int h = 0; h < s->units; h++) slope += s->gradient[h] * s->step[h];
    for (int h = 0; h < s->units; h++) s->direction[h] = s->gradient[h];
    double alpha = 1;
    for (int tries = 0; tries < 60; tries++, alpha *= 0.5) {
        double predicted = 0;
        for (int h = 0; h < s->units; h++) {
            s->trial[h] = rsc_clip(s->u[h] + alpha * s->step[h], s->bound);
            predicted += s->direction[h] * (s->trial[h] - s->u[h]);
        }
        const double now = rsc_evaluate(s, s->trial);
        if (!(now < INFINITY)) continue;
        const int enough = now <= before + 1e-4 * predicted && predicted < 0;
        const double gradient_now = enough || fabs(slope) <= 1e-9 * fabs(before) + 1e-12 ? rsc_gradient(s, s->trial) : INFINITY;
        if (enough || gradient_now < gradient_before) {
            memcpy(s->u, s->trial, rsc_n(s->units) * sizeof(double));
            *F = now;
            *grad_inf = gradient_now;
            return 1;
        }
    }
    *F = rsc_evaluate(s, s->u);
    *grad_inf = rsc_gradient(s, s->u);
    return 0;
}

// step = the Newton step at the last evaluated u: Woodbury with one round of iterative refinement, else conjugate gradients.
static inline void rsc_newton_step(rsc_solver *s, int woodbury, double relative) {
    const double scale = -1 / s->p;
    double *b = s->residual;
    if (woodbury) {
        for (int h = 0; h < s->units; h++) b[h] = s->fixed[h] ? 0 : scale * s->gradient[h];
        if (!rsc_woodbury(s, b, s->step)) {
            double before = 0, after = 0;  // squared residuals, weighted with 1 / Delta
            rsc_hessian_times(s, s->step, s->direction);
            for (int h = 0; h < s->units; h++) {
                before += b[h] * b[h] * s->diagonal[h];
                b[h] -= s->direction[h];
                after += b[h] * b[h] * s->diagonal[h];
            }
            if (after <= 0.01 * before && !rsc_woodbury(s, b, s->direction)) {
                for (int h = 0; h < s->units; h++) s->step[h] += s->direction[h];
                return;
            }
        }
    }
    for (int h = 0; h < s->units; h++) s->trial[h] = s->fixed[h] ? 0 : scale * s->gradient[h];
    rsc_conjugate_gradients(s, s->trial, s->step, relative);
}

// Minimises F to the tolerance. Starts with block sweeps and group-mean steps, then Newton on all units.
static inline void rsc_newton(rsc_solver *s) {
    const rescale_options *o = s->options;
    int woodbury = !o->general && s->n_pairs <= RSC_MOST_PAIRS;
    for (int i = 0; i < s->net->n_tensors; i++) woodbury = woodbury && s->energy[i].kind != RSC_MATRIX;
    double F = rsc_evaluate(s, s->u), grad_inf, n_max = 1;
    for (int h = 0; h < s->units; h++) n_max = fmax(n_max, fabs(s->count[h]));
    n_max *= s->p / RSC_CAST(double, s->parameters);  // a larger p multiplies the gradient, and its rounding errors
    for (int round = 0; round < 2; round++) {
        rsc_block_sweep(s);
        F = rsc_evaluate(s, s->u);
        grad_inf = rsc_gradient(s, s->u);
        for (int k = 0; k < 4 && s->net->n_groups <= RSC_MOST_GROUPS; k++)
            if (rsc_group_mean_step(s) || !rsc_line_search(s, &F, &grad_inf)) break;
    }
    const double first = grad_inf;
    for (int it = 0; it < o->max_iterations && grad_inf > o->tolerance * n_max; it++) {
        rsc_newton_step(s, woodbury, fmin(0.1, sqrt(grad_inf / first)));
        s->report->iterations++;
        if (rsc_line_search(s, &F, &grad_inf)) continue;
        const double before = F;  // at bounds, or by rounding, the step may not descend; a sweep does
        rsc_block_sweep(s);
        F = rsc_evaluate(s, s->u);
        grad_inf = rsc_gradient(s, s->u);
        if (!(F < before)) break;
    }
}

// -------------------------------------------------------------------------------------------------------------- ENorm

// Adds the squared weights that leave and enter the units of `group` (all groups: -1) at the current u to s->leave and
// s->enter, and returns through `total` the sum of squared weights when group is -1.
static inline int rsc_enorm_sums(rsc_solver *s, int group, double *total) {
    for (int h = 0; h < s->units; h++) s->leave[h] = s->enter[h] = 0;
    *total = 0;
    for (int i = 0; i < 2 * s->net->n_tensors; i++) {
        const rescale_tensor *t = s->net->tensor + i / 2;
        const rsc_energy *e = s->energy + i / 2;
        const int by_col = i % 2, columns = RSC_CAST(int, rsc_columns(t)), first = by_col ? e->col : e->row, mine = by_col ? t->leaves : t->enters;
        const int sign = by_col ? e->col_sign : e->row_sign, per_unit = by_col ? t->kernel : 1;
        double *sum = sign > 0 ? s->leave : s->enter;
        int status;
        if (!e->kind || (group >= 0 ? mine != group : by_col && first < 0)) continue;
        if (t->enters >= 0 && t->enters == t->leaves)
            return rsc_error(s->report, RESCALE_ERROR_ARGUMENT, t->name, "ENorm has no rule for a tensor from a group to itself");
        if (by_col) {
            for (int o = 0; o < t->n_out; o++) s->in_scale[o] = rsc_factor(s, e->row, o, -e->row_sign);
            status = rsc_square_cols(s, t->name, t->data, rsc_n(t->n_out), rsc_n(columns), s->in_scale, s->rows);
        } else {
            for (int c = 0; c < columns; c++) s->in_scale[c] = rsc_factor(s, e->col, c / t->kernel, -e->col_sign);
            status = rsc_square_rows(s, t->name, t->data, rsc_n(t->n_out), rsc_n(columns), s->in_scale, s->rows);
        }
        if (status) return status;
        for (int k = 0; k < (by_col ? columns : t->n_out); k++) {
            const double energy = s->rows[k] * rsc_factor(s, first, k / per_unit, -sign);
            if (!by_col) *total += energy;
            if (first >= 0) sum[first + k / per_unit] += energy;
        }
    }
    return RESCALE_OK;
}

// One cycle over the groups: exp(2 u_h) = out_h / (c^2 in_h), sums of squared weights that leave / enter h at u_h = 0.
// The largest change of u goes to `change`.
static inline int rsc_enorm_cycle(rsc_solver *s, double *change) {
    const double c = s->options->enorm_c;
    *change = 0;
    for (int g = 0; g < s->net->n_groups; g++) {
        double total;
        const int status = rsc_enorm_sums(s, g, &total);
        if (status) return status;
        for (int h = s->first[g]; h < s->first[g + 1]; h++) {
            if (!(s->leave[h] > 0) || !(s->enter[h] > 0)) s->fixed[h] = 1;
            if (s->fixed[h] == 1) continue;
            const double u = rsc_clip(s->u[h] + 0.5 * log(s->leave[h] / (c * c * s->enter[h])), s->bound);
            *change = fmax(*change, fabs(u - s->u[h]));
            s->u[h] = u;
            s->x[h] = exp(u);
        }
    }
    s->report->sweeps++;
    return RESCALE_OK;
}

// Minimises the sum of squared weights: a fixed number of cycles, or until u changes by less than 1e-9 (at most 10 *
// max_iterations cycles: cycles converge linearly).
static inline int rsc_enorm(rsc_solver *s) {
    const rescale_options *o = s->options;
    rescale_report *r = s->report;
    const long long cycles = s->given ? 0 : o->solver != RESCALE_NEWTON ? o->sweeps : 10LL * o->max_iterations;
    double change = INFINITY, total;
    int status;
    for (int h = 0; h < s->units; h++) s->x[h] = 1;
    if ((status = rsc_enorm_sums(s, -1, &r->objective_before))) return status;
    for (int h = 0; h < s->units && s->given; h++) {
        s->u[h] = s->given[h];
        s->x[h] = exp(s->u[h]);
    }
    for (long long k = 0; k < cycles && change > (o->solver != RESCALE_NEWTON ? -1 : 1e-9); k++)
        if ((status = rsc_enorm_cycle(s, &change))) return status;
    if ((status = rsc_enorm_sums(s, -1, &total))) return status;
    r->objective_after = total;
    r->grad_tolerance = 1e-8 * total;
    for (int h = 0; h < s->units; h++) {
        const double g = o->enorm_c * o->enorm_c * s->enter[h] - s->leave[h];
        const int outwards = (s->u[h] >= s->bound && g < 0) || (s->u[h] <= -s->bound && g > 0);
        if (!s->fixed[h] && !outwards) r->grad_inf = fmax(r->grad_inf, fabs(g));
    }
    return RESCALE_OK;
}

// ----------------------------------------------------------------------------------------------------- PathCond, apply

// Minimises F where S <= limit, from the optimum: with a multiplier mu, F + mu log S is F with p + mu in place of p, and S falls as
// mu grows. Bisection of log p until S is at most a thousandth below the limit; where nothing but u = 0 is within it, that.
static inline void rsc_bound_trace(rsc_solver *s, double limit) {
    double low = 0, high = INFINITY, at = 1;  // log of p over the number of parameters
    for (int k = 0; k < 60 && at < 32 && !(s->total <= limit && s->total >= 0.999 * limit); k++) {
        s->p = RSC_CAST(double, s->parameters) * exp(at);
        rsc_newton(s);
        if (s->total > limit) low = at;
        else high = at;
        at = high < INFINITY ? 0.5 * (low + high) : 2 * at;
    }
    if (s->total <= limit) return;
    for (int h = 0; h < s->units; h++) s->u[h] = 0;
    s->p = 1e30 * RSC_CAST(double, s->parameters);  // the certificate then is that of S alone
}

// diag(G), then the solver the options ask for; u ends in s->u.
static inline int rsc_pathcond(rsc_solver *s, double start) {
    rescale_report *r = s->report;
    int chain = 1;  // diag(G) is ours to compute, from a sequential fully connected net
    for (int i = 0; i < s->net->n_tensors; i++) chain = chain && !s->net->tensor[i].g && !s->net->tensor[i].g_out;
    int status = chain ? rsc_chain_diag_g(s) : RESCALE_OK;
    for (int i = 0; i < s->net->n_tensors && !status; i++) status = rsc_collect(s, i, chain);
    if (status) return status;
    const double solve = rsc_seconds();
    r->seconds_diag_g = solve - start;
    r->objective_before = rsc_evaluate(s, s->u);
    const double limit = s->options->max_trace * s->total;
    s->trace = s->total;
    if (!(s->total > 0) || !(s->total <= DBL_MAX))
        return rsc_error(r, RESCALE_ERROR_RANGE, "network", "diag(G) is zero everywhere or overflows");
    double n_max = 1;
    for (int h = 0; h < s->units; h++) {
        if (!(s->leave[h] > 0) || !(s->enter[h] > 0)) s->fixed[h] = 1;
        n_max = fmax(n_max, fabs(s->count[h]));
    }
    r->grad_tolerance = 1e-8 * n_max;
    if (s->given) memcpy(s->u, s->given, rsc_n(s->units) * sizeof(double));
    else if (s->options->solver == RESCALE_NEWTON) rsc_newton(s);
    else for (int k = 0; k < s->options->sweeps; k++) rsc_block_sweep(s);
    if (s->given) rsc_evaluate(s, s->u);
    else if (limit > 0 && s->total > limit * (1 + 1e-9)) rsc_bound_trace(s, limit);
    const double F = rsc_evaluate(s, s->u), p = s->p;
    r->grad_inf = rsc_gradient(s, s->u) * RSC_CAST(double, s->parameters) / p;
    s->p = RSC_CAST(double, s->parameters);
    r->objective_after = p == s->p ? F : rsc_evaluate(s, s->u);
    r->trace_ratio = s->total / s->trace;
    return RESCALE_OK;
}

// Multiplies one tensor and its optimizer state by the factors exp(-(B u)_i / 2) to the powers 1, -1, -2. apply = 0 only
// checks that the results stay in the range of the type.
static inline int rsc_apply_tensor(rsc_solver *s, int i, int apply) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    static const int power[3] = {1, -1, -2};
    const double limit = sizeof(rescale_real) == sizeof(float) ? RSC_CAST(double, FLT_MAX) : DBL_MAX;
    rescale_real *const data[3] = {t->data, t->moment1, t->moment2};
    for (int k = 0; k < 3; k++) {
        double largest[2] = {0, 0};
        if (!data[k]) continue;
        for (int side = 0; side < 2; side++) {  // s->x holds lambda; a row that enters is multiplied, a column divided
            const int first = side ? e->col : e->row, sign = side ? e->col_sign : e->row_sign;
            const int n = side ? RSC_CAST(int, rsc_columns(t)) : t->n_out;
            double *factor = side ? s->cols : s->rows;
            for (int j = 0; j < n; j++) {
                const double f = rsc_factor(s, first, side ? j / t->kernel : j, -sign);
                factor[j] = power[k] == 1 ? f : power[k] == -1 ? 1 / f : 1 / (f * f);
                largest[side] = fmax(largest[side], factor[j]);
            }
        }
        if (!(e->max_abs[k] * largest[0] * largest[1] <= limit))
            return rsc_error(s->report, RESCALE_ERROR_RANGE, t->name, "the rescaled values overflow; bound |log lambda|");
        if (!apply) continue;
        const int status = rsc_scale(s, t->name, data[k], rsc_n(t->n_out), rsc_columns(t), s->rows, s->cols);
        if (status) return status;
    }
    return RESCALE_OK;
}

// Keeps the part of u that the options ask for: differences within groups only, a fraction.
static inline void rsc_moderate(rsc_solver *s) {
    const rescale_options *o = s->options;
    for (int g = 0; g < s->net->n_groups; g++) {
        double sum = 0;
        int free_units = 0;
        for (int h = s->first[g]; h < s->first[g + 1]; h++)
            if (s->fixed[h] != 1) {
                sum += s->u[h];
                free_units++;
            }
        for (int h = s->first[g]; h < s->first[g + 1]; h++)
            if (s->fixed[h] != 1) s->u[h] = o->strength * (s->u[h] - (o->within ? sum / free_units : 0));
    }
}

// ------------------------------------------------------------------------------------------------------ powers of two
// lambda_h = 2^k_h. Rounding every lambda by itself can end above F(0), so the integers k_h descend on F, one by one and a group at
// a time. s->step holds k, s->trial and s->product the least and the largest k allowed.

static inline double rsc_log4(double x) { return log(x) / (2 * log(2.0)); }

// How F changes where S becomes `now` and unit h, or units whose n_h add up to `count`, move by `by`.
static inline double rsc_change(const rsc_solver *s, double S, double now, double count, double by) {
    return s->p * log(now / S) - count * 2 * log(2.0) * by;
}

// Units of a group one by one, each to the integer that is best with all others fixed. F is convex in log x, so that is one of the
// two beside its minimum. Returns how many moved; S is brought up to date.
static inline int rsc_descend_in_turn(rsc_solver *s, int group, double *S) {
    int moved = 0;
    for (int h = s->first[group]; h < s->first[group + 1]; h++) {
        if (s->fixed[h] == 1) continue;
        const double B = s->leave[h], C = s->enter[h], c = s->count[h] / s->p, D = *S - B * s->x[h] - C / s->x[h];
        const double root = hypot(c * D, 2 * sqrt((1 - c) * B) * sqrt((1 + c) * C));
        const double best = rsc_log4(c >= 0 ? (c * D + root) / (2 * (1 - c) * B) : 2 * (1 + c) * C / (root - c * D));
        const double start = *S, k = s->step[h];
        double least = -1e-12 * s->p;
        for (int side = 0; side < 2; side++) {
            const double next = rsc_within(side ? ceil(best) : floor(best), s->trial[h], s->product[h]);
            const double x = exp2(2 * next), now = D + B * x + C / x, change = rsc_change(s, start, now, s->count[h], next - k);
            if (!(change < least)) continue;
            least = change;
            *S = now;
            s->step[h] = next;
            s->x[h] = x;
        }
        moved += s->step[h] != k;
    }
    return moved;
}

// All units of a group by one, up or down, as long as F falls. Returns how often they moved.
static inline int rsc_descend_together(rsc_solver *s, int group, double *S) {
    int moved = 0;
    for (int tries = 0, by = 1; tries < 2; tries++, by = -1)
        for (int falls = 1; falls;) {
            const double up = exp2(2.0 * by);
            double now = *S, count = 0;
            for (int h = s->first[group]; h < s->first[group + 1] && falls; h++) {
                const double k = s->step[h] + by;
                if (s->fixed[h] == 1) continue;
                falls = k >= s->trial[h] && k <= s->product[h];
                now += (up - 1) * s->leave[h] * s->x[h] + (1 / up - 1) * s->enter[h] / s->x[h];
                count += s->count[h];
            }
            falls = falls && rsc_change(s, *S, now, count, by) < -1e-12 * s->p;
            for (int h = s->first[group]; h < s->first[group + 1] && falls; h++) {
                if (s->fixed[h] == 1) continue;
                s->step[h] += by;
                s->x[h] *= up;
            }
            if (falls) *S = now;
            moved += falls;
        }
    return moved;
}

// Descends from the k in s->step until nothing moves; u follows. Returns F there.
static inline double rsc_descend(rsc_solver *s) {
    for (int h = 0; h < s->units; h++) s->u[h] = 2 * log(2.0) * s->step[h];
    rsc_evaluate(s, s->u);
    for (int round = 0, moved = 1; round < 100 && moved; round++) {
        moved = 0;
        for (int g = 0; g < s->net->n_groups; g++) {
            double rest = 0, S = rsc_group_energies(s, g, &rest);
            if (S < 0) continue;
            moved += rsc_descend_together(s, g, &S);
            moved += rsc_descend_in_turn(s, g, &S);
            for (int i = 0; i < s->net->n_tensors; i++)
                if (rsc_touches(s->energy + i, s->net->tensor + i, g)) rsc_refresh(s, i);
        }
    }
    for (int h = 0; h < s->units; h++) s->u[h] = 2 * log(2.0) * s->step[h];
    return rsc_evaluate(s, s->u);
}

// The powers of two for PathCond. At the optimum of F every integer within the bound is allowed; where the options ask for another
// u, only the two beside it. Of two starts, u rounded and no rescaling, the better is kept, so that F never ends above F(0).
static inline void rsc_pow2_pathcond(rsc_solver *s, double bound, int at_optimum) {
    const double before = s->report->objective_before;
    for (int h = 0; h < s->units; h++) {
        const double k = 0.5 * s->u[h] / log(2.0), largest = s->fixed[h] == 1 ? 0 : fmin(bound, 500);
        s->trial[h] = at_optimum ? -largest : rsc_clip(floor(k), largest);
        s->product[h] = at_optimum ? largest : rsc_clip(ceil(k), largest);
        s->step[h] = rsc_clip(rint(k), largest);
    }
    const double F = rsc_descend(s);
    memcpy(s->direction, s->u, rsc_n(s->units) * sizeof(double));
    for (int h = 0; h < s->units && at_optimum; h++) s->step[h] = 0;
    if (at_optimum && rsc_descend(s) < F) return;
    for (int h = 0; h < s->units; h++) s->u[h] = F <= before ? s->direction[h] : 0;
}

// The same for ENorm, whose sum of squared weights is least, with all but unit h fixed, at the integer nearest to the minimum.
static inline int rsc_pow2_enorm(rsc_solver *s, double bound, int at_optimum) {
    const double c = s->options->enorm_c, unit = 2 * log(2.0);
    double total = 0;
    for (int h = 0; h < s->units; h++) {
        s->u[h] = unit * rsc_clip(rint(s->u[h] / unit), bound);
        s->x[h] = exp(s->u[h]);
    }
    for (int round = 0, moved = 1; round < 20 && moved && at_optimum; round++) {
        moved = 0;
        for (int g = 0; g < s->net->n_groups; g++) {
            const int status = rsc_enorm_sums(s, g, &total);
            if (status) return status;
            for (int h = s->first[g]; h < s->first[g + 1]; h++) {
                if (s->fixed[h] == 1) continue;
                const double best = s->u[h] + 0.5 * log(s->leave[h] / (c * c * s->enter[h]));
                if (fabs(best - s->u[h]) <= 0.5 * unit * (1 + 1e-9)) continue;
                const double u = unit * rsc_clip(rint(best / unit), bound);
                moved += u != s->u[h];
                s->u[h] = u;
                s->x[h] = exp(u);
            }
        }
    }
    const int status = rsc_enorm_sums(s, -1, &total);
    if (c != 1 || total <= s->report->objective_before) return status;  // with c other than 1 the sum is not what falls
    for (int h = 0; h < s->units; h++) s->u[h] = 0;
    return status;
}

// Rounds to powers of two if asked, puts lambda into s->x, and rescales every tensor that touches a moved unit.
static inline int rsc_apply(rsc_solver *s) {
    const rescale_options *o = s->options;
    rescale_report *r = s->report;
    const double log2_bound = floor(0.5 * s->bound / log(2.0) * (1 + 1e-12)), start = rsc_seconds();
    const int moderate = o->strength != 1 || o->within;
    int status = RESCALE_OK;
    const int at_optimum = !moderate && o->solver == RESCALE_NEWTON && o->max_trace == 0;
    for (int h = 0; h < s->units; h++)
        if (!(fabs(s->u[h]) <= 1400)) return rsc_error(r, RESCALE_ERROR_RANGE, "u", "lambda leaves the range of exp");
    if (moderate && !s->given) rsc_moderate(s);
    if (s->given) status = RESCALE_OK;
    else if (o->pow2 && o->method == RESCALE_PATHCOND) rsc_pow2_pathcond(s, log2_bound, at_optimum);
    else if (o->pow2) status = rsc_pow2_enorm(s, log2_bound, at_optimum);
    if (status) return status;
    for (int h = 0; h < s->units; h++) {
        r->pinned_units += s->fixed[h] == 1;
        r->bounded_units += s->fixed[h] != 1 && fabs(s->u[h]) >= s->bound;
        r->max_abs_log_lambda = fmax(r->max_abs_log_lambda, 0.5 * fabs(s->u[h]));
    }
    for (int h = 0; h < s->units; h++) s->x[h] = exp(s->u[h]);
    if ((o->pow2 || moderate) && o->method == RESCALE_PATHCOND) {
        r->objective_after = rsc_evaluate(s, s->u);
        r->trace_ratio = s->total / s->trace;
    } else if ((o->pow2 || moderate) && (status = rsc_enorm_sums(s, -1, &r->objective_after))) return status;
    for (int h = 0; h < s->units; h++) s->x[h] = o->pow2 ? ldexp(1.0, RSC_CAST(int, rint(0.5 * s->u[h] / log(2.0)))) : exp(0.5 * s->u[h]);
    if (o->u) memcpy(o->u, s->u, rsc_n(s->units) * sizeof(double));
    for (int apply = 0; apply < 2; apply++)
        for (int i = 0; i < s->net->n_tensors; i++) {
            const rescale_tensor *t = s->net->tensor + i;
            int moved = 0;
            for (int k = 0; k < t->n_out && t->enters >= 0; k++) moved = moved || s->u[s->energy[i].row + k] != 0;
            for (int k = 0; k < t->n_in && t->leaves >= 0; k++) moved = moved || s->u[s->energy[i].col + k] != 0;
            if (!moved) continue;
            if ((status = rsc_apply_tensor(s, i, apply && !o->dry_run))) return status;
            r->tensors_touched += apply && !o->dry_run;
        }
    r->seconds_apply = rsc_seconds() - start;
    return RESCALE_OK;
}

// What a success should not hide.
static inline void rsc_warn(rsc_solver *s) {
    rescale_report *r = s->report;
    if (s->underflow)
        rsc_error(r, RESCALE_OK, s->underflow, "diag(G) underflows; scale all of it by one constant, and the reference too");
    else if (r->units > 0 && r->pinned_units == r->units)
        rsc_error(r, RESCALE_OK, "network", "every unit is pinned, nothing was rescaled: no path with energy passes any of them");
}

// ----------------------------------------------------------------------------------------------------------- public run

static inline int rsc_run(const rescale_net *net, const rescale_options *options, const double *given, rescale_report *report) {
    const rescale_options defaults = rescale_default_options();
    const double start = rsc_seconds();
    rsc_solver s;
    memset(&s, 0, sizeof s);
    if (!report) return RESCALE_ERROR_ARGUMENT;
    memset(report, 0, sizeof *report);
    s.net = net;
    s.options = options ? options : &defaults;
    s.report = report;
    s.given = given;
    int status = rsc_validate(net, s.options, report);
    if (status) return status;
    size_t bytes = s.options->arena_bytes;
    char *mine = NULL, *base = RSC_CAST(char *, s.options->arena);
    if (!base) {
        bytes = rescale_arena_bytes(net, s.options);
        base = mine = RSC_CAST(char *, malloc(bytes));
        if (!mine) return rsc_error(report, RESCALE_ERROR_MEMORY, "arena", "out of memory");
    }
    const size_t shift = (64 - RSC_ADDRESS(base) % 64) % 64;
    rsc_arena arena = {base + shift, 0, bytes > shift ? bytes - shift : 0};
    rsc_layout(&s, &arena);
    if (arena.used > arena.size) status = rsc_error(report, RESCALE_ERROR_MEMORY, "arena", "too small, see rescale_arena_bytes");
    if (!status) {
        rsc_link(&s);
        report->units = s.units;
        report->parameters = s.parameters;
        status = rsc_check_finite(&s);
    }
    if (!status) status = s.options->method == RESCALE_PATHCOND ? rsc_pathcond(&s, start) : rsc_enorm(&s);
    if (!status) {
        report->converged = report->grad_inf <= report->grad_tolerance;
        if (s.options->solver == RESCALE_NEWTON && !report->converged && !given)
            status = rsc_error(report, RESCALE_ERROR_CONVERGENCE, "network", "the solver stopped before the optimum; a bound on |log lambda| helps");
        report->seconds_solve = rsc_seconds() - start - report->seconds_diag_g;
    }
    if (!status) status = rsc_apply(&s);
    if (!status) rsc_warn(&s);
    free(mine);
    return report->status = status;
}

// Rescales the network in place. Returns RESCALE_OK, or a status with report->message set and no parameter changed (but for
// RESCALE_ERROR_DEVICE while applying). options may be NULL for the defaults.
static inline int rescale_run(const rescale_net *net, const rescale_options *options, rescale_report *report) {
    return rsc_run(net, options, NULL, report);
}

// The same with a given u (one entry per unit, groups in order) instead of a solved one: for networks that share tensors and are
// solved in turn. Objective, gradient and `converged` in the report are those at this u; options that change u are not used.
static inline int rescale_apply(const rescale_net *net, const rescale_options *options, const double *u, rescale_report *report) {
    if (u) return rsc_run(net, options, u, report);
    if (!report) return RESCALE_ERROR_ARGUMENT;
    memset(report, 0, sizeof *report);
    return rsc_error(report, RESCALE_ERROR_ARGUMENT, "u", "is NULL");
}

#endif  // RESCALE_CUH
