// rng.h -- random numbers as functions of (seed, stream, counter): no state, any order, any number of threads.
//
//     #include "common/rng.h"
//
//     rng_fill_uniform(w, n, -bound, bound, seed, rng_stream(RNG_PARAMETERS, tensor));       // host, initial weights
//     const uint64_t key = rng_permute_key(seed, epoch);                                     // then, in a kernel:
//     const uint32_t sample = rng_permute(i, n, key);                   // sample at position i of this epoch's order
//     const int keep = rng_uniform_at(seed, rng_stream(RNG_AUGMENTATION, step), i) >= p;
//
// Header-only; C11, C++17 and CUDA. Functions marked RNG_FN can also be called in kernels. A run that is resumed needs
// only the seed and the numbers of its step and epoch.
//
// The generator is Philox4x32-10 of J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011: ten rounds of multiply and xor turn a 128-bit counter under a 64-bit key into 128 random bits.
//
// Contents
//     rng_philox(seed, stream, counter, out)   the four 32-bit words at `counter` of a stream. The streams of a seed do
//                                              not overlap. cuRAND: curand_init(seed, stream, 4 * counter), curand4().
//     rng_stream(purpose, index)               the stream of a purpose (enum below) and an index: a tensor, a step, ...
//     rng_word_at(seed, stream, i)             word i of a stream: word i % 4 at counter i / 4
//
//     rng_uniform(word)                        float in [0, 1), a multiple of 2^-24
//     rng_uniform_open0(word)                  float in (0, 1], likewise; safe to take a logarithm of
//     rng_sign(word)                           +1 or -1
//     rng_uniform_range(word, lo, hi)          float from lo to hi, the element of rng_fill_uniform
//     rng_below(word, n)                       integer in [0, n), n >= 1; probabilities are off by less than n / 2^32
//     rng_normal(word0, word1, out)            two independent standard normal floats, |z| <= 6.67
//
//     rng_uniform_at(seed, stream, i)          rng_uniform of word i
//     rng_normal_at(seed, stream, i)           element i of the normal numbers of a stream
//     rng_fill_uniform(out, n, lo, hi, seed, stream)      host: out[i] = lo + (hi - lo) * rng_uniform_at(.., i)
//     rng_fill_normal(out, n, mean, std, seed, stream)    host: out[i] = mean + std * rng_normal_at(.., i)
//
//     rng_permute_key(seed, epoch)             the key of an epoch's permutation
//     rng_permute(i, n, key)                   element i of a random permutation of 0 .. n - 1; no state, no sorting
//
// Which results are the same where: words, uniform numbers, integers, permutations and rng_fill_uniform are equal bit
// for bit on every device, compiler and thread count. Normal numbers go through log, sin and cos; these are taken in
// double and rounded to float, so two math libraries that differ in the last bit of a double give another float about
// once in 10^8 numbers. Where even that matters, fill on the host and copy (initial weights are made this way).
//
// rng_fill_uniform: the result is rounded to float, so hi itself can come out unless lo = 0, hi = 1.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define RNG_FN __host__ __device__ static inline
#else
#define RNG_FN static inline
#endif

// What a stream is for, the upper half of its number. Two uses of random numbers never share (purpose, index).
enum {
    RNG_PARAMETERS = 0,    // initial values; index: number of the tensor
    RNG_PERMUTATION = 1,   // order of the samples; rng_permute_key
    RNG_AUGMENTATION = 2,  // crops, flips, noise, dropout; index: the step or epoch
    RNG_SAMPLING = 3,      // drawing tokens or batches with replacement; index: the step
    RNG_TEST = 4,          // inputs of tests and benchmarks
    RNG_KERNEL = 5         // signs and labels drawn for the diagonal of the tangent kernel; index: the step
};

// ---------------------------------------------------------------------------------------------------------------------
// Philox4x32-10

// Four random words: the counter's halves and the stream's halves are the counter of Philox, the seed is its key.
RNG_FN void rng_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// The stream of a purpose and an index.
RNG_FN uint64_t rng_stream(uint32_t purpose, uint32_t index) {
    return (uint64_t)purpose << 32 | index;
}

// w[i], i < 4. Choices instead of an index keep w in registers.
RNG_FN uint32_t rng_word_of(const uint32_t w[4], uint32_t i) {
    const uint32_t low = i & 1 ? w[1] : w[0];
    const uint32_t high = i & 1 ? w[3] : w[2];
    return i & 2 ? high : low;
}

// Word i of a stream.
RNG_FN uint32_t rng_word_at(uint64_t seed, uint64_t stream, uint64_t i) {
    uint32_t w[4];
    rng_philox(seed, stream, i / 4, w);
    return rng_word_of(w, (uint32_t)(i % 4));
}

// ---------------------------------------------------------------------------------------------------------------------
// Distributions

// Float in [0, 1): the upper 24 bits, as many as a float holds.
RNG_FN float rng_uniform(uint32_t word) {
    return (float)(word >> 8) * (1.0f / 16777216.0f);
}

// Float in (0, 1].
RNG_FN float rng_uniform_open0(uint32_t word) {
    return (float)((word >> 8) + 1) * (1.0f / 16777216.0f);
}

// +1 or -1.
RNG_FN float rng_sign(uint32_t word) {
    return word & 1 ? 1.0f : -1.0f;
}

// Integer in [0, n).
RNG_FN uint32_t rng_below(uint32_t word, uint32_t n) {
    return (uint32_t)(((uint64_t)word * n) >> 32);
}

// Two standard normal numbers by Box and Muller's transform, in double: radius sqrt(-2 log u) with u in (0, 1] of 32
// bits, angle 2 pi v.
RNG_FN void rng_normal(uint32_t word0, uint32_t word1, float out[2]) {
    const double u = ((double)word0 + 1.0) * (1.0 / 4294967296.0);
    const double angle = (double)word1 * (6.283185307179586477 / 4294967296.0);
    const double radius = sqrt(-2.0 * log(u));
    out[0] = (float)(radius * cos(angle));
    out[1] = (float)(radius * sin(angle));
}

RNG_FN float rng_uniform_at(uint64_t seed, uint64_t stream, uint64_t i) {
    return rng_uniform(rng_word_at(seed, stream, i));
}

// Elements 4c .. 4c + 3 come from the words at counter c: a pair from the first two words, a pair from the others.
RNG_FN float rng_normal_at(uint64_t seed, uint64_t stream, uint64_t i) {
    uint32_t w[4];
    float z[2];
    rng_philox(seed, stream, i / 4, w);
    const uint32_t word0 = i & 2 ? w[2] : w[0];
    const uint32_t word1 = i & 2 ? w[3] : w[1];
    rng_normal(word0, word1, z);
    return i & 1 ? z[1] : z[0];
}

// shift + scale * x, rounded once to double and once to float: the product of two floats is exact in double, so that it
// makes no difference whether the compiler fuses the multiplication and the addition.
RNG_FN float rng_affine(float x, float shift, float scale) {
    return (float)((double)shift + (double)scale * (double)x);
}

// lo + (hi - lo) * rng_uniform(word), the same bits everywhere.
RNG_FN float rng_uniform_range(uint32_t word, float lo, float hi) {
    return rng_affine(rng_uniform(word), lo, (float)((double)hi - (double)lo));
}

// Runs rng_fill_*'s loop over the blocks of four elements on all threads where the file is compiled with OpenMP.
#ifdef _OPENMP
#define RNG_PARALLEL_FOR _Pragma("omp parallel for schedule(static) if (n > 16384)")
#else
#define RNG_PARALLEL_FOR
#endif

// Host: n uniform numbers from lo to hi.
static inline void rng_fill_uniform(float *out, size_t n, float lo, float hi, uint64_t seed, uint64_t stream) {
    const int64_t blocks = (int64_t)(n / 4);
    uint32_t last[4];
    RNG_PARALLEL_FOR
    for (int64_t b = 0; b < blocks; b++) {
        uint32_t w[4];
        rng_philox(seed, stream, (uint64_t)b, w);
        for (int j = 0; j < 4; j++) out[4 * b + j] = rng_uniform_range(w[j], lo, hi);
    }
    if (n % 4) rng_philox(seed, stream, (uint64_t)blocks, last);
    for (size_t j = 0; j < n % 4; j++) out[n - n % 4 + j] = rng_uniform_range(last[j], lo, hi);
}

// Host: n normal numbers.
static inline void rng_fill_normal(float *out, size_t n, float mean, float std, uint64_t seed, uint64_t stream) {
    const int64_t blocks = (int64_t)(n / 4 + (n % 4 != 0));
    RNG_PARALLEL_FOR
    for (int64_t b = 0; b < blocks; b++) {
        const size_t first = (size_t)b * 4, count = n - first < 4 ? n - first : 4;
        uint32_t w[4];
        float z[4];
        rng_philox(seed, stream, (uint64_t)b, w);
        rng_normal(w[0], w[1], z);
        rng_normal(w[2], w[3], z + 2);
        for (size_t j = 0; j < count; j++) out[first + j] = rng_affine(z[j], mean, std);
    }
}
#undef RNG_PARALLEL_FOR

// ---------------------------------------------------------------------------------------------------------------------
// Permutation

// A bijection of 32-bit words whose every output bit depends on every input bit.
RNG_FN uint32_t rng_mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    return x ^ x >> 16;
}

// The key of the order of an epoch.
RNG_FN uint64_t rng_permute_key(uint64_t seed, uint64_t epoch) {
    uint32_t w[4];
    rng_philox(seed, rng_stream(RNG_PERMUTATION, 0), epoch, w);
    return (uint64_t)w[1] << 32 | w[0];
}

// Up to n = RNG_PERMUTE_EXACT every permutation is equally likely (a shuffle is traced, n / 4 calls of Philox). Beyond,
// a Feistel network over the next power of two gives a bijection, and values >= n are sent through it again (less than
// two passes on average). Measured over 2 * 10^5 keys: with 6 rounds the numbers of fixed points and of 2-cycles are
// off by 5 and 3 standard deviations at n = 512; smaller n are worse, hence the exact shuffle. With 8 rounds and
// n = 257 .. 1024 these, single positions, pairs and neighbours are those of a true shuffle. 10 leave a margin.
#define RNG_PERMUTE_EXACT 256
#define RNG_PERMUTE_ROUNDS 10

// rng_permute for small n: where a Fisher-Yates shuffle of 0 .. n - 1 leaves its element i, found by undoing its swaps
// (j, k <= j) from the last, j = 1, to the first, j = n - 1.
RNG_FN uint32_t rng_permute_small(uint32_t i, uint32_t n, uint64_t key) {
    uint32_t w[4] = {0, 0, 0, 0};
    for (uint32_t j = 0; j < n; j++) {
        if (j % 4 == 0) rng_philox(key, rng_stream(RNG_PERMUTATION, 1), j / 4, w);
        const uint32_t k = rng_below(rng_word_of(w, j % 4), j + 1);
        if (i == j) i = k;
        else if (i == k) i = j;
    }
    return i;
}

// Element i of the permutation of 0 .. n - 1 that belongs to the key. Distinct i < n give distinct results < n. An
// i >= n is returned as it is.
RNG_FN uint32_t rng_permute(uint32_t i, uint32_t n, uint64_t key) {
    if (i >= n) return i;
    if (n <= RNG_PERMUTE_EXACT) return rng_permute_small(i, n, key);
    int bits = 0;
    while ((uint64_t)(n - 1) >> bits) bits++;  // n <= 2^bits
    const int low_bits = bits / 2;
    const uint32_t low_mask = (1u << low_bits) - 1, high_mask = (1u << (bits - low_bits)) - 1;
    const uint32_t k0 = rng_mix((uint32_t)key ^ rng_mix((uint32_t)(key >> 32) + 0x9E3779B9u));
    const uint32_t k1 = rng_mix((uint32_t)(key >> 32) ^ rng_mix(k0 + 0x9E3779B9u));
    do {
        uint32_t low = i & low_mask, high = i >> low_bits, ka = k0, kb = k1;
        for (int round = 0; round < RNG_PERMUTE_ROUNDS; round += 2) {
            high ^= rng_mix(low + ka) & high_mask;
            low ^= rng_mix(high + kb) & low_mask;
            ka += 0x9E3779B9u;
            kb += 0xBB67AE85u;
        }
        i = high << low_bits | low;
    } while (i >= n);
    return i;
}
