// attention.cu -- causal attention, forward and backward: from matrices in memory to tiles that never leave the chip.
//
// Shapes: q, k, v, o and their gradients [heads][tokens][d] (heads = batch * heads), lse [heads][tokens]; fp32, or bf16
// for q, k, v.
//     attention_forward     s[i][j] = q_i . k_j / sqrt(d) for j <= i, p = softmax over j, o_i = sum_j p[i][j] v_j,
//                           lse_i = log sum_j exp s[i][j], which the backward pass needs
//     attention_backward    with p recomputed from lse, delta_i = do_i . o_i, ds = p (do_i . v_j - delta_i):
//                           dq_i = sum_j ds k_j / sqrt(d),  dk_j = sum_i ds q_i / sqrt(d),  dv_j = sum_i p do_i
// Operations: forward 2 tokens^2 d per head (half of the square is masked), backward 2.5 times that. Bytes: q, k, v, o
// once. For 1,024 tokens of 64 that is 512 operations per byte: compute-bound, unless the tokens^2 matrix goes through
// memory.
//
// Forward:
//  1 materialised    Three kernels: scores, softmax, weighted sum. 16 bytes of traffic for every element of a tokens^2
//                    matrix.
//  2 online          A thread per query keeps its q, the weighted sum so far, the largest score and the sum of weights
//                    in registers; when a larger score comes, the sums are rescaled (Milakov and Gimelshein; Rabe and
//                    Staats). No matrix. But every thread fetches every k and v from global memory for itself.
//  3 tiles           A block shares tiles of 32 keys and values in shared memory, and rescales once per tile: the
//                    scheme of FlashAttention (Dao et al.).
//  4 tensor_bf16     The same with tensor cores on bf16: a warp has 16 queries; the scores' fragments, once
//                    exponentiated, are the left operand of the second product without leaving their registers, since
//                    an accumulator's layout is that of a left operand's halves (mma.cuh).
// Backward:
//  1 materialised    p and ds as matrices, then three products, a thread per element of the result.
//  2 tiles           Two kernels that recompute p and ds tile by tile: one has a thread per query and adds up dq, the
//                    other a thread per key and adds up dk and dv. Nothing of size tokens^2; every sum has one owner,
//                    so the order is fixed.
// Both:
//    train_gpt_style.c  What the language-model trainer does on a CPU: strips of 64 queries against blocks of 256 keys,
//                      every product by gemm.h, softmax on vectors of queries. Its q, k and v lie side by side; the
//                      copies into that layout are timed, too.
#ifndef __CUDACC__
#include "dev/kernels/gpt.h"
#endif
#define KERNELS_PRODUCT
#include "dev/kernels/kernels.h"

enum { Q, K, V, O, LSE, SCORES };                                                          // forward
enum { B_Q, B_K, B_V, B_O, B_LSE, B_DO, B_DQ, B_DK, B_DV, B_DELTA, B_P, B_DS };            // backward
enum { TILE = 32 };  // keys of a tile; threads of a block of the tiled kernels

static size_t elements(const int *dim) { return (size_t)dim[0] * (size_t)dim[1] * (size_t)dim[2]; }
static size_t squares(const int *dim) { return (size_t)dim[0] * (size_t)dim[1] * (size_t)dim[1]; }
static double pairs(const int *dim) { return 0.5 * dim[0] * dim[1] * (dim[1] + 1.0); }

// Forward in double: o and lse.
static void attend(const int *dim, const double *q, const double *k, const double *v, double *o, double *lse) {
    const int heads = dim[0], tokens = dim[1], d = dim[2];
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
#endif
    for (int h = 0; h < heads; h++) {
        double *p = (double *)allocate((size_t)tokens * sizeof(double));
        const size_t head = (size_t)h * (size_t)tokens * (size_t)d;
        for (int i = 0; i < tokens; i++) {
            const double *qi = q + head + (size_t)i * (size_t)d;
            double *oi = o + head + (size_t)i * (size_t)d, largest = -HUGE_VAL, sum = 0;
            for (int j = 0; j <= i; j++) {
                p[j] = 0;
                for (int c = 0; c < d; c++) p[j] += qi[c] * k[head + (size_t)j * (size_t)d + (size_t)c];
                p[j] /= sqrt(d);
                largest = fmax(largest, p[j]);
            }
            for (int j = 0; j <= i; j++) {
                p[j] = exp(p[j] - largest);
                sum += p[j];
            }
            for (int c = 0; c < d; c++) oi[c] = 0;
            for (int j = 0; j <= i; j++)
                for (int c = 0; c < d; c++) oi[c] += p[j] / sum * v[head + (size_t)j * (size_t)d + (size_t)c];
            lse[(size_t)h * (size_t)tokens + (size_t)i] = largest + log(sum);
        }
        free(p);
    }
}

// ------------------------------------------------------------------------------------------------------------- forward

static void forward_problem(problem *p) {
    const size_t n = elements(p->dim), rows = (size_t)p->dim[0] * (size_t)p->dim[1];
    const int bf16 = p->storage == BF16;
    input(p, "q", p->storage, n, -2, 2);
    input(p, "k", p->storage, n, -2, 2);
    input(p, "v", p->storage, n, -1, 1);
    // bf16: the weights are rounded to 8 bits before the second product
    output(p, "o", F32, n, 1e-5, bf16 ? 4e-3 : 2e-6);
    output(p, "lse", F32, rows, 2e-6, 4e-6);
    scratch(p, "scores", F32, bf16 ? 1 : squares(p->dim));
    p->bytes = (double)n * (3 * (bf16 ? 2 : 4) + 4) + 4.0 * (double)rows;
    p->flops = 4.0 * pairs(p->dim) * p->dim[2];
}
static void forward_reference(problem *p) {
    attend(p->dim, given(p, Q), given(p, K), given(p, V), wanted(p, O), wanted(p, LSE));
}

// One dot product of two rows.
static __device__ __forceinline__ float dot(const float *a, const float *b, int d) {
    float sum = 0.0f;
    for (int c = 0; c < d; c++) sum += a[c] * b[c];
    return sum;
}
static __global__ void scores_kernel(float *s, const float *q, const float *k, int tokens, int d, float scale) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    if (j > i) return;
    const size_t head = (size_t)blockIdx.z * tokens;
    s[(head + i) * tokens + j] = scale * dot(q + (head + i) * d, k + (head + j) * d, d);
}
// A warp per row, in place.
static __global__ void softmax_kernel(float *s, float *lse, int rows, int tokens) {
    const int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, n = r % tokens + 1;
    if (r >= rows) return;
    float *row = s + (size_t)r * tokens, largest = -FLT_MAX, sum = 0.0f;
    for (int j = lane; j < n; j += 32) largest = fmaxf(largest, row[j]);
    largest = warp_reduce_max(largest);
    for (int j = lane; j < n; j += 32) {
        row[j] = expf(row[j] - largest);
        sum += row[j];
    }
    sum = warp_reduce_sum(sum);
    for (int j = lane; j < n; j += 32) row[j] /= sum;
    if (lane == 0) lse[r] = largest + logf(sum);
}
// out[i][c] = scale * sum_j a[i][j] b[j][c] over j <= i; with by_column over j >= i of a[j][i]. blockIdx.y: i,
// blockIdx.z: head.
static __global__ void masked_product(float *out, const float *a, const float *b, int tokens, int d, int by_column,
                                      float scale) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    if (c >= d) return;
    const size_t head = (size_t)blockIdx.z * tokens;
    float sum = 0.0f;
    if (by_column)
        for (int j = i; j < tokens; j++) sum += a[(head + j) * tokens + i] * b[(head + j) * d + c];
    else
        for (int j = 0; j <= i; j++) sum += a[(head + i) * tokens + j] * b[(head + j) * d + c];
    out[(head + i) * d + c] = scale * sum;
}
static float scale_of(const call *c) { return 1.0f / sqrtf((float)c->dim[2]); }
static void run_materialised(const call *c) {
    const int heads = c->dim[0], tokens = c->dim[1], d = c->dim[2], rows = heads * tokens;
    const dim3 squares(ceil_div(tokens, c->block), tokens, heads), outputs(ceil_div(d, 32), tokens, heads);
    scores_kernel<<<squares, c->block>>>(FLOATS(c, SCORES), FLOATS(c, Q), FLOATS(c, K), tokens, d, scale_of(c));
    softmax_kernel<<<ceil_div(rows, c->block / 32), c->block>>>(FLOATS(c, SCORES), FLOATS(c, LSE), rows, tokens);
    masked_product<<<outputs, 32>>>(FLOATS(c, O), FLOATS(c, SCORES), FLOATS(c, V), tokens, d, 0, 1.0f);
}

template <int DIM>
__global__ void online(float *o, float *lse, const float *q, const float *k, const float *v, int tokens, float scale) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= tokens) return;
    const size_t head = (size_t)blockIdx.y * tokens;
    float mine[DIM], sum[DIM], largest = -FLT_MAX, weight = 0.0f;
    UNROLL for (int c = 0; c < DIM; c++) {
        mine[c] = scale * q[(head + i) * DIM + c];
        sum[c] = 0.0f;
    }
    for (int j = 0; j <= i; j++) {
        const float *key = k + (head + j) * DIM, *value = v + (head + j) * DIM;
        float s = 0.0f;
        UNROLL for (int c = 0; c < DIM; c++) s += mine[c] * key[c];
        const float larger = fmaxf(largest, s), keep = expf(largest - larger), p = expf(s - larger);
        UNROLL for (int c = 0; c < DIM; c++) sum[c] = keep * sum[c] + p * value[c];
        weight = keep * weight + p;
        largest = larger;
    }
    UNROLL for (int c = 0; c < DIM; c++) o[(head + i) * DIM + c] = sum[c] / weight;
    lse[head + i] = largest + logf(weight);
}

// Copies rows first .. first + TILE - 1 of from[tokens][DIM] to shared memory; rows past the end are 0.
template <int DIM>
static __device__ __forceinline__ void load_rows(float (*to)[DIM], const float *from, int first, int tokens) {
    for (int e = threadIdx.x; e < TILE * DIM; e += (int)blockDim.x)
        to[e / DIM][e % DIM] = first + e / DIM < tokens ? from[(size_t)first * DIM + e] : 0.0f;
}
// Block: TILE queries, a thread each; tiles of TILE keys up to the diagonal.
template <int DIM>
__global__ void tiles(float *o, float *lse, const float *q, const float *k, const float *v, int tokens, float scale) {
    __shared__ float ks[TILE][DIM], vs[TILE][DIM];
    const int first = blockIdx.x * TILE, i = first + threadIdx.x;
    const size_t head = (size_t)blockIdx.y * tokens;
    float mine[DIM], sum[DIM], largest = -FLT_MAX, weight = 0.0f;
    UNROLL for (int c = 0; c < DIM; c++) {
        mine[c] = i < tokens ? scale * q[(head + i) * DIM + c] : 0.0f;
        sum[c] = 0.0f;
    }
    for (int j0 = 0; j0 <= first; j0 += TILE) {
        load_rows<DIM>(ks, k + head * DIM, j0, tokens);
        load_rows<DIM>(vs, v + head * DIM, j0, tokens);
        __syncthreads();
        float s[TILE], larger = largest;
        UNROLL for (int j = 0; j < TILE; j++) {
            float one = 0.0f;
            UNROLL for (int c = 0; c < DIM; c++) one += mine[c] * ks[j][c];
            s[j] = j0 + j <= i ? one : -FLT_MAX;
            larger = fmaxf(larger, s[j]);
        }
        const float keep = expf(largest - larger);
        UNROLL for (int c = 0; c < DIM; c++) sum[c] *= keep;
        weight *= keep;
        largest = larger;
        UNROLL for (int j = 0; j < TILE; j++) {
            // masked: exp of -FLT_MAX is 0; key 0 is never masked, so largest is a score
            const float p = expf(s[j] - largest);
            weight += p;
            UNROLL for (int c = 0; c < DIM; c++) sum[c] += p * vs[j][c];
        }
        __syncthreads();
    }
    if (i >= tokens) return;
    UNROLL for (int c = 0; c < DIM; c++) o[(head + i) * DIM + c] = sum[c] / weight;
    lse[head + i] = largest + logf(weight);
}

// Runs kernel<16>, <32> or <64> as d asks for.
#define BY_WIDTH(d, kernel, ...)                                                                                       \
    if ((d) == 16) kernel(16, __VA_ARGS__);                                                                            \
    else if ((d) == 32) kernel(32, __VA_ARGS__);                                                                       \
    else kernel(64, __VA_ARGS__)
static int width_fits(const int *dim) { return dim[2] == 16 || dim[2] == 32 || dim[2] == 64; }

static void run_online(const call *c) {
    const int tokens = c->dim[1];
    const dim3 grid(ceil_div(tokens, c->block), c->dim[0]);
    float *o = FLOATS(c, O), *lse = FLOATS(c, LSE);
#define ONLINE(D, x) online<D><<<grid, x>>>(o, lse, FLOATS(c, Q), FLOATS(c, K), FLOATS(c, V), tokens, scale_of(c))
    BY_WIDTH(c->dim[2], ONLINE, c->block);
}
static void run_tiles(const call *c) {
    const int tokens = c->dim[1];
    const dim3 grid(ceil_div(tokens, TILE), c->dim[0]);
    float *o = FLOATS(c, O), *lse = FLOATS(c, LSE);
#define TILES(D, x) tiles<D><<<grid, x>>>(o, lse, FLOATS(c, Q), FLOATS(c, K), FLOATS(c, V), tokens, scale_of(c))
    BY_WIDTH(c->dim[2], TILES, TILE);
}

// Tensor cores. A block has 4 warps of 16 queries; tiles of 32 keys and values in shared memory, rows padded by 8
// against bank conflicts. Of every 16 x 8 accumulator, lane 4 g + t holds columns 2t, 2t+1 of rows g and g + 8.
enum { WARPS = 4, QUERIES = 16 };

// What a lane keeps of its two rows: its columns of the weighted sum, the largest score, its part of the weights.
template <int DIM> struct two_rows {
    float out[DIM / 8][4], largest[2], weight[2];
};

// Copies rows first .. first + rows - 1 of from[tokens][DIM] to shared memory in the background; 0 past the end.
template <int DIM>
static __device__ __forceinline__ void copy_rows(async_copies &copies, __nv_bfloat16 *to, const __nv_bfloat16 *from,
                                                 int first, int rows, int tokens) {
    for (int e = threadIdx.x; e < rows * DIM / 8; e += WARPS * 32) {
        const int r = e / (DIM / 8), c = e % (DIM / 8) * 8, inside = first + r < tokens;
        const __nv_bfloat16 *row = from + (size_t)(inside ? first + r : 0) * DIM;
        copies.copy16(to + r * (DIM + 8) + c, row + c, inside ? 16 : 0);
    }
}
// s = q k^T. Keys are the columns, and a column's 16 numbers lie in a row of ks: no transposition. An ldmatrix_x4 of
// keys 0..15 gives registers 0 and 2 for keys 0..7, 1 and 3 for keys 8..15.
template <int DIM>
static __device__ __forceinline__ void score_tile(float (*s)[4], const unsigned (*fq)[4], const __nv_bfloat16 *ks) {
    const int lane = threadIdx.x % 32, row = lane % 16, half = lane / 16 * 8;
    UNROLL for (int n = 0; n < TILE / 8; n++) {
        UNROLL for (int e = 0; e < 4; e++) s[n][e] = 0.0f;
    }
    UNROLL for (int x = 0; x < DIM / 16; x++) {
        UNROLL for (int n = 0; n < TILE / 16; n++) {
            unsigned fk[4];
            ldmatrix_x4(fk, ks + (16 * n + row) * (DIM + 8) + 16 * x + half);
            const unsigned low[2] = {fk[0], fk[2]}, high[2] = {fk[1], fk[3]};
            mma_bf16(s[2 * n], fq[x], low);
            mma_bf16(s[2 * n + 1], fq[x], high);
        }
    }
}
// Scales the scores, -FLT_MAX where the key comes after the query (first: the warp's first); larger takes the maximum.
static __device__ __forceinline__ void mask_tile(float (*s)[4], float *larger, int j0, int first, float scale) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    UNROLL for (int n = 0; n < TILE / 8; n++) {
        UNROLL for (int e = 0; e < 4; e++) {
            const int j = j0 + 8 * n + 2 * t + e % 2, i = first + g + e / 2 * 8;
            s[n][e] = j <= i ? scale * s[n][e] : -FLT_MAX;
            larger[e / 2] = fmaxf(larger[e / 2], s[n][e]);
        }
    }
}
// The largest score of a row, over its four lanes; sums so far are rescaled to it. Key 0 counts for every query, so a
// score is always among them.
template <int DIM> static __device__ __forceinline__ void rescale_rows(two_rows<DIM> *mine, float *larger) {
    UNROLL for (int r = 0; r < 2; r++) {
        larger[r] = fmaxf(larger[r], __shfl_xor_sync(0xffffffffu, larger[r], 1));
        larger[r] = fmaxf(larger[r], __shfl_xor_sync(0xffffffffu, larger[r], 2));
        const float keep = expf(mine->largest[r] - larger[r]);
        mine->weight[r] *= keep;
        mine->largest[r] = larger[r];
        UNROLL for (int n = 0; n < DIM / 8; n++) {
            mine->out[n][2 * r] *= keep;
            mine->out[n][2 * r + 1] *= keep;
        }
    }
}
// out += p v: two accumulators side by side are the left operand's four registers.
template <int DIM>
static __device__ __forceinline__ void add_values(two_rows<DIM> *mine, const float (*s)[4], const __nv_bfloat16 *vs) {
    const int lane = threadIdx.x % 32, row = lane % 16, half = lane / 16 * 8;
    UNROLL for (int n = 0; n < TILE / 16; n++) {
        unsigned fp[4];
        UNROLL for (int m = 0; m < 2; m++) {
            UNROLL for (int r = 0; r < 2; r++) {
                const float p0 = expf(s[2 * n + m][2 * r] - mine->largest[r]);
                const float p1 = expf(s[2 * n + m][2 * r + 1] - mine->largest[r]);
                mine->weight[r] += p0 + p1;
                fp[2 * m + r] = bf16_pair(p0, p1);
            }
        }
        UNROLL for (int x = 0; x < DIM / 16; x++) {
            unsigned fv[4];
            ldmatrix_x4_trans(fv, vs + (16 * n + row) * (DIM + 8) + 16 * x + half);
            mma_bf16(mine->out[2 * x], fp, fv);
            mma_bf16(mine->out[2 * x + 1], fp, fv + 2);
        }
    }
}
// Writes the rows of a warp whose first query is `first`, of a head's o [tokens][DIM] and lse [tokens].
template <int DIM>
static __device__ __forceinline__ void store_rows(float *o, float *lse, two_rows<DIM> *mine, int first, int tokens) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    UNROLL for (int r = 0; r < 2; r++) {
        float weight = mine->weight[r];
        weight += __shfl_xor_sync(0xffffffffu, weight, 1);
        weight += __shfl_xor_sync(0xffffffffu, weight, 2);
        const int i = first + g + 8 * r;
        if (i >= tokens) continue;
        float *row = o + (size_t)i * DIM + 2 * t;
        UNROLL for (int n = 0; n < DIM / 8; n++) {
            UNROLL for (int e = 0; e < 2; e++) row[8 * n + e] = mine->out[n][2 * r + e] / weight;
        }
        if (t == 0) lse[i] = mine->largest[r] + logf(weight);
    }
}
template <int DIM>
__global__ void tensor_bf16(float *o, float *lse, const __nv_bfloat16 *q, const __nv_bfloat16 *k,
                            const __nv_bfloat16 *v, int tokens, float scale) {
    __shared__ __align__(16) __nv_bfloat16 ks[TILE * (DIM + 8)], vs[TILE * (DIM + 8)], qs[WARPS * QUERIES * (DIM + 8)];
    const int warp = threadIdx.x / 32, row = threadIdx.x % 16, half = threadIdx.x % 32 / 16 * 8;
    const int block_first = blockIdx.x * WARPS * QUERIES, first = block_first + warp * QUERIES;
    const size_t head = (size_t)blockIdx.y * tokens;
    async_copies copies;
    unsigned fq[DIM / 16][4];
    two_rows<DIM> mine;
    copy_rows<DIM>(copies, qs, q + head * DIM, block_first, WARPS * QUERIES, tokens);
    copies.commit();
    UNROLL for (int r = 0; r < 2; r++) {
        mine.largest[r] = -FLT_MAX;
        mine.weight[r] = 0.0f;
    }
    UNROLL for (int n = 0; n < DIM / 8; n++) {
        UNROLL for (int e = 0; e < 4; e++) mine.out[n][e] = 0.0f;
    }
    for (int j0 = 0; j0 < min(block_first + WARPS * QUERIES, tokens); j0 += TILE) {
        copy_rows<DIM>(copies, ks, k + head * DIM, j0, TILE, tokens);
        copy_rows<DIM>(copies, vs, v + head * DIM, j0, TILE, tokens);
        copies.commit();
        copies.wait<0>();
        __syncthreads();
        if (j0 == 0) {
            UNROLL for (int x = 0; x < DIM / 16; x++)
                ldmatrix_x4(fq[x], qs + (warp * QUERIES + row) * (DIM + 8) + 16 * x + half);
        }
        float s[TILE / 8][4], larger[2] = {mine.largest[0], mine.largest[1]};
        score_tile<DIM>(s, fq, ks);
        mask_tile(s, larger, j0, first, scale);
        rescale_rows<DIM>(&mine, larger);
        add_values<DIM>(&mine, s, vs);
        __syncthreads();
    }
    store_rows<DIM>(o + head * DIM, lse + head, &mine, first, tokens);
}
static void run_tensor_bf16(const call *c) {
    const int tokens = c->dim[1];
    const dim3 grid(ceil_div(tokens, WARPS * QUERIES), c->dim[0]);
    float *o = FLOATS(c, O), *lse = FLOATS(c, LSE);
#define TENSOR(D, x) tensor_bf16<D><<<grid, x>>>(o, lse, BF16S(c, Q), BF16S(c, K), BF16S(c, V), tokens, scale_of(c))
    BY_WIDTH(c->dim[2], TENSOR, WARPS * 32);
}

#if !DEVICE_IS_GPU
// q, k, v [rows][d] as the trainer has them, [rows][3 d]; with back the other way round.
static void interleave(float *qkv, float *q, float *k, float *v, int rows, int d, int back) {
    float *const parts[3] = {q, k, v};
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < 3; part++) {
            float *together = qkv + (3 * (size_t)r + (size_t)part) * (size_t)d;
            float *apart = parts[part] + (size_t)r * (size_t)d;
            if (back) memcpy(apart, together, (size_t)d * sizeof(float));
            else memcpy(together, apart, (size_t)d * sizeof(float));
        }
}
// Room for two arrays [rows][3 d], kept from call to call.
static float *interleaved(size_t n) {
    static float *p;
    static size_t room;
    if (n > room) {
        free(p);
        p = gpt::alloc_reals(n);
        room = n;
    }
    return p;
}
static int gpt_fits(const int *dim) { return dim[2] <= GPT_WIDTH; }
static void run_gpt(const call *c) {
    const int heads = c->dim[0], tokens = c->dim[1], d = c->dim[2];
    gpt::activations a;
    memset(&a, 0, sizeof a);
    a.qkv = interleaved(3 * elements(c->dim));
    a.att = FLOATS(c, O);
    a.lse = FLOATS(c, LSE);
    interleave(a.qkv, FLOATS(c, Q), FLOATS(c, K), FLOATS(c, V), heads * tokens, d, 0);
    gpt::attention(gpt_model(1, d, 1), &a, heads, tokens, 0);  // every head as a sequence of its own
}
#endif

static const variant forward_variants[] = {
    {"materialised", "scores, softmax, weighted sum: a tokens^2 matrix in memory",
     run_materialised, FP32, 0, {32, 128}, NULL, 0},
    {"online", "a thread per query, running maximum and sums", run_online, FP32, 0, {32, 64, 128}, width_fits, 0},
    {"tiles", "tiles of 32 keys in shared memory, one rescaling per tile", run_tiles, FP32, 0, {0}, width_fits, 0},
    {"tensor_bf16", "tensor cores; the weights stay in registers",
     run_tensor_bf16, BF16_STORAGE, EMULATED, {0}, width_fits, 0},
    {"train_gpt_style.c", "what the trainer uses: strips, products by gemm.h",
     ON_CPU(run_gpt), FP32, CPU_ONLY, {0}, ON_CPU(gpt_fits), 0},
};

// ------------------------------------------------------------------------------------------------------------ backward

static void backward_problem(problem *p) {
    const size_t n = elements(p->dim), rows = (size_t)p->dim[0] * (size_t)p->dim[1];
    double *q = input(p, "q", F32, n, -2, 2), *k = input(p, "k", F32, n, -2, 2), *v = input(p, "v", F32, n, -1, 1);
    double *o = input(p, "o", F32, n, 0, 1), *lse = input(p, "lse", F32, rows, 0, 1);
    attend(p->dim, q, k, v, o, lse);
    for (size_t i = 0; i < n; i++) o[i] = (double)(float)o[i];
    for (size_t i = 0; i < rows; i++) lse[i] = (double)(float)lse[i];
    input(p, "do", F32, n, -1, 1);
    output(p, "dq", F32, n, 2e-5, 8e-6);
    output(p, "dk", F32, n, 2e-5, 8e-6);
    output(p, "dv", F32, n, 2e-5, 8e-6);
    scratch(p, "delta", F32, rows);
    scratch(p, "p", F32, squares(p->dim));
    scratch(p, "ds", F32, squares(p->dim));
    p->bytes = 4.0 * (double)(8 * n + rows);
    p->flops = 10.0 * pairs(p->dim) * p->dim[2];
}
static void backward_reference(problem *p) {
    const int heads = p->dim[0], tokens = p->dim[1], d = p->dim[2];
    const double *q = given(p, B_Q), *k = given(p, B_K), *v = given(p, B_V), *dout = given(p, B_DO);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
#endif
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < tokens; i++) {
            const size_t head = (size_t)h * (size_t)tokens, at = (head + (size_t)i) * (size_t)d;
            double delta = 0;
            for (int c = 0; c < d; c++) delta += dout[at + (size_t)c] * given(p, B_O)[at + (size_t)c];
            for (int j = 0; j <= i; j++) {
                const size_t to = (head + (size_t)j) * (size_t)d;
                double s = 0, dp = 0;
                for (int c = 0; c < d; c++) {
                    s += q[at + (size_t)c] * k[to + (size_t)c];
                    dp += dout[at + (size_t)c] * v[to + (size_t)c];
                }
                const double w = exp(s / sqrt(d) - given(p, B_LSE)[head + (size_t)i]), ds = w * (dp - delta) / sqrt(d);
                for (int c = 0; c < d; c++) {
                    wanted(p, B_DQ)[at + (size_t)c] += ds * k[to + (size_t)c];
                    wanted(p, B_DK)[to + (size_t)c] += ds * q[at + (size_t)c];
                    wanted(p, B_DV)[to + (size_t)c] += w * dout[at + (size_t)c];
                }
            }
        }
}

static __global__ void delta_kernel(float *delta, const float *o, const float *dout, int rows, int d) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) delta[r] = dot(o + (size_t)r * d, dout + (size_t)r * d, d);
}
static __global__ void p_and_ds(float *p, float *ds, const float *q, const float *k, const float *v, const float *dout,
                                const float *lse, const float *delta, int tokens, int d, float scale) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    if (j > i) return;
    const size_t head = (size_t)blockIdx.z * tokens, at = (head + i) * tokens + j;
    p[at] = expf(scale * dot(q + (head + i) * d, k + (head + j) * d, d) - lse[head + i]);
    ds[at] = p[at] * (dot(dout + (head + i) * d, v + (head + j) * d, d) - delta[head + i]);
}
static void run_delta(const call *c) {
    const int rows = c->dim[0] * c->dim[1];
    delta_kernel<<<ceil_div(rows, 32), 32>>>(FLOATS(c, B_DELTA), FLOATS(c, B_O), FLOATS(c, B_DO), rows, c->dim[2]);
}
static void run_materialised_backward(const call *c) {
    const int heads = c->dim[0], tokens = c->dim[1], d = c->dim[2];
    const dim3 grid(ceil_div(d, 32), tokens, heads);
    run_delta(c);
    const dim3 squares(ceil_div(tokens, c->block), tokens, heads);
    p_and_ds<<<squares, c->block>>>(
        FLOATS(c, B_P), FLOATS(c, B_DS), FLOATS(c, B_Q), FLOATS(c, B_K), FLOATS(c, B_V), FLOATS(c, B_DO),
        FLOATS(c, B_LSE), FLOATS(c, B_DELTA), tokens, d, scale_of(c));
    masked_product<<<grid, 32>>>(FLOATS(c, B_DQ), FLOATS(c, B_DS), FLOATS(c, B_K), tokens, d, 0, scale_of(c));
    masked_product<<<grid, 32>>>(FLOATS(c, B_DK), FLOATS(c, B_DS), FLOATS(c, B_Q), tokens, d, 1, scale_of(c));
    masked_product<<<grid, 32>>>(FLOATS(c, B_DV), FLOATS(c, B_P), FLOATS(c, B_DO), tokens, d, 1, 1.0f);
}

// A thread per query: its q and do lie in shared memory, one column per thread, its sum dq in registers.
template <int DIM>
__global__ void dq_tiles(float *dq, const float *q, const float *k, const float *v, const float *dout, const float *lse,
                         const float *delta, int tokens, float scale) {
    __shared__ float ks[TILE][DIM], vs[TILE][DIM], mine[DIM][TILE], dmine[DIM][TILE];
    const int t = threadIdx.x, first = blockIdx.x * TILE, i = first + t, inside = i < tokens;
    const size_t head = (size_t)blockIdx.y * tokens;
    const float z = inside ? lse[head + i] : 0.0f;
    const float del = inside ? delta[head + i] : 0.0f;
    float sum[DIM];
    UNROLL for (int c = 0; c < DIM; c++) {
        mine[c][t] = inside ? scale * q[(head + i) * DIM + c] : 0.0f;
        dmine[c][t] = inside ? dout[(head + i) * DIM + c] : 0.0f;
        sum[c] = 0.0f;
    }
    for (int j0 = 0; j0 <= first; j0 += TILE) {
        load_rows<DIM>(ks, k + head * DIM, j0, tokens);
        load_rows<DIM>(vs, v + head * DIM, j0, tokens);
        __syncthreads();
        for (int j = 0; j < TILE && j0 + j <= i && inside; j++) {
            float s = 0.0f, dp = 0.0f;
            UNROLL for (int c = 0; c < DIM; c++) {
                s += mine[c][t] * ks[j][c];
                dp += dmine[c][t] * vs[j][c];
            }
            const float ds = expf(s - z) * (dp - del) * scale;
            UNROLL for (int c = 0; c < DIM; c++) sum[c] += ds * ks[j][c];
        }
        __syncthreads();
    }
    UNROLL for (int c = 0; c < DIM; c++)
        if (inside) dq[(head + i) * DIM + c] = sum[c];
}
// A thread per key; tiles of queries from the diagonal on.
template <int DIM>
__global__ void dkv_tiles(float *dk, float *dv, const float *q, const float *k, const float *v, const float *dout,
                          const float *lse, const float *delta, int tokens, float scale) {
    __shared__ float qs[TILE][DIM], ds_[TILE][DIM], key[DIM][TILE], value[DIM][TILE];
    const int t = threadIdx.x, first = blockIdx.x * TILE, j = first + t, inside = j < tokens;
    const size_t head = (size_t)blockIdx.y * tokens;
    float sum_k[DIM], sum_v[DIM];
    UNROLL for (int c = 0; c < DIM; c++) {
        key[c][t] = inside ? scale * k[(head + j) * DIM + c] : 0.0f;
        value[c][t] = inside ? v[(head + j) * DIM + c] : 0.0f;
        sum_k[c] = sum_v[c] = 0.0f;
    }
    for (int i0 = first; i0 < tokens; i0 += TILE) {
        load_rows<DIM>(qs, q + head * DIM, i0, tokens);
        load_rows<DIM>(ds_, dout + head * DIM, i0, tokens);
        __syncthreads();
        for (int i = max(0, j - i0); i < TILE && i0 + i < tokens && inside; i++) {
            float s = 0.0f, dp = 0.0f;
            UNROLL for (int c = 0; c < DIM; c++) {
                s += key[c][t] * qs[i][c];
                dp += value[c][t] * ds_[i][c];
            }
            const float p = expf(s - lse[head + i0 + i]), ds = p * (dp - delta[head + i0 + i]) * scale;
            UNROLL for (int c = 0; c < DIM; c++) {
                sum_k[c] += ds * qs[i][c];
                sum_v[c] += p * ds_[i][c];
            }
        }
        __syncthreads();
    }
    if (!inside) return;
    UNROLL for (int c = 0; c < DIM; c++) {
        dk[(head + j) * DIM + c] = sum_k[c];
        dv[(head + j) * DIM + c] = sum_v[c];
    }
}
static void run_tiles_backward(const call *c) {
    const int tokens = c->dim[1];
    const dim3 grid(ceil_div(tokens, TILE), c->dim[0]);
    run_delta(c);
    const float *q = FLOATS(c, B_Q), *k = FLOATS(c, B_K), *v = FLOATS(c, B_V), *dout = FLOATS(c, B_DO);
    const float *lse = FLOATS(c, B_LSE), *delta = FLOATS(c, B_DELTA);
    float *dq = FLOATS(c, B_DQ), *dk = FLOATS(c, B_DK), *dv = FLOATS(c, B_DV);
#define DQ_TILES(D, x) dq_tiles<D><<<grid, x>>>(dq, q, k, v, dout, lse, delta, tokens, scale_of(c))
#define DKV_TILES(D, x) dkv_tiles<D><<<grid, x>>>(dk, dv, q, k, v, dout, lse, delta, tokens, scale_of(c))
    BY_WIDTH(c->dim[2], DQ_TILES, TILE);
    BY_WIDTH(c->dim[2], DKV_TILES, TILE);
}

#if !DEVICE_IS_GPU
static void run_gpt_backward(const call *c) {
    const int heads = c->dim[0], tokens = c->dim[1], d = c->dim[2];
    const size_t n = 3 * elements(c->dim), ld = 3 * (size_t)d;
    gpt::model *m = gpt_model(1, d, (size_t)heads * ld + ld);
    // of the gradient over rows, which no variant here returns
    float *sums = m->partial + (size_t)heads * ld;
    gpt::activations a;
    memset(&a, 0, sizeof a);
    memset(sums, 0, ld * sizeof(float));
    a.qkv = interleaved(2 * n);
    a.att = FLOATS(c, B_O);
    a.lse = FLOATS(c, B_LSE);
    m->datt = FLOATS(c, B_DO);
    m->dqkv = a.qkv + n;
    interleave(a.qkv, FLOATS(c, B_Q), FLOATS(c, B_K), FLOATS(c, B_V), heads * tokens, d, 0);
    gpt::attention_backward(m, &a, sums, heads, tokens);
    interleave(m->dqkv, FLOATS(c, B_DQ), FLOATS(c, B_DK), FLOATS(c, B_DV), heads * tokens, d, 1);
}
#endif

static const variant backward_variants[] = {
    {"materialised", "p and ds as matrices, then three products",
     run_materialised_backward, FP32, 0, {32, 128}, NULL, 0},
    {"tiles", "p and ds recomputed tile by tile, one owner per sum", run_tiles_backward, FP32, 0, {0}, width_fits, 0},
    {"train_gpt_style.c", "what the trainer uses: strips, products by gemm.h",
     ON_CPU(run_gpt_backward), FP32, CPU_ONLY, {0}, ON_CPU(gpt_fits), 0},
};

#define TEST_SHAPES "1x1x16 2x9x5 2x7x16 1x33x32 2x70x64 1x128x16"
#define CPU_SHAPES "8x128x64 4x512x64"
#define GPU_SHAPES "96x256x64 96x1024x64 24x2048x64"
static const operation operations[] = {
    {"attention_forward", "o_i = softmax_j(q_i . k_j / sqrt(d)) v_j, causal", "heads tokens d", forward_problem,
     forward_reference, VARIANTS(forward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"attention_backward", "dq, dk, dv from do, with lse of the forward pass", "heads tokens d", backward_problem,
     backward_reference, VARIANTS(backward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
