// cuda_common.h -- what every .cu file includes first: the CUDA runtime, error checks, reductions.
//
// The same source is compiled three ways:
//     nvcc                       real CUDA
//     cu2cpp.sh + a C++ compiler the CPU build; cuda_cpu.h comes in front and plays the part of CUDA (CUDA_CPU defined)
//     a plain C11 or C++ file    only ceil_div, device_describe, device_threads and the two macros below are defined
//
//     HAVE_CUDA_API              1 where kernels and cuda*() calls can be used (the first two), else 0
//     DEVICE_IS_GPU              1 under nvcc, else 0. For what a CPU cannot run or should do another way; keep such
//                                places few, and give both ways the same result.
//
//     int ceil_div(a, b)         a / b rounded up, for a >= 0 and b > 0; the number of blocks of b that cover a
//     CUDA_CHECK(call)           runs a cuda*() call; on an error prints file:line, the call and the error, exits 1
//     CUDA_CHECK_LAUNCH()        after a launch: CUDA_CHECK of its launch error. Kernels run asynchronously on a GPU,
//                                errors inside them show at the next synchronizing call.
//     device_synchronize()       waits for the device, CUDA_CHECKed
//     device_describe(buf, n)    writes "NVIDIA H200 (sm_90, 132 SMs, 139 GiB)" or "CPU, 2 threads (AMD EPYC 7763)"
//     device_require(program)    where there is no GPU that works, says so in one line and exits 1; first thing in main
//     device_threads()           CPU threads that kernels and loops use; 1 on a GPU
//
//     UNROLL                     before a loop of known length: unroll it wholly. On a CPU the loop over a block's
//                                threads can then be vectorised; on a GPU small arrays stay in registers.
//
// In kernels, for float and double:
//     warp_reduce_sum(v)         all 32 lanes of the warp call it, each gets the sum over the warp
//     warp_reduce_max(v)         likewise the maximum; a NaN loses against a number, as in fmaxf
//     block_reduce_sum(v)        all threads of the block call it, each gets the sum over the block. The block's size
//     block_reduce_max(v)        is a multiple of 32, in any shape. May be called again at once.
// Sums are added in one fixed order (a butterfly over the lanes, then one over the warps), the same on both devices.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define DEVICE_IS_GPU 1
#define HAVE_CUDA_API 1
#elif defined(CUDA_CPU)
#define DEVICE_IS_GPU 0
#define HAVE_CUDA_API 1
#else
#define DEVICE_IS_GPU 0
#define HAVE_CUDA_API 0
#endif

#if DEVICE_IS_GPU
#define UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

#if HAVE_CUDA_API
#define CUDA_COMMON_HOST_DEVICE __host__ __device__
#else
#define CUDA_COMMON_HOST_DEVICE
#endif

// Number of blocks of b that cover a.
CUDA_COMMON_HOST_DEVICE static inline int ceil_div(long long a, long long b) {
    return (int)((a + b - 1) / b);
}
#undef CUDA_COMMON_HOST_DEVICE

#include <stdio.h>
#include <string.h>
#if !DEVICE_IS_GPU
#ifdef _OPENMP
#include <omp.h>
#endif

// OpenMP's threads; 1 without it.
static inline int device_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// Describes the processor in one line; the model's name is left out where the system does not tell.
static inline void device_describe(char *buf, size_t n) {
    const int threads = device_threads();
    char model[256] = "", line[512];
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && !model[0] && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (colon && !strncmp(line, "model name", 10)) sscanf(colon + 1, " %255[^\n]", model);
    }
    if (f) fclose(f);
    const char *plural = threads == 1 ? "" : "s";
    if (model[0]) snprintf(buf, n, "CPU, %d thread%s (%.200s)", threads, plural, model);
    else snprintf(buf, n, "CPU, %d thread%s", threads, plural);
}
#endif

#if HAVE_CUDA_API
#include <float.h>
#include <math.h>
#include <stdlib.h>

#define CUDA_CHECK(call) cuda_check((call), __FILE__, __LINE__, #call)
#define CUDA_CHECK_LAUNCH() cuda_check(cudaGetLastError(), __FILE__, __LINE__, "kernel launch")

// Exits with a message if a call failed.
static inline void cuda_check(cudaError_t error, const char *file, int line, const char *call) {
    if (error == cudaSuccess) return;
    fflush(stdout);
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, call, cudaGetErrorString(error));
    exit(1);
}

// Waits until everything launched so far is done.
static inline void device_synchronize(void) {
    CUDA_CHECK(cudaDeviceSynchronize());
}

// Exits with one line that names the program where no device can be used: a GPU build on a machine without a GPU.
static inline void device_require(const char *program) {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaSuccess && devices > 0) return;
    fflush(stdout);
    fprintf(stderr, "%s: no GPU: build with DEVICE=cpu (%s)\n", program, cudaGetErrorString(error));
    exit(1);
}

#if DEVICE_IS_GPU
// Describes the current device in one line.
static inline void device_describe(char *buf, size_t n) {
    int device = 0;
    cudaDeviceProp prop;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaGetDeviceProperties(&prop, device));
    snprintf(buf, n, "%.100s (sm_%d%d, %d SMs, %.0f GiB)", prop.name, prop.major, prop.minor, prop.multiProcessorCount,
             (double)prop.totalGlobalMem / (1 << 30));
}

// The GPU is the one device.
static inline int device_threads(void) { return 1; }
#endif

// The reductions. On a GPU a butterfly of shuffles; on the CPU the runtime does the same additions in one step, since
// every shuffle costs it a switch per thread.
#if DEVICE_IS_GPU
#define CUDA_COMMON_WARP_REDUCE(name, T, COMBINE)                                                                    \
    __device__ static inline T name(T v) {                                                                           \
        for (int o = 16; o > 0; o >>= 1) {                                                                           \
            const T other = __shfl_xor_sync(0xffffffffu, v, o);                                                      \
            v = COMBINE;                                                                                             \
        }                                                                                                            \
        return v;                                                                                                    \
    }
#define CUDA_COMMON_BLOCK_REDUCE(name, warp_reduce, T, PAD)                                                          \
    __device__ static inline T name(T v) {                                                                           \
        __shared__ T part[32];                                                                                       \
        const int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x, lane = t % 32;            \
        const int warps = blockDim.x * blockDim.y * blockDim.z / 32;                                                 \
        v = warp_reduce(v);                                                                                          \
        if (lane == 0) part[t / 32] = v;                                                                             \
        __syncthreads();                                                                                             \
        v = warp_reduce(lane < warps ? part[lane] : (T)(PAD));                                                       \
        __syncthreads();                                                                                             \
        return v;                                                                                                    \
    }
CUDA_COMMON_WARP_REDUCE(warp_reduce_sum, float, v + other)
CUDA_COMMON_WARP_REDUCE(warp_reduce_sum, double, v + other)
CUDA_COMMON_WARP_REDUCE(warp_reduce_max, float, fmaxf(v, other))
CUDA_COMMON_WARP_REDUCE(warp_reduce_max, double, fmax(v, other))
CUDA_COMMON_BLOCK_REDUCE(block_reduce_sum, warp_reduce_sum, float, 0)
CUDA_COMMON_BLOCK_REDUCE(block_reduce_sum, warp_reduce_sum, double, 0)
CUDA_COMMON_BLOCK_REDUCE(block_reduce_max, warp_reduce_max, float, -INFINITY)
CUDA_COMMON_BLOCK_REDUCE(block_reduce_max, warp_reduce_max, double, -INFINITY)
#undef CUDA_COMMON_WARP_REDUCE
#undef CUDA_COMMON_BLOCK_REDUCE
#else
#define CUDA_COMMON_REDUCE(name, T, function)                                                                        \
    __device__ static inline T name(T v, int line = __builtin_LINE()) {                                              \
        return function(v, line);                                                                                    \
    }
CUDA_COMMON_REDUCE(warp_reduce_sum, float, (cuda_cpu::warp_reduce<float, cuda_cpu::Sum>))
CUDA_COMMON_REDUCE(warp_reduce_sum, double, (cuda_cpu::warp_reduce<double, cuda_cpu::Sum>))
CUDA_COMMON_REDUCE(warp_reduce_max, float, (cuda_cpu::warp_reduce<float, cuda_cpu::Max>))
CUDA_COMMON_REDUCE(warp_reduce_max, double, (cuda_cpu::warp_reduce<double, cuda_cpu::Max>))
CUDA_COMMON_REDUCE(block_reduce_sum, float, (cuda_cpu::block_reduce<float, cuda_cpu::Sum>))
CUDA_COMMON_REDUCE(block_reduce_sum, double, (cuda_cpu::block_reduce<double, cuda_cpu::Sum>))
CUDA_COMMON_REDUCE(block_reduce_max, float, (cuda_cpu::block_reduce<float, cuda_cpu::Max>))
CUDA_COMMON_REDUCE(block_reduce_max, double, (cuda_cpu::block_reduce<double, cuda_cpu::Max>))
#undef CUDA_COMMON_REDUCE
#endif
#endif  // HAVE_CUDA_API
