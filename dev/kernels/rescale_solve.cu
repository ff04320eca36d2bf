// rescale_solve.cu -- the exact minimum of F over one group of units, the rest fixed: one scalar equation per group.
//
// Shapes: groups of `units` units. B, C, c, x [groups][units], D, S [groups], all double. With energies that leave unit
// h when its factor is 1 (B), that enter (C), c = (parameters leaving - entering) / all parameters, and D = the energy
// that touches no unit of the group, the minimum is (rescale.cuh)
//     x_h = (c S + sqrt(c^2 S^2 + 4 B C)) / (2 B),   for c < 0, to avoid cancellation: x_h = 2 C / (sqrt(...) - c S)
//     S = D + sum_h sqrt(c_h^2 S^2 + 4 B_h C_h)
// The right side minus S falls in S and is convex, so Newton's method from S = D + sum sqrt(4 B C), left of the root,
// climbs to it without a safeguard, in 4 to 8 steps. Groups of alternate layers touch different tensors and can be
// solved at once. Bytes: 32 per unit. A square root and a division per unit and step, in double. At 1,000 units that is
// nothing; what costs is launching and synchronising, once per step or once in all.
//
//  1 kernel_per_step     A kernel with a block per group computes value and slope of the equation at S and steps; the
//                        host looks at the largest step and launches again.
//  2 block_per_group     The loop moves into the kernel: a block per group, two block reductions per step, no launch,
//                        no copy.
//  3 block_registers     Each thread keeps c^2 and 4 B C of up to 16 units in registers: B, C, c are read once, not at
//                        every step.
//  4 warp_per_group      Small groups: a warp each, with a butterfly instead of a block reduction.
//    rescale.cuh         rescale_run() with one block sweep on a net with one group, group by group. CPU build only
//                        (host memory).
#include "dev/kernels/kernels.h"
#include "rescale.cuh"

enum { B, C, COUNT, D, X, S, STEP };
enum { STEPS = 40, KEPT = 16 };
#define CONVERGED 1e-15

// Parameters that leave and enter a unit of group g, as in a net whose layers have 1 to 5 units before and behind; c
// follows.
static int leaving(int g) { return 1 + 2 * g % 5; }
static int entering(int g) { return 1 + (g + 1) % 3; }
static double share(int g, int units) {
    return (double)(leaving(g) - entering(g)) / (1.0 + (double)units * (leaving(g) + entering(g)));
}

static void problem_of(problem *p) {
    const int groups = p->dim[0], units = p->dim[1];
    const size_t n = (size_t)groups * (size_t)units;
    double *b = input(p, "B", F64, n, -3, 3), *c = input(p, "C", F64, n, -3, 3), *count = input(p, "c", F64, n, 0, 1);
    for (size_t i = 0; i < n; i++) {
        b[i] = exp(b[i]);
        c[i] = exp(c[i]);
        count[i] = share((int)(i / (size_t)units), units);
    }
    input(p, "D", F64, (size_t)groups, 0.1, 2);
    output(p, "x", F64, n, 1e-11, 0);
    output(p, "S", F64, (size_t)groups, 1e-12, 0);
    scratch(p, "step", F64, (size_t)groups);
    p->bytes = 32.0 * (double)n;
    p->flops = 8.0 * 8.0 * (double)n;
}
// By bisection.
static void reference(problem *p) {
    const int groups = p->dim[0], units = p->dim[1];
    for (int g = 0; g < groups; g++) {
        const double *b = given(p, B) + (size_t)g * (size_t)units;
        const double *c = given(p, C) + (size_t)g * (size_t)units, k = share(g, units);
        double lo = 0, hi = given(p, D)[g];
        for (int it = 0; it < 4000; it++) {
            const double s = it < 2000 && lo == 0 ? hi : 0.5 * (lo + hi);
            double value = given(p, D)[g] - s;
            for (int h = 0; h < units; h++) value += sqrt(k * k * s * s + 4 * b[h] * c[h]);
            if (value > 0 && s == hi) hi *= 2;
            else if (value > 0) lo = s;
            else if (s == hi) lo = 0.5 * hi;
            else hi = s;
            if (lo > 0 && (hi - lo) <= 1e-16 * hi) break;
        }
        wanted(p, S)[g] = hi;
        for (int h = 0; h < units; h++) {
            const double root = sqrt(k * k * hi * hi + 4 * b[h] * c[h]);
            wanted(p, X)[(size_t)g * (size_t)units + (size_t)h] =
                k >= 0 ? (k * hi + root) / (2 * b[h]) : 2 * c[h] / (root - k * hi);
        }
    }
}

static __device__ __forceinline__ double unit_root(double c, double s, double q) { return sqrt(c * c * s * s + q); }
static __device__ __forceinline__ double unit_x(double b, double c, double count, double s) {
    const double cs = count * s, root = sqrt(cs * cs + 4 * b * c);
    return cs >= 0 ? (cs + root) / (2 * b) : 2 * c / (root - cs);
}

// -------------------------------------------------------------------------------------------------- 1: kernel per step
static __global__ void start_step(double *s, const double *b, const double *c, const double *d, int units) {
    const size_t first = (size_t)blockIdx.x * units;
    double sum = 0;
    for (int h = threadIdx.x; h < units; h += (int)blockDim.x) sum += sqrt(4 * b[first + h] * c[first + h]);
    sum = block_reduce_sum(sum);
    if (threadIdx.x == 0) s[blockIdx.x] = d[blockIdx.x] + sum;
}
static __global__ void newton_step(double *s, double *step, const double *b, const double *c, const double *count,
                                   const double *d, int units) {
    const size_t first = (size_t)blockIdx.x * units;
    const double at = s[blockIdx.x];
    double value = 0, slope = 0;
    for (int h = threadIdx.x; h < units; h += (int)blockDim.x) {
        const double k = count[first + h], root = unit_root(k, at, 4 * b[first + h] * c[first + h]);
        value += root;
        slope += k * k * at / root;
    }
    value = block_reduce_sum(value);
    slope = block_reduce_sum(slope);
    const double next = at - (d[blockIdx.x] + value - at) / (slope - 1);
    if (threadIdx.x == 0) {
        s[blockIdx.x] = next;
        step[blockIdx.x] = fabs(next - at) / next;
    }
}
static __global__ void finish_step(double *x, const double *s, const double *b, const double *c, const double *count,
                                   int units) {
    const int h = blockIdx.x * blockDim.x + threadIdx.x;
    if (h >= units) return;
    const size_t i = (size_t)blockIdx.y * units + h;
    x[i] = unit_x(b[i], c[i], count[i], s[blockIdx.y]);
}
static void run_kernel_per_step(const call *c) {
    const int groups = c->dim[0], units = c->dim[1];
    double *steps = (double *)allocate((size_t)groups * sizeof(double)), largest = 1;
    start_step<<<groups, c->block>>>(DOUBLES(c, S), DOUBLES(c, B), DOUBLES(c, C), DOUBLES(c, D), units);
    for (int it = 0; it < STEPS && largest > CONVERGED; it++) {
        newton_step<<<groups, c->block>>>(
            DOUBLES(c, S), DOUBLES(c, STEP), DOUBLES(c, B), DOUBLES(c, C), DOUBLES(c, COUNT), DOUBLES(c, D), units);
        CUDA_CHECK(cudaMemcpy(steps, DOUBLES(c, STEP), (size_t)groups * sizeof(double), cudaMemcpyDeviceToHost));
        largest = 0;
        for (int g = 0; g < groups; g++) largest = fmax(largest, steps[g]);
    }
    finish_step<<<dim3(ceil_div(units, c->block), groups), c->block>>>(
        DOUBLES(c, X), DOUBLES(c, S), DOUBLES(c, B), DOUBLES(c, C), DOUBLES(c, COUNT), units);
    free(steps);
}

// ------------------------------------------------------------------------------------- 2, 3, 4: the loop in the kernel
static __global__ void block_per_group(double *x, double *s, const double *b, const double *c, const double *count,
                                       const double *d, int units) {
    const size_t first = (size_t)blockIdx.x * units;
    double sum = 0;
    for (int h = threadIdx.x; h < units; h += (int)blockDim.x) sum += sqrt(4 * b[first + h] * c[first + h]);
    double at = d[blockIdx.x] + block_reduce_sum(sum);
    for (int it = 0; it < STEPS; it++) {
        double value = 0, slope = 0;
        for (int h = threadIdx.x; h < units; h += (int)blockDim.x) {
            const double k = count[first + h], root = unit_root(k, at, 4 * b[first + h] * c[first + h]);
            value += root;
            slope += k * k * at / root;
        }
        value = block_reduce_sum(value);
        slope = block_reduce_sum(slope);
        const double before = at;
        at -= (d[blockIdx.x] + value - at) / (slope - 1);
        if (fabs(at - before) <= CONVERGED * at) break;  // the same in all threads
    }
    for (int h = threadIdx.x; h < units; h += (int)blockDim.x)
        x[first + h] = unit_x(b[first + h], c[first + h], count[first + h], at);
    if (threadIdx.x == 0) s[blockIdx.x] = at;
}
static void run_block_per_group(const call *c) {
    block_per_group<<<c->dim[0], c->block>>>(
        DOUBLES(c, X), DOUBLES(c, S), DOUBLES(c, B), DOUBLES(c, C), DOUBLES(c, COUNT), DOUBLES(c, D), c->dim[1]);
}

static __global__ void block_registers(double *x, double *s, const double *b, const double *c, const double *count,
                                       const double *d, int units) {
    const size_t first = (size_t)blockIdx.x * units;
    const int t = threadIdx.x, threads = blockDim.x;
    double q[KEPT], k[KEPT], sum = 0;
    UNROLL for (int i = 0; i < KEPT; i++) {  // a unit that is not there: both 0, its root and its slope count 0
        const int h = t + i * threads;
        q[i] = h < units ? 4 * b[first + h] * c[first + h] : 0.0;
        k[i] = h < units ? count[first + h] : 0.0;
        sum += sqrt(q[i]);
    }
    double at = d[blockIdx.x] + block_reduce_sum(sum);
    for (int it = 0; it < STEPS; it++) {
        double value = 0, slope = 0;
        UNROLL for (int i = 0; i < KEPT; i++) {
            const double root = unit_root(k[i], at, q[i]);
            value += root;
            slope += root > 0 ? k[i] * k[i] * at / root : 0.0;
        }
        value = block_reduce_sum(value);
        slope = block_reduce_sum(slope);
        const double before = at;
        at -= (d[blockIdx.x] + value - at) / (slope - 1);
        if (fabs(at - before) <= CONVERGED * at) break;
    }
    UNROLL for (int i = 0; i < KEPT; i++) {
        const int h = t + i * threads;
        if (h < units) x[first + h] = unit_x(b[first + h], c[first + h], k[i], at);
    }
    if (t == 0) s[blockIdx.x] = at;
}
static void run_block_registers(const call *c) {
    const int threads = 32 * ceil_div(c->dim[1], 32 * KEPT);
    block_registers<<<c->dim[0], threads>>>(
        DOUBLES(c, X), DOUBLES(c, S), DOUBLES(c, B), DOUBLES(c, C), DOUBLES(c, COUNT), DOUBLES(c, D), c->dim[1]);
}
static int kept(const int *dim) { return dim[1] <= 1024 * KEPT; }

static __global__ void warp_per_group(double *x, double *s, const double *b, const double *c, const double *count,
                                      const double *d, int groups, int units) {
    const int g = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (g >= groups) return;
    const size_t first = (size_t)g * units;
    double sum = 0;
    for (int h = lane; h < units; h += 32) sum += sqrt(4 * b[first + h] * c[first + h]);
    double at = d[g] + warp_reduce_sum(sum);
    for (int it = 0; it < STEPS; it++) {
        double value = 0, slope = 0;
        for (int h = lane; h < units; h += 32) {
            const double k = count[first + h], root = unit_root(k, at, 4 * b[first + h] * c[first + h]);
            value += root;
            slope += k * k * at / root;
        }
        value = warp_reduce_sum(value);
        slope = warp_reduce_sum(slope);
        const double before = at;
        at -= (d[g] + value - at) / (slope - 1);
        if (fabs(at - before) <= CONVERGED * at) break;
    }
    for (int h = lane; h < units; h += 32) x[first + h] = unit_x(b[first + h], c[first + h], count[first + h], at);
    if (lane == 0) s[g] = at;
}
static void run_warp_per_group(const call *c) {
    warp_per_group<<<ceil_div(c->dim[0], c->block / 32), c->block>>>(DOUBLES(c, X), DOUBLES(c, S), DOUBLES(c, B),
                                                                     DOUBLES(c, C), DOUBLES(c, COUNT), DOUBLES(c, D),
                                                                     c->dim[0], c->dim[1]);
}

// --------------------------------------------------------------------------------------------------------- rescale.cuh
#if !DEVICE_IS_GPU
// A net whose only group has these B, C and c: layers of leaving(g) and entering(g) units around it, and a bias that
// carries D.
static void run_rescale(const call *c) {
    const int groups = c->dim[0], units = c->dim[1];
    const int most = 5 * units;
    float *ones = (float *)allocate((2 * (size_t)most + 1) * sizeof(float));
    double *u = (double *)allocate((size_t)units * sizeof(double));
    const double first_of[5] = {1, 0, 0, 0, 0};
    for (int i = 0; i < 2 * most + 1; i++) ones[i] = 1;
    for (int g = 0; g < groups; g++) {
        const size_t first = (size_t)g * (size_t)units;
        rescale_group group[] = {rescale_units("group", units, RESCALE_RELU)};
        rescale_tensor t[] = {rescale_weight("in", ones, units, entering(g), 1, 0, RESCALE_NONE),
                              rescale_weight("out", ones + most, leaving(g), units, 1, RESCALE_NONE, 0),
                              rescale_bias("rest", ones + 2 * most, 1, RESCALE_NONE)};
        t[0].g_out = DOUBLES(c, C) + first;
        t[0].g_in = first_of;
        t[1].g_out = first_of;
        t[1].g_in = DOUBLES(c, B) + first;
        t[2].g_out = DOUBLES(c, D) + g;
        t[2].g_in = first_of;
        const rescale_net net = {group, 1, t, 3};
        rescale_options o = rescale_default_options();
        rescale_report report;
        o.solver = RESCALE_SWEEPS;
        o.sweeps = 1;
        o.dry_run = 1;
        o.u = u;
        if (rescale_run(&net, &o, &report)) {
            fprintf(stderr, "%s\n", report.message);
            exit(1);
        }
        double sum = DOUBLES(c, D)[g];
        for (int h = 0; h < units; h++) {
            const double x = DOUBLES(c, X)[first + h] = exp(u[h]);
            sum += DOUBLES(c, B)[first + h] * x + DOUBLES(c, C)[first + h] / x;
        }
        DOUBLES(c, S)[g] = sum;
    }
    free(ones);
    free(u);
}
#endif

static const variant variants[] = {
    {"kernel_per_step", "the host launches every Newton step", run_kernel_per_step, FP32, 0, {32, 128, 256}, NULL, 0},
    {"block_per_group", "the loop in the kernel, a block per group",
     run_block_per_group, FP32, 0, {32, 128, 256}, NULL, 0},
    {"block_registers", "what does not change stays in registers", run_block_registers, FP32, 0, {0}, kept, 0},
    {"warp_per_group", "a warp per group", run_warp_per_group, FP32, 0, {32, 128}, NULL, 0},
    {"rescale.cuh", "rescale_run with one block sweep, per group", ON_CPU(run_rescale), FP32, CPU_ONLY, {0}, NULL, 10},
};
static const operation operations[] = {
    {"layer_solve", "S = D + sum_h sqrt(c^2 S^2 + 4 B C), then x", "groups units", problem_of, reference,
     VARIANTS(variants), "1x1 2x7 5x33 3x512 1x2049", "4x512 16x4096", "4x512 16x4096 64x16384"},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
