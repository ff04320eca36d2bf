// broken.cu -- variants with deliberate mistakes, to see that the harness finds every one of them. Test only:
// test_broken.sh runs them one by one and expects each to fail, and the right one to pass.
//
// y[i] = x[i] + x[the mirror image of i within its block of 64], mirrors past the end counting 0.
#include "dev/kernels/kernels.h"

enum { X, Y };
enum { TILE = 64 };

static void problem_of(problem *p) {
    input(p, "x", F32, (size_t)p->dim[0], 1, 2);
    output(p, "y", F32, (size_t)p->dim[0], 1e-6, 1e-6);
    p->bytes = 8.0 * p->dim[0];
    p->flops = p->dim[0];
}
static void reference(problem *p) {
    const int n = p->dim[0];
    for (int i = 0; i < n; i++) {
        const int mirror = i / TILE * TILE + TILE - 1 - i % TILE;
        wanted(p, Y)[i] = given(p, X)[i] + (mirror < n ? given(p, X)[mirror] : 0);
    }
}

enum {
    RIGHT, PERCENT, NOT_A_NUMBER, INFINITE, UNWRITTEN_TAIL,
    MISSING_BARRIER, WRITES_OUTSIDE, READS_OUTSIDE, WRITES_INPUT
};
template <int MISTAKE> __global__ void mirror_sum(float *y, float *x, int n) {
    __shared__ float s[TILE];
    const int t = threadIdx.x, i = blockIdx.x * TILE + t;
    s[t] = i < n || MISTAKE == READS_OUTSIDE ? x[min(i, n)] : 0.0f;  // READS_OUTSIDE: one element past the end
    if (MISTAKE != MISSING_BARRIER) __syncthreads();
    float v = s[t] + s[TILE - 1 - t];
    if (MISTAKE == PERCENT && i == n / 2) v *= 1.01f;
    if (MISTAKE == NOT_A_NUMBER && i == n / 2) v = __int_as_float(0x7fc00000);
    if (MISTAKE == INFINITE && i == n / 2) v = __int_as_float(0x7f800000);
    if (MISTAKE == WRITES_INPUT && i == n / 2) x[i] = 0.0f;
    if (i < n - (MISTAKE == UNWRITTEN_TAIL ? 3 : 0)) y[i] = v;
    if (MISTAKE == WRITES_OUTSIDE && i == 0) y[n] = v;
}
template <int MISTAKE> static void run(const call *c) {
    mirror_sum<MISTAKE><<<ceil_div(c->dim[0], TILE), TILE>>>(FLOATS(c, Y), FLOATS(c, X), c->dim[0]);
}
// Off by one at the last block: a partial block is forgotten.
static void run_last_block(const call *c) {
    if (c->dim[0] >= TILE) mirror_sum<RIGHT><<<c->dim[0] / TILE, TILE>>>(FLOATS(c, Y), FLOATS(c, X), c->dim[0]);
}

// Right on the first runs, as with a counter or a cache that goes stale.
static void run_second_time(const call *c) {
    static int runs;
    if (runs++ % 2) run<PERCENT>(c);
    else run<RIGHT>(c);
}
static void run_after_a_while(const call *c) {
    static int runs;
    if (runs++ > 1) run<PERCENT>(c);
    else run<RIGHT>(c);
}

// Right within the tolerance, but not the same every time.
static __global__ void nudge(float *y, float by) { y[0] *= by; }
static void run_other_bits(const call *c) {
    static int runs;
    run<RIGHT>(c);
    nudge<<<1, 1>>>(FLOATS(c, Y), 1.0f + 2.4e-7f * (float)(runs++ % 2));
}

static const variant variants[] = {
    {"right", "no mistake", run<RIGHT>, FP32, 0, {0}, NULL, 0},
    {"percent", "one element off by 1e-2 of its value", run<PERCENT>, FP32, 0, {0}, NULL, 0},
    {"nan", "one element is NaN", run<NOT_A_NUMBER>, FP32, 0, {0}, NULL, 0},
    {"infinity", "one element is infinite", run<INFINITE>, FP32, 0, {0}, NULL, 0},
    {"unwritten_tail", "the last three elements are not written", run<UNWRITTEN_TAIL>, FP32, 0, {0}, NULL, 0},
    {"last_block", "the last, partial block is forgotten", run_last_block, FP32, 0, {0}, NULL, 0},
    {"missing_barrier", "shared memory is read before it is complete", run<MISSING_BARRIER>, FP32, 0, {0}, NULL, 0},
    {"writes_outside", "writes one element past the end", run<WRITES_OUTSIDE>, FP32, 0, {0}, NULL, 0},
    {"reads_outside", "reads one element past the end", run<READS_OUTSIDE>, FP32, 0, {0}, NULL, 0},
    {"writes_input", "writes to its input", run<WRITES_INPUT>, FP32, 0, {0}, NULL, 0},
    {"second_time", "wrong the second time", run_second_time, FP32, 0, {0}, NULL, 0},
    {"after_a_while", "wrong after some runs", run_after_a_while, FP32, 0, {0}, NULL, 0},
    {"other_bits", "not the same bits in two runs", run_other_bits, FP32, 0, {0}, NULL, 0},
};
static const operation operations[] = {
    {"broken", "y[i] = x[i] + its mirror image in a block of 64",
     "n", problem_of, reference, VARIANTS(variants), "1 63 64 1000", "1000", "1000"},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
