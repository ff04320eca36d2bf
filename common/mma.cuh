// mma.cuh -- the tensor cores' and the copy engine's instructions that kernels use, for both devices.
//
// On a GPU (sm_80 and later) each function is one PTX instruction. In the CPU build the 32 lanes of the warp meet in
// cuda_cpu.h's warp exchange and the instruction is carried out lane by lane, with the register layouts of the PTX ISA,
// so that a kernel with tensor cores runs, is tested and can be single-stepped without a GPU. test/test_mma.cu checks
// every position.
//
//     mma_bf16(d, a, b)             d += A B, A 16x16 and B 16x8 in bf16, d 16x8 in fp32       mma.sync.m16n8k16
//     mma_tf32(d, a, b)             d += A B, A 16x8 and B 8x8 in TF32, d 16x8 in fp32         mma.sync.m16n8k8
//     ldmatrix_x4(r, row)           loads four 8x8 matrices of 16-bit elements from shared memory      ldmatrix
//     ldmatrix_x4_trans(r, row)     likewise, each of them transposed
//     tf32_of(x)                    x rounded to TF32 (10 bits of fraction; ties away from zero)       cvt.rna
//     bf16_pair(lo, hi)             two floats rounded to bf16 in one register
//     async_copies c;               copies from global to shared memory in the background              cp.async
//     c.copy16(to, from, n)         16 bytes, aligned to 16; n < 16: only n are read, the others become 0
//     c.copy4(to, from, n)          4 bytes, n = 4 or 0
//     c.commit();                   closes a group
//     c.wait<N>();                  waits until at most the N youngest groups are under way. What has arrived is this
//                                   thread's only, so a __syncthreads() follows before others read it.
//
// Who holds what. With lane = 4 g + t, g = 0..7, t = 0..3:
//     d[0], d[1]    row g,     columns 2t and 2t+1           both instructions
//     d[2], d[3]    row g + 8, likewise
//     bf16, two elements to a register, the one with the lower index in the low half:
//         a[0] row g,     columns 2t, 2t+1    a[2] row g,     columns 2t+8, 2t+9    b[0] rows 2t, 2t+1   of column g
//         a[1] row g + 8, columns 2t, 2t+1    a[3] row g + 8, columns 2t+8, 2t+9    b[1] rows 2t+8, 2t+9 of column g
//     TF32:
//         a[0] row g,     column t            a[2] row g,     column t+4            b[0] row t     of column g
//         a[1] row g + 8, column t            a[3] row g + 8, column t+4            b[1] row t + 4 of column g
//     ldmatrix: lane 8 m + i passes the address of row i of matrix m, 16 bytes aligned to 16; r[m] of lane 4 g + t
//     becomes elements 2t and 2t+1 of row g of matrix m, transposed: of column g.
// So ldmatrix_x4 on the quarters of a row-major 16x16 tile of A, in the order (0,0), (8,0), (0,8), (8,8), gives
// a[0..3]; and ldmatrix_x4_trans on a row-major 16x16 tile of B in the same order gives b of its left 8 columns, then
// of its right ones.
//
// What the hardware leaves open: in which order, and with how many spare bits, the products are added. Here they are
// added to d in fp32, k ascending. Inputs of mma_tf32 that were not rounded are cut to TF32, here as there. In the CPU
// build copies happen as late as wait() allows when CUDA_CPU_ORDER is forward and at once when it is reverse (random:
// both), so that a missing wait, or a buffer that is overwritten while it is read, shows as a difference.
#pragma once
#include "common/cuda_common.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ __forceinline__ void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
static __device__ __forceinline__ void mma_tf32(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
static __device__ __forceinline__ unsigned mma_shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}
static __device__ __forceinline__ void ldmatrix_x4(unsigned r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(mma_shared_address(row)) : "memory");
}
static __device__ __forceinline__ void ldmatrix_x4_trans(unsigned r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(mma_shared_address(row)) : "memory");
}
static __device__ __forceinline__ unsigned tf32_of(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}
struct async_copies {
    __device__ __forceinline__ void copy16(void *to, const void *from, int n) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(mma_shared_address(to)), "l"(from), "r"(n)
                     : "memory");
    }
    __device__ __forceinline__ void copy4(void *to, const void *from, int n) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(mma_shared_address(to)), "l"(from), "r"(n)
                     : "memory");
    }
    __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
    template <int N> __device__ __forceinline__ void wait() {
        asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
    }
};

#else
namespace cuda_cpu {
struct MmaLane {
    float *d;
    const unsigned *a, *b;
};
struct LoadLane {
    unsigned *r;
    const char *row;
};
inline float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
inline float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// d += A B for the fragments of all lanes; A [16][K], B [K][8].
template <int K> void multiply_fragments(const uint64_t *lanes, const float (*A)[K], const float (*B)[8]) {
    float D[16][8];
    for (int l = 0; l < 32; l++) {
        const float *d = ((const MmaLane *)lanes[l])->d;
        for (int i = 0; i < 4; i++) D[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = d[i];
    }
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < K; k++)
            for (int c = 0; c < 8; c++) D[r][c] += A[r][k] * B[k][c];
    for (int l = 0; l < 32; l++) {
        float *d = ((const MmaLane *)lanes[l])->d;
        for (int i = 0; i < 4; i++) d[i] = D[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
    }
}
inline void run_mma_bf16(uint64_t *lanes) {
    float A[16][16], B[16][8];
    for (int l = 0; l < 32; l++) {
        const MmaLane *x = (const MmaLane *)lanes[l];
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) {
            A[g + i % 2 * 8][2 * t + i / 2 * 8] = low_bf16(x->a[i]);
            A[g + i % 2 * 8][2 * t + i / 2 * 8 + 1] = high_bf16(x->a[i]);
        }
        for (int i = 0; i < 2; i++) {
            B[2 * t + 8 * i][g] = low_bf16(x->b[i]);
            B[2 * t + 8 * i + 1][g] = high_bf16(x->b[i]);
        }
    }
    multiply_fragments<16>(lanes, A, B);
}
inline void run_mma_tf32(uint64_t *lanes) {
    float A[16][8], B[8][8];
    for (int l = 0; l < 32; l++) {
        const MmaLane *x = (const MmaLane *)lanes[l];
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) A[g + i % 2 * 8][t + i / 2 * 4] = __uint_as_float(x->a[i] & 0xffffe000u);
        for (int i = 0; i < 2; i++) B[t + 4 * i][g] = __uint_as_float(x->b[i] & 0xffffe000u);
    }
    multiply_fragments<8>(lanes, A, B);
}
template <bool TRANS> void run_ldmatrix(uint64_t *lanes) {
    for (int l = 0; l < 32; l++)
        for (int m = 0; m < 4; m++) {
            unsigned pair = 0;
            for (int i = 0; i < 2; i++) {
                const int along = l % 4 * 2 + i, across = l / 4;
                const int row = TRANS ? along : across;
                const int column = TRANS ? across : along;
                unsigned short element;
                memcpy(&element, ((const LoadLane *)lanes[8 * m + row])->row + 2 * column, sizeof element);
                pair |= (unsigned)element << 16 * i;
            }
            ((const LoadLane *)lanes[l])->r[m] = pair;
        }
}
}  // namespace cuda_cpu

inline void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2], int line = __builtin_LINE()) {
    cuda_cpu::MmaLane lane = {d, a, b};
    cuda_cpu::warp_exchange(cuda_cpu::run_mma_bf16, &lane, line);
}
inline void mma_tf32(float d[4], const unsigned a[4], const unsigned b[2], int line = __builtin_LINE()) {
    cuda_cpu::MmaLane lane = {d, a, b};
    cuda_cpu::warp_exchange(cuda_cpu::run_mma_tf32, &lane, line);
}
inline void ldmatrix_x4(unsigned r[4], const void *row, int line = __builtin_LINE()) {
    cuda_cpu::LoadLane lane = {r, (const char *)row};
    if ((uintptr_t)row % 16) cuda_cpu::die("ldmatrix: the address of a row must be a multiple of 16", line);
    cuda_cpu::warp_exchange(cuda_cpu::run_ldmatrix<false>, &lane, line);
}
inline void ldmatrix_x4_trans(unsigned r[4], const void *row, int line = __builtin_LINE()) {
    cuda_cpu::LoadLane lane = {r, (const char *)row};
    if ((uintptr_t)row % 16) cuda_cpu::die("ldmatrix: the address of a row must be a multiple of 16", line);
    cuda_cpu::warp_exchange(cuda_cpu::run_ldmatrix<true>, &lane, line);
}
// Half of the last place is added to the magnitude, then the low bits go; infinity stays, a NaN stays one.
inline unsigned tf32_of(float x) {
    const unsigned u = __float_as_uint(x), a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return 0x7fffe000u;
    return (a < 0x7f800000u ? u + 0x1000u : u) & 0xffffe000u;
}

class async_copies {
    enum { kMost = 96 };  // copies of one thread under way
    struct Copy {
        char *to;
        const char *from;
        int bytes, read, group;
    } queue_[kMost];
    int n_ = 0, group_ = 0;
    unsigned issued_ = 0;

    static void run(const Copy &c) {
        memcpy(c.to, c.from, (size_t)c.read);
        memset(c.to + c.read, 0, (size_t)(c.bytes - c.read));
    }
    void add(const Copy &c, int line) {
        const int order = cuda_cpu::order.kind, odd = (threadIdx.x + blockIdx.x + issued_++) % 2 == 1;
        if ((uintptr_t)c.to % (unsigned)c.bytes || (uintptr_t)c.from % (unsigned)c.bytes)
            cuda_cpu::die("cp.async: an address is not a multiple of the size", line);
        if (c.read < 0 || c.read > c.bytes) cuda_cpu::die("cp.async: reads more than it copies", line);
        if (order == cuda_cpu::Order::kReverse || (order == cuda_cpu::Order::kRandom && odd)) {
            run(c);
            return;
        }
        if (n_ == kMost) cuda_cpu::die("cp.async: too many copies of one thread under way", line);
        queue_[n_++] = c;
    }

public:
    void copy16(void *to, const void *from, int n, int line = __builtin_LINE()) {
        add({(char *)to, (const char *)from, 16, n, group_}, line);
    }
    void copy4(void *to, const void *from, int n, int line = __builtin_LINE()) {
        add({(char *)to, (const char *)from, 4, n, group_}, line);
    }
    void commit() { group_++; }
    template <int N> void wait() {
        int left = 0;
        for (int i = 0; i < n_; i++) {
            if (queue_[i].group < group_ - N) run(queue_[i]);
            else queue_[left++] = queue_[i];
        }
        n_ = left;
    }
    ~async_copies() {
        if (n_) cuda_cpu::die("cp.async: the thread exits without waiting for its copies");
    }
};
#endif

// Two floats, rounded to nearest even, in one register: lo in the low half.
static __device__ __forceinline__ unsigned bf16_pair(float lo, float hi) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
