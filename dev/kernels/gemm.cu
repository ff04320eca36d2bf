// gemm.cu -- C = A B: from the obvious kernel to the tensor cores.
//
// Shapes: A [m][k], B [k][n], C [m][n], row-major. C is fp32; A and B are fp32 or, for the last variants, bf16.
// It takes 2 m n k operations and at least 4 (m k + k n + m n) bytes. At 4096^3 that is 137 GFLOP for 201 MB, 680
// operations per byte: compute-bound, by far, on any device, provided that every element is fetched about once. That is
// what the ladder is about: variant 1 fetches each of A's elements n times and each of B's m times. Floor: the best
// matrix product at hand.
//
//  1 naive            A thread computes one element; threadIdx.x runs along the rows. The 32 lanes of a warp then read
//                     A in steps of k floats and write C in steps of n: 32 memory transactions where one would do.
//  2 coalesced        threadIdx.x runs along the columns: a warp reads 32 neighbours of B in one transaction and one
//                     element of A, broadcast to all. Nothing else changes.
//  3 shared_tile      A block of T x T threads fetches T x T tiles of A and B into shared memory and each element is
//                     used T times from there. Global traffic shrinks by T; now shared memory is busy: two loads for
//                     each multiply-add.
//  4 register_1d      A thread computes 8 elements of a column: one B from shared memory is used 8 times from a
//                     register, so 9 loads make 8 multiply-adds.
//  5 register_2d      A thread computes 8 x 8 elements: 16 loads make 64 multiply-adds.
//  6 vectorised       Global loads of 16 bytes, A stored transposed in shared memory so that a thread's 8 values of A,
//                     like those of B, are two loads of 16 bytes: 4 load instructions for 64 multiply-adds.
//  7 double_buffered  Two tiles in shared memory. The next tile's global loads are issued into registers before the
//                     multiplications on this one, and stored to the other buffer after them: their latency is hidden,
//                     and one barrier per tile is left.
//  8 tensor_tf32      Tensor cores: a warp multiplies 16x8x8 in one instruction, inputs rounded to TF32 (10 bits).
//                     Tiles come by cp.async, four stages deep, without a detour through registers; rows are padded so
//                     that no two lanes of a fragment's load meet in a bank.
//  9 tensor_bf16      bf16 inputs: 16x8x16 per instruction and half the bytes; fragments come by ldmatrix, which loads
//                     four 8x8 blocks at once, and transposes those of B on the way. 16-byte chunks are permuted within
//                     their rows (xor with the row) instead of padded: no bank conflicts and no hole in shared memory.
//    gemm.h           gemm() of common/gemm.h, which the trainers use: cuBLAS on a GPU (fp32, TF32), OpenBLAS or its
//                     own packed kernel on a CPU. The floor.
//    cublas_bf16      cuBLAS on bf16 inputs.
// Hopper's wgmma with bulk tensor copies is not here: it would be code that no machine has run.
//
// On a CPU variants 3 to 7 pay for their barriers (a switch of fibers each) and lose to gemm.h by one or two orders of
// magnitude; they run there to be tested. Edges: elements outside are read as 0 into the tile and not written from it,
// so every shape works.
#define KERNELS_PRODUCT
#include "dev/kernels/kernels.h"

enum { A, B, C };

static void problem_of(problem *p) {
    const size_t m = (size_t)p->dim[0], n = (size_t)p->dim[1], k = (size_t)p->dim[2], size = p->storage == BF16 ? 2 : 4;
    input(p, "A", p->storage, m * k, -1, 1);
    input(p, "B", p->storage, k * n, -1, 1);
    // fp32 sums of k products; TF32 cuts each factor's 12th bit.
    output(p, "C", F32, m * n, 1e-6, p->precision == TF32 ? 6e-4 * sqrt((double)k) : 1e-7 * (double)k);
    p->bytes = (double)(size * (m * k + k * n) + 4 * m * n);
    p->flops = 2.0 * (double)m * (double)n * (double)k;
}

// Large products: every 61st row.
static void reference(problem *p) {
    const int m = p->dim[0], n = p->dim[1], k = p->dim[2], step = p->flops > 1e10 ? 61 : 1;
    const double *a = given(p, A), *b = given(p, B);
    double *c = wanted(p, C);
    p->sampled = step > 1;
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
    for (int i = 0; i < m; i++) {
        double *row = c + (size_t)i * (size_t)n;
        for (int j = 0; j < n; j++) row[j] = i % step ? (double)NAN : 0;
        for (int l = 0; l < k && i % step == 0; l++)
            for (int j = 0; j < n; j++)
                row[j] += a[(size_t)i * (size_t)k + (size_t)l] * b[(size_t)l * (size_t)n + (size_t)j];
    }
}

// ------------------------------------------------------------------------------------------------------ 1, 2: no reuse
static __global__ void naive(float *c, const float *a, const float *b, int m, int n, int k) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y * blockDim.y + threadIdx.y;
    if (i >= m || j >= n) return;
    float sum = 0.0f;
    for (int l = 0; l < k; l++) sum += a[(size_t)i * k + l] * b[(size_t)l * n + j];
    c[(size_t)i * n + j] = sum;
}
static void run_naive(const call *c) {
    const dim3 block(16, c->block / 16), grid(ceil_div(c->dim[0], block.x), ceil_div(c->dim[1], block.y));
    naive<<<grid, block>>>(FLOATS(c, C), FLOATS(c, A), FLOATS(c, B), c->dim[0], c->dim[1], c->dim[2]);
}

static __global__ void coalesced(float *__restrict__ c, const float *__restrict__ a, const float *__restrict__ b, int n,
                                 int k) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    if (j >= n) return;
    const float *row = a + (size_t)i * k;
    float sum = 0.0f;
    for (int l = 0; l < k; l++) sum += row[l] * b[(size_t)l * n + j];
    c[(size_t)i * n + j] = sum;
}
static void run_coalesced(const call *c) {
    const dim3 grid(ceil_div(c->dim[1], c->block), c->dim[0]);
    coalesced<<<grid, c->block>>>(FLOATS(c, C), FLOATS(c, A), FLOATS(c, B), c->dim[1], c->dim[2]);
}

// ---------------------------------------------------------------------------------------------------- 3: shared memory
template <int T> __global__ void shared_tile(float *c, const float *a, const float *b, int m, int n, int k) {
    __shared__ float as[T][T], bs[T][T];
    const int x = threadIdx.x, y = threadIdx.y, i = blockIdx.y * T + y, j = blockIdx.x * T + x;
    float sum = 0.0f;
    for (int l0 = 0; l0 < k; l0 += T) {
        as[y][x] = i < m && l0 + x < k ? a[(size_t)i * k + l0 + x] : 0.0f;
        bs[y][x] = j < n && l0 + y < k ? b[(size_t)(l0 + y) * n + j] : 0.0f;
        __syncthreads();
        UNROLL for (int l = 0; l < T; l++) sum += as[y][l] * bs[l][x];
        __syncthreads();
    }
    if (i < m && j < n) c[(size_t)i * n + j] = sum;
}
static void run_shared_tile(const call *c) {
    const int m = c->dim[0], n = c->dim[1], k = c->dim[2];
    int t = 32;  // t * t threads
    while (t * t > c->block) t /= 2;
    const dim3 grid(ceil_div(n, t), ceil_div(m, t)), block(t, t);
    if (t == 8) shared_tile<8><<<grid, block>>>(FLOATS(c, C), FLOATS(c, A), FLOATS(c, B), m, n, k);
    else if (t == 16) shared_tile<16><<<grid, block>>>(FLOATS(c, C), FLOATS(c, A), FLOATS(c, B), m, n, k);
    else shared_tile<32><<<grid, block>>>(FLOATS(c, C), FLOATS(c, A), FLOATS(c, B), m, n, k);
}

// ---------------------------------------------------------------------------------------------- 4 to 7: register tiles
enum { K_TILE = 8, PER_THREAD = 8 };  // depth of a tile; elements of C per thread along each side

// S x S elements of C per block of S * S / 8 threads; thread (x, y) has column x and rows 8 y .. 8 y + 7.
template <int S> __global__ void register_1d(float *c, const float *a, const float *b, int m, int n, int k) {
    __shared__ float as[S][K_TILE], bs[K_TILE][S];
    const int t = threadIdx.x, threads = S * S / PER_THREAD, x = t % S, y = t / S * PER_THREAD;
    const int i0 = blockIdx.y * S, j0 = blockIdx.x * S;
    float sum[PER_THREAD] = {0};
    for (int l0 = 0; l0 < k; l0 += K_TILE) {
        for (int e = t; e < S * K_TILE; e += threads) {
            const int i = e / K_TILE, l = e % K_TILE, j = e % S, r = e / S;
            as[i][l] = i0 + i < m && l0 + l < k ? a[(size_t)(i0 + i) * k + l0 + l] : 0.0f;
            bs[r][j] = j0 + j < n && l0 + r < k ? b[(size_t)(l0 + r) * n + j0 + j] : 0.0f;
        }
        __syncthreads();
        UNROLL for (int l = 0; l < K_TILE; l++) {
            const float right = bs[l][x];
            UNROLL for (int i = 0; i < PER_THREAD; i++) sum[i] += as[y + i][l] * right;
        }
        __syncthreads();
    }
    UNROLL for (int i = 0; i < PER_THREAD; i++)
        if (i0 + y + i < m && j0 + x < n) c[(size_t)(i0 + y + i) * n + j0 + x] = sum[i];
}

// Writes a thread's 8 x 8 results whose first element is (i, j).
static __device__ __forceinline__ void store_tile(float *c, const float (*sum)[PER_THREAD], int i, int j, int m,
                                                  int n) {
    UNROLL for (int r = 0; r < PER_THREAD; r++) {
        UNROLL for (int s = 0; s < PER_THREAD; s++)
            if (i + r < m && j + s < n) c[(size_t)(i + r) * n + j + s] = sum[r][s];
    }
}

// S x S elements of C per block of S * S / 64 threads, 8 x 8 per thread.
template <int S> __global__ void register_2d(float *c, const float *a, const float *b, int m, int n, int k) {
    __shared__ float as[S][K_TILE], bs[K_TILE][S];
    const int t = threadIdx.x, side = S / PER_THREAD, x = t % side * PER_THREAD, y = t / side * PER_THREAD;
    const int i0 = blockIdx.y * S, j0 = blockIdx.x * S;
    float sum[PER_THREAD][PER_THREAD] = {{0}};
    for (int l0 = 0; l0 < k; l0 += K_TILE) {
        for (int e = t; e < S * K_TILE; e += side * side) {
            const int i = e / K_TILE, l = e % K_TILE, j = e % S, r = e / S;
            as[i][l] = i0 + i < m && l0 + l < k ? a[(size_t)(i0 + i) * k + l0 + l] : 0.0f;
            bs[r][j] = j0 + j < n && l0 + r < k ? b[(size_t)(l0 + r) * n + j0 + j] : 0.0f;
        }
        __syncthreads();
        UNROLL for (int l = 0; l < K_TILE; l++) {
            float left[PER_THREAD], right[PER_THREAD];
            UNROLL for (int i = 0; i < PER_THREAD; i++) {
                left[i] = as[y + i][l];
                right[i] = bs[l][x + i];
            }
            UNROLL for (int i = 0; i < PER_THREAD; i++) {
                UNROLL for (int j = 0; j < PER_THREAD; j++) sum[i][j] += left[i] * right[j];
            }
        }
        __syncthreads();
    }
    store_tile(c, sum, i0 + y, j0 + x, m, n);
}

// Four neighbours of matrix [rows][cols] from (r, c) on, 0 outside; one 16-byte load where all are inside and aligned.
static __device__ __forceinline__ float4 load4(const float *__restrict__ from, int r, int c, int rows, int cols) {
    const float *p = from + (size_t)r * cols + c;
    if (r < rows && c + 3 < cols && cols % 4 == 0) return *(const float4 *)p;
    const int inside = r < rows ? cols - c : 0;
    float v[4];
    UNROLL for (int i = 0; i < 4; i++) v[i] = i < inside ? p[i] : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
}
// Adds the products of one tile; as is transposed. 8 values each of A and B by two 16-byte loads.
template <int S>
static __device__ __forceinline__ void multiply_tile(float (*sum)[PER_THREAD], const float (*as)[S],
                                                     const float (*bs)[S], int x, int y) {
    UNROLL for (int l = 0; l < K_TILE; l++) {
        const float4 a0 = *(const float4 *)&as[l][y], a1 = *(const float4 *)&as[l][y + 4];
        const float4 b0 = *(const float4 *)&bs[l][x], b1 = *(const float4 *)&bs[l][x + 4];
        const float left[PER_THREAD] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
        const float right[PER_THREAD] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
        UNROLL for (int i = 0; i < PER_THREAD; i++) {
            UNROLL for (int j = 0; j < PER_THREAD; j++) sum[i][j] += left[i] * right[j];
        }
    }
}
// What a thread fetches of a tile: S * 8 / 4 loads of 16 bytes for each matrix, shared by S * S / 64 threads.
template <int S> struct fetched {
    enum { THREADS = S * S / 64, EACH = S * K_TILE / 4 / THREADS };
    float4 a[EACH], b[EACH];
    __device__ __forceinline__ void load(const float *__restrict__ A_, const float *__restrict__ B_, int i0, int j0,
                                         int l0, int m, int n, int k) {
        UNROLL for (int e = 0; e < EACH; e++) {
            const int q = threadIdx.x + e * THREADS;
            a[e] = load4(A_, i0 + q / 2, l0 + q % 2 * 4, m, k);
            b[e] = load4(B_, l0 + q / (S / 4), j0 + q % (S / 4) * 4, k, n);
        }
    }
    __device__ __forceinline__ void store(float (*as)[S], float (*bs)[S]) const {
        UNROLL for (int e = 0; e < EACH; e++) {
            const int q = threadIdx.x + e * THREADS, i = q / 2, l = q % 2 * 4;
            as[l][i] = a[e].x;
            as[l + 1][i] = a[e].y;
            as[l + 2][i] = a[e].z;
            as[l + 3][i] = a[e].w;
            *(float4 *)&bs[q / (S / 4)][q % (S / 4) * 4] = b[e];
        }
    }
};

template <int S> __global__ void vectorised(float *c, const float *a, const float *b, int m, int n, int k) {
    __shared__ __align__(16) float as[K_TILE][S], bs[K_TILE][S];
    const int t = threadIdx.x, side = S / PER_THREAD, x = t % side * PER_THREAD, y = t / side * PER_THREAD;
    const int i0 = blockIdx.y * S, j0 = blockIdx.x * S;
    float sum[PER_THREAD][PER_THREAD] = {{0}};
    fetched<S> tile;
    for (int l0 = 0; l0 < k; l0 += K_TILE) {
        tile.load(a, b, i0, j0, l0, m, n, k);
        tile.store(as, bs);
        __syncthreads();
        multiply_tile<S>(sum, as, bs, x, y);
        __syncthreads();
    }
    store_tile(c, sum, i0 + y, j0 + x, m, n);
}

template <int S> __global__ void double_buffered(float *c, const float *a, const float *b, int m, int n, int k) {
    __shared__ __align__(16) float as[2][K_TILE][S], bs[2][K_TILE][S];
    const int t = threadIdx.x, side = S / PER_THREAD, x = t % side * PER_THREAD, y = t / side * PER_THREAD;
    const int i0 = blockIdx.y * S, j0 = blockIdx.x * S;
    float sum[PER_THREAD][PER_THREAD] = {{0}};
    fetched<S> next;
    next.load(a, b, i0, j0, 0, m, n, k);
    next.store(as[0], bs[0]);
    __syncthreads();
    for (int l0 = 0, now = 0; l0 < k; l0 += K_TILE, now ^= 1) {
        const int more = l0 + K_TILE < k;
        if (more) next.load(a, b, i0, j0, l0 + K_TILE, m, n, k);
        multiply_tile<S>(sum, as[now], bs[now], x, y);
        if (more) next.store(as[now ^ 1], bs[now ^ 1]);  // whoever still multiplies reads the other buffer
        __syncthreads();
    }
    store_tile(c, sum, i0 + y, j0 + x, m, n);
}

#define RUN_TILES(name, small, small_threads, large, large_threads)                                                    \
    static void run_##name(const call *c) {                                                                            \
        const int m = c->dim[0], n = c->dim[1], k = c->dim[2], s = c->block == (small_threads) ? small : large;        \
        const dim3 grid(ceil_div(n, s), ceil_div(m, s));                                                               \
        if (s == small) name<small><<<grid, small_threads>>>(FLOATS(c, C), FLOATS(c, A), FLOATS(c, B), m, n, k);       \
        else name<large><<<grid, large_threads>>>(FLOATS(c, C), FLOATS(c, A), FLOATS(c, B), m, n, k);                  \
    }
RUN_TILES(register_1d, 32, 128, 64, 512)
RUN_TILES(register_2d, 64, 64, 128, 256)
RUN_TILES(vectorised, 64, 64, 128, 256)
RUN_TILES(double_buffered, 64, 64, 128, 256)

// ------------------------------------------------------------------------------------------------ 8, 9: tensor cores
// A warp computes 64 x 64 elements of C as 4 x 8 tiles of 16 x 8, in 128 registers. A block has 2 rows of warps and
// COLS of them side by side. Tiles of A and B go through a ring of STAGES buffers: while one is multiplied, the copies
// into the others are under way.
enum { WARP_TILE = 64, STAGES = 4, BLOCK_ROWS = 2 * WARP_TILE };

// Writes a warp's results; lane 4 g + t holds two pairs of every 16 x 8 tile (mma.cuh).
static __device__ __forceinline__ void store_fragments(float *c, const float (*d)[8][4], int i0, int j0, int m, int n) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    UNROLL for (int r = 0; r < 4; r++) {
        UNROLL for (int s = 0; s < 8; s++) {
            UNROLL for (int e = 0; e < 4; e++) {
                const int i = i0 + 16 * r + g + e / 2 * 8, j = j0 + 8 * s + 2 * t + e % 2;
                if (i < m && j < n) c[(size_t)i * n + j] = d[r][s][e];
            }
        }
    }
}

// Copies rows r0 .. r0 + ROWS - 1 of 16-byte chunks of from[rows][cols] to shared memory, 0 outside; place(row, chunk)
// says where. In the background, if rows start on 16 bytes; else by hand.
template <int ROWS, int CHUNKS, class T, class PLACE>
static __device__ __forceinline__ void load_tile(async_copies &copies, T *to, PLACE place, const T *__restrict__ from,
                                                 int r0, int c0, int rows, int cols) {
    const int each = 16 / (int)sizeof(T), aligned = cols % each == 0;
    for (int q = threadIdx.x; q < ROWS * CHUNKS; q += blockDim.x) {
        const int r = r0 + q / CHUNKS, c = c0 + q % CHUNKS * each, inside = r < rows ? min(max(cols - c, 0), each) : 0;
        T *chunk = to + place(q / CHUNKS, q % CHUNKS);
        const T *p = inside ? from + (size_t)r * cols + c : from;
        if (aligned) {
            copies.copy16(chunk, p, inside ? 16 : 0);
        } else {
            T zero;
            memset(&zero, 0, sizeof zero);
            for (int e = 0; e < each; e++) chunk[e] = e < inside ? p[e] : zero;
        }
    }
}

// Places in shared memory. TF32: rows padded by 4 or 8 floats. bf16: chunk number xor row, so that 8 rows' chunks lie
// in 8 x 4 banks.
struct padded_a { __device__ __forceinline__ int operator()(int r, int q) const { return r * 20 + q * 4; } };
template <int COLS> struct padded_b {
    __device__ __forceinline__ int operator()(int r, int q) const { return r * (COLS * WARP_TILE + 8) + q * 4; }
};
struct permuted_a {
    __device__ __forceinline__ int operator()(int r, int q) const { return r * 32 + (q ^ (r / 2 & 3)) * 8; }
};
template <int COLS> struct permuted_b {
    __device__ __forceinline__ int operator()(int r, int q) const { return r * COLS * WARP_TILE + (q ^ (r & 7)) * 8; }
};

// Shared memory of a stage: A [128][16] and B [16][64 COLS] floats, padded.
template <int COLS> struct tf32_stage {
    float a[BLOCK_ROWS * 20], b[16 * (COLS * WARP_TILE + 8)];
};
template <int COLS> __global__ void tensor_tf32(float *c, const float *a, const float *b, int m, int n, int k) {
    extern __shared__ __align__(16) unsigned char ring[];
    tf32_stage<COLS> *stage = (tf32_stage<COLS> *)ring;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int i0 = blockIdx.y * BLOCK_ROWS, j0 = blockIdx.x * COLS * WARP_TILE;
    const int wi = warp / COLS * WARP_TILE, wj = warp % COLS * WARP_TILE;
    const int tiles = (k + 15) / 16;
    async_copies copies;
    float d[4][8][4];
    UNROLL for (int r = 0; r < 4; r++) {
        UNROLL for (int s = 0; s < 8; s++) {
            UNROLL for (int e = 0; e < 4; e++) d[r][s][e] = 0.0f;
        }
    }
    // tile `next` + STAGES - 1 is fetched, tile `next` multiplied
    for (int next = 1 - STAGES, now; next < tiles; next++) {
        if (next >= 0) {
            copies.wait<STAGES - 2>();
            __syncthreads();
        }
        const int coming = next + STAGES - 1;
        if (coming < tiles) {
            tf32_stage<COLS> *s = stage + coming % STAGES;
            load_tile<BLOCK_ROWS, 4>(copies, s->a, padded_a(), a, i0, 16 * coming, m, k);
            load_tile<16, COLS * WARP_TILE / 4>(copies, s->b, padded_b<COLS>(), b, 16 * coming, j0, k, n);
        }
        copies.commit();
        if (next < 0) continue;
        now = next % STAGES;
        const float *as = stage[now].a, *bs = stage[now].b;
        UNROLL for (int l = 0; l < 16; l += 8) {
            unsigned fa[4][4], fb[8][2];
            UNROLL for (int r = 0; r < 4; r++) {
                UNROLL for (int e = 0; e < 4; e++)
                    fa[r][e] = tf32_of(as[(wi + 16 * r + g + e % 2 * 8) * 20 + l + t + e / 2 * 4]);
            }
            UNROLL for (int s = 0; s < 8; s++) {
                UNROLL for (int e = 0; e < 2; e++)
                    fb[s][e] = tf32_of(bs[(l + t + 4 * e) * (COLS * WARP_TILE + 8) + wj + 8 * s + g]);
            }
            UNROLL for (int r = 0; r < 4; r++) {
                UNROLL for (int s = 0; s < 8; s++) mma_tf32(d[r][s], fa[r], fb[s]);
            }
        }
    }
    copies.wait<0>();
    store_fragments(c, d, i0 + wi, j0 + wj, m, n);
}

// Shared memory of a stage: A [128][32] and B [32][64 COLS] in bf16, chunks permuted.
template <int COLS> struct bf16_stage {
    __nv_bfloat16 a[BLOCK_ROWS * 32], b[32 * COLS * WARP_TILE];
};
template <int COLS>
__global__ void tensor_bf16(float *c, const __nv_bfloat16 *a, const __nv_bfloat16 *b, int m, int n, int k) {
    extern __shared__ __align__(16) unsigned char ring[];
    bf16_stage<COLS> *stage = (bf16_stage<COLS> *)ring;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane % 16, half = lane / 16;
    const int i0 = blockIdx.y * BLOCK_ROWS, j0 = blockIdx.x * COLS * WARP_TILE;
    const int wi = warp / COLS * WARP_TILE, wj = warp % COLS * WARP_TILE;
    const int tiles = (k + 31) / 32;
    async_copies copies;
    float d[4][8][4];
    UNROLL for (int r = 0; r < 4; r++) {
        UNROLL for (int s = 0; s < 8; s++) {
            UNROLL for (int e = 0; e < 4; e++) d[r][s][e] = 0.0f;
        }
    }
    for (int next = 1 - STAGES; next < tiles; next++) {
        if (next >= 0) {
            copies.wait<STAGES - 2>();
            __syncthreads();
        }
        const int coming = next + STAGES - 1;
        if (coming < tiles) {
            bf16_stage<COLS> *s = stage + coming % STAGES;
            load_tile<BLOCK_ROWS, 4>(copies, s->a, permuted_a(), a, i0, 32 * coming, m, k);
            load_tile<32, COLS * WARP_TILE / 8>(copies, s->b, permuted_b<COLS>(), b, 32 * coming, j0, k, n);
        }
        copies.commit();
        if (next < 0) continue;
        const __nv_bfloat16 *as = stage[next % STAGES].a, *bs = stage[next % STAGES].b;
        UNROLL for (int l = 0; l < 32; l += 16) {
            unsigned fa[4][4], fb[4][4];
            UNROLL for (int r = 0; r < 4; r++) ldmatrix_x4(fa[r], as + permuted_a()(wi + 16 * r + row, l / 8 + half));
            UNROLL for (int s = 0; s < 4; s++)
                ldmatrix_x4_trans(fb[s], bs + permuted_b<COLS>()(l + row, wj / 8 + 2 * s + half));
            UNROLL for (int r = 0; r < 4; r++) {
                UNROLL for (int s = 0; s < 8; s++) mma_bf16(d[r][s], fa[r], fb[s / 2] + s % 2 * 2);
            }
        }
    }
    copies.wait<0>();
    store_fragments(c, d, i0 + wi, j0 + wj, m, n);
}

#define RUN_TENSOR(name, STAGE, a, b)                                                                                  \
    static void run_##name(const call *c) {                                                                            \
        const int m = c->dim[0], n = c->dim[1], k = c->dim[2], cols = c->block / 64;                                   \
        const dim3 grid(ceil_div(n, cols * WARP_TILE), ceil_div(m, BLOCK_ROWS));                                       \
        const int bytes = STAGES * (int)(cols == 2 ? sizeof(STAGE<2>) : sizeof(STAGE<4>));                             \
        const auto kernel = cols == 2 ? name<2> : name<4>;                                                             \
        if (!more_shared_memory(kernel, bytes)) return;                                                                \
        if (cols == 2) name<2><<<grid, 128, bytes>>>(FLOATS(c, C), a, b, m, n, k);                                     \
        else name<4><<<grid, 256, bytes>>>(FLOATS(c, C), a, b, m, n, k);                                               \
    }
RUN_TENSOR(tensor_tf32, tf32_stage, FLOATS(c, A), FLOATS(c, B))
RUN_TENSOR(tensor_bf16, bf16_stage, BF16S(c, A), BF16S(c, B))

// ----------------------------------------------------------------------------------------------------------- libraries
static gemm_context *context(int precision) {
    static gemm_context g[3];
    static int ready[3];
    char err[256];
    if (!ready[precision] && gemm_create(&g[precision], precision, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        exit(1);
    }
    ready[precision] = 1;
    return &g[precision];
}
static void run_gemm_h(const call *c) {
    const int m = c->dim[0], n = c->dim[1], k = c->dim[2];
    gemm(context(GEMM_FP32), 0, 0, m, n, k, 1.0f, FLOATS(c, A), k, FLOATS(c, B), n, 0.0f, FLOATS(c, C), n);
}
#if DEVICE_IS_GPU
static void run_gemm_h_tf32(const call *c) {
    const int m = c->dim[0], n = c->dim[1], k = c->dim[2];
    gemm(context(GEMM_TF32), 0, 0, m, n, k, 1.0f, FLOATS(c, A), k, FLOATS(c, B), n, 0.0f, FLOATS(c, C), n);
}
static void run_cublas_bf16(const call *c) {
    const int m = c->dim[0], n = c->dim[1], k = c->dim[2];
    const float one = 1, zero = 0;
    GEMM_CUBLAS_CHECK(cublasGemmEx(context(GEMM_FP32)->handle, CUBLAS_OP_N, CUBLAS_OP_N, n, m, k, &one, c->at[B],
                                   CUDA_R_16BF, n, c->at[A], CUDA_R_16BF, k, &zero, c->at[C], CUDA_R_32F, n,
                                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}
#endif

static const variant variants[] = {
    {"naive", "a thread per element, x along the rows", run_naive, FP32, 0, {64, 256}, NULL, 0},
    {"coalesced", "x along the columns", run_coalesced, FP32, 0, {64, 256}, NULL, 0},
    {"shared_tile", "tiles of A and B in shared memory", run_shared_tile, FP32, 0, {64, 256, 1024}, NULL, 0},
    {"register_1d", "8 elements of a column per thread", run_register_1d, FP32, 0, {128, 512}, NULL, 0},
    {"register_2d", "8 x 8 elements per thread", run_register_2d, FP32, 0, {64, 256}, NULL, 0},
    {"vectorised", "16-byte loads, A transposed in shared memory", run_vectorised, FP32, 0, {64, 256}, NULL, 0},
    {"double_buffered", "the next tile is fetched during the multiplications",
     run_double_buffered, FP32, 0, {64, 256}, NULL, 0},
    {"tensor_tf32", "tensor cores, tiles by cp.async in four stages",
     run_tensor_tf32, TF32, EMULATED, {128, 256}, NULL, 0},
    {"tensor_bf16", "bf16 inputs, fragments by ldmatrix, permuted chunks",
     run_tensor_bf16, BF16_STORAGE, EMULATED, {128, 256}, NULL, 0},
    {"gemm.h", "what the trainers use: cuBLAS, OpenBLAS or built in", run_gemm_h, FP32, 0, {0}, NULL, 0},
    {"gemm.h_tf32", "cuBLAS with TF32", ON_GPU(run_gemm_h_tf32), TF32, GPU_ONLY, {0}, NULL, 0},
    {"cublas_bf16", "cuBLAS on bf16 inputs", ON_GPU(run_cublas_bf16), BF16_STORAGE, GPU_ONLY, {0}, NULL, 0},
};
static const operation operations[] = {
    {"gemm", "C[m][n] = A[m][k] B[k][n]", "m n k", problem_of, reference, VARIANTS(variants),
     "1x1x1 3x5x7 16x16x16 33x65x17 64x64x64 130x72x40 128x128x96 127x257x99", "128x128x128 256x256x256 512x512x512",
     "512x512x512 1024x1024x1024 2048x2048x2048 4096x4096x4096"},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
