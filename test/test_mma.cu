// test_mma.cu -- common/mma.cuh: the place of every element of a fragment, the instructions' results, the 16-bit types.
//
// The same checks run on a GPU, where they compare the hardware with the tables that the CPU build is made of.
// Positions are written here from the matrix to the register, in mma.cuh from the register to the matrix.
#include "common/mma.cuh"
#include "test/test.h"

enum { LANES = 32 };

// Register and half of an element, in the lane that holds it.
typedef struct place {
    int lane, reg, half;
} place;
static place place_of_d(int row, int col) { return {row % 8 * 4 + col / 2, row / 8 * 2 + col % 2, 0}; }
static place place_of_a16(int row, int col) { return {row % 8 * 4 + col % 8 / 2, row / 8 + col / 8 * 2, col % 2}; }
static place place_of_b16(int row, int col) { return {col * 4 + row % 8 / 2, row / 8, row % 2}; }
static place place_of_a32(int row, int col) { return {row % 8 * 4 + col % 4, row / 8 + col / 4 * 2, 0}; }
static place place_of_b32(int row, int col) { return {col * 4 + row % 4, row / 4, 0}; }

typedef struct fragments {
    float d[LANES][4];
    unsigned a[LANES][4], b[LANES][2];
} fragments;

__global__ void bf16_kernel(fragments *f) {
    const int l = threadIdx.x;
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = f->d[l][i];
    mma_bf16(d, f->a[l], f->b[l]);
    for (int i = 0; i < 4; i++) f->d[l][i] = d[i];
}
__global__ void tf32_kernel(fragments *f) {
    const int l = threadIdx.x;
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = f->d[l][i];
    mma_tf32(d, f->a[l], f->b[l]);
    for (int i = 0; i < 4; i++) f->d[l][i] = d[i];
}

static fragments *device;
static void set16(unsigned *reg, int half, float v) {
    const unsigned bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
    *reg = half ? (*reg & 0xffffu) | bits << 16 : (*reg & 0xffff0000u) | bits;
}
static void set32(unsigned *reg, float v) { memcpy(reg, &v, sizeof v); }

// Runs one instruction on D, A [16][K], B [K][8] and compares with the sum in double.
static void multiply(const char *name, int K, const double *A, const double *B, const double *D, double tol) {
    static fragments f;
    float got[128];
    double want[128];
    memset(&f, 0, sizeof f);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            const place p = place_of_d(r, c);
            f.d[p.lane][p.reg] = (float)D[r * 8 + c];
            want[r * 8 + c] = D[r * 8 + c];
            for (int k = 0; k < K; k++) want[r * 8 + c] += A[r * K + k] * B[k * 8 + c];
        }
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < K; k++) {
            const place p = K == 16 ? place_of_a16(r, k) : place_of_a32(r, k);
            if (K == 16) set16(&f.a[p.lane][p.reg], p.half, (float)A[r * K + k]);
            else set32(&f.a[p.lane][p.reg], (float)A[r * K + k]);
        }
    for (int k = 0; k < K; k++)
        for (int c = 0; c < 8; c++) {
            const place p = K == 16 ? place_of_b16(k, c) : place_of_b32(k, c);
            if (K == 16) set16(&f.b[p.lane][p.reg], p.half, (float)B[k * 8 + c]);
            else set32(&f.b[p.lane][p.reg], (float)B[k * 8 + c]);
        }
    CUDA_CHECK(cudaMemcpy(device, &f, sizeof f, cudaMemcpyHostToDevice));
    if (K == 16) bf16_kernel<<<1, LANES>>>(device);
    else tf32_kernel<<<1, LANES>>>(device);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(&f, device, sizeof f, cudaMemcpyDeviceToHost));
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            const place p = place_of_d(r, c);
            got[r * 8 + c] = f.d[p.lane][p.reg];
        }
    test_close(name, got, want, 128, tol, tol);
}

// Positions that the PTX ISA's tables give, spelled out.
static void test_known_places(void) {
    const struct {
        place got, want;
        const char *what;
    } known[] = {{place_of_a16(0, 0), {0, 0, 0}, "bf16 A(0,0)"},   {place_of_a16(1, 10), {5, 2, 0}, "bf16 A(1,10)"},
                 {place_of_a16(15, 15), {31, 3, 1}, "bf16 A(15,15)"}, {place_of_a16(9, 3), {5, 1, 1}, "bf16 A(9,3)"},
                 {place_of_b16(0, 7), {28, 0, 0}, "bf16 B(0,7)"},  {place_of_b16(13, 2), {10, 1, 1}, "bf16 B(13,2)"},
                 {place_of_d(3, 5), {14, 1, 0}, "D(3,5)"},         {place_of_d(12, 0), {16, 2, 0}, "D(12,0)"},
                 {place_of_a32(8, 3), {3, 1, 0}, "TF32 A(8,3)"},   {place_of_a32(2, 5), {9, 2, 0}, "TF32 A(2,5)"},
                 {place_of_b32(6, 1), {6, 1, 0}, "TF32 B(6,1)"},   {place_of_b32(3, 7), {31, 0, 0}, "TF32 B(3,7)"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const place got = known[i].got, want = known[i].want;
        CHECK(got.lane == want.lane && got.reg == want.reg && got.half == want.half, known[i].what);
    }
}

static void test_mma(int K) {
    const char *name = K == 16 ? "mma bf16" : "mma tf32";
    static double A[16 * 16], B[16 * 8], D[16 * 8];
    // One element of A is 1, B counts: row r of D is row k of B. Small integers, so every sum is exact.
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < K; k++) {
            memset(A, 0, sizeof A);
            A[r * K + k] = 1;
            for (int i = 0; i < K * 8; i++) B[i] = 1 + i;
            for (int i = 0; i < 128; i++) D[i] = -i;
            multiply(name, K, A, B, D, 0);
        }
    for (int k = 0; k < K; k++)
        for (int c = 0; c < 8; c++) {
            memset(B, 0, sizeof B);
            B[k * 8 + c] = 1;
            for (int i = 0; i < 16 * K; i++) A[i] = i - 100;
            memset(D, 0, sizeof D);
            multiply(name, K, A, B, D, 0);
        }
    for (int round = 0; round < 10; round++) {  // random numbers that the format holds exactly
        for (int i = 0; i < 16 * K; i++) A[i] = (int)(128 * test_random()) / 64.0;
        for (int i = 0; i < K * 8; i++) B[i] = (int)(128 * test_random()) / 64.0;
        for (int i = 0; i < 128; i++) D[i] = (float)test_random();
        multiply(name, K, A, B, D, 1e-6);
    }
}

// r[lane][4] of ldmatrix on four matrices whose element is 1000 m + 10 row + column, rows 48 bytes apart.
template <bool TRANS> __global__ void ldmatrix_kernel(unsigned *out) {
    __shared__ __align__(16) unsigned short s[4 * 8 * 24];
    const int l = threadIdx.x;
    for (int i = l; i < 4 * 64; i += LANES)
        s[i / 8 * 24 + i % 8] = (unsigned short)(1000 * (i / 64) + 10 * (i / 8 % 8) + i % 8);
    __syncthreads();
    unsigned r[4];
    if (TRANS) ldmatrix_x4_trans(r, s + l * 24);
    else ldmatrix_x4(r, s + l * 24);
    for (int m = 0; m < 4; m++) out[l * 4 + m] = r[m];
}

static void test_ldmatrix(int trans) {
    unsigned got[LANES * 4], *out, wrong = 0;
    CUDA_CHECK(cudaMalloc(&out, sizeof got));
    CUDA_CHECK(cudaMemset(out, 0xff, sizeof got));
    if (trans) ldmatrix_kernel<true><<<1, LANES>>>(out);
    else ldmatrix_kernel<false><<<1, LANES>>>(out);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
    for (int m = 0; m < 4; m++)
        for (int row = 0; row < 8; row++)
            for (int col = 0; col < 8; col++) {
                const int r = trans ? col : row;  // the element's place in what the lanes hold
                const int c = trans ? row : col;
                const unsigned pair = got[(r * 4 + c / 2) * 4 + m], value = c % 2 ? pair >> 16 : pair & 0xffffu;
                wrong += value != (unsigned)(1000 * m + 10 * row + col);
            }
    const char *what = "ldmatrix puts every element in its place";
    if (trans) what = "ldmatrix.trans puts every element in its place";
    CHECK(wrong == 0, what);
    const unsigned first = trans ? 10u << 16 : 1u << 16;
    const unsigned last = trans ? 3077u << 16 | 3067u : 3077u << 16 | 3076u;
    CHECK(got[0] == first && got[4 * 31 + 3] == last, "first and last register of ldmatrix");
    CUDA_CHECK(cudaFree(out));
}

// C[16][16] = A[16][16] B[16][16], row-major in shared memory: the loads that mma.cuh's head describes.
__global__ void tile_kernel(float *C, const __nv_bfloat16 *A, const __nv_bfloat16 *B) {
    __shared__ __align__(16) __nv_bfloat16 sa[256], sb[256];
    const int l = threadIdx.x, g = l / 4, t = l % 4, row = l % 8 + l / 8 % 2 * 8, col = l / 16 * 8;
    async_copies copies;
    copies.copy16(sa + l * 8, A + l * 8, 16);
    copies.commit();
    copies.copy16(sb + l * 8, B + l * 8, 16);
    copies.commit();
    copies.wait<0>();
    __syncthreads();
    unsigned a[4], b[4];
    float left[4] = {0, 0, 0, 0}, right[4] = {0, 0, 0, 0};
    ldmatrix_x4(a, sa + row * 16 + col);
    ldmatrix_x4_trans(b, sb + row * 16 + col);
    mma_bf16(left, a, b);
    mma_bf16(right, a, b + 2);
    for (int i = 0; i < 4; i++) {
        C[(g + i / 2 * 8) * 16 + 2 * t + i % 2] = left[i];
        C[(g + i / 2 * 8) * 16 + 8 + 2 * t + i % 2] = right[i];
    }
}

static void test_tile(void) {
    __nv_bfloat16 h[512], *in;
    double want[256];
    float got[256], *out;
    for (int i = 0; i < 512; i++) h[i] = __float2bfloat16_rn((float)test_random());
    for (int i = 0; i < 256; i++) {
        want[i] = 0;
        for (int k = 0; k < 16; k++) {
            const double a = (double)__bfloat162float(h[i / 16 * 16 + k]);
            want[i] += a * __bfloat162float(h[256 + k * 16 + i % 16]);
        }
    }
    CUDA_CHECK(cudaMalloc(&in, sizeof h));
    CUDA_CHECK(cudaMalloc(&out, sizeof got));
    CUDA_CHECK(cudaMemcpy(in, h, sizeof h, cudaMemcpyHostToDevice));
    tile_kernel<<<1, LANES>>>(out, in, in + 256);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
    test_close("cp.async, ldmatrix and mma on a 16x16 tile", got, want, 256, 1e-6, 1e-6);
    CUDA_CHECK(cudaFree(in));
    CUDA_CHECK(cudaFree(out));
}

// Three groups of one copy each: what has arrived after waiting for all but 2, 1, 0 of them. Cut copies end in zeros.
__global__ void copies_kernel(int *out, const int *in) {
    __shared__ __align__(16) int s[3 * 4 * LANES], small[LANES];
    const int l = threadIdx.x;
    async_copies c;
    for (int i = 0; i < 12; i++) s[i / 4 * 4 * LANES + l * 4 + i % 4] = -1;
    small[l] = -1;
    for (int i = 0; i < 3; i++) {
        c.copy16(s + i * 4 * LANES + l * 4, in + i * 4 * LANES + l * 4, i == 1 ? 8 : 16);
        if (i == 0) c.copy4(small + l, in + l, l % 2 ? 4 : 0);
        c.commit();
    }
    c.wait<2>();
    out[l] = s[l * 4 + 3];
    out[LANES + l] = small[l];
    c.wait<1>();
    out[2 * LANES + l] = s[4 * LANES + l * 4 + 1];
    out[3 * LANES + l] = s[4 * LANES + l * 4 + 2];
    out[4 * LANES + l] = s[8 * LANES + l * 4];  // on a GPU: may have arrived or not
    c.wait<0>();
    out[5 * LANES + l] = s[8 * LANES + l * 4];
}

static void test_copies(void) {
    enum { N = 12 * LANES };
    int h[N], got[6 * LANES], *in, *out, wrong = 0, early = 0;
    for (int i = 0; i < N; i++) h[i] = i + 1;
    CUDA_CHECK(cudaMalloc(&in, sizeof h));
    CUDA_CHECK(cudaMalloc(&out, sizeof got));
    CUDA_CHECK(cudaMemcpy(in, h, sizeof h, cudaMemcpyHostToDevice));
    copies_kernel<<<1, LANES>>>(out, in);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
    for (int l = 0; l < LANES; l++) {
        const int cut = l % 2 ? h[l] : 0;
        wrong += got[l] != h[l * 4 + 3] || got[LANES + l] != cut || got[2 * LANES + l] != h[4 * LANES + l * 4 + 1] ||
                 got[3 * LANES + l] != 0 || got[5 * LANES + l] != h[8 * LANES + l * 4];
        early += got[4 * LANES + l] != -1;
    }
    CHECK(wrong == 0, "cp.async: what a group copies is there after the wait for it");
#if !DEVICE_IS_GPU
    const int order = cuda_cpu::order.kind;
    int as_ordered = early > 0 && early < LANES;
    if (order == cuda_cpu::Order::kForward) as_ordered = early == 0;
    if (order == cuda_cpu::Order::kReverse) as_ordered = early == LANES;
    CHECK(as_ordered, "cp.async on the CPU: late in forward order, early in reverse, both in random order");
#endif
    CUDA_CHECK(cudaFree(in));
    CUDA_CHECK(cudaFree(out));
}

// ------------------------------------------------------------------------------------------------ 16-bit types, TF32
enum { CASES = 1 << 18 };
__global__ void convert_kernel(unsigned short *half, unsigned short *bf16, unsigned *tf32, const float *in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    half[i] = __half_as_ushort(__float2half_rn(in[i]));
    bf16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(in[i]));
    tf32[i] = tf32_of(in[i]);
}

// The value of a format with e exponent and f fraction bits, by the definition.
static double value_of(unsigned bits, int e, int f) {
    const int exponent = (int)(bits >> f) & ((1 << e) - 1), bias = (1 << (e - 1)) - 1;
    const double fraction = ldexp((double)(bits & ((1u << f) - 1)), -f), sign = bits >> (e + f) & 1 ? -1 : 1;
    if (exponent == (1 << e) - 1) return fraction != 0 ? (double)NAN : sign * HUGE_VAL;
    return sign * (exponent ? ldexp(1 + fraction, exponent - bias) : ldexp(fraction, 1 - bias));
}

// Whether `bits` is x rounded to nearest: no neighbour is nearer; at equal distance it is the even one (or the larger).
static int rounded(double x, unsigned bits, int e, int f, int ties_even) {
    const unsigned sign = 1u << (e + f), infinity = ((1u << e) - 1) << f, magnitude = bits & (sign - 1);
    const double ax = fabs(x), limit = value_of(infinity - 1, e, f);
    const double beyond = limit + 0.5 * (limit - value_of(infinity - 2, e, f));
    if (isnan(x)) return magnitude > infinity;
    if (((bits & sign) != 0) != (signbit(x) != 0)) return 0;
    if (magnitude == infinity) return ax >= beyond;
    if (magnitude > infinity || ax >= beyond) return 0;
    const double here = value_of(magnitude, e, f), off = fabs(ax - here);
    const double up = magnitude + 1 == infinity ? 2 * beyond - limit : value_of(magnitude + 1, e, f);
    const double down = magnitude ? value_of(magnitude - 1, e, f) : -up;
    if (fabs(ax - up) < off || fabs(ax - down) < off) return 0;
    if (fabs(ax - up) == off) return ties_even && magnitude % 2 == 0;
    if (fabs(ax - down) == off) return ties_even ? magnitude % 2 == 0 : 1;
    return 1;
}

// Every value of both 16-bit types goes to float and back.
static void test_round_trips(void) {
    unsigned wrong = 0;
    for (unsigned i = 0; i < 65536; i++) {
        const unsigned short as_stored = (unsigned short)i;
        const float h = __half2float(__ushort_as_half(as_stored));
        const float b = __bfloat162float(__ushort_as_bfloat16(as_stored));
        const double vh = value_of(i, 5, 10), vb = value_of(i, 8, 7);
        wrong += isnan(vh) ? !isnan(h) : h != vh || __half_as_ushort(__float2half_rn(h)) != i;
        wrong += isnan(vb) ? !isnan(b) : b != vb || __bfloat16_as_ushort(__float2bfloat16_rn(b)) != i;
    }
    CHECK(wrong == 0, "every half and bf16 survives the way to float and back");
}

// Floats in[CASES] to convert: limits first, then halfway cases with their neighbours, then anything.
static void make_cases(float *in) {
    unsigned bits;
    int n = 0;
    for (unsigned i = 0; i < 0x7c00; i++)  // halfway between neighbours of half, and one float to each side
        for (int step = -1; step <= 1; step++) {
            const double above = i + 1 == 0x7c00 ? 65536 : value_of(i + 1, 5, 10);
            const float middle = (float)(0.5 * (value_of(i, 5, 10) + above));
            memcpy(&bits, &middle, sizeof bits);
            bits += (unsigned)step;
            memcpy(&in[n], &bits, sizeof bits);
            if (i % 2) in[n] = -in[n];
            n++;
        }
    while (n < CASES) {  // halfway cases of bf16 and TF32 with neighbours, then anything
        bits = (unsigned)(int64_t)((test_random() + 1) * 2147483648.0);
        if (n % 3 == 0) bits = (bits & 0xffff0000u) | (0x8000u + (unsigned)(n / 3 % 3) - 1);
        if (n % 3 == 1) bits = (bits & 0xffffe000u) | (0x1000u + (unsigned)(n / 3 % 3) - 1);
        memcpy(&in[n++], &bits, sizeof bits);
    }
    in[0] = NAN;
    in[1] = -INFINITY;
    in[2] = 65519.99f;
    in[3] = 65520.0f;
    in[4] = -0.0f;
    in[5] = 1e-45f;
    in[6] = FLT_MAX;
}

static void test_conversions(void) {
    static float in[CASES];
    static unsigned short half[CASES], bf16[CASES];
    static unsigned tf32[CASES];
    unsigned bad_half = 0, bad_bf16 = 0, bad_tf32 = 0;
    make_cases(in);
    float *device_in;
    unsigned short *device_half, *device_bf16;
    unsigned *device_tf32;
    CUDA_CHECK(cudaMalloc(&device_in, sizeof in));
    CUDA_CHECK(cudaMalloc(&device_half, sizeof half));
    CUDA_CHECK(cudaMalloc(&device_bf16, sizeof bf16));
    CUDA_CHECK(cudaMalloc(&device_tf32, sizeof tf32));
    CUDA_CHECK(cudaMemcpy(device_in, in, sizeof in, cudaMemcpyHostToDevice));
    convert_kernel<<<ceil_div(CASES, 256), 256>>>(device_half, device_bf16, device_tf32, device_in, CASES);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(half, device_half, sizeof half, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(bf16, device_bf16, sizeof bf16, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(tf32, device_tf32, sizeof tf32, cudaMemcpyDeviceToHost));
    for (int i = 0; i < CASES; i++) {
        bad_half += !rounded(in[i], half[i], 5, 10, 1);
        bad_bf16 += !rounded(in[i], bf16[i], 8, 7, 1);
        bad_tf32 += !rounded(in[i], tf32[i] >> 13, 8, 10, 0) || (tf32[i] & 0x1fffu && !isnan(in[i]));
    }
    CHECK(bad_half == 0, "float to half rounds to nearest even");
    CHECK(bad_bf16 == 0, "float to bf16 rounds to nearest even");
    CHECK(bad_tf32 == 0, "float to TF32 rounds to nearest, ties away from zero");
    CHECK(half[0] == 0x7fff && bf16[0] == 0x7fff, "a NaN becomes the positive NaN with all bits set");
    CHECK(half[1] == 0xfc00 && half[2] == 0x7bff && half[3] == 0x7c00 && half[4] == 0x8000 && half[5] == 0,
          "half at its limits");
    CHECK(bf16[1] == 0xff80 && bf16[4] == 0x8000 && bf16[5] == 0 && bf16[6] == 0x7f80, "bf16 at its limits");
    const __nv_bfloat162 pair = __floats2bfloat162_rn(1.5f, -2.0f);
    const __half2 halves = __floats2half2_rn(0.25f, 3.0f);
    CHECK(__bfloat1622float2(pair).x == 1.5f && __bfloat1622float2(pair).y == -2.0f, "a pair of bf16");
    CHECK(__half22float2(halves).x == 0.25f && __half22float2(halves).y == 3.0f, "a pair of halves");
    CUDA_CHECK(cudaFree(device_in));
    CUDA_CHECK(cudaFree(device_half));
    CUDA_CHECK(cudaFree(device_bf16));
    CUDA_CHECK(cudaFree(device_tf32));
}

int main(void) {
    CUDA_CHECK(cudaMalloc(&device, sizeof *device));
    test_known_places();
    test_mma(16);
    test_mma(8);
    test_ldmatrix(0);
    test_ldmatrix(1);
    test_tile();
    test_copies();
    test_round_trips();
    test_conversions();
    CUDA_CHECK(cudaFree(device));
    return test_summary();
}
