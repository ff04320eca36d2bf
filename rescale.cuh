// rescale.cuh -- rescales a freshly initialised ReLU network: same function, faster training.
//
// One header that needs nothing else of ours: copy it into your project. It is C99, C++11 and CUDA.
// Its version is RESCALE_VERSION.
//
// CONTENTS
//     1. What it does        2. A complete example    3. Describing a network
//     4. diag(G)             5. Options and report     6. Memory
//     7. Errors              8. Formulas               9. Sources
//
//     Code, in sections:
//     A. Public types                      B. Describing a network      C. Internal structures
//     D. Passes over the tensors: host     E. Passes: device            F. Passes: host or device
//     G. Checks                            H. Working memory            I. diag(G)
//     J. Energies at a given u             K. Block sweeps              L. Small linear solves
//     M. Newton: the Hessian               N. Newton: group means       O. Newton: the iteration
//     P. ENorm                             Q. PathCond                  R. Powers of two
//     S. Apply                             T. Public run             U. Public: g from data, checks
//
// 1. WHAT IT DOES
//     A hidden unit h may be scaled if its activation is positively homogeneous: ReLU, leaky ReLU
//     or the identity. (Pooling commutes with the scaling.) Its incoming weights and its bias are
//     multiplied by lambda_h > 0. Its outgoing weights are divided by lambda_h. The function of the
//     network stays the same; its gradients change. Write lambda_h = exp(u_h / 2), or exp(u_h) at
//     power 1.
//
//     RESCALE_PATHCOND is PathCond. G is the Gram matrix of the path-lifting's derivative. Its
//     diagonal diag(G) holds one number g_i >= 0 for each parameter i. PathCond chooses u so that
//     diag(G) comes closest to a multiple of a reference r. The distance is the log-det (Burg)
//     divergence; r is 1 unless you give another. This is a convex problem: minimise
//         F(u) = p log( sum_i g_i / r_i exp((B u)_i) ) - sum_i (B u)_i,
//     where p is the number of counted parameters. B[i][h] is -1 if parameter i enters unit h, and
//     +1 if it leaves unit h. Parameter i becomes theta_i exp(-(B u)_i / 2).
//
//     Newton's method solves the problem and proves it. The report holds max |dF/du|, which ends
//     below tolerance * max(1, max |n_h|). Here n_h is the number of parameters that leave unit h
//     minus the number that enter it.
//
//     RESCALE_ENORM is the baseline ENorm. It minimises the sum of squared weights. Biases are
//     scaled but not counted.
//
// 2. A COMPLETE EXAMPLE (the tests compile this very text as C99, C11, C++17, and with nvcc)
// EXAMPLE
// #include "rescale.cuh"
// #include <stdio.h>
// static float w1[64 * 8], b1[64], w2[3 * 64], b2[3];  // y = W2 relu(W1 x + b1) + b2
// int main(void) {
//     for (int i = 0; i < 64 * 8; i++) w1[i] = (float)((i * 37) % 101 - 50) / 150;
//     for (int i = 0; i < 3 * 64; i++) w2[i] = (float)((i * 53) % 103 - 51) / 400;
//     rescale_group hidden[1] = {rescale_units("relu1", 64, RESCALE_RELU)};
//     rescale_tensor t[4] = {  // weights are [out][in]
//         rescale_weight("fc1.weight", w1, 64, 8, 1, 0, RESCALE_NONE),  // rows enter group 0
//         rescale_bias("fc1.bias", b1, 64, 0),
//         rescale_weight("fc2.weight", w2, 3, 64, 1, RESCALE_NONE, 0),  // columns leave group 0
//         rescale_bias("fc2.bias", b2, 3, RESCALE_NONE)};
//     rescale_net net = {hidden, 1, t, 4};
//     rescale_options options = rescale_default_options();
//     rescale_report report;
//     if (rescale_run(&net, &options, &report)) {
//         fprintf(stderr, "%s\n", report.message);
//         return 1;
//     }
//     printf("F %.3f -> %.3f, max |dF/du| %.1e after %d Newton steps\n", report.objective_before,
//            report.objective_after, report.grad_inf, report.iterations);
//     return 0;
// }
// END
//
// 3. DESCRIBING A NETWORK
//     A *group* is a set of units that share a symmetry: the neurons of a hidden layer, the
//     channels of a feature map, the channels of a residual stream. A *tensor*
//     [n_out][n_in][kernel] enters at most one group by its rows. It leaves at most one group by
//     its columns. Write RESCALE_NONE for a side without a group. List every parameter tensor.
//     Tensors outside every group (the output bias) belong to the list, because they count in F.
//         fully connected    rescale_weight(name, W, out, in, 1, group of outputs, group of inputs)
//         convolution        rescale_weight(name, W, C_out, C_in, kh * kw, ...)
//         linear layer after a flatten of C channels of H x W
//                            rescale_weight(name, W, out, C, H * W, ...)
//         bias of a layer    rescale_bias(name, b, n, group)
//         BatchNorm          rescale_gain(name, gamma, n, group, running_mean, running_var, eps),
//                            and rescale_bias for beta. The layer BEFORE the BatchNorm and its bias
//                            enter RESCALE_NONE. This is exact in training and in evaluation mode.
//                            The running statistics stay untouched
//         residual stream    one group; all tensors that write into it enter it, all that read it
//                            leave it
//         attention          values: rows of W_v enter a group of linear units, columns of W_o
//                            leave it. Queries and keys: rows of W_q enter a group, rows of W_k
//                            leave it (flag RESCALE_ROWS_LEAVE)
//     Flags:
//         RESCALE_UNCOUNTED   the tensor is scaled, but left out of F, p and n_h. If the header
//                             computes diag(G), an uncounted bias begins no paths either
//         RESCALE_ROWS_LEAVE  the rows leave the group `enters`: row r is divided by lambda_r
//         RESCALE_COLS_ENTER  the columns enter the group `leaves`, as an embedding writes a stream
//     reference, reference_each: r > 0 for the tensor, or per parameter [n_out][n_in][kernel].
//     moment1, moment2: optimizer state of the tensor, same shape and memory. moment1 is SGD's
//     momentum or Adam's m; moment2 is Adam's v. A parameter's factor f divides moment1, and f^2
//     divides moment2, so that training goes on consistently. A group whose activation is not
//     positively homogeneous (RESCALE_GELU, ...) is refused.
//
// 4. diag(G)
//     g_i = sum over paths p through i of (Phi_p / theta_i)^2; at power 1, of |Phi_p / theta_i|.
//     Phi_p is the product of the parameters along path p. There are three ways to provide g:
//     - nothing. If no tensor carries it, rescale_run computes it by one squared forward and
//       backward pass of one sample. The tensors must then be a sequential fully connected net in
//       order (W1, b1, gamma1, beta1, W2, ...). Any other net is refused, also one with shared
//       groups or with flags that turn a side round: give its diag(G);
//     - g, the full array [n_out][n_in][kernel], in the same memory as the tensor. Square all
//       parameters (at power 1, take absolute values), feed an input of ones and sum the outputs:
//       g is the gradient of this sum with respect to the squared parameters. If it leaves the
//       range of the type, multiply the input and the squared biases by one constant, and the
//       output gradient by another. The reference of a weight is then the product of both
//       constants; the reference of a bias is the second alone;
//     - g_out[n_out] and g_in[n_in * kernel], host vectors with g = g_out (x) g_in, the outer
//       product. A fully connected layer has rank one.
//
//     g FROM DATA. Paths know no data: every input counts as 1, every ReLU as open. Gradients on
//     samples x know it:
//         g_i = sum over x and outputs k of (df_k(x) / dtheta_i)^2;   at power 1, of |.|
//     This is the diagonal of the tangent kernel, summed over its inputs. A rescaling multiplies
//     df_k / dtheta_i by 1 / (factor of theta_i). So g changes as the g of the paths does, and all
//     of section 8 holds.
//     - Cost. Draw signs s_k = +-1 for every sample and output, and take the gradient of
//       sum_k s_k f_k(x). Over the signs, the expectation of its square is the sum over k above.
//       So one backward pass is enough. At power 1 the absolute value of that gradient takes the
//       place of the sum over k.
//     - Sum powers per sample. A gradient summed over the batch does not do. For a linear layer,
//       a sample's gradient is delta (x) activation: rescale_kernel_linear. For every other tensor
//       give each sample's gradient to rescale_kernel_add. BatchNorm's statistics are constants.
//     - No one has to divide by the number of samples: u does not depend on a factor common to
//       the g of all tensors.
//     - When. The net is no chain, so that you need your own passes anyway; inputs differ in
//       scale, or many are zero; the net is not fresh. A unit that is zero on all samples has
//       g = 0 and is pinned: take more samples, or RESCALE_LAYER, which needs only sums over
//       layers and so suits few samples.
//     - Power. Plain SGD's step is the gradient: 2. Adam divides by its size: 1.
//     rescale_verify runs your forward before and after, and returns how far the outputs moved.
//     Rounding moves them by about 1e-6 in float. A wrong description moves them visibly, unless
//     it leaves out all that enters or all that leaves a group: its units are then pinned, and
//     report.pinned_units counts them. Use it once for each architecture (BatchNorm: in evaluation
//     and in training mode; no dropout).
//
// EXAMPLE 2
// #include "rescale.cuh"
// #include <stdio.h>
// enum { N = 32, IN = 8, HIDDEN = 64, OUT = 3 };  // N samples; y = W2 relu(W1 x + b1) + b2
// static float x[N * IN], h[N * HIDDEN], y[N * OUT], delta1[N * HIDDEN], delta2[N * OUT];
// static float w1[HIDDEN * IN], b1[HIDDEN], w2[OUT * HIDDEN], b2[OUT];
// static float g_w1[HIDDEN * IN], g_b1[HIDDEN], g_w2[OUT * HIDDEN], g_b2[OUT];
// static unsigned state = 1;
// static float uniform(void) {  // in [-1, 1)
//     state = state * 1664525u + 1013904223u;
//     return (float)(state >> 8) / 8388608.0f - 1.0f;
// }
// static void linear(float *out, const float *in, const float *w, const float *b, int n_out,
//                    int n_in, int relu) {
//     for (int s = 0; s < N; s++)
//         for (int o = 0; o < n_out; o++) {
//             float sum = b[o];
//             for (int i = 0; i < n_in; i++) sum += w[o * n_in + i] * in[s * n_in + i];
//             out[s * n_out + o] = relu && sum < 0 ? 0 : sum;
//         }
// }
// static void forward(void *context, double *outputs) {  // for rescale_verify
//     (void)context;
//     linear(h, x, w1, b1, HIDDEN, IN, 1);
//     linear(y, h, w2, b2, OUT, HIDDEN, 0);
//     for (int i = 0; i < N * OUT; i++) outputs[i] = y[i];
// }
// static void backward_from_signs(void) {  // of the last forward
//     for (int i = 0; i < N * OUT; i++) delta2[i] = uniform() < 0 ? -1.0f : 1.0f;
//     for (int i = 0; i < N * HIDDEN; i++) {
//         const int s = i / HIDDEN, j = i % HIDDEN;
//         delta1[i] = 0;
//         for (int k = 0; k < OUT && h[i] > 0; k++)
//             delta1[i] += delta2[s * OUT + k] * w2[k * HIDDEN + j];
//     }
// }
// int main(void) {
//     static double outputs[2 * N * OUT];
//     for (int i = 0; i < N * IN; i++) x[i] = uniform() * (float)(1 + i % IN);
//     for (int i = 0; i < HIDDEN * IN; i++) w1[i] = uniform() / 3;
//     for (int i = 0; i < OUT * HIDDEN; i++) w2[i] = uniform() / 8;
//     rescale_options options = rescale_default_options();
//     rescale_report report;
//     options.power = 1;  // for Adam
//     forward(NULL, outputs);
//     backward_from_signs();
//     rescale_kernel_linear(g_w1, delta1, x, N, HIDDEN, IN, options.power);
//     rescale_kernel_linear(g_b1, delta1, NULL, N, HIDDEN, 1, options.power);
//     rescale_kernel_linear(g_w2, delta2, h, N, OUT, HIDDEN, options.power);
//     rescale_kernel_linear(g_b2, delta2, NULL, N, OUT, 1, options.power);
//     rescale_group hidden[1] = {rescale_units("relu1", HIDDEN, RESCALE_RELU)};
//     rescale_tensor t[4] = {rescale_weight("fc1.weight", w1, HIDDEN, IN, 1, 0, RESCALE_NONE),
//                            rescale_bias("fc1.bias", b1, HIDDEN, 0),
//                            rescale_weight("fc2.weight", w2, OUT, HIDDEN, 1, RESCALE_NONE, 0),
//                            rescale_bias("fc2.bias", b2, OUT, RESCALE_NONE)};
//     const float *g[4] = {g_w1, g_b1, g_w2, g_b2};
//     for (int i = 0; i < 4; i++) t[i].g = g[i];
//     rescale_net net = {hidden, 1, t, 4};
//     const double moved =
//         rescale_verify(&net, &options, &report, forward, NULL, outputs, N * OUT);
//     if (report.status) fprintf(stderr, "%s\n", report.message);
//     if (!(moved < 1e-5)) return 1;
//     printf("F %.3f -> %.3f, max |dF/du| %.1e, outputs moved by %.0e of the largest\n",
//            report.objective_before, report.objective_after, report.grad_inf, moved);
//     return 0;
// }
// END
//
// 5. OPTIONS AND REPORT
//     Every field of the structures in section A has a comment. rescale_default_options() fills in
//     the defaults.
//
// 6. MEMORY
//     Tensors are all in host memory (on_device = 0) or all in device memory (on_device = 1, CUDA
//     builds). All working memory is one arena of rescale_arena_bytes(&net, &options) bytes. Give
//     your own (options.arena); otherwise it is one malloc. Its size is O(units), plus 8 bytes per
//     row-column pair (not per kernel entry) of a tensor with a full g. On a device, scratch memory
//     of O(units), or of the largest such tensor, is allocated and freed with cudaMalloc and
//     cudaFree. `#define RESCALE_REAL double` before the include for double tensors (the default is
//     float). OpenMP is used if the compiler enables it.
//
// 7. ERRORS
//     rescale_run returns RESCALE_OK or another status; report.message names the tensor or group.
//     It never prints or exits. After any error no parameter has changed. (A device that fails
//     while it applies is the one exception.) Written arrays are the tensors, their optimizer
//     state, the arena and u. They must overlap no other array.
//
// 8. FORMULAS (comments in the code point here)
//     Energies. The energy of a parameter is e_i = g_i / r_i exp((B u)_i). S is the sum of all e_i.
//     O_h is the sum over the parameters that leave unit h, I_h the sum over those that enter it.
//     (1) Objective and gradient.   F = p log S - sum_h n_h u_h
//                                   dF/du_h = p (O_h - I_h) / S - n_h
//     (2) Block sweep. Fix all units outside one group. With x_h = exp(u_h), B_h = O_h / x_h and
//         C_h = I_h x_h, which do not depend on x, and c_h = n_h / p:
//             S = rest + sum_h (B_h x_h + C_h / x_h)
//         dF/du_h = 0 reads B_h x_h - C_h / x_h = c_h S. Its positive root is
//             x_h = (c_h S + root_h) / (2 B_h),     root_h = sqrt((c_h S)^2 + 4 B_h C_h),
//         and B_h x_h + C_h / x_h = root_h there. So S solves one scalar equation,
//             value(S) = rest + sum_h root_h - S = 0,     slope = sum_h c_h^2 S / root_h - 1.
//         A unit at a bound keeps its x_h and adds B_h x_h + C_h / x_h instead of its root.
//     (3) Unit sweep. Fix all but unit h: S = D + B x + C / x. Put it into B x - C / x = c S:
//             (1 - c) B x^2 - c D x - (1 + c) C = 0.
//     (4) Hessian.  H = p (A - q q^T),  q_h = (O_h - I_h) / S
//             A = diag(O + I) / S + cross terms
//         Let e_hk be the energy of a tensor between unit h (row) and unit k (column). The tensor
//         adds s e_hk / S to A[h][k] and A[k][h]. The sign s is the product of the signs of its
//         rows and its columns: -1 for a side that enters, +1 for a side that leaves. So s = -1 in
//         the common case.
//     (5) Newton step. Solve (A - q q^T) y = -gradient / p. Units that cannot move are left out.
//     (6) Woodbury. If each two-sided tensor has rank one (e_hk = p_h q_k), then
//             A - q q^T = Delta + V K V^T,     Delta = diag(O + I) / S,
//         V has the columns p and q of each such tensor, scaled, and last q_h of (4). K is
//         [0 s; s 0] for each pair, with the sign s of (4), and -1 for the last column. Then
//             (Delta + V K V^T)^-1 = Delta^-1 - Delta^-1 V (K^-1 + V^T Delta^-1 V)^-1 V^T Delta^-1.
//     (7) Galerkin step on group means. P[h][g] is 1 if unit h is in group g and free, otherwise 0.
//         Move along P y:  (P^T (A - q q^T) P) y = -P^T gradient / p, one unknown for each group.
//     (8) Powers of two. lambda_h = 2^k_h. If k_h moves by d, u_h moves by c d, where
//         c = power * log(2), and F changes by p log(S_new / S) - n_h c d.
//     (9) First powers. If g holds |.| instead of squares, a rescaling multiplies g_i by
//         exp((B log lambda)_i). With u = log lambda the same F, energies and solver apply.
//
// 9. SOURCES
//     Lebeurrier, Vayer, Gribonval, "Path-conditioned training: a principled way to rescale ReLU
//     neural networks", ICML 2026, arXiv 2602.19799.
//     Stock, Graham, Gribonval, Jegou, "Equi-normalization of Neural Networks", ICLR 2019, arXiv
//     1902.10416.
//     Newton with a certificate, the scalar equation of a sweep and the group-mean correction are
//     this project's.
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
// Only float and double: a float stays as small beside a long long, a double stays as large beside
// a float.
#define RSC_REAL_PLUS(other) sizeof(RSC_CAST(rescale_real, 0) + (other))
#define RSC_REAL_FITS(type)                                                                        \
    (sizeof(rescale_real) == sizeof(type) && RSC_REAL_PLUS(0LL) == sizeof(type) &&                 \
     RSC_REAL_PLUS(0.0f) == sizeof(type))
#define RSC_REAL_IS_KNOWN (RSC_REAL_FITS(float) || RSC_REAL_FITS(double))
typedef char rescale_real_must_be_float_or_double[RSC_REAL_IS_KNOWN ? 1 : -1];
#if defined(__CUDACC__) || defined(CUDA_CPU)
// Kernels can be compiled: by nvcc, or by common/cuda_cpu.h, which runs them on the CPU.
#define RESCALE_HAS_DEVICE 1
#endif

// ---- A. Public types ----------------------------------------------------------------------------

enum { RESCALE_NONE = -1 };  // a tensor side that belongs to no group

enum {  // status codes
    RESCALE_OK = 0,
    RESCALE_ERROR_ARGUMENT,     // the description is inconsistent; the message says where
    RESCALE_ERROR_ACTIVATION,   // a group's activation is not positively homogeneous
    RESCALE_ERROR_NON_FINITE,   // a tensor holds NaN or infinity
    RESCALE_ERROR_RANGE,        // diag(G) or a rescaled parameter leaves the range of its type
    RESCALE_ERROR_MEMORY,       // arena too small, or allocation failed
    RESCALE_ERROR_CONVERGENCE,  // no certificate: |u| would exceed 700, the range of exp
    RESCALE_ERROR_DEVICE        // a CUDA call failed
};
enum { RESCALE_PATHCOND, RESCALE_ENORM };                      // method
enum { RESCALE_NEWTON, RESCALE_SWEEPS, RESCALE_UNIT_SWEEPS };  // solver
enum { RESCALE_UNIT, RESCALE_LAYER };                          // level
enum {  // activations; only the first three are positively homogeneous
    RESCALE_RELU,
    RESCALE_LEAKY_RELU,
    RESCALE_IDENTITY,
    RESCALE_GELU,
    RESCALE_SILU,
    RESCALE_TANH,
    RESCALE_SIGMOID
};
enum { RESCALE_WEIGHT, RESCALE_BIAS, RESCALE_GAIN };  // role of a tensor
enum { RESCALE_UNCOUNTED = 1, RESCALE_ROWS_LEAVE = 2, RESCALE_COLS_ENTER = 4 };  // flags

typedef struct rescale_group {
    const char *name;  // for messages
    int n;             // units
    int activation;    // RESCALE_RELU, ...
} rescale_group;

// An array "like data" has the shape [n_out][n_in][kernel] and lies in the same memory, host or
// device.
typedef struct rescale_tensor {
    const char *name;                    // for messages
    rescale_real *data;                  // [n_out][n_in][kernel], host or device
    int n_out, n_in, kernel;
    int enters, leaves;                  // groups of the rows and of the columns, or RESCALE_NONE
    int role;                            // RESCALE_WEIGHT, RESCALE_BIAS, RESCALE_GAIN
    unsigned flags;                      // RESCALE_UNCOUNTED, RESCALE_ROWS_LEAVE, ... or-ed, or 0
    const rescale_real *g;               // full diag(G), like data; or NULL
    const double *g_out, *g_in;          // rank-one diag(G): host [n_out], [n_in * kernel]; or NULL
    double reference;                    // r > 0 for the whole tensor; 0 means 1
    const rescale_real *reference_each;  // r > 0 per parameter, like data; or NULL
    const rescale_real *mean, *var;      // of a gain: running statistics [n_out], memory of data
    double eps;                          // of a gain: added to var
    rescale_real *moment1, *moment2;     // optimizer state, like data; or NULL
} rescale_tensor;

typedef struct rescale_net {
    const rescale_group *group;
    int n_groups;
    const rescale_tensor *tensor;
    int n_tensors;
} rescale_net;

typedef struct rescale_options {
    int method;          // RESCALE_PATHCOND (default) or RESCALE_ENORM
    // RESCALE_NEWTON (default): to the optimum. RESCALE_SWEEPS: exactly `sweeps` block sweeps.
    // RESCALE_UNIT_SWEEPS: `sweeps` sweeps unit by unit, as published. Sweeps skip a group that has
    // a tensor from itself to itself.
    int solver;
    int sweeps;          // 10
    int max_iterations;  // 100 Newton steps. ENorm with RESCALE_NEWTON: 10 times as many sweeps
    // 1e-10: aim for max |dF/du| / max(1, max |n_h|). 1e-8 is accepted if rounding allows no more.
    double tolerance;
    double max_log;      // bound on |log lambda| inside the optimisation; 0 (default) = none
    // 1: every lambda is a power of two, which preserves the function bit for bit. F ends below its
    // start, or nothing moves.
    int pow2;
    double strength;     // 0 to 1: this fraction of the optimal u; 1 (default) is the optimum
    // 1: take the mean over the free units of each group out of u. No layer as a whole grows or
    // shrinks.
    int within;
    // >= 1: minimise F where sum(diag(G) / r) is at most this many times its start (to a
    // thousandth, and before pow2 rounds). Newton only. 0 (default) = no limit.
    double max_trace;
    // 2 (default, also 0): g holds squares, and lambda = exp(u / 2). 1: g holds first powers, and
    // lambda = exp(u). Plain SGD asks for 2, Adam for 1. PathCond only. Manual, 8 (9).
    int power;
    // RESCALE_UNIT (default): a factor for each unit. RESCALE_LAYER: one factor for all units of a
    // group, at the optimum under this constraint. PathCond by Newton or block sweeps only.
    int level;
    int dry_run;         // 1: solve and report, change no parameter
    int on_device;       // 1: tensors are in device memory
    int general;         // 1: always conjugate gradients, also where the Woodbury solve applies
    void *arena;         // working memory of rescale_arena_bytes() bytes; NULL: one malloc
    size_t arena_bytes;
    double *u;           // out: host [units], u of every unit, groups in order; or NULL
    struct rescale_tensor_report *each;  // out: host [n_tensors], PathCond only; or NULL
} rescale_options;

// What a rescaling does to one tensor: before [0] and after [1].
typedef struct rescale_tensor_report {
    double share[2];   // its part of sum(diag(G) / r)
    double spread[2];  // log(mean g) - mean log g over its elements with g > 0; 0 if all are equal
    long long zeros;   // elements with g = 0: no rescaling changes that
} rescale_tensor_report;

typedef struct rescale_report {
    int status;
    char message[256];         // names the tensor or group; with RESCALE_OK: "" or a warning
    double objective_before;   // F (PathCond) or the sum of squared weights (ENorm)
    double objective_after;
    // PathCond: sum(diag(G) / r), after divided by before. At one learning rate the first steps are
    // about this much faster.
    double trace_ratio;
    // log(mean g) - mean log g over all counted elements with g / r > 0, before and after: 0 at
    // best, and comparable between networks. Only computed if options.each is given.
    double spread_before, spread_after;
    // The certificate: max over units of |dF/du|, projected at bounds, before pow2 rounds. If
    // max_trace binds: of F + mu log S, times p / (p + mu).
    double grad_inf;
    double grad_tolerance;     // 1e-8 * max(1, max |n_h|): a smaller grad_inf proves the optimum
    int converged;             // grad_inf <= grad_tolerance
    int iterations;            // Newton steps on all units
    int sweeps;                // block sweeps
    int cg_steps;              // conjugate-gradient steps, 0 with the Woodbury solve
    double seconds_diag_g, seconds_solve, seconds_apply;
    double max_abs_log_lambda;
    int units;
    int pinned_units;          // no incoming or no outgoing energy: lambda = 1
    int bounded_units;         // at the bound max_log
    long long parameters;      // counted parameters, p
    int tensors_touched;
} rescale_report;

// ---- B. Describing a network --------------------------------------------------------------------

// Describes n units with one activation (RESCALE_RELU, ...).
static inline rescale_group rescale_units(const char *name, int n, int activation) {
    rescale_group g;
    g.name = name;
    g.n = n;
    g.activation = activation;
    return g;
}

// Describes a weight [n_out][n_in][kernel]. Its rows enter one group, its columns leave another;
// either may be RESCALE_NONE.
static inline rescale_tensor rescale_weight(const char *name, rescale_real *data, int n_out,
                                            int n_in, int kernel, int enters, int leaves) {
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

// Describes a bias [n] (of a layer, or BatchNorm's beta) that enters a group.
static inline rescale_tensor rescale_bias(const char *name, rescale_real *data, int n, int enters) {
    rescale_tensor t = rescale_weight(name, data, n, 1, 1, enters, RESCALE_NONE);
    t.role = RESCALE_BIAS;
    return t;
}

// Describes BatchNorm's gamma [n] that enters a group. Evaluation uses the running statistics
// mean[n] and var[n]; they are only read.
static inline rescale_tensor rescale_gain(const char *name, rescale_real *data, int n, int enters,
                                          const rescale_real *mean, const rescale_real *var,
                                          double eps) {
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
    o.strength = 1;
    o.power = 2;
    return o;
}

// ---- C. Internal structures ---------------------------------------------------------------------
// Names with rsc_ are internal. Manual, 8 defines energies, S, O, I and all formulas.

// Limits of the dense systems, of Woodbury and of the group means.
enum { RSC_MOST_PAIRS = 200, RSC_MOST_GROUPS = 200 };
enum { RSC_UNUSED, RSC_RANK_ONE, RSC_MATRIX, RSC_DIRECT };  // how a tensor's energies are stored

// The energies of one tensor.
typedef struct rsc_energy {
    // RSC_UNUSED: not counted. RSC_RANK_ONE: an outer product; also every one-sided tensor.
    // RSC_MATRIX: a full matrix. RSC_DIRECT: ENorm, which reads data.
    int kind;
    int row, col;            // first unit of the group of the rows and of the columns, or -1
    int row_sign, col_sign;  // sign of u in the exponent: -1 enters, +1 leaves
    // [n_out], [n_in]. RSC_RANK_ONE: energies are out (x) in at u = 0. RSC_MATRIX: row and column
    // sums at the current u.
    double *out, *in;
    // [n_out], [n_in] at the current u. RSC_RANK_ONE: out * row factor and in * column factor.
    // RSC_MATRIX: the factors alone.
    double *p, *q;
    double sum_p, sum_q;
    double *matrix;          // RSC_MATRIX: [n_out][n_in] at u = 0
    double fixed;            // RSC_MATRIX: the diagonal of a tensor from a group to itself; no u
                             // changes its energy
    double total;            // energy of the tensor at the current u
    double max_abs[3];       // of data, moment1, moment2
    // For options.each: sum of log(g / r) over the elements with g > 0, their number in all, in
    // each row [n_out] and in each column [n_in].
    double log_sum, positive, *row_count, *col_count;
} rsc_energy;

typedef struct rsc_arena {
    char *base;            // NULL: only count
    size_t used, size;
} rsc_arena;

typedef struct rsc_solver {
    const rescale_net *net;
    const rescale_options *options;
    rescale_report *report;
    rsc_energy *energy;       // [n_tensors]
    int *first;               // [n_groups + 1] first unit of each group
    int units;
    long long parameters;     // counted parameters
    double p;                 // p of F: equals parameters, larger when max_trace binds
    double trace;             // S as initialised
    int power;                // 1 or 2: lambda = exp(u / power)
    double *u, *x, *trial;    // [units] u, exp(u), a trial u
    double *leave, *enter;    // [units] O_h and I_h
    double *count;            // [units] n_h
    double *gradient, *step;  // [units] dF/du and the Newton step
    double *residual, *direction, *product, *diagonal;  // [units] vectors of the linear solvers
    unsigned char *fixed;     // [units] 1: pinned, 2: at a bound in this iteration
    double bound;             // of |u|
    const double *given;      // [units] u to apply instead of solving, or NULL
    const char *underflow;    // a tensor whose full g holds subnormal numbers, or NULL
    double total;             // S
    int n_pairs;              // number of two-sided rank-one tensors
    double *small;            // dense systems: Woodbury [m][m + 1], m = 2 n_pairs + 1; group means
    double *rows, *cols, *in_scale;  // [widest] scratch vectors
    double *wide;             // [largest one-sided full tensor] scratch matrix
    rescale_real *line[2];    // [widest] a row of g and of reference_each, for options.each
} rsc_solver;

// Returns seconds since some start. Without C11's or OpenMP's clock it returns processor time,
// which is as long for one thread.
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

// Returns a 64-byte aligned piece of the arena. If the size overflows, it returns NULL and the
// count stays at the top. If the piece lies beyond the arena, it returns NULL and counts on.
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
    const size_t bytes = n < SIZE_MAX / sizeof(double) ? n * sizeof(double) : SIZE_MAX;
    return RSC_CAST(double *, rsc_take(a, bytes));
}
static inline size_t rsc_n(int n) { return RSC_CAST(size_t, n); }  // n >= 0
static inline size_t rsc_at(int row, int width, int column) {
    return rsc_n(row) * rsc_n(width) + rsc_n(column);
}
static inline int rsc_is_float(void) { return sizeof(rescale_real) == sizeof(float); }
static inline double rsc_most(void) { return rsc_is_float() ? RSC_CAST(double, FLT_MAX) : DBL_MAX; }
static inline double rsc_least_normal(void) {
    return rsc_is_float() ? RSC_CAST(double, FLT_MIN) : DBL_MIN;
}
static inline int rsc_max(int a, int b) { return a > b ? a : b; }
static inline size_t rsc_columns(const rescale_tensor *t) {
    return rsc_n(t->n_in) * rsc_n(t->kernel);
}
static inline size_t rsc_size(const rescale_tensor *t) { return rsc_n(t->n_out) * rsc_columns(t); }

// The place of use has a variable `work`, the number of elements touched.
#ifdef _OPENMP
#define RSC_PARALLEL_FOR                                                                           \
    (void)work;                                                                                    \
    _Pragma("omp parallel for schedule(static) if (work > 32768)")
#else
#define RSC_PARALLEL_FOR (void)work;
#endif

// ---- D. Passes over the tensors: host -----------------------------------------------------------
// Five operations read or write a whole tensor; each exists for host memory here and for device
// memory below. Sums are in double; their order does not depend on the number of threads.

// Returns the largest absolute value of data[n], infinity if an element is not finite. It compares
// bits without the sign: their order is that of the values, with infinity and NaN at the top.
// Integers vectorise, and no compiler flag can optimise NaN away.
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

// Returns |w| to the power 2 or 1.
static inline double rsc_power_of(rescale_real w, int power) {
    const double v = RSC_CAST(double, w);
    return power == 1 ? fabs(v) : v * v;
}

// y[o] = sum_i |W[o][i]|^power x[i], W [rows][columns].
static inline void rsc_host_power_rows(const rescale_real *W, size_t rows, size_t columns,
                                       const double *x, double *y, int power) {
    const size_t work = rows * columns;
    RSC_PARALLEL_FOR
    for (size_t o = 0; o < rows; o++) {
        const rescale_real *w = W + o * columns;
        double part[8] = {0, 0, 0, 0, 0, 0, 0, 0}, tail = 0;
        size_t i = 0;
        for (; i + 8 <= columns; i += 8)
            for (size_t j = 0; j < 8; j++)
                part[j] += rsc_power_of(w[i + j], power) * x[i + j];
        for (; i < columns; i++) tail += rsc_power_of(w[i], power) * x[i];
        const double left = (part[0] + part[4]) + (part[1] + part[5]);
        const double right = (part[2] + part[6]) + (part[3] + part[7]);
        y[o] = left + right + tail;
    }
}

// y[i] = sum_o |W[o][i]|^power x[o]. Each thread takes strips of columns, so that threads share
// nothing.
static inline void rsc_host_power_cols(const rescale_real *W, size_t rows, size_t columns,
                                       const double *x, double *y, int power) {
    const size_t strip = 128, n_strips = (columns + strip - 1) / strip, work = rows * columns;
    RSC_PARALLEL_FOR
    for (size_t s = 0; s < n_strips; s++) {
        const size_t first = s * strip, width = first + strip <= columns ? strip : columns - first;
        double part[128];
        for (size_t i = 0; i < width; i++) part[i] = 0;
        for (size_t o = 0; o < rows; o++) {
            const rescale_real *w = W + o * columns + first;
            const double scale = x[o];
            for (size_t i = 0; i < width; i++) part[i] += rsc_power_of(w[i], power) * scale;
        }
        for (size_t i = 0; i < width; i++) y[first + i] = part[i];
    }
}

// M[o][i] = sum over the kernel of g / r. r is reference_each, or 1 if it is NULL. g is the full
// array; if it is NULL, g is row[o] * column[i * kernel + k]. M is NaN if a term is negative, and
// -infinity if a reference is not positive and finite.
static inline void rsc_host_reduce(const rescale_real *g, const rescale_real *reference_each,
                                   size_t n_out, size_t n_in, size_t kernel, const double *row,
                                   const double *column, double *M) {
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
static inline void rsc_host_scale(rescale_real *W, size_t rows, size_t columns, const double *row,
                                  const double *column) {
    const size_t work = rows * columns;
    RSC_PARALLEL_FOR
    for (size_t o = 0; o < rows; o++) {
        rescale_real *w = W + o * columns;
        for (size_t c = 0; c < columns; c++) {
            const double scaled = RSC_CAST(double, w[c]) * (row[o] * column[c]);
            w[c] = RSC_CAST(rescale_real, scaled);
        }
    }
}

// ---- E. Passes: device --------------------------------------------------------------------------
// The same five on device memory. Vectors come from and go to the host: they are O(units).

#ifdef RESCALE_HAS_DEVICE
#define RSC_BLOCK 256

// Returns the sum of v over the threads of a block, in a fixed order. Only thread 0 gets it. part
// is shared memory of RSC_BLOCK doubles.
static __device__ __forceinline__ double rsc_block_sum(double v, double *part) {
    part[threadIdx.x] = v;
    __syncthreads();
    const int thread = RSC_CAST(int, threadIdx.x);
    for (int i = thread + 16; thread < 16 && i < RSC_BLOCK; i += 16) part[thread] += part[i];
    __syncthreads();
    for (int i = 1; threadIdx.x == 0 && i < 16; i++) part[0] += part[i];
    return part[0];
}

// part[block] = largest |data| of a grid-stride share, infinity if not finite.
static __global__ void rsc_max_abs_kernel(const rescale_real *__restrict__ data, size_t n,
                                          double *__restrict__ part) {
    __shared__ double largest[RSC_BLOCK];
    double v = 0;
    const size_t first = RSC_CAST(size_t, blockIdx.x) * RSC_BLOCK + threadIdx.x;
    const size_t stride = RSC_CAST(size_t, gridDim.x) * RSC_BLOCK;
    for (size_t i = first; i < n; i += stride) {
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

// One block per row: y[o] = sum_i |W[o][i]|^power x[i].
static __global__ void rsc_power_rows_kernel(const rescale_real *__restrict__ W, int columns,
                                             const double *__restrict__ x, double *__restrict__ y,
                                             int power) {
    __shared__ double part[RSC_BLOCK];
    const rescale_real *w = W + RSC_CAST(size_t, blockIdx.x) * RSC_CAST(size_t, columns);
    double sum = 0;
    for (int i = RSC_CAST(int, threadIdx.x); i < columns; i += RSC_BLOCK) {
        const double v = RSC_CAST(double, w[i]);
        sum += (power == 1 ? fabs(v) : v * v) * x[i];
    }
    sum = rsc_block_sum(sum, part);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// A thread per column, a chunk of rows per blockIdx.y: part[chunk][i] = sum over its rows of
// |W[o][i]|^power x[o].
static __global__ void rsc_power_cols_kernel(const rescale_real *__restrict__ W, int rows,
                                             int columns, int chunk, const double *__restrict__ x,
                                             double *__restrict__ part, int power) {
    const int column = RSC_CAST(int, blockIdx.x * blockDim.x + threadIdx.x);
    const int first = RSC_CAST(int, blockIdx.y) * chunk;
    const size_t i = RSC_CAST(size_t, column), width = RSC_CAST(size_t, columns);
    if (column >= columns) return;
    double sum = 0;
    for (int o = first; o < first + chunk && o < rows; o++) {
        const double v = RSC_CAST(double, W[RSC_CAST(size_t, o) * width + i]);
        sum += (power == 1 ? fabs(v) : v * v) * x[o];
    }
    part[RSC_CAST(size_t, blockIdx.y) * width + i] = sum;
}

// y[i] = sum over chunks of part[chunk][i].
static __global__ void rsc_sum_chunks_kernel(const double *__restrict__ part, int chunks,
                                             int columns, double *__restrict__ y) {
    const int i = RSC_CAST(int, blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= columns) return;
    double sum = 0;
    for (int c = 0; c < chunks; c++)
        sum += part[RSC_CAST(size_t, c) * RSC_CAST(size_t, columns) + RSC_CAST(size_t, i)];
    y[i] = sum;
}

// A thread per row-column pair: M[o][i] = sum over the kernel of g / r, as rsc_host_reduce.
static __global__ void rsc_reduce_kernel(const rescale_real *__restrict__ g,
                                         const rescale_real *__restrict__ reference_each,
                                         size_t n_pairs, size_t n_in, size_t kernel,
                                         const double *__restrict__ row,
                                         const double *__restrict__ column,
                                         double *__restrict__ M) {
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
static __global__ void rsc_scale_kernel(rescale_real *__restrict__ W, int rows, int columns,
                                        const double *__restrict__ row,
                                        const double *__restrict__ column) {
    const int c = RSC_CAST(int, blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= columns) return;
    for (int o = RSC_CAST(int, blockIdx.y); o < rows; o += RSC_CAST(int, gridDim.y)) {
        const size_t i = RSC_CAST(size_t, o) * RSC_CAST(size_t, columns) + RSC_CAST(size_t, c);
        W[i] = RSC_CAST(rescale_real, RSC_CAST(double, W[i]) * (row[o] * column[c]));
    }
}

// One pass over device memory. Host vectors in_a and in_b go up, host vector out comes down.
enum { RSC_PASS_MAX_ABS, RSC_PASS_ROWS, RSC_PASS_COLS, RSC_PASS_REDUCE, RSC_PASS_SCALE };
typedef struct rsc_pass {
    int which;                     // RSC_PASS_...
    const rescale_real *data;      // the tensor; reduce: the full g or NULL; scale: NULL
    rescale_real *scaled;          // scale: the tensor
    const rescale_real *second;    // reduce: reference_each or NULL
    size_t rows, columns, kernel;  // of the matrix; kernel only for reduce
    const double *in_a, *in_b;     // host vectors [n_a], [n_b]
    size_t n_a, n_b;
    double *out;                   // host vector [n_out]
    size_t n_out;
    int power;                     // rows and columns: of |W|
} rsc_pass;
enum { RSC_MAX_ABS_BLOCKS = 264 };

// Rows that one block of rsc_power_cols_kernel adds up: at most 64 chunks, each of at least 32
// rows.
static inline int rsc_chunk_rows(size_t rows) {
    return rows > 64 * 32 ? RSC_CAST(int, (rows + 63) / 64) : 32;
}

// Launches the kernels of a pass. a, b, out and part are device memory.
static inline cudaError_t rsc_launch_pass(const rsc_pass *p, const double *a, const double *b,
                                          double *out, double *part) {
    const int rows = RSC_CAST(int, p->rows), columns = RSC_CAST(int, p->columns);
    const unsigned tiles = RSC_CAST(unsigned, (p->columns + RSC_BLOCK - 1) / RSC_BLOCK);
    if (p->which == RSC_PASS_MAX_ABS) {
        rsc_max_abs_kernel<<<RSC_MAX_ABS_BLOCKS, RSC_BLOCK>>>(p->data, p->rows * p->columns, part);
    } else if (p->which == RSC_PASS_ROWS) {
        rsc_power_rows_kernel<<<RSC_CAST(unsigned, rows), RSC_BLOCK>>>(p->data, columns, a, out,
                                                                       p->power);
    } else if (p->which == RSC_PASS_COLS) {
        const int chunk = rsc_chunk_rows(p->rows), chunks = (rows + chunk - 1) / chunk;
        const dim3 grid(tiles, RSC_CAST(unsigned, chunks));
        rsc_power_cols_kernel<<<grid, RSC_BLOCK>>>(p->data, rows, columns, chunk, a, part,
                                                   p->power);
        rsc_sum_chunks_kernel<<<tiles, RSC_BLOCK>>>(part, chunks, columns, out);
    } else if (p->which == RSC_PASS_REDUCE) {
        const unsigned grid = RSC_CAST(unsigned, (p->n_out + RSC_BLOCK - 1) / RSC_BLOCK);
        rsc_reduce_kernel<<<grid, RSC_BLOCK>>>(p->data, p->second, p->n_out, p->n_out / p->rows,
                                               p->kernel, a, b, out);
    } else {
        const dim3 grid(tiles, RSC_CAST(unsigned, rows < 65535 ? rows : 65535));
        rsc_scale_kernel<<<grid, RSC_BLOCK>>>(p->scaled, rows, columns, a, b);
    }
    return cudaGetLastError();
}

// Brings the result of a pass down to the host, or waits for a pass that has none.
static inline cudaError_t rsc_fetch_pass(const rsc_pass *p, const double *out, const double *part) {
    if (p->which == RSC_PASS_MAX_ABS) {
        double largest[RSC_MAX_ABS_BLOCKS] = {0};
        const cudaError_t e = cudaMemcpy(largest, part, sizeof largest, cudaMemcpyDeviceToHost);
        *p->out = 0;
        for (unsigned i = 0; i < RSC_MAX_ABS_BLOCKS; i++)
            *p->out = largest[i] > *p->out ? largest[i] : *p->out;
        return e;
    }
    if (p->n_out)
        return cudaMemcpy(p->out, out, p->n_out * sizeof(double), cudaMemcpyDeviceToHost);
    return cudaDeviceSynchronize();
}

// Runs one pass: copies the vectors up, launches, copies the result down. Returns 0 or a CUDA error
// code.
static inline int rsc_device_pass(const rsc_pass *p) {
    size_t n_part = 0;
    if (p->which == RSC_PASS_MAX_ABS) n_part = RSC_MAX_ABS_BLOCKS;
    if (p->which == RSC_PASS_COLS) {
        const size_t chunk = RSC_CAST(size_t, rsc_chunk_rows(p->rows));
        n_part = (p->rows + chunk - 1) / chunk * p->columns;
    }
    const size_t total = p->n_a + p->n_b + p->n_out + n_part;
    void *memory = NULL;
    cudaError_t e = cudaMalloc(&memory, (total ? total : 1) * sizeof(double));
    if (e != cudaSuccess) return RSC_CAST(int, e);
    double *a = RSC_CAST(double *, memory);
    double *b = a + p->n_a;
    double *out = b + p->n_b;
    double *part = out + p->n_out;
    if (p->n_a) e = cudaMemcpy(a, p->in_a, p->n_a * sizeof(double), cudaMemcpyHostToDevice);
    if (e == cudaSuccess && p->n_b)
        e = cudaMemcpy(b, p->in_b, p->n_b * sizeof(double), cudaMemcpyHostToDevice);
    if (e == cudaSuccess) e = rsc_launch_pass(p, a, b, out, part);
    if (e == cudaSuccess) e = rsc_fetch_pass(p, out, part);
    const cudaError_t freed = cudaFree(memory);
    return RSC_CAST(int, e != cudaSuccess ? e : freed);
}
#endif

// ---- F. Passes: host or device ------------------------------------------------------------------
// Each returns RESCALE_OK or RESCALE_ERROR_DEVICE with the message set.

#ifdef RESCALE_HAS_DEVICE
static inline int rsc_run_pass(rsc_solver *s, const char *name, rsc_pass p) {
    const int e = rsc_device_pass(&p);
    if (!e) return RESCALE_OK;
    const char *what = cudaGetErrorString(RSC_CAST(cudaError_t, e));
    return rsc_error(s->report, RESCALE_ERROR_DEVICE, name, what);
}
// The arguments behind host_call are the fields of an rsc_pass.
#define RSC_PASS(host_call, ...)                                                                   \
    if (s->options->on_device) {                                                                   \
        const rsc_pass pass = {__VA_ARGS__};                                                       \
        return rsc_run_pass(s, name, pass);                                                        \
    }                                                                                              \
    host_call;                                                                                     \
    return RESCALE_OK
#else
#define RSC_PASS(host_call, ...)                                                                   \
    (void)s;                                                                                       \
    (void)name;                                                                                    \
    host_call;                                                                                     \
    return RESCALE_OK
#endif

static inline int rsc_max_abs(rsc_solver *s, const char *name, rescale_real *data, size_t n,
                              double *result) {
    RSC_PASS(*result = rsc_host_max_abs(data, n), RSC_PASS_MAX_ABS, data, NULL, NULL, 1, n, 1, NULL,
             NULL, 0, 0, result, 0, 0);
}
static inline int rsc_power_rows(rsc_solver *s, const char *name, const rescale_real *W,
                                 size_t rows, size_t columns, const double *x, double *y,
                                 int power) {
    RSC_PASS(rsc_host_power_rows(W, rows, columns, x, y, power), RSC_PASS_ROWS, W, NULL, NULL, rows,
             columns, 1, x, NULL, columns, 0, y, rows, power);
}
static inline int rsc_power_cols(rsc_solver *s, const char *name, const rescale_real *W,
                                 size_t rows, size_t columns, const double *x, double *y,
                                 int power) {
    RSC_PASS(rsc_host_power_cols(W, rows, columns, x, y, power), RSC_PASS_COLS, W, NULL, NULL, rows,
             columns, 1, x, NULL, rows, 0, y, columns, power);
}
static inline int rsc_reduce(rsc_solver *s, const char *name, const rescale_real *g,
                             const rescale_real *reference_each, size_t n_out, size_t n_in,
                             size_t kernel, const double *row, const double *column, double *M) {
    RSC_PASS(rsc_host_reduce(g, reference_each, n_out, n_in, kernel, row, column, M),
             RSC_PASS_REDUCE, g, NULL, reference_each, n_out, n_in * kernel, kernel, row, column,
             row ? n_out : 0,
             column ? n_in * kernel : 0, M, n_out * n_in, 0);
}
static inline int rsc_scale(rsc_solver *s, const char *name, rescale_real *W, size_t rows,
                            size_t columns, const double *row, const double *column) {
    RSC_PASS(rsc_host_scale(W, rows, columns, row, column), RSC_PASS_SCALE, NULL, W, NULL, rows,
             columns, 1, row, column, rows, columns, NULL, 0, 0);
}

// ---- G. Checks ----------------------------------------------------------------------------------

// Checks lists and sizes; the message names the group or tensor. A network that passes can be
// counted without overflow. Returns a status.
static inline int rsc_validate_sizes(const rescale_net *net, rescale_report *r) {
    double units = 0, parameters = 0;
    const char *wrong = NULL;
    if (!net) return rsc_error(r, RESCALE_ERROR_ARGUMENT, "network", "is NULL");
    if (net->n_groups < 0 || net->n_tensors <= 0) wrong = "no tensors";
    else if ((net->n_groups && !net->group) || !net->tensor)
        wrong = "its list of groups or tensors is NULL";
    else if (net->n_tensors > INT_MAX / 8) wrong = "has too many tensors";
    if (wrong) return rsc_error(r, RESCALE_ERROR_ARGUMENT, "network", wrong);
    for (int i = 0; i < net->n_groups; i++) {
        const rescale_group *g = net->group + i;
        units += g->n;
        if (g->n <= 0) wrong = "a group needs at least one unit";
        else if (units > INT_MAX / 8) wrong = "the network has too many units";
        if (wrong) return rsc_error(r, RESCALE_ERROR_ARGUMENT, g->name, wrong);
    }
    const double most_elements = 0.5 * RSC_CAST(double, SIZE_MAX) / sizeof(double);
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        const double columns = 1.0 * t->n_in * t->kernel, size = columns * t->n_out;
        if (t->n_out <= 0 || t->n_in <= 0 || t->kernel <= 0)
            wrong = "needs data and a shape of positive sizes";
        else if (columns > 1e9 || size > 1e15 || size > most_elements) wrong = "is too large";
        parameters += size;
        if (parameters > 1e18) wrong = "the network has too many parameters";
        if (wrong) return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, wrong);
    }
    return RESCALE_OK;
}

// Checks groups: activations.
static inline int rsc_validate_groups(const rescale_net *net, rescale_report *r) {
    static const char *const activation[] = {"ReLU", "leaky ReLU", "identity", "GELU",
                                             "SiLU", "tanh",       "sigmoid"};
    char text[160];
    for (int i = 0; i < net->n_groups; i++) {
        const rescale_group *g = net->group + i;
        const int known = g->activation >= 0 && g->activation <= RESCALE_SIGMOID;
        if (g->activation >= RESCALE_RELU && g->activation <= RESCALE_IDENTITY) continue;
        snprintf(text, sizeof text,
                 "%s is not positively homogeneous, so these units cannot be rescaled",
                 known ? activation[g->activation] : "this activation");
        return rsc_error(r, RESCALE_ERROR_ACTIVATION, g->name, text);
    }
    return RESCALE_OK;
}

static inline int rsc_validate_options(const rescale_options *o, rescale_report *r) {
    const char *wrong = NULL;
    if (o->method < RESCALE_PATHCOND || o->method > RESCALE_ENORM) wrong = "unknown method";
    if (o->solver < RESCALE_NEWTON || o->solver > RESCALE_UNIT_SWEEPS) wrong = "unknown solver";
    const int trace = o->max_trace == 0 || (o->max_trace >= 1 && o->max_trace <= DBL_MAX);
    if (!(o->tolerance > 0) || o->max_iterations < 1 || o->sweeps < 0 || !(o->max_log >= 0) ||
        !(o->strength >= 0 && o->strength <= 1) || !trace)
        wrong = "tolerance, iterations, sweeps, max_log, strength or max_trace out of range";
    if (o->max_trace > 0 && (o->method != RESCALE_PATHCOND || o->solver != RESCALE_NEWTON))
        wrong = "max_trace needs PathCond and Newton's method";
    if (o->within && (o->max_log > 0 || o->max_trace > 0))
        wrong = "within excludes max_log and max_trace";
    if (o->power < 0 || o->power > 2) wrong = "power must be 1 or 2";
    if (o->level != RESCALE_UNIT && o->level != RESCALE_LAYER) wrong = "unknown level";
    if (o->method == RESCALE_ENORM && (o->power == 1 || o->level || o->each))
        wrong = "power 1, level and each need PathCond";
    if (o->level && (o->solver == RESCALE_UNIT_SWEEPS || o->within))
        wrong = "the layer level excludes unit sweeps and within";
#ifndef RESCALE_HAS_DEVICE
    if (o->on_device) wrong = "on_device needs a build with CUDA";
#endif
    return wrong ? rsc_error(r, RESCALE_ERROR_ARGUMENT, "options", wrong) : RESCALE_OK;
}

// Checks what one tensor says about itself and its groups.
static inline int rsc_validate_tensor(const rescale_net *net, const rescale_tensor *t,
                                      rescale_report *r) {
    const unsigned known = RESCALE_UNCOUNTED | RESCALE_ROWS_LEAVE | RESCALE_COLS_ENTER;
    const int has_statistics = t->mean && t->var && t->eps >= 0;
    const int side[2] = {t->enters, t->leaves}, n[2] = {t->n_out, t->n_in};
    const char *wrong = NULL;
    char text[160];
    if (!t->data) wrong = "needs data and a shape of positive sizes";
    else if (t->role < RESCALE_WEIGHT || t->role > RESCALE_GAIN) wrong = "has an unknown role";
    else if (t->flags & ~known) wrong = "has an unknown flag";
    else if (t->role == RESCALE_GAIN && !t->g && !t->g_out && !has_statistics)
        wrong = "a gain needs running mean, running variance and eps >= 0";
    else if (!(t->reference >= 0) || t->reference > DBL_MAX)
        wrong = "the reference must be positive and finite";
    else if (!t->g_out != !t->g_in) wrong = "needs both g_out and g_in";
    else if (t->g && t->g_out) wrong = "has both a full and a rank-one diag(G)";
    if (wrong) return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, wrong);
    for (int k = 0; k < 2; k++) {
        if (side[k] < RESCALE_NONE || side[k] >= net->n_groups)
            return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name,
                             "names a group that does not exist");
        const rescale_group *g = side[k] < 0 ? NULL : net->group + side[k];
        if (!g || g->n == n[k]) continue;
        const char *name = g->name ? g->name : "(unnamed)";
        snprintf(text, sizeof text, "has %d %s, but group %.60s has %d units", n[k],
                 k ? "columns" : "rows", name, g->n);
        return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name, text);
    }
    return RESCALE_OK;
}

// The arrays of a tensor. The first RSC_WRITTEN (data, moment1, moment2) are written, the others
// are only read.
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

// A written array must overlap no other array. This compares tensor i with tensors 0 .. i: the
// written arrays of tensor i with all arrays of those, and all arrays of tensor i with the written
// ones of those. Returns the fault, or NULL.
static inline const char *rsc_overlaps(const rescale_net *net, int i) {
    const rescale_tensor *t = net->tensor + i;
    for (int a = 0; a < RSC_ARRAYS; a++) {
        const rsc_range mine = rsc_array(t, a);
        if (mine.begin == mine.end) continue;
        const int n_others = a < RSC_WRITTEN ? RSC_ARRAYS : RSC_WRITTEN;
        for (int j = 0; j <= i; j++)
            for (int b = 0; b < n_others; b++) {
                const rescale_tensor *other = net->tensor + j;
                if ((j == i && b == a) || !rsc_overlap(mine, rsc_array(other, b))) continue;
                if (j == i) return "two of its arrays overlap in memory";
                if (a == 0 && b == 0 && other->data == t->data) return "is listed twice";
                return "overlaps an earlier tensor in memory";
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
    const size_t n_tensors = rsc_n(net->n_tensors);
    const rsc_range each = rsc_range_of(o->each, n_tensors * sizeof(rescale_tensor_report));
    if (rsc_overlap(arena, u)) return "arena and u overlap in memory";
    if (rsc_overlap(arena, each) || rsc_overlap(u, each))
        return "each overlaps arena or u in memory";
    for (int i = 0; i < net->n_tensors; i++)
        for (int a = 0; a < RSC_ARRAYS; a++) {
            const rsc_range b = rsc_array(net->tensor + i, a);
            if (rsc_overlap(arena, b) || rsc_overlap(u, b) || rsc_overlap(each, b))
                return "arena, u or each overlaps an array of a tensor";
        }
    return NULL;
}

// Returns why tensor i does not continue a chain, or NULL. `units` is the group that the layer so
// far enters. Only for a chain does rescale_run compute diag(G) from the weights. A chain repeats:
// weight, its bias, BatchNorm's gain and bias. The last of these with a group makes the units of
// the layer and enters their group. The next weight leaves that group. No other tensor touches it.
static inline const char *rsc_breaks_chain(const rescale_net *net, int i, int units) {
    const rescale_tensor *t = net->tensor + i;
    if (t->flags & (RESCALE_ROWS_LEAVE | RESCALE_COLS_ENTER))
        return "without diag(G), rows enter and columns leave";
    if (i == 0 && t->role != RESCALE_WEIGHT) return "without diag(G), a weight comes first";
    if (t->role == RESCALE_WEIGHT) {
        if (t->leaves != units)
            return "without diag(G), it must leave the group that the layer before it enters";
    } else {
        if (t->leaves != RESCALE_NONE) return "without diag(G), a bias or a gain leaves no group";
        if (t->role == RESCALE_BIAS && t->enters != units)
            return "must enter the group that its layer enters";
        if (t->role == RESCALE_GAIN && units != RESCALE_NONE)
            return "what comes before BatchNorm must enter no group";
    }
    if (t->role == RESCALE_BIAS || t->enters == RESCALE_NONE) return NULL;
    for (int j = 0; j < i; j++)
        if (net->tensor[j].enters == t->enters)
            return "without diag(G), only one layer enters a group";
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
    const char *last = net->tensor[net->n_tensors - 1].name;
    return rsc_error(r, RESCALE_ERROR_ARGUMENT, last, "the outputs must enter no group");
}

// Checks a description; the message names the group or tensor. Returns a status.
static inline int rsc_validate(const rescale_net *net, const rescale_options *o,
                               rescale_report *r) {
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
    for (int i = 0; i < net->n_tensors && with_g < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        if (!t->g && !t->g_out && !(t->flags & RESCALE_UNCOUNTED))
            return rsc_error(r, RESCALE_ERROR_ARGUMENT, t->name,
                             "has no diag(G), but other tensors have");
    }
    return RESCALE_OK;
}

// ---- H. Working memory --------------------------------------------------------------------------

// Returns how the energies of a tensor are stored.
static inline int rsc_kind(const rescale_tensor *t, int method) {
    if (t->flags & RESCALE_UNCOUNTED) return RSC_UNUSED;
    if (method == RESCALE_ENORM) return t->role == RESCALE_BIAS ? RSC_UNUSED : RSC_DIRECT;
    const int two_sided = t->enters >= 0 && t->leaves >= 0;
    const int full = t->g || t->reference_each || t->enters == t->leaves;
    return two_sided && full ? RSC_MATRIX : RSC_RANK_ONE;
}
static inline int rsc_is_pair(const rsc_energy *e) {
    return e->kind == RSC_RANK_ONE && e->row >= 0 && e->col >= 0;
}

// Whether group-mean steps are taken: for small systems, and where there is nothing else.
static inline int rsc_uses_means(const rsc_solver *s) {
    return s->net->n_groups <= RSC_MOST_GROUPS || s->options->level == RESCALE_LAYER;
}

// Lays out the whole working memory in an arena. Without a base it only counts the bytes.
static inline void rsc_layout(rsc_solver *s, rsc_arena *a) {
    const rescale_net *net = s->net;
    const int groups = net->n_groups;
    int units = 0, widest = 1, n_pairs = 0;
    size_t wide = 0;
    s->energy = RSC_CAST(rsc_energy *, rsc_take(a, rsc_n(net->n_tensors) * sizeof(rsc_energy)));
    s->first = RSC_CAST(int *, rsc_take(a, rsc_n(groups + 1) * sizeof(int)));
    for (int i = 0; i < groups; i++) units += net->group[i].n;
    double **vector[] = {&s->u,        &s->x,         &s->trial,    &s->leave,
                         &s->enter,    &s->count,     &s->gradient, &s->step,
                         &s->residual, &s->direction, &s->product,  &s->diagonal};
    for (size_t i = 0; i < sizeof vector / sizeof *vector; i++)
        *vector[i] = rsc_doubles(a, rsc_n(units));
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
        if (s->options->each) {
            e->row_count = rsc_doubles(a, rsc_n(t->n_out));
            e->col_count = rsc_doubles(a, rsc_n(t->n_in));
        }
        n_pairs += kind == RSC_RANK_ONE && t->enters >= 0 && t->leaves >= 0;
        if (kind == RSC_MATRIX) e->matrix = rsc_doubles(a, pairs);
        else if (kind == RSC_RANK_ONE && (t->g || t->reference_each) && pairs > wide)
            wide = pairs;
        widest = rsc_max(widest, rsc_max(t->n_out, columns));
    }
    s->rows = rsc_doubles(a, rsc_n(widest));
    s->cols = rsc_doubles(a, rsc_n(widest));
    s->in_scale = rsc_doubles(a, rsc_n(widest));
    s->wide = rsc_doubles(a, wide);
    const size_t line = s->options->each ? rsc_n(widest) * sizeof(rescale_real) : 0;
    for (int i = 0; i < 2; i++) s->line[i] = RSC_CAST(rescale_real *, rsc_take(a, line));
    // Woodbury and the group means are for small systems only.
    const int woodbury = n_pairs <= RSC_MOST_PAIRS ? 2 * n_pairs + 1 : 1;
    const int means = rsc_uses_means(s) ? groups : 1;
    const size_t m = rsc_n(rsc_max(woodbury, means));
    s->small = rsc_doubles(a, m * (m + 2));
    s->units = units;
    s->n_pairs = n_pairs;
}

// Returns the bytes of working memory that rescale_run needs for this network and these options.
// Returns 0 if the sizes are not valid. options may be NULL for the defaults.
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
        const double per_row = e->row_sign * RSC_CAST(double, rsc_columns(t));
        const double per_column = e->col_sign * RSC_CAST(double, t->n_out) * t->kernel;
        for (int o = 0; e->row >= 0 && o < t->n_out; o++) s->count[e->row + o] += per_row;
        for (int c = 0; e->col >= 0 && c < t->n_in; c++) s->count[e->col + c] += per_column;
    }
    s->p = RSC_CAST(double, s->parameters);
    const double bound = s->power * s->options->max_log;
    s->bound = bound > 0 ? bound : RSC_CAST(double, INFINITY);
}

// Checks that every tensor is finite, and records its largest absolute value.
static inline int rsc_check_finite(rsc_solver *s) {
    for (int i = 0; i < s->net->n_tensors; i++) {
        const rescale_tensor *t = s->net->tensor + i;
        rescale_real *const data[3] = {t->data, t->moment1, t->moment2};
        for (int k = 0; k < 3; k++) {
            s->energy[i].max_abs[k] = 0;
            if (!data[k]) continue;
            const int e = rsc_max_abs(s, t->name, data[k], rsc_size(t), &s->energy[i].max_abs[k]);
            if (e) return e;
            if (!(s->energy[i].max_abs[k] > DBL_MAX)) continue;
            const char *wrong =
                k ? "its optimizer state holds NaN or infinity" : "holds NaN or infinity";
            return rsc_error(s->report, RESCALE_ERROR_NON_FINITE, t->name, wrong);
        }
    }
    return RESCALE_OK;
}

// ---- I. diag(G) ---------------------------------------------------------------------------------

// diag(G) of a sequential fully connected net, by one squared pass in each direction:
//     forward   a -> W^2 a + b^2,     a[i] = sum of squared paths that arrive at node i,
//     backward  d -> (W^2)^T d,       d[o] = sum of squared paths that go on from node o.
// The squares are taken on the fly. Every tensor ends with e->out = d and e->in = a, so that
// g = out (x) in.

static inline void rsc_swap(double **a, double **b) {
    double *keep = *a;
    *a = *b;
    *b = keep;
}

// BatchNorm in the forward pass, as in evaluation mode: its gain is gamma / sqrt(var + eps), and
// one more path begins at the running mean. gamma2[n] holds gamma^2. Updates a; prepares e->out and
// e->p for the backward pass.
static inline int rsc_chain_gain(rsc_solver *s, int i, const double *gamma2, double *a) {
    const rescale_tensor *t = s->net->tensor + i;
    rsc_energy *e = s->energy + i;
    const size_t n = rsc_n(t->n_out);
    const double one = 1;
    const int power = s->power;
    double *mean2 = s->in_scale, *var = e->p;  // |mean|^power
    int status = rsc_power_rows(s, t->name, t->mean, n, 1, &one, mean2, power);
    if (!status) status = rsc_reduce(s, t->name, t->var, NULL, n, 1, 1, NULL, NULL, var);
    if (status) return status;
    for (int o = 0; o < t->n_out; o++) {
        const double inverse = 1 / (var[o] + t->eps);
        const double rstd2 = power == 1 ? sqrt(inverse) : inverse;
        if (!(rstd2 > 0 && rstd2 <= DBL_MAX && mean2[o] <= DBL_MAX))
            return rsc_error(s->report, RESCALE_ERROR_RANGE, t->name,
                             "needs finite running mean and variance + eps > 0");
        e->out[o] = rstd2 * (a[o] + mean2[o]);  // arrives at the gain
        a[o] = gamma2[o] * e->out[o];
        e->p[o] = gamma2[o] * rstd2;            // passes the gain backwards
    }
    return RESCALE_OK;
}

// The forward pass. *a is where a starts; *a and *next swap at every weight.
static inline int rsc_chain_forward(rsc_solver *s, double **a, double **next) {
    const rescale_net *net = s->net;
    const double one = 1;
    int n = 0;
    if (net->tensor[0].role == RESCALE_WEIGHT) n = RSC_CAST(int, rsc_columns(net->tensor));
    for (int i = 0; i < n; i++) (*a)[i] = 1;
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        rsc_energy *e = s->energy + i;
        const size_t columns = rsc_columns(t), rows = rsc_n(t->n_out);
        const int weight = t->role == RESCALE_WEIGHT;
        if ((weight ? RSC_CAST(int, columns) : t->n_out) != n || (!weight && columns != 1))
            return rsc_error(s->report, RESCALE_ERROR_ARGUMENT, t->name,
                             "does not follow the tensor before it: "
                             "without diag(G) the tensors must be a sequential net");
        if (weight) memcpy(e->in, *a, columns * sizeof(double));
        else e->in[0] = 1;
        // A weight: W^2 a. A bias or a gain: its squares.
        int status = rsc_power_rows(s, t->name, t->data, rows, columns, weight ? *a : &one, *next,
                                    s->power);
        if (weight) {
            rsc_swap(a, next);
            n = t->n_out;
        } else if (t->role == RESCALE_BIAS) {  // its paths begin here
            const int counted = !(t->flags & RESCALE_UNCOUNTED);
            for (int o = 0; o < n && counted && !status; o++) (*a)[o] += (*next)[o];
        } else if (!status) {
            status = rsc_chain_gain(s, i, *next, *a);
        }
        if (status) return status;
    }
    return RESCALE_OK;
}

// The backward pass. d starts with ones at the outputs; d and next swap at every weight.
static inline int rsc_chain_backward(rsc_solver *s, double *d, double *next) {
    const rescale_net *net = s->net;
    for (int o = 0; o < net->tensor[net->n_tensors - 1].n_out; o++) d[o] = 1;
    for (int i = net->n_tensors - 1; i >= 0; i--) {
        const rescale_tensor *t = net->tensor + i;
        rsc_energy *e = s->energy + i;
        const size_t rows = rsc_n(t->n_out);
        if (t->role == RESCALE_GAIN) {
            for (int o = 0; o < t->n_out; o++) {
                e->out[o] *= d[o];
                d[o] *= e->p[o];
            }
            continue;
        }
        memcpy(e->out, d, rows * sizeof(double));
        if (t->role == RESCALE_BIAS) continue;
        if (i > 0) {
            const int status = rsc_power_cols(s, t->name, t->data, rows, rsc_columns(t), d, next,
                                              s->power);
            if (status) return status;
        }
        rsc_swap(&d, &next);
    }
    return RESCALE_OK;
}

static inline int rsc_chain_diag_g(rsc_solver *s) {
    double *a = s->rows, *next = s->cols;
    const int status = rsc_chain_forward(s, &a, &next);
    return status ? status : rsc_chain_backward(s, a, next);
}

// Whether element [o][c] is energy that no u changes: a unit's own weight in a tensor from a group
// to itself, where u of the row and of the column cancel.
static inline int rsc_is_fixed(const rescale_tensor *t, const rsc_energy *e, int o, int c) {
    return o == c && t->enters >= 0 && t->enters == t->leaves && e->row_sign != e->col_sign;
}

// Collects diag(G) / reference as a matrix: row sums in e->out, column sums in e->in. RSC_MATRIX
// keeps the matrix. A one-sided tensor becomes the sums of its side times the first unit vector.
// Returns a status; the sum of all energies is in e->total.
static inline int rsc_collect_matrix(rsc_solver *s, int i) {
    const rescale_tensor *t = s->net->tensor + i;
    rsc_energy *e = s->energy + i;
    const double inverse = 1 / (t->reference > 0 ? t->reference : 1);
    const double least = rsc_least_normal();
    const int n_out = t->n_out, n_in = t->n_in;
    const int subnormals_matter = t->g && !t->reference_each;
    double *M = e->kind == RSC_MATRIX ? e->matrix : s->wide;
    double *out = t->g ? NULL : e->out;
    double *in = t->g ? NULL : e->in;
    int bad_reference = 0;
    const int status = rsc_reduce(s, t->name, t->g, t->reference_each, rsc_n(n_out), rsc_n(n_in),
                                  rsc_n(t->kernel), out, in, M);
    if (status) return status;
    for (int o = 0; o < n_out; o++) e->out[o] = 0;
    for (int c = 0; c < n_in; c++) e->in[c] = 0;
    for (int o = 0; o < n_out; o++)
        for (int c = 0; c < n_in; c++) {
            double *m = M + rsc_at(o, n_in, c);
            bad_reference = bad_reference || *m < -DBL_MAX;
            if (subnormals_matter && *m > 0 && *m < least)
                s->underflow = t->name ? t->name : "(unnamed)";
            *m *= inverse;
            e->out[o] += *m;
            e->in[c] += *m;
            e->total += *m;
            if (!rsc_is_fixed(t, e, o, c)) continue;
            e->fixed += *m;
            *m = 0;
        }
    for (int c = 0; c < n_in && e->col < 0; c++) e->in[c] = c == 0;
    for (int o = 0; o < n_out && e->col >= 0; o++) e->out[o] = o == 0;
    if (!bad_reference) return RESCALE_OK;
    return rsc_error(s->report, RESCALE_ERROR_ARGUMENT, t->name,
                     "every reference must be positive and finite");
}

// Collects diag(G) / reference as an outer product: e->in is summed over the kernel, then both
// factors are balanced, so that neither over- or underflows. Returns whether all are >= 0; the sum
// is in e->total.
static inline int rsc_collect_product(const rescale_tensor *t, rsc_energy *e) {
    const double inverse = 1 / (t->reference > 0 ? t->reference : 1);
    double sum_out = 0, sum_in = 0;
    int valid = 1;
    for (int c = 0; c < t->n_in; c++) {
        double sum = 0;
        for (int k = 0; k < t->kernel; k++) {
            const double v = e->in[c * t->kernel + k];
            valid = valid && v >= 0;
            sum += v;
        }
        e->in[c] = sum;
        sum_in += sum;
    }
    for (int o = 0; o < t->n_out; o++) {
        valid = valid && e->out[o] >= 0;
        sum_out += e->out[o] *= inverse;
    }
    e->total = sum_out * sum_in;
    const double f = sqrt(sum_in / sum_out);
    for (int o = 0; o < t->n_out && e->total > 0; o++) e->out[o] *= f;
    for (int c = 0; c < t->n_in && e->total > 0; c++) e->in[c] /= f;
    return valid;
}

// Returns row o of an array like data, in host memory: the row itself, or a copy in `line`.
static inline const rescale_real *rsc_row(rsc_solver *s, const rescale_tensor *t,
                                          const rescale_real *array, int o, rescale_real *line) {
    const size_t columns = rsc_columns(t);
    if (!array) return NULL;
    array += rsc_n(o) * columns;
#ifdef RESCALE_HAS_DEVICE
    if (s->options->on_device) {
        const cudaError_t e =
            cudaMemcpy(line, array, columns * sizeof *line, cudaMemcpyDeviceToHost);
        if (e == cudaSuccess) return line;
        rsc_error(s->report, RESCALE_ERROR_DEVICE, t->name, cudaGetErrorString(e));
        return NULL;
    }
#endif
    (void)s;
    (void)line;
    return array;
}

// For options.each: logarithms and counts of the elements of diag(G) / reference that are positive.
// Without a full g, e->out and e->in hold its factors. Returns a status.
static inline int rsc_collect_logs(rsc_solver *s, int i) {
    const rescale_tensor *t = s->net->tensor + i;
    rsc_energy *e = s->energy + i;
    const int columns = RSC_CAST(int, rsc_columns(t));
    const double common = t->reference > 0 ? t->reference : 1;
    e->log_sum = e->positive = 0;
    for (int c = 0; c < t->n_in; c++) e->col_count[c] = 0;
    for (int o = 0; o < t->n_out; o++) {
        const rescale_real *g = rsc_row(s, t, t->g, o, s->line[0]);
        const rescale_real *r = rsc_row(s, t, t->reference_each, o, s->line[1]);
        if ((t->g && !g) || (t->reference_each && !r)) return s->report->status;
        e->row_count[o] = 0;
        for (int c = 0; c < columns; c++) {
            const double v = g ? RSC_CAST(double, g[c]) : e->out[o] * e->in[c];
            const double reference = r ? RSC_CAST(double, r[c]) : 1;
            if (!(v > 0)) continue;
            e->log_sum += log(v / (reference * common));
            e->row_count[o]++;
            e->col_count[c / t->kernel]++;
        }
        e->positive += e->row_count[o];
    }
    return RESCALE_OK;
}

// Fills in options.each and the spreads of the report at the last evaluated u, before (when = 0) or
// after (1) rescaling. A factor exp(+-u) on a row adds +-u to the logarithm of each element of it.
static inline void rsc_report_each(rsc_solver *s, int when, const double *u) {
    double all_logs = 0, all_positive = 0;
    for (int i = 0; i < s->net->n_tensors; i++) {
        const rescale_tensor *t = s->net->tensor + i;
        const rsc_energy *e = s->energy + i;
        rescale_tensor_report *each = s->options->each + i;
        double logs = e->log_sum;
        each->share[when] = each->spread[when] = 0;
        each->zeros = e->kind ? RSC_CAST(long long, rsc_size(t)) : 0;
        if (!e->kind || !(e->positive > 0)) continue;
        for (int o = 0; o < t->n_out && e->row >= 0; o++)
            logs += e->row_sign * u[e->row + o] * e->row_count[o];
        for (int c = 0; c < t->n_in && e->col >= 0; c++)
            logs += e->col_sign * u[e->col + c] * e->col_count[c];
        each->share[when] = e->total / s->total;
        each->spread[when] = log(e->total / e->positive) - logs / e->positive;
        each->zeros -= RSC_CAST(long long, e->positive);
        all_logs += logs;
        all_positive += e->positive;
    }
    const double spread = log(s->total / all_positive) - all_logs / all_positive;
    if (when) s->report->spread_after = spread;
    else s->report->spread_before = spread;
}

// Turns diag(G) / reference of one tensor into the energies that the solver needs (see rsc_energy).
static inline int rsc_collect(rsc_solver *s, int i, int chain) {
    const rescale_tensor *t = s->net->tensor + i;
    rsc_energy *e = s->energy + i;
    int valid = 1, status = RESCALE_OK;
    if (!e->kind) return RESCALE_OK;
    if (!chain && t->g_out) {
        memcpy(e->out, t->g_out, rsc_n(t->n_out) * sizeof(double));
        memcpy(e->in, t->g_in, rsc_columns(t) * sizeof(double));
    }
    if (s->options->each) status = rsc_collect_logs(s, i);
    if (status) return status;
    e->total = 0;
    if (t->g || t->reference_each || e->kind == RSC_MATRIX) status = rsc_collect_matrix(s, i);
    else valid = rsc_collect_product(t, e);
    if (status) return status;
    if (!valid || !(e->total >= 0) || e->total > DBL_MAX)
        return rsc_error(s->report, RESCALE_ERROR_RANGE, t->name,
                         "diag(G) / reference is negative, NaN or overflows");
    return RESCALE_OK;
}

// ---- J. Energies at a given u -------------------------------------------------------------------

// Returns the factor of an energy: exp(sign * u) of unit first + i, 1 outside every group.
static inline double rsc_factor(const rsc_solver *s, int first, int i, int sign) {
    if (first < 0) return 1;
    return sign > 0 ? s->x[first + i] : 1 / s->x[first + i];
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

// Adds tensor i's energies to O (leave) and I (enter) of the units of the sides asked for. Needs
// rsc_refresh before.
static inline void rsc_accumulate(rsc_solver *s, int i, int rows, int cols) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    double *row = e->row_sign > 0 ? s->leave : s->enter;
    double *col = e->col_sign > 0 ? s->leave : s->enter;
    const int matrix = e->kind == RSC_MATRIX;
    // A row of an outer product adds up to p[o] * sum_q, a column to q[c] * sum_p.
    for (int o = 0; o < t->n_out && rows; o++)
        row[e->row + o] += matrix ? e->out[o] : e->p[o] * e->sum_q;
    for (int c = 0; c < t->n_in && cols; c++)
        col[e->col + c] += matrix ? e->in[c] : e->q[c] * e->sum_p;
}

// Computes everything at u: x, energies, O, I, S. Returns F(u), or infinity or NaN if exp
// overflows. Manual, 8 (1).
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

// Replaces every entry of v by the mean over its group: what a common shift of the group sees.
static inline void rsc_group_means(const rsc_solver *s, double *v) {
    for (int g = 0; g < s->net->n_groups; g++) {
        const int first = s->first[g], end = s->first[g + 1];
        double sum = 0;
        for (int h = first; h < end; h++) sum += v[h];
        for (int h = first; h < end; h++) v[h] = sum / (end - first);
    }
}

// Computes dF/du at the last evaluated u. Returns the largest |dF/du| over the units that could
// still move, the certificate. Manual, 8 (1). At the layer level a group moves as one: its units
// share the mean gradient, and the certificate is the gradient of the common u, the sum.
static inline double rsc_gradient(rsc_solver *s, const double *u) {
    const double scale = s->p / s->total;
    const int by_layer = s->options->level == RESCALE_LAYER;
    double largest = 0;
    for (int h = 0; h < s->units; h++)
        s->gradient[h] = scale * (s->leave[h] - s->enter[h]) - s->count[h];
    if (by_layer) rsc_group_means(s, s->gradient);
    for (int group = 0, h = 0; h < s->units; h++) {
        const double g = s->gradient[h];
        while (h >= s->first[group + 1]) group++;
        if (s->fixed[h] == 1) continue;
        const int outwards = (u[h] >= s->bound && g < 0) || (u[h] <= -s->bound && g > 0);
        s->fixed[h] = outwards ? 2 : 0;  // at a bound, pushed outwards
        const double n = by_layer ? s->first[group + 1] - s->first[group] : 1;
        if (!s->fixed[h] && !(n * fabs(g) <= largest)) largest = n * fabs(g);
    }
    return largest;
}

static inline double rsc_within(double x, double low, double high) {
    if (x < low) return low;
    return x > high ? high : x;
}
static inline double rsc_clip(double v, double bound) {
    if (v > bound) return bound;
    return v < -bound ? -bound : v;
}

// ---- K. Block sweeps ----------------------------------------------------------------------------

// Sets the units of a group together; the rest is fixed. In the names of the manual, 8 (2),
// s->leave holds B_h and s->enter holds C_h. S is where the search starts. Safeguarded Newton finds
// the root of the decreasing value(S): [lower, upper] encloses it.
static inline void rsc_update_together(rsc_solver *s, int group, double rest, double S, double low,
                                       double high) {
    double lower = 0, upper = INFINITY;
    for (int it = 0; it < 100; it++) {
        double value = rest - S, slope = -1;
        for (int h = s->first[group]; h < s->first[group + 1]; h++) {
            const double B = s->leave[h], C = s->enter[h];
            const double cS = s->count[h] / s->p * S;  // c_h S, and c_h = n_h / p
            const double root = hypot(cS, 2 * sqrt(B) * sqrt(C));
            // The positive root of B x - C / x = cS, in the form that does not cancel.
            const double x = cS >= 0 ? (cS + root) / (2 * B) : 2 * C / (root - cS);
            if (s->fixed[h] != 1 && x > low && x < high) {
                value += root;                   // B x + C / x at that x
                slope += cS * cS / (S * root);   // d root / dS = c_h^2 S / root
                s->x[h] = x;
                continue;
            }
            if (s->fixed[h] != 1) s->x[h] = rsc_within(x, low, high);
            value += B * s->x[h] + C / s->x[h];  // a pinned unit, or one at its bound
        }
        if (value > 0) lower = S;
        else upper = S;
        double next = S - value / slope;
        if (fabs(next - S) <= 1e-15 * S) break;
        if (!(next > lower && next < upper))
            next = upper < INFINITY ? 0.5 * (lower + upper) : 2 * lower;
        S = next;
    }
}

// Returns the x of unit h that minimises F while all others are fixed. B = O_h / x, C = I_h x, and
// D is S without this unit. x solves the quadratic of the manual, 8 (3).
static inline double rsc_best_alone(double B, double C, double c, double D) {
    const double root = hypot(c * D, 2 * sqrt((1 - c) * B) * sqrt((1 + c) * C));
    // (cD + root) / (2 (1 - c) B), in the form that does not cancel.
    return c >= 0 ? (c * D + root) / (2 * (1 - c) * B) : 2 * (1 + c) * C / (root - c * D);
}

// Sets the units of a group in turn, each with all others fixed. Manual, 8 (3).
static inline void rsc_update_in_turn(rsc_solver *s, int group, double S, double low, double high) {
    for (int h = s->first[group]; h < s->first[group + 1]; h++) {
        if (s->fixed[h] == 1) continue;
        const double B = s->leave[h], C = s->enter[h], c = s->count[h] / s->p;
        const double D = S - B * s->x[h] - C / s->x[h];
        s->x[h] = rsc_within(rsc_best_alone(B, C, c, D), low, high);
        S = D + B * s->x[h] + C / s->x[h];
    }
}

// Sets the units of a group to one common x, all else fixed: formula (3) for the sums of B and C
// and of n_h, where D is what the group has no part in.
static inline void rsc_update_as_one(rsc_solver *s, int group, double rest, double low,
                                     double high) {
    double B = 0, C = 0, c = 0;
    const int first = s->first[group], end = s->first[group + 1];
    for (int h = first; h < end; h++) {
        B += s->leave[h];
        C += s->enter[h];
        c += s->count[h] / s->p;
    }
    if (s->fixed[first] == 1) return;
    const double x = rsc_within(rsc_best_alone(B, C, c, rest), low, high);
    for (int h = first; h < end; h++) s->x[h] = x;
}

// Writes S as a function of the units of one group, S = rest + sum_h (B_h x_h + C_h / x_h): B_h
// goes to s->leave, C_h to s->enter, rest to at_rest. Returns S now. Returns a negative number if a
// tensor goes from the group to itself, because S is then no such sum.
static inline double rsc_group_energies(rsc_solver *s, int group, double *at_rest) {
    const rescale_net *net = s->net;
    const int first = s->first[group], end = s->first[group + 1];
    double rest = 0, S;
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        if (rsc_touches(s->energy + i, t, group) && t->enters == t->leaves) return -1;
    }
    for (int h = first; h < end; h++) s->leave[h] = s->enter[h] = 0;
    for (int i = 0; i < net->n_tensors; i++) {
        if (rsc_touches(s->energy + i, net->tensor + i, group))
            rsc_accumulate(s, i, net->tensor[i].enters == group, net->tensor[i].leaves == group);
        else if (s->energy[i].kind) rest += s->energy[i].total;
    }
    S = rest;
    for (int h = first; h < end; h++) {
        S += s->leave[h] + s->enter[h];
        s->leave[h] /= s->x[h];  // O_h becomes B_h = O_h / x_h
        s->enter[h] *= s->x[h];  // I_h becomes C_h = I_h x_h
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
    if (s->options->level == RESCALE_LAYER) rsc_update_as_one(s, group, rest, low, high);
    else if (s->options->solver == RESCALE_UNIT_SWEEPS) rsc_update_in_turn(s, group, S, low, high);
    else rsc_update_together(s, group, rest, S, low, high);
    for (int h = first; h < end; h++) {
        if (s->x[h] <= low) s->u[h] = -s->bound;
        else if (s->x[h] >= high) s->u[h] = s->bound;
        else s->u[h] = log(s->x[h]);
    }
    for (int i = 0; i < net->n_tensors; i++)
        if (rsc_touches(s->energy + i, net->tensor + i, group)) rsc_refresh(s, i);
}

static inline void rsc_block_sweep(rsc_solver *s) {
    for (int g = 0; g < s->net->n_groups; g++) rsc_block_update(s, g);
    s->report->sweeps++;
}

// ---- L. Small linear solves ---------------------------------------------------------------------

// Solves A y = b in place, A [n][n + 1] with b in the last column, by LU with partial pivoting; y
// replaces column n. Returns 0, or 1 when A is singular.
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

// ---- M. Newton: the Hessian ---------------------------------------------------------------------
// H = p (A - q q^T), manual, 8 (4). Units with fixed[h] != 0 do not move: their rows and columns
// are left out.

// Adds the cross terms of one tensor to y = A v, if its energies are an outer product p (x) q.
static inline void rsc_cross_pair(const rescale_tensor *t, const rsc_energy *e, double cross,
                                  const double *v, double *y) {
    double pv = 0, qw = 0;  // p . v over the rows, q . v over the columns
    for (int o = 0; o < t->n_out; o++) pv += e->p[o] * v[e->row + o];
    for (int c = 0; c < t->n_in; c++) qw += e->q[c] * v[e->col + c];
    for (int o = 0; o < t->n_out; o++) y[e->row + o] += cross * e->p[o] * qw;
    for (int c = 0; c < t->n_in; c++) y[e->col + c] += cross * e->q[c] * pv;
}

// The same for a matrix: its energies are p[o] m[o][c] q[c]. Rows and columns are read in one pass.
static inline void rsc_cross_matrix(const rsc_solver *s, const rescale_tensor *t,
                                    const rsc_energy *e, double cross, const double *v, double *y) {
    double *qv = s->rows, *sum = s->cols;
    for (int c = 0; c < t->n_in; c++) {
        qv[c] = e->q[c] * v[e->col + c];
        sum[c] = 0;
    }
    for (int o = 0; o < t->n_out; o++) {
        const double *m = e->matrix + rsc_at(o, t->n_in, 0), pv = e->p[o] * v[e->row + o];
        double dot = 0;
        for (int c = 0; c < t->n_in; c++) {
            dot += m[c] * qv[c];
            sum[c] += m[c] * pv;
        }
        y[e->row + o] += cross * e->p[o] * dot;
    }
    for (int c = 0; c < t->n_in; c++) y[e->col + c] += cross * e->q[c] * sum[c];
}

// y = (A - q q^T) v, where v is zero on fixed units. Manual, 8 (4).
static inline void rsc_hessian_times(rsc_solver *s, const double *v, double *y) {
    const double scale = 1 / s->total;
    double qv = 0;
    // Term 1: the diagonal (O + I) / S. The same loop adds up q . v, with q = (O - I) / S.
    for (int h = 0; h < s->units; h++) {
        y[h] = scale * (s->leave[h] + s->enter[h]) * v[h];
        qv += scale * (s->leave[h] - s->enter[h]) * v[h];
    }
    // Term 2: the cross terms of two-sided tensors.
    for (int i = 0; i < s->net->n_tensors; i++) {
        const rescale_tensor *t = s->net->tensor + i;
        const rsc_energy *e = s->energy + i;
        const double cross = e->row_sign * e->col_sign * scale;
        if (rsc_is_pair(e)) rsc_cross_pair(t, e, cross, v, y);
        else if (e->kind == RSC_MATRIX) rsc_cross_matrix(s, t, e, cross, v, y);
    }
    // Term 3: -q (q . v).
    for (int h = 0; h < s->units; h++)
        y[h] = s->fixed[h] ? 0 : y[h] - scale * (s->leave[h] - s->enter[h]) * qv;
}

// A column of V in the manual, 8 (6): scale * v[0 .. n) at units first .. first + n. Columns 2 k
// and 2 k + 1 are p and q of the k-th two-sided rank-one tensor. Each is scaled to the square root
// of the tensor's share of S, which bounds the entries of the small system by one. The last column
// is q_h = (O_h - I_h) / S, which s->product holds.
typedef struct rsc_span {
    const double *v;
    int first, n;
    double scale;
} rsc_span;
static inline rsc_span rsc_woodbury_vector(const rsc_solver *s, int k) {
    rsc_span r = {s->product, 0, s->units, 1};
    for (int i = 0, pair = 0; i < s->net->n_tensors && k < 2 * s->n_pairs; i++) {
        const rescale_tensor *t = s->net->tensor + i;
        const rsc_energy *e = s->energy + i;
        if (!rsc_is_pair(e) || pair++ != k / 2) continue;
        const double share = e->total > 0 ? sqrt(e->total / s->total) : 0;
        double sum = e->sum_p;
        r.v = e->p;
        r.first = e->row;
        r.n = t->n_out;
        if (k % 2) {
            sum = e->sum_q;
            r.v = e->q;
            r.first = e->col;
            r.n = t->n_in;
        }
        r.scale = e->total > 0 ? share / sum : 0;
        break;
    }
    return r;
}
static inline double rsc_weighted_dot(const rsc_span *a, const rsc_span *b, const double *weight) {
    const int end_a = a->first + a->n, end_b = b->first + b->n;
    const int first = rsc_max(a->first, b->first), end = end_a < end_b ? end_a : end_b;
    double sum = 0;
    for (int h = first; h < end; h++) sum += a->v[h - a->first] * weight[h] * b->v[h - b->first];
    return a->scale * b->scale * sum;
}

// y = (A - q q^T)^-1 b for nets whose two-sided tensors all have rank one. Manual, 8 (5) and (6).
// Costs O(units * tensors + m^3), m = 2 n_pairs + 1. Returns 1 if the small system is singular.
static inline int rsc_woodbury(rsc_solver *s, const double *b, double *y) {
    const int m = 2 * s->n_pairs + 1;
    const int w = m + 1;
    const double scale = 1 / s->total;
    double *A = s->small;  // [m][m + 1]: the small matrix; the last column is its right-hand side
    // The last column of V, and Delta^-1 = S / (O + I), 0 on fixed units.
    for (int h = 0; h < s->units; h++) {
        s->product[h] = scale * (s->leave[h] - s->enter[h]);
        s->diagonal[h] = s->fixed[h] ? 0 : s->total / (s->leave[h] + s->enter[h]);
    }
    // V^T Delta^-1 V, which is symmetric, and V^T Delta^-1 b.
    const rsc_span rhs = {b, 0, s->units, 1};
    for (int i = 0; i < m; i++) {
        const rsc_span vi = rsc_woodbury_vector(s, i);
        for (int j = 0; j <= i; j++) {
            const rsc_span vj = rsc_woodbury_vector(s, j);
            const double dot = rsc_weighted_dot(&vi, &vj, s->diagonal);
            A[rsc_at(j, w, i)] = dot;
            A[rsc_at(i, w, j)] = dot;
        }
        A[rsc_at(i, w, m)] = rsc_weighted_dot(&vi, &rhs, s->diagonal);
    }
    // Plus K^-1, which equals K: -1 for q, [0 sign; sign 0] for each pair.
    A[rsc_at(m - 1, w, m - 1)] -= 1;
    for (int i = 0, k = 0; i < s->net->n_tensors; i++) {
        const rsc_energy *e = s->energy + i;
        if (!rsc_is_pair(e)) continue;
        const double sign = e->row_sign * e->col_sign;
        A[rsc_at(k, w, k + 1)] += sign;
        A[rsc_at(k + 1, w, k)] += sign;
        k += 2;
    }
    if (rsc_lu_solve(A, m)) return 1;
    // y = Delta^-1 (b - V z), z the solution of the small system.
    for (int h = 0; h < s->units; h++) y[h] = b[h];
    for (int i = 0; i < m; i++) {
        const rsc_span v = rsc_woodbury_vector(s, i);
        const double f = v.scale * A[rsc_at(i, w, m)];
        for (int h = 0; h < v.n; h++) y[v.first + h] -= f * v.v[h];
    }
    for (int h = 0; h < s->units; h++) y[h] *= s->diagonal[h];
    return 0;
}

// Solves the same system by conjugate gradients, preconditioned with the diagonal. It stops at the
// given relative residual.
static inline void rsc_conjugate_gradients(rsc_solver *s, const double *b, double *y,
                                           double relative) {
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
        for (int h = 0; h < s->units; h++)
            d[h] = inverse[h] * r[h] + next / rho * d[h];
        rho = next;
        s->report->cg_steps++;
    }
}

// ---- N. Newton: group means ---------------------------------------------------------------------
// Sweeps are slow in one mode: a common shift of a whole group. A Galerkin step corrects it. It
// minimises the quadratic model over one common shift of the free units of each group: a small
// system, one unknown for each group. Newton starts with it. Manual, 8 (7).

// Returns the energy of the two-sided tensor i between free rows and free columns at the last
// evaluated u.
static inline double rsc_free_energy(const rsc_solver *s, int i) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    double rows = 0, cols = 0;
    for (int c = 0; c < t->n_in; c++) cols += s->cols[c] = s->fixed[e->col + c] ? 0 : e->q[c];
    const int matrix = e->kind == RSC_MATRIX;
    for (int o = 0; o < t->n_out; o++) {
        double sum = matrix ? 0 : cols;
        for (int c = 0; matrix && c < t->n_in; c++)
            sum += e->matrix[rsc_at(o, t->n_in, c)] * s->cols[c];
        rows += s->fixed[e->row + o] ? 0 : e->p[o] * sum;
    }
    return rows;
}

// step = P y, the group-mean step at the last evaluated u. Returns 1 if the system is singular.
static inline int rsc_group_mean_step(rsc_solver *s) {
    const rescale_net *net = s->net;
    const int n = net->n_groups;
    const int w = n + 1;
    const double scale = 1 / s->total;
    double *A = s->small, *q = s->direction, largest = 0;
    memset(A, 0, rsc_n(n) * rsc_n(w) * sizeof(double));
    // P^T diag(O + I) P / S, the right-hand side -P^T gradient / p, and P^T q: sums over a group.
    for (int g = 0; g < n; g++) {
        q[g] = 0;
        for (int h = s->first[g]; h < s->first[g + 1]; h++) {
            if (s->fixed[h]) continue;
            A[rsc_at(g, w, g)] += scale * (s->leave[h] + s->enter[h]);
            A[rsc_at(g, w, n)] -= s->gradient[h] / s->p;
            q[g] += scale * (s->leave[h] - s->enter[h]);
        }
    }
    // The cross terms between groups.
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        const rsc_energy *e = s->energy + i;
        if (e->kind != RSC_MATRIX && !rsc_is_pair(e)) continue;
        const double cross = scale * e->row_sign * e->col_sign * rsc_free_energy(s, i);
        A[rsc_at(t->enters, w, t->leaves)] += cross;
        A[rsc_at(t->leaves, w, t->enters)] += cross;
    }
    // Minus (P^T q) (P^T q)^T.
    for (int g = 0; g < n; g++)
        for (int k = 0; k < n; k++) A[rsc_at(g, w, k)] -= q[g] * q[k];
    // A little more on the diagonal keeps the system regular; a group without free units gets a 1.
    for (int g = 0; g < n; g++) largest = fmax(largest, A[rsc_at(g, w, g)]);
    for (int g = 0; g < n; g++) A[rsc_at(g, w, g)] += A[rsc_at(g, w, g)] > 0 ? 1e-14 * largest : 1;
    if (rsc_lu_solve(A, n)) return 1;
    for (int g = 0; g < n; g++)
        for (int h = s->first[g]; h < s->first[g + 1]; h++)
            s->step[h] = s->fixed[h] ? 0 : A[rsc_at(g, w, n)];
    return 0;
}

// ---- O. Newton: the iteration -------------------------------------------------------------------

// Moves u along step, within the bound, and halves the step until F falls enough (Armijo). Where F
// is too flat to tell by rounding, the gradient has to fall instead. Evaluates F and the gradient
// at the new u. Returns 0 if no step length helps.
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
        const int flat = fabs(slope) <= 1e-9 * fabs(before) + 1e-12;
        const double gradient_now = enough || flat ? rsc_gradient(s, s->trial) : INFINITY;
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

// step = the Newton step at the last evaluated u, manual, 8 (5). Woodbury with one round of
// iterative refinement; if it does not apply or is not accurate, conjugate gradients.
static inline void rsc_newton_step(rsc_solver *s, int woodbury, double relative) {
    const double scale = -1 / s->p;
    double *b = s->residual;
    if (woodbury) {
        for (int h = 0; h < s->units; h++) b[h] = s->fixed[h] ? 0 : scale * s->gradient[h];
        if (!rsc_woodbury(s, b, s->step)) {
            double before = 0, after = 0;  // squared residuals, weighted with Delta^-1
            rsc_hessian_times(s, s->step, s->direction);
            for (int h = 0; h < s->units; h++) {
                before += b[h] * b[h] * s->diagonal[h];
                b[h] -= s->direction[h];  // the residual; solve for it and add: refinement
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

// Returns max(1, max |n_h|); at the layer level n_h is summed over the group.
static inline double rsc_largest_count(const rsc_solver *s) {
    double largest = 1;
    for (int g = 0; g < s->net->n_groups; g++) {
        double sum = 0;
        for (int h = s->first[g]; h < s->first[g + 1]; h++) {
            sum += s->count[h];
            if (s->options->level == RESCALE_UNIT) largest = fmax(largest, fabs(s->count[h]));
        }
        if (s->options->level == RESCALE_LAYER) largest = fmax(largest, fabs(sum));
    }
    return largest;
}

// Minimises F to the tolerance: two rounds of a block sweep and group-mean steps, then Newton on
// all units.
static inline void rsc_newton(rsc_solver *s) {
    const rescale_options *o = s->options;
    int woodbury = !o->general && s->n_pairs <= RSC_MOST_PAIRS;
    for (int i = 0; i < s->net->n_tensors; i++)
        woodbury = woodbury && s->energy[i].kind != RSC_MATRIX;
    double F = rsc_evaluate(s, s->u), grad_inf, n_max;
    n_max = rsc_largest_count(s);
    // A larger p multiplies the gradient and its rounding errors.
    n_max *= s->p / RSC_CAST(double, s->parameters);
    for (int round = 0; round < 2; round++) {
        rsc_block_sweep(s);
        F = rsc_evaluate(s, s->u);
        grad_inf = rsc_gradient(s, s->u);
        for (int k = 0; k < 4 && rsc_uses_means(s); k++)
            if (rsc_group_mean_step(s) || !rsc_line_search(s, &F, &grad_inf)) break;
    }
    const double first = grad_inf;
    for (int it = 0; it < o->max_iterations && grad_inf > o->tolerance * n_max; it++) {
        if (o->level == RESCALE_LAYER) {
            if (rsc_group_mean_step(s)) break;
        } else {
            rsc_newton_step(s, woodbury, fmin(0.1, sqrt(grad_inf / first)));
        }
        s->report->iterations++;
        if (rsc_line_search(s, &F, &grad_inf)) continue;
        // At bounds, or by rounding, the step may fail to descend. A sweep does descend.
        const double before = F;
        rsc_block_sweep(s);
        F = rsc_evaluate(s, s->u);
        grad_inf = rsc_gradient(s, s->u);
        if (!(F < before)) break;
    }
}

// ---- P. ENorm -----------------------------------------------------------------------------------

// Computes row sums (by_col = 0) or column sums (1) of the squared weights of tensor i at the
// current u into s->rows. The factors of the summed side itself are left out.
static inline int rsc_enorm_tensor(rsc_solver *s, int i, int by_col) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    const size_t n_out = rsc_n(t->n_out), columns = rsc_columns(t);
    double *x = s->in_scale;
    if (by_col) {
        for (int o = 0; o < t->n_out; o++) x[o] = rsc_factor(s, e->row, o, -e->row_sign);
        return rsc_power_cols(s, t->name, t->data, n_out, columns, x, s->rows, 2);
    }
    for (int c = 0; c < RSC_CAST(int, columns); c++)
        x[c] = rsc_factor(s, e->col, c / t->kernel, -e->col_sign);
    return rsc_power_rows(s, t->name, t->data, n_out, columns, x, s->rows, 2);
}

// Sums the squared weights at the current u that leave and enter the units of `group` into s->leave
// and s->enter. With group -1 it does so for all groups, and `total` becomes the sum of all squared
// weights.
static inline int rsc_enorm_sums(rsc_solver *s, int group, double *total) {
    for (int h = 0; h < s->units; h++) s->leave[h] = s->enter[h] = 0;
    *total = 0;
    for (int i = 0; i < 2 * s->net->n_tensors; i++) {
        const rescale_tensor *t = s->net->tensor + i / 2;
        const rsc_energy *e = s->energy + i / 2;
        const int by_col = i % 2;  // every tensor twice: its rows, then its columns
        int first = e->row, mine = t->enters, sign = e->row_sign, per_unit = 1, n = t->n_out;
        if (by_col) {
            first = e->col;
            mine = t->leaves;
            sign = e->col_sign;
            per_unit = t->kernel;
            n = RSC_CAST(int, rsc_columns(t));
        }
        double *sum = sign > 0 ? s->leave : s->enter;
        const int other_group = group >= 0 && mine != group;
        if (!e->kind || other_group || (group < 0 && by_col && first < 0)) continue;
        if (t->enters >= 0 && t->enters == t->leaves)
            return rsc_error(s->report, RESCALE_ERROR_ARGUMENT, t->name,
                             "ENorm has no rule for a tensor from a group to itself");
        const int status = rsc_enorm_tensor(s, i / 2, by_col);
        if (status) return status;
        for (int k = 0; k < n; k++) {
            const double energy = s->rows[k] * rsc_factor(s, first, k / per_unit, -sign);
            if (!by_col) *total += energy;
            if (first >= 0) sum[first + k / per_unit] += energy;
        }
    }
    return RESCALE_OK;
}

// ENorm's u of unit h with all others fixed: exp(2 u_h) = out_h / in_h, where out_h and in_h are
// the sums of squared weights that leave and enter h at u_h = 0.
static inline double rsc_enorm_best(const rsc_solver *s, int h) {
    return s->u[h] + 0.5 * log(s->leave[h] / s->enter[h]);
}

// One cycle over the groups. The largest change of u goes to `change`.
static inline int rsc_enorm_cycle(rsc_solver *s, double *change) {
    *change = 0;
    for (int g = 0; g < s->net->n_groups; g++) {
        double total;
        const int status = rsc_enorm_sums(s, g, &total);
        if (status) return status;
        for (int h = s->first[g]; h < s->first[g + 1]; h++) {
            if (!(s->leave[h] > 0) || !(s->enter[h] > 0)) s->fixed[h] = 1;
            if (s->fixed[h] == 1) continue;
            const double u = rsc_clip(rsc_enorm_best(s, h), s->bound);
            *change = fmax(*change, fabs(u - s->u[h]));
            s->u[h] = u;
            s->x[h] = exp(u);
        }
    }
    s->report->sweeps++;
    return RESCALE_OK;
}

// Minimises the sum of squared weights. Sweeps: a fixed number of cycles. Otherwise cycles go on
// until u changes by less than 1e-9. Cycles converge linearly, so 10 * max_iterations of them are
// allowed.
static inline int rsc_enorm(rsc_solver *s) {
    const rescale_options *o = s->options;
    rescale_report *r = s->report;
    const int to_the_end = o->solver == RESCALE_NEWTON;
    const double least_change = to_the_end ? 1e-9 : -1;
    long long cycles = to_the_end ? 10LL * o->max_iterations : o->sweeps;
    if (s->given) cycles = 0;
    double change = INFINITY, total;
    int status;
    for (int h = 0; h < s->units; h++) s->x[h] = 1;
    if ((status = rsc_enorm_sums(s, -1, &r->objective_before))) return status;
    for (int h = 0; h < s->units && s->given; h++) {
        s->u[h] = s->given[h];
        s->x[h] = exp(s->u[h]);
    }
    for (long long k = 0; k < cycles && change > least_change; k++)
        if ((status = rsc_enorm_cycle(s, &change))) return status;
    if ((status = rsc_enorm_sums(s, -1, &total))) return status;
    r->objective_after = total;
    r->grad_tolerance = 1e-8 * total;
    for (int h = 0; h < s->units; h++) {
        const double g = s->enter[h] - s->leave[h];
        const int outwards = (s->u[h] >= s->bound && g < 0) || (s->u[h] <= -s->bound && g > 0);
        if (!s->fixed[h] && !outwards) r->grad_inf = fmax(r->grad_inf, fabs(g));
    }
    return RESCALE_OK;
}

// ---- Q. PathCond --------------------------------------------------------------------------------

// Minimises F where S <= limit, from the optimum. With a multiplier mu, F + mu log S is F with p +
// mu in place of p, and S falls as mu grows. Bisection of log p ends when S is at most a thousandth
// below the limit. If only u = 0 is within the limit, u = 0.
static inline void rsc_bound_trace(rsc_solver *s, double limit) {
    double low = 0, high = INFINITY, at = 1;  // log of p over the number of parameters
    for (int k = 0; k < 60 && at < 32; k++) {
        if (s->total <= limit && s->total >= 0.999 * limit) break;
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

// Pins the units without energy on one side. At the layer level that is a question to the group.
static inline void rsc_pin(rsc_solver *s) {
    for (int g = 0; g < s->net->n_groups; g++) {
        double leave = 0, enter = 0;
        for (int h = s->first[g]; h < s->first[g + 1]; h++) {
            leave += s->leave[h];
            enter += s->enter[h];
        }
        for (int h = s->first[g]; h < s->first[g + 1]; h++) {
            int energy = s->leave[h] > 0 && s->enter[h] > 0;
            if (s->options->level == RESCALE_LAYER) energy = leave > 0 && enter > 0;
            if (!energy) s->fixed[h] = 1;
        }
    }
}

// PathCond: diag(G), then the solver that the options ask for. u ends in s->u.
static inline int rsc_pathcond(rsc_solver *s, double start) {
    rescale_report *r = s->report;
    int chain = 1;  // nothing carries diag(G): compute it, for a sequential fully connected net
    for (int i = 0; i < s->net->n_tensors; i++)
        chain = chain && !s->net->tensor[i].g && !s->net->tensor[i].g_out;
    int status = chain ? rsc_chain_diag_g(s) : RESCALE_OK;
    for (int i = 0; i < s->net->n_tensors && !status; i++) status = rsc_collect(s, i, chain);
    if (status) return status;
    const double solve = rsc_seconds();
    r->seconds_diag_g = solve - start;
    r->objective_before = rsc_evaluate(s, s->u);
    const double limit = s->options->max_trace * s->total;
    s->trace = s->total;
    if (!(s->total > 0) || !(s->total <= DBL_MAX))
        return rsc_error(r, RESCALE_ERROR_RANGE, "network",
                         "diag(G) is zero everywhere or overflows");
    if (s->options->each) rsc_report_each(s, 0, s->u);
    rsc_pin(s);
    r->grad_tolerance = 1e-8 * rsc_largest_count(s);
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

// ---- R. Powers of two ---------------------------------------------------------------------------
// lambda_h = 2^k_h, manual, 8 (8). Rounding every lambda by itself can end above F(0). Therefore
// the integers k_h descend on F, one by one and a group at a time. s->step holds k. s->trial and
// s->product hold the least and the largest k allowed.

// Returns u of lambda = 2.
static inline double rsc_octave(const rsc_solver *s) { return s->power * log(2.0); }

// Returns the change of F if S becomes `now` and the exponents k of some units grow by `by`.
// `count` is the sum of their n_h.
static inline double rsc_change(const rsc_solver *s, double S, double now, double count,
                                double by) {
    return s->p * log(now / S) - count * rsc_octave(s) * by;
}

// Moves the units of a group one by one, each to the integer that is best with all others fixed. F
// is convex in log x, so that integer is one of the two beside the minimum. Brings S up to date.
// Returns how many units moved.
static inline int rsc_descend_in_turn(rsc_solver *s, int group, double *S) {
    int moved = 0;
    for (int h = s->first[group]; h < s->first[group + 1]; h++) {
        if (s->fixed[h] == 1) continue;
        const double B = s->leave[h], C = s->enter[h], c = s->count[h] / s->p;
        const double D = *S - B * s->x[h] - C / s->x[h];
        const double best = log(rsc_best_alone(B, C, c, D)) / rsc_octave(s);
        const double start = *S, k = s->step[h];
        double least = -1e-12 * s->p;
        for (int side = 0; side < 2; side++) {
            const double beside = side ? ceil(best) : floor(best);
            const double next = rsc_within(beside, s->trial[h], s->product[h]);
            const double x = exp2(s->power * next), now = D + B * x + C / x;
            const double change = rsc_change(s, start, now, s->count[h], next - k);
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

// Tries to add `by` to the exponent of every free unit of a group. Does so if F falls. Brings S up
// to date. Returns whether they moved.
static inline int rsc_shift_group(rsc_solver *s, int group, int by, double *S) {
    const double up = exp2(RSC_CAST(double, s->power) * by);  // factor of x
    double now = *S, count = 0;
    for (int h = s->first[group]; h < s->first[group + 1]; h++) {
        const double k = s->step[h] + by;
        if (s->fixed[h] == 1) continue;
        if (!(k >= s->trial[h] && k <= s->product[h])) return 0;
        now += (up - 1) * s->leave[h] * s->x[h] + (1 / up - 1) * s->enter[h] / s->x[h];
        count += s->count[h];
    }
    if (!(rsc_change(s, *S, now, count, by) < -1e-12 * s->p)) return 0;
    for (int h = s->first[group]; h < s->first[group + 1]; h++) {
        if (s->fixed[h] == 1) continue;
        s->step[h] += by;
        s->x[h] *= up;
    }
    *S = now;
    return 1;
}

// Moves all units of a group together, up and then down, as long as F falls. Returns how often they
// moved.
static inline int rsc_descend_together(rsc_solver *s, int group, double *S) {
    int moved = 0;
    while (rsc_shift_group(s, group, 1, S)) moved++;
    while (rsc_shift_group(s, group, -1, S)) moved++;
    return moved;
}

// Descends from the k in s->step until nothing moves. u follows. Returns F there.
static inline double rsc_descend(rsc_solver *s) {
    for (int h = 0; h < s->units; h++) s->u[h] = rsc_octave(s) * s->step[h];
    rsc_evaluate(s, s->u);
    for (int round = 0, moved = 1; round < 100 && moved; round++) {
        moved = 0;
        for (int g = 0; g < s->net->n_groups; g++) {
            double rest = 0, S = rsc_group_energies(s, g, &rest);
            if (S < 0) continue;
            moved += rsc_descend_together(s, g, &S);
            if (s->options->level == RESCALE_UNIT) moved += rsc_descend_in_turn(s, g, &S);
            for (int i = 0; i < s->net->n_tensors; i++)
                if (rsc_touches(s->energy + i, s->net->tensor + i, g)) rsc_refresh(s, i);
        }
    }
    for (int h = 0; h < s->units; h++) s->u[h] = rsc_octave(s) * s->step[h];
    return rsc_evaluate(s, s->u);
}

// The powers of two for PathCond. At the optimum of F every integer within the bound is allowed. If
// the options ask for another u, only the two integers beside it are. There are two starts, u
// rounded and no rescaling. The better result is kept, so that F never ends above F(0).
static inline void rsc_pow2_pathcond(rsc_solver *s, double bound, int at_optimum) {
    const double before = s->report->objective_before;
    for (int h = 0; h < s->units; h++) {
        const double k = s->u[h] / rsc_octave(s);
        const double largest = s->fixed[h] == 1 ? 0 : fmin(bound, 500);
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

// The powers of two for ENorm. With all but unit h fixed, the sum of squared weights is least at
// the integer nearest to the minimum.
static inline int rsc_pow2_enorm(rsc_solver *s, double bound, int at_optimum) {
    const double unit = rsc_octave(s);
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
                const double best = rsc_enorm_best(s, h);
                if (fabs(best - s->u[h]) <= 0.5 * unit * (1 + 1e-9)) continue;
                const double u = unit * rsc_clip(rint(best / unit), bound);
                moved += u != s->u[h];
                s->u[h] = u;
                s->x[h] = exp(u);
            }
        }
    }
    const int status = rsc_enorm_sums(s, -1, &total);
    if (total <= s->report->objective_before) return status;
    for (int h = 0; h < s->units; h++) s->u[h] = 0;
    return status;
}

// ---- S. Apply -----------------------------------------------------------------------------------

// Fills in the factors of the rows (side 0) or the columns (1) of a tensor, to the given power.
// s->x holds lambda. A side that enters is multiplied by it, a side that leaves is divided by it.
// Returns the largest factor.
static inline double rsc_side_factors(const rsc_solver *s, int i, int side, int power,
                                      double *factor) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    int first = e->row, sign = e->row_sign, n = t->n_out, per_unit = 1;
    double largest = 0;
    if (side) {
        first = e->col;
        sign = e->col_sign;
        n = RSC_CAST(int, rsc_columns(t));
        per_unit = t->kernel;
    }
    for (int j = 0; j < n; j++) {
        const double f = rsc_factor(s, first, j / per_unit, -sign);
        factor[j] = f;
        if (power == -1) factor[j] = 1 / f;
        if (power == -2) factor[j] = 1 / (f * f);
        largest = fmax(largest, factor[j]);
    }
    return largest;
}

// Multiplies one tensor and its optimizer state by the factors exp(-(B u)_i / 2) to the powers 1,
// -1, -2. s->x holds lambda. apply = 0 only checks that the results stay in the range of the type.
static inline int rsc_apply_tensor(rsc_solver *s, int i, int apply) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    static const int power[3] = {1, -1, -2};
    rescale_real *const data[3] = {t->data, t->moment1, t->moment2};
    for (int k = 0; k < 3; k++) {
        if (!data[k]) continue;
        const double row = rsc_side_factors(s, i, 0, power[k], s->rows);
        const double column = rsc_side_factors(s, i, 1, power[k], s->cols);
        if (!(e->max_abs[k] * row * column <= rsc_most()))
            return rsc_error(s->report, RESCALE_ERROR_RANGE, t->name,
                             "the rescaled values overflow; bound |log lambda|");
        if (!apply) continue;
        const int status = rsc_scale(s, t->name, data[k], rsc_n(t->n_out), rsc_columns(t), s->rows,
                                     s->cols);
        if (status) return status;
    }
    return RESCALE_OK;
}

// Whether a unit of one of the tensor's groups has moved.
static inline int rsc_moved(const rsc_solver *s, int i) {
    const rescale_tensor *t = s->net->tensor + i;
    const rsc_energy *e = s->energy + i;
    for (int k = 0; k < t->n_out && t->enters >= 0; k++)
        if (s->u[e->row + k] != 0) return 1;
    for (int k = 0; k < t->n_in && t->leaves >= 0; k++)
        if (s->u[e->col + k] != 0) return 1;
    return 0;
}

// Keeps the part of u that the options ask for: a fraction, and differences within groups only.
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
        for (int h = s->first[g]; h < s->first[g + 1]; h++) {
            if (s->fixed[h] == 1) continue;
            s->u[h] = o->strength * (s->u[h] - (o->within ? sum / free_units : 0));
        }
    }
}

// Turns the solved u into the u to apply: moderated and rounded if asked.
static inline int rsc_finish_u(rsc_solver *s, int moderate) {
    const rescale_options *o = s->options;
    const double log2_bound = floor(s->bound / rsc_octave(s) * (1 + 1e-12));
    const int at_optimum = !moderate && o->solver == RESCALE_NEWTON && o->max_trace == 0;
    for (int h = 0; h < s->units; h++)
        if (!(fabs(s->u[h]) <= 700.0 * s->power))
            return rsc_error(s->report, RESCALE_ERROR_RANGE, "u",
                             "lambda leaves the range of exp");
    if (s->given) return RESCALE_OK;
    if (moderate) rsc_moderate(s);
    if (!o->pow2) return RESCALE_OK;
    if (o->method == RESCALE_ENORM) return rsc_pow2_enorm(s, log2_bound, at_optimum);
    rsc_pow2_pathcond(s, log2_bound, at_optimum);
    return RESCALE_OK;
}

// Reports on the u to apply. The objective has changed if u was `changed` behind the solver.
static inline int rsc_report_u(rsc_solver *s, int changed) {
    rescale_report *r = s->report;
    for (int h = 0; h < s->units; h++) {
        r->pinned_units += s->fixed[h] == 1;
        r->bounded_units += s->fixed[h] != 1 && fabs(s->u[h]) >= s->bound;
        r->max_abs_log_lambda = fmax(r->max_abs_log_lambda, fabs(s->u[h]) / s->power);
    }
    for (int h = 0; h < s->units; h++) s->x[h] = exp(s->u[h]);
    if (changed && s->options->method == RESCALE_ENORM)
        return rsc_enorm_sums(s, -1, &r->objective_after);
    if (changed) {
        r->objective_after = rsc_evaluate(s, s->u);
        r->trace_ratio = s->total / s->trace;
    }
    if (s->options->each) rsc_report_each(s, 1, s->u);
    return RESCALE_OK;
}

// Finishes u, puts lambda into s->x, and rescales every tensor that touches a moved unit. All
// tensors are checked before the first is changed.
static inline int rsc_apply(rsc_solver *s) {
    const rescale_options *o = s->options;
    rescale_report *r = s->report;
    const double start = rsc_seconds();
    const int moderate = o->strength != 1 || o->within;
    int status = rsc_finish_u(s, moderate);
    if (!status) status = rsc_report_u(s, o->pow2 || moderate);
    if (status) return status;
    for (int h = 0; h < s->units; h++) {
        const double log_lambda = s->u[h] / s->power;
        if (o->pow2) s->x[h] = ldexp(1.0, RSC_CAST(int, rint(log_lambda / log(2.0))));
        else s->x[h] = exp(log_lambda);
    }
    if (o->u) memcpy(o->u, s->u, rsc_n(s->units) * sizeof(double));
    for (int apply = 0; apply < 2; apply++)
        for (int i = 0; i < s->net->n_tensors; i++) {
            if (!rsc_moved(s, i)) continue;
            const int change = apply && !o->dry_run;
            if ((status = rsc_apply_tensor(s, i, change))) return status;
            r->tensors_touched += change;
        }
    r->seconds_apply = rsc_seconds() - start;
    return RESCALE_OK;
}

// Leaves a warning in the message of a success.
static inline void rsc_warn(rsc_solver *s) {
    rescale_report *r = s->report;
    if (s->underflow)
        rsc_error(r, RESCALE_OK, s->underflow,
                  "diag(G) underflows; scale all of it by one constant, and the reference too");
    else if (r->units > 0 && r->pinned_units == r->units)
        rsc_error(r, RESCALE_OK, "network",
                  "every unit is pinned, nothing was rescaled: "
                  "no path with energy passes any of them");
}

// ---- T. Public run ------------------------------------------------------------------------------

// Solves and applies, with everything laid out in the arena. `start` is when the run began.
static inline int rsc_solve(rsc_solver *s, double start) {
    rescale_report *r = s->report;
    rsc_link(s);
    r->units = s->units;
    r->parameters = s->parameters;
    int status = rsc_check_finite(s);
    if (status) return status;
    status = s->options->method == RESCALE_PATHCOND ? rsc_pathcond(s, start) : rsc_enorm(s);
    if (status) return status;
    r->converged = r->grad_inf <= r->grad_tolerance;
    if (s->options->solver == RESCALE_NEWTON && !r->converged && !s->given)
        status = rsc_error(r, RESCALE_ERROR_CONVERGENCE, "network",
                           "the solver stopped before the optimum; "
                           "a bound on |log lambda| helps");
    r->seconds_solve = rsc_seconds() - start - r->seconds_diag_g;
    if (!status) status = rsc_apply(s);
    if (!status) rsc_warn(s);
    return status;
}

static inline int rsc_run(const rescale_net *net, const rescale_options *options,
                          const double *given, rescale_report *report) {
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
    s.power = s.options->power == 1 ? 1 : 2;
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
    if (arena.used <= arena.size) status = rsc_solve(&s, start);
    else
        status = rsc_error(report, RESCALE_ERROR_MEMORY, "arena",
                           "too small, see rescale_arena_bytes");
    free(mine);
    return report->status = status;
}

// Rescales the network in place. Returns RESCALE_OK or another status, with report->message set and
// no parameter changed; only RESCALE_ERROR_DEVICE may come when some are. options may be NULL for
// the defaults.
static inline int rescale_run(const rescale_net *net, const rescale_options *options,
                              rescale_report *report) {
    return rsc_run(net, options, NULL, report);
}

// Applies a given u (one entry per unit, groups in order) instead of a solved one. Use it for
// networks that share tensors and are solved in turn. Objective, gradient and `converged` in the
// report are those at this u. Options that change u are ignored.
static inline int rescale_apply(const rescale_net *net, const rescale_options *options,
                                const double *u, rescale_report *report) {
    if (u) return rsc_run(net, options, u, report);
    if (!report) return RESCALE_ERROR_ARGUMENT;
    memset(report, 0, sizeof *report);
    return rsc_error(report, RESCALE_ERROR_ARGUMENT, "u", "is NULL");
}

// ---- U. Public: g from data, checks -------------------------------------------------------------
// Host memory. g, delta, activation and gradient are like the tensors; manual, 4.

// g[n_out][n_in] += sum over samples s of |delta[s][o]|^power |activation[s][i]|^power, power 1 or
// 2. delta [samples][n_out] is the gradient of a linear layer's output, activation
// [samples][n_in] its input; NULL is an input of ones, for a bias (n_in = 1). g is not divided by
// the number of samples. It must overlap neither. Start g at zero.
static inline void rescale_kernel_linear(rescale_real *g, const rescale_real *delta,
                                         const rescale_real *activation, int samples, int n_out,
                                         int n_in, int power) {
    const size_t rows = rsc_n(n_out), columns = rsc_n(n_in), n = rsc_n(samples), strip = 128;
    const size_t work = n * rows * columns;
    RSC_PARALLEL_FOR
    for (size_t o = 0; o < rows; o++)
        for (size_t first = 0; first < columns; first += strip) {
            const size_t width = first + strip <= columns ? strip : columns - first;
            double part[128];
            for (size_t i = 0; i < width; i++) part[i] = 0;
            for (size_t s = 0; s < n; s++) {
                const rescale_real *a = activation ? activation + s * columns + first : NULL;
                const double d = rsc_power_of(delta[s * rows + o], power);
                for (size_t i = 0; i < width; i++)
                    part[i] += a ? d * rsc_power_of(a[i], power) : d;
            }
            for (size_t i = 0; i < width; i++) {
                const size_t j = o * columns + first + i;
                g[j] = RSC_CAST(rescale_real, RSC_CAST(double, g[j]) + part[i]);
            }
        }
}

// g[n] += |gradient[n]|^power, power 1 or 2. gradient is that of one sample, with respect to a
// tensor of any kind. Nothing is divided by the number of samples. g must not overlap it.
static inline void rescale_kernel_add(rescale_real *g, const rescale_real *gradient, size_t n,
                                      int power) {
    const size_t work = n;
    RSC_PARALLEL_FOR
    for (size_t j = 0; j < n; j++) {
        const double sum = RSC_CAST(double, g[j]) + rsc_power_of(gradient[j], power);
        g[j] = RSC_CAST(rescale_real, sum);
    }
}

// rescale_run between two calls of forward(context, outputs), which writes the n outputs of the
// network on inputs that stay the same. memory [2 n] holds both. Returns the largest difference
// relative to the largest output before: near 0 if the description is right. Returns infinity if
// the run fails (report->status and report->message say why), if an output is not finite, or if all
// are zero, which would prove nothing.
static inline double rescale_verify(const rescale_net *net, const rescale_options *options,
                                    rescale_report *report,
                                    void (*forward)(void *context, double *outputs), void *context,
                                    double *memory, int n) {
    double *before = memory, *after = memory + n, largest = 0, moved = 0;
    forward(context, before);
    if (rescale_run(net, options, report)) return RSC_CAST(double, INFINITY);
    forward(context, after);
    for (int i = 0; i < n; i++) {
        const double difference = fabs(after[i] - before[i]);
        if (!(difference <= DBL_MAX)) return RSC_CAST(double, INFINITY);
        moved = fmax(moved, difference);
        largest = fmax(largest, fabs(before[i]));
    }
    return largest > 0 ? moved / largest : RSC_CAST(double, INFINITY);
}

#endif  // RESCALE_CUH
