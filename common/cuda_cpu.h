// cuda_cpu.h -- runs a CUDA source on the CPU, for machines without a GPU.
//
// A .cu file keeps its real CUDA syntax. For the CPU build cu2cpp.sh rewrites the two constructs that C++ cannot parse
// (launches and dynamic shared memory) and puts this header in front; the result is compiled as C++17. Every kernel
// body really runs, thread by thread, and everything on the host side is synchronous.
//
//     sh common/cu2cpp.sh x.cu >x.cpp
//     g++ -std=c++17 -O3 -march=native -fopenmp -fno-math-errno -fno-trapping-math -fcf-protection=none -I. x.cpp
//
// The macro CUDA_CPU is defined; __CUDACC__ is not.
//
// How a grid runs. Blocks are split over OpenMP threads. The threads of a block run one after the other in a plain
// loop that the compiler inlines and vectorises. If a thread reaches a __syncthreads() or a warp intrinsic, the block
// switches to fibers: the thread keeps the stack it is on, every later thread gets a stack of its own, and the
// scheduler passes from one to the next whenever a thread has to wait. A missing or mismatched barrier, a shuffle from
// a lane that is not there and the like abort with the kernel, the block, the thread and the line.
//
// Kernels that are fast on both devices (dev/bench/bench_cuda_cpu.cu measures all of this)
//  1. Assign the coordinates to int first: `int i = blockIdx.x * blockDim.x + threadIdx.x;`. Index arithmetic on
//     unsigned numbers, also a later `blockIdx.y * cols + i`, does not vectorise.
//  2. One element per thread, neighbouring threads on neighbouring elements, __restrict__ on every pointer. Prefer
//     grid.y and grid.z to `/` and `%`.
//  3. Loops of a known length inside a thread are unrolled and vectorise across threads; loops of a variable length do
//     not. Column sums: every thread sums 16 rows of its column,
//         int c = blockIdx.x * blockDim.x + threadIdx.x, chunk = blockIdx.y, r0 = chunk * 16, last = rows - 1 - r0;
//         if (c >= cols) return;
//         for (int k = 0; k < 16; k++) s += (k <= last ? 1.0f : 0.0f) * (in + r0 * cols)[min(k, last) * cols + c];
//         out[chunk * cols + c] = s;
//     and the same kernel runs again on its result until one row is left. (With int offsets, so rows * cols < 2^31;
//     rows past the end count with weight 0, so an infinity in the last row becomes NaN.)
//  4. Rows shorter than about 100 elements: one thread per row. Longer ones: one warp per row, or one block per row of
//     `DEVICE_IS_GPU ? 256 : 32` threads, with warp_reduce_*() and block_reduce_*() of cuda_common.h, which cost one
//     switch per thread instead of five or ten.
//  5. The first barrier or warp intrinsic of a block costs about 50 ns per thread, each further one about 10. So blocks
//     that synchronise should be small here and do much work per thread. Matrix products belong to gemm.h.
//
// Rules for kernels that run on both
//  - No grid-wide barrier, no waiting for another block, no implicit warp synchrony; blocks a multiple of 32 threads
//    where warp intrinsics are used. Atomics on floats are reproducible with one thread only.
//  - Pass nullptr, not NULL or 0, for a pointer argument of a launch.
//  - Within a warp either all lanes go on to the next __syncthreads() or none: lanes may leave a kernel before its
//    first barrier, whole warps at any time.
//  - More than 48 KiB of dynamic shared memory must be asked for, kernel by kernel, with cudaFuncSetAttribute. A launch
//    with dynamic shared memory names all template arguments of its kernel.
//  - __nv_bfloat16 and __half are storage types here: only their conversions exist, no arithmetic. (On a GPU they need
//    cuda_bf16.h and cuda_fp16.h; common/mma.cuh includes them and has the tensor cores' instructions for both
//    devices.)
//
// Environment
//     OMP_NUM_THREADS            number of OS threads
//     CUDA_CPU_ORDER             forward (default), reverse or random[:SEED]: order of blocks and threads. Results must
//                                not depend on it; a missing barrier usually shows as a difference.
//     CUDA_CPU_SHARED_KIB=99     dynamic shared memory that a kernel may ask for (default 227; 99 is an RTX card's)
//     CUDA_CPU_DEVICES=0         behave like a machine without a GPU, for tests
//     OMP_WAIT_POLICY=passive    where other programs use the processors too: OpenMP's idle threads otherwise spin and
//                                a launch can take 10 ms. On an idle machine it takes 1 us without and 10 us with it.
//
// Macros for the build: CUDA_CPU_UCONTEXT uses swapcontext() instead of the assembly below (other processors than
// x86-64 and AArch64 always do). AddressSanitizer, UBSan and valgrind know about the fibers.
#pragma once
#define CUDA_CPU 1
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#if !(defined(__x86_64__) || defined(__aarch64__)) || defined(__ILP32__)
#define CUDA_CPU_UCONTEXT
#endif
#ifdef CUDA_CPU_UCONTEXT
#include <ucontext.h>
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0  // FreeBSD reserves nothing
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define CUDA_CPU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_CPU_ASAN 1
#endif
#endif
#ifdef CUDA_CPU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define VALGRIND_STACK_REGISTER(a, b) 0
#define RUNNING_ON_VALGRIND 0
#endif

// ------------------------------------------------------------------------------------------------------- language
#define __global__ inline __attribute__((always_inline))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __shared__ static thread_local  // one OS thread runs one block at a time
#define __constant__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

// The vector types with CUDA's alignments.
#define CUDA_CPU_VEC(T, name, align2, align4)                                                                        \
    struct alignas(align2) name##2 {                                                                                 \
        T x, y;                                                                                                      \
    };                                                                                                               \
    struct name##3 {                                                                                                 \
        T x, y, z;                                                                                                   \
    };                                                                                                               \
    struct alignas(align4) name##4 {                                                                                 \
        T x, y, z, w;                                                                                                \
    };                                                                                                               \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                       \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                               \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_CPU_VEC(signed char, char, 2, 4)
CUDA_CPU_VEC(unsigned char, uchar, 2, 4)
CUDA_CPU_VEC(short, short, 4, 8)
CUDA_CPU_VEC(unsigned short, ushort, 4, 8)
CUDA_CPU_VEC(int, int, 8, 16)
CUDA_CPU_VEC(unsigned, uint, 8, 16)
CUDA_CPU_VEC(long long, longlong, 16, 16)
CUDA_CPU_VEC(unsigned long long, ulonglong, 16, 16)
CUDA_CPU_VEC(float, float, 8, 16)
CUDA_CPU_VEC(double, double, 16, 16)
#undef CUDA_CPU_VEC

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// The coordinates are twelve scalars with internal linkage whose addresses nobody takes: so no store in a kernel can
// alias them and the compiler keeps them in registers through the thread loop. (As ordinary structs they fail: as soon
// as GCC merges stores to two neighbouring members, it takes the address.)
#define CUDA_CPU_COORD(Type, name, Result)                                                                           \
    namespace {                                                                                                      \
    struct Type {                                                                                                    \
        static inline thread_local unsigned x, y, z;                                                                 \
        operator Result() const { return {x, y, z}; }                                                                \
    };                                                                                                               \
    }                                                                                                                \
    [[maybe_unused]] static constexpr Type name{};
CUDA_CPU_COORD(ThreadIdx_, threadIdx, uint3)
CUDA_CPU_COORD(BlockIdx_, blockIdx, uint3)
CUDA_CPU_COORD(BlockDim_, blockDim, dim3)
CUDA_CPU_COORD(GridDim_, gridDim, dim3)
#undef CUDA_CPU_COORD
constexpr int warpSize = 32;

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidMemcpyDirection = 21,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
    cudaErrorNotSupported = 801
};
typedef struct CUstream_st *cudaStream_t;

namespace cuda_cpu {

constexpr int kMaxThreads = 1024;
constexpr int kMain = -1;  // the OS stack, after its own CUDA thread is done
#ifdef CUDA_CPU_ASAN
constexpr size_t kStack = 256 << 10;
#else
constexpr size_t kStack = 64 << 10;  // plus a guard page, so that the stack tops do not all fall on the same cache sets
#endif

// One kernel launch, seen from the scheduler.
struct Launch {
    const char *name;
    dim3 grid, block;
    size_t smem;
    void (*run_thread)(const void *args);
    const void *args;
};

enum WarpOp : uint8_t { kSyncWarp, kShuffle, kBallot, kReduce, kExchange };
static const char *const kWarpOpName[] = {"__syncwarp", "__shfl_*_sync", "__ballot_sync/__any_sync/__all_sync",
                                          "warp_reduce_*", "a matrix instruction"};
// What all 32 lanes do at once with the bit patterns v[32] they brought: a reduction leaves its result in v[0].
typedef void (*Tree)(uint64_t *v);

// What a lane brought to the warp intrinsic it waits in, and what it takes back.
struct Lane {
    uint32_t mask;
    int line;
    WarpOp op;
    int src;
    Tree tree;
    uint64_t in, out;
};
struct Warp {
    uint32_t alive, waiting, met;  // lanes; met: those that were at the last barrier, 0 before the first
    Lane lane[32];
};

// Per OS thread: the fibers of the block it is running.
struct Worker {
    int n, cur, first, alive, next;          // threads; running one; the one on the OS stack; not exited; to start
    unsigned ready_head, ready_n;            // ring of threads that can go on
    int bar_n, bar_line, bar_thread;         // threads waiting at the barrier; the first one's line and number
    const char *bar_name;                    // and which kind of barrier it is
    Tree bar_tree;                           // of a block reduction
    uint64_t bar_result, pad[32];            // its result; what stands in for absent warps
    uint16_t *ready, *bar;
    uint16_t list[2][kMaxThreads];
    uint16_t order[kMaxThreads];             // order in which threads start
    void *main_ctx;
    void *ctx[kMaxThreads];                  // suspended in a kernel
    void *idle[kMaxThreads];                 // parked between two threads
    uint64_t value[kMaxThreads];             // brought to a block reduction
    char *stacks, *stack[kMaxThreads];       // one mapping; the part of it that a thread's fiber has, once it has one
    Warp warp[kMaxThreads / 32];
};

[[maybe_unused]] static thread_local Worker *worker;       // created at the first synchronisation
[[maybe_unused]] static thread_local const Launch *launch;
[[maybe_unused]] static thread_local bool fibered;         // the current block has switched to fibers
[[maybe_unused]] static thread_local int loop_end;         // of the plain thread loop
[[maybe_unused]] static thread_local int position;         // of the running thread in order[] (not forward only)
[[maybe_unused]] static thread_local void *shared_memory;

// What `extern __shared__ T x[]` points to.
inline void *dynamic_shared() {
    return shared_memory;
}

// CUDA_CPU_ORDER, see the top.
struct Order {
    enum { kForward, kReverse, kRandom } kind = kForward;
    unsigned seed = 1;
    Order() {
        const char *s = getenv("CUDA_CPU_ORDER");
        if (!s || !*s || !strcmp(s, "forward")) return;
        if (!strcmp(s, "reverse")) {
            kind = kReverse;
        } else if (!strncmp(s, "random", 6) && (!s[6] || s[6] == ':')) {
            kind = kRandom;
            if (s[6]) seed = (unsigned)strtoul(s + 7, nullptr, 10) * 2 + 1;
        } else {
            fprintf(stderr, "CUDA_CPU_ORDER=%s: expected forward, reverse or random[:SEED]\n", s);
            exit(2);
        }
    }
};
static const Order order;

// ------------------------------------------------------------------------------------------------- context switch
// switch_stack(&save, to) keeps the running context in save and goes on with the context to.
#ifndef CUDA_CPU_UCONTEXT
extern "C" void cuda_cpu_switch(void **save, void *to);
#ifdef __ELF__
#define CUDA_CPU_BEGIN ".text\n.p2align 4\n.type cuda_cpu_switch,%function\ncuda_cpu_switch:\n"
#define CUDA_CPU_END ".size cuda_cpu_switch,.-cuda_cpu_switch\n"
#else  // macOS: names of C begin with _; no types and sizes
#define CUDA_CPU_BEGIN ".text\n.p2align 4\n_cuda_cpu_switch:\n"
#define CUDA_CPU_END ""
#endif
#ifdef __x86_64__
asm(CUDA_CPU_BEGIN
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n" CUDA_CPU_END);
constexpr int kFrame = 7, kReturn = 6;  // words on a switched-away stack, index of the return address
#else
asm(CUDA_CPU_BEGIN
    "sub sp,sp,#160\n stp x19,x20,[sp]\n stp x21,x22,[sp,#16]\n stp x23,x24,[sp,#32]\n stp x25,x26,[sp,#48]\n"
    "stp x27,x28,[sp,#64]\n stp x29,x30,[sp,#80]\n stp d8,d9,[sp,#96]\n stp d10,d11,[sp,#112]\n"
    "stp d12,d13,[sp,#128]\n stp d14,d15,[sp,#144]\n mov x9,sp\n str x9,[x0]\n mov sp,x1\n"
    "ldp x19,x20,[sp]\n ldp x21,x22,[sp,#16]\n ldp x23,x24,[sp,#32]\n ldp x25,x26,[sp,#48]\n ldp x27,x28,[sp,#64]\n"
    "ldp x29,x30,[sp,#80]\n ldp d8,d9,[sp,#96]\n ldp d10,d11,[sp,#112]\n ldp d12,d13,[sp,#128]\n"
    "ldp d14,d15,[sp,#144]\n add sp,sp,#160\n ret\n" CUDA_CPU_END);
constexpr int kFrame = 20, kReturn = 11;
#endif
inline void switch_stack(void **save, void *to) {
    cuda_cpu_switch(save, to);
}
// A context on the stack [base, base + size) that starts in entry. The stack tops are spread over the cache sets.
inline void *new_context(char *base, size_t size, int slot, void (*entry)()) {
    char *top = base + size - 4096 + (slot * 5 % 16) * 192;
    void **sp = (void **)top - 2 - kFrame - (kFrame & 1);  // keeps the ABI's 16 byte alignment at entry
    memset((void *)sp, 0, (size_t)(top - (char *)sp));
    sp[kReturn] = (void *)entry;
    return sp;
}
#else
static thread_local ucontext_t main_uc, *current_uc = nullptr;
inline void switch_stack(void **save, void *to) {
    ucontext_t *me = current_uc ? current_uc : &main_uc;
    *save = me;
    current_uc = (ucontext_t *)to;
    swapcontext(me, (ucontext_t *)to);
}
inline void *new_context(char *base, size_t size, int, void (*entry)()) {
    ucontext_t *uc = (ucontext_t *)(base + size - 4096);
    getcontext(uc);
    uc->uc_stack.ss_sp = base;
    uc->uc_stack.ss_size = size - 4096;
    uc->uc_link = nullptr;
    makecontext(uc, entry, 0);
    return uc;
}
#endif

// ------------------------------------------------------------------------------------------------------ scheduler
// Out of memory: one line and exit status 1. It is no fault of the kernel, and may come on any thread of a launch.
[[noreturn]] __attribute__((noinline, cold)) inline void no_memory() {
    fflush(stdout);
    if (launch) fprintf(stderr, "cuda_cpu: out of memory, kernel %s\n", launch->name);
    else fprintf(stderr, "cuda_cpu: out of memory\n");
    _exit(1);
}
inline const std::new_handler previous_new_handler = std::set_new_handler(no_memory);

// Reports where every waiting thread of the block stands, and aborts.
[[noreturn]] __attribute__((noinline, cold)) inline void die(const char *what, int line = 0) {
    fflush(stdout);
    fprintf(stderr, "\ncuda_cpu: kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", launch ? launch->name : "?",
            blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    if (line) fprintf(stderr, ", line %d", line);
    fprintf(stderr, ": %s\n", what);
    if (worker && fibered) {
        const Worker &w = *worker;
        if (w.bar_n)
            fprintf(stderr, "  %d of %d live threads wait in %s, line %d (first: thread %d)\n", w.bar_n, w.alive,
                    w.bar_name, w.bar_line, w.bar_thread);
        for (int i = 0; i < (w.n + 31) / 32; i++)
            for (uint32_t m = w.warp[i].waiting; m; m &= m - 1) {
                const int l = __builtin_ctz(m);
                const Lane &a = w.warp[i].lane[l];
                fprintf(stderr, "  thread %d (warp %d lane %d) waits in %s, line %d, mask 0x%08x, live lanes 0x%08x\n",
                        i * 32 + l, i, l, kWarpOpName[a.op], a.line, a.mask, w.warp[i].alive);
            }
    }
    fflush(stderr);
    abort();
}

inline void make_ready(Worker &w, int t) {
    w.ready[(w.ready_head + w.ready_n++) % kMaxThreads] = (uint16_t)t;
}

// Every live thread waits at the barrier or is the caller, so the ready ring is empty. A warp whose lanes have parted
// since the last barrier is a mistake: those that left the loop wait on a GPU for the others, which wait here.
inline void release_barrier(Worker &w) {
    for (int i = 0; i * 32 < w.n; i++) {
        Warp &p = w.warp[i];
        if (p.met && p.alive && p.alive != p.met)
            die("lanes of one warp go on to a barrier that others, which were at the last one, do not reach",
                w.bar_line);
        p.met = p.alive;
    }
    std::swap(w.ready, w.bar);
    w.ready_head = 0;
    w.ready_n = (unsigned)w.bar_n;
    w.bar_n = 0;
}

// If all live lanes of the mask have arrived: exchanges their values, makes them ready and returns true.
inline bool finish_group(Worker &w, int warp, uint32_t mask) {
    Warp &p = w.warp[warp];
    const uint32_t group = mask & p.alive;
    if ((p.waiting & group) != group) return false;
    const Lane &a = p.lane[__builtin_ctz(group)];
    uint64_t ballot = 0, v[32];
    for (uint32_t m = group; m; m &= m - 1) {
        const int l = __builtin_ctz(m);
        const Lane &b = p.lane[l];
        if (b.mask != a.mask || b.op != a.op || b.tree != a.tree)
            die("lanes of one warp meet in different warp intrinsics or masks", b.line);
        if (b.in) ballot |= m & -m;
        v[l] = b.in;
    }
    if (a.op == kReduce || a.op == kExchange) {
        if (group != ~0u)
            die(a.op == kReduce ? "warp_reduce_* needs all 32 lanes of the warp"
                                : "a matrix instruction needs all 32 lanes of the warp", a.line);
        a.tree(v);
        ballot = v[0];
    }
    for (uint32_t m = group; m; m &= m - 1) {
        const int l = __builtin_ctz(m), t = warp * 32 + l;
        Lane &b = p.lane[l];
        if (b.op == kShuffle && !(group >> b.src & 1))
            die("shuffle reads from a lane that exited, does not exist or is not in the mask", b.line);
        b.out = b.op == kShuffle ? p.lane[b.src].in : ballot;
        if (t != w.cur) make_ready(w, t);
    }
    p.waiting &= ~group;
    return true;
}

inline void fiber_main();

inline int thread_at(const Worker &w, int k) {
    return order.kind == Order::kForward ? k : w.order[k];
}

// Gives thread t a stack. Below it lies a page without access: an overflow is a segmentation fault.
__attribute__((noinline, cold)) inline void make_fiber(Worker &w, int t) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), stride = kStack + page;
    char *p = w.stacks + (size_t)t * stride;
    if (mprotect(p + page, kStack, PROT_READ | PROT_WRITE)) no_memory();
    w.stack[t] = p + page;
    (void)VALGRIND_STACK_REGISTER(w.stack[t], w.stack[t] + kStack);
    w.idle[t] = new_context(w.stack[t], kStack, t, fiber_main);
}

// The thread to go on with: one that is ready, else one that has not started, else the OS stack.
inline int pick_next(Worker &w) {
    if (w.ready_n) {
        const int t = w.ready[w.ready_head++ % kMaxThreads];
        w.ready_n--;
        return t;
    }
    if (w.next < w.n) {
        const int t = thread_at(w, w.next++);
        if (!w.stack[t]) make_fiber(w, t);
        w.ctx[t] = w.idle[t];
        return t;
    }
    if (w.alive) die("deadlock: no thread of the block can go on");
    return kMain;
}

// Keeps the running context in save and goes on with thread t.
inline void switch_to(Worker &w, void **save, int t) {
    w.cur = t;
#ifdef CUDA_CPU_ASAN
    static thread_local void *os_base;
    static thread_local size_t os_size;
    if (!os_base) {
#ifdef __APPLE__
        os_size = pthread_get_stacksize_np(pthread_self());
        os_base = (char *)pthread_get_stackaddr_np(pthread_self()) - os_size;
#else
        pthread_attr_t a;
        pthread_getattr_np(pthread_self(), &a);
        pthread_attr_getstack(&a, &os_base, &os_size);
        pthread_attr_destroy(&a);
#endif
    }
    void *fake;
    const bool os = t == kMain || t == w.first;
    void *const base = os ? os_base : w.stack[t];
    const size_t size = os ? os_size : kStack;
    __sanitizer_start_switch_fiber(&fake, base, size);
    switch_stack(save, t == kMain ? w.main_ctx : w.ctx[t]);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    switch_stack(save, t == kMain ? w.main_ctx : w.ctx[t]);
#endif
}

// The running thread has to wait: goes on with another one, returns when it is ready again.
inline void suspend(Worker &w) {
    const unsigned x = threadIdx.x, y = threadIdx.y, z = threadIdx.z;
    const int t = w.cur, next = pick_next(w);
    switch_to(w, &w.ctx[t], next);
    threadIdx.x = x;
    threadIdx.y = y;
    threadIdx.z = z;
}

// The number of the running thread in its block.
inline int linear_thread() {
    return (int)((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

inline void set_thread(int t) {
    const unsigned u = (unsigned)t;
    if (u < blockDim.x) {
        threadIdx.x = u;
        threadIdx.y = threadIdx.z = 0;
    } else {
        threadIdx.x = u % blockDim.x;
        threadIdx.y = u / blockDim.x % blockDim.y;
        threadIdx.z = u / blockDim.x / blockDim.y;
    }
}

// The running thread has left the kernel: it no longer holds up a barrier or its warp.
inline void exit_thread(Worker &w) {
    const int t = w.cur;
    Warp &p = w.warp[t / 32];
    p.alive &= ~(1u << t % 32);
    w.alive--;
    if (w.bar_n && w.bar_n == w.alive) {
        if (w.bar_tree) die("block_reduce_* needs all threads of the block, and one has exited", w.bar_line);
        release_barrier(w);
    }
    for (uint32_t m = p.waiting; m; m &= m - 1)
        if (p.waiting & m & -m) finish_group(w, t / 32, p.lane[__builtin_ctz(m)].mask);
}

// What a fiber does: runs thread after thread, one per block, parked in between.
inline void fiber_main() {
#ifdef CUDA_CPU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    for (;;) {
        Worker &w = *worker;
        const int t = w.cur;
        set_thread(t);
        launch->run_thread(launch->args);
        exit_thread(w);
        switch_to(w, &w.idle[t], pick_next(w));
    }
}

__attribute__((noinline, cold)) inline void make_worker() {
    const size_t stacks = kMaxThreads * (kStack + (size_t)sysconf(_SC_PAGESIZE));  // address space only, at first
    void *p = mmap(nullptr, sizeof(Worker), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *q = mmap(nullptr, stacks, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || q == MAP_FAILED) no_memory();
    worker = (Worker *)p;
    worker->stacks = (char *)q;
    worker->ready = worker->list[0];
    worker->bar = worker->list[1];
}

// Fills o with the numbers 0..n-1 in the order in which they run.
inline void start_order(uint16_t *o, int n, unsigned seed) {
    for (int i = 0; i < n; i++) o[i] = (uint16_t)(order.kind == Order::kReverse ? n - 1 - i : i);
    if (order.kind != Order::kRandom) return;
    for (int i = n - 1; i > 0; i--) {
        seed = seed * 1664525u + 1013904223u;
        std::swap(o[i], o[(seed >> 8) % (unsigned)(i + 1)]);
    }
}

// The first synchronisation in this block: the running thread becomes a fiber on the stack it is on.
__attribute__((noinline)) inline void begin_fibers() {
    if (!worker) make_worker();
    Worker &w = *worker;
    w.n = (int)(blockDim.x * blockDim.y * blockDim.z);
    w.cur = w.first = linear_thread();
    const int k = order.kind == Order::kForward ? w.cur : position;  // threads before the k-th have exited
    w.next = k + 1;
    w.alive = w.n - k;
    w.ready_n = w.ready_head = 0;
    w.bar_n = 0;
    for (int i = 0; i * 32 < w.n; i++) {
        w.warp[i].waiting = 0;
        w.warp[i].met = 0;
        w.warp[i].alive = w.n - i * 32 >= 32 ? ~0u : (1u << w.n % 32) - 1;
    }
    for (int i = 0; i < k; i++) w.warp[thread_at(w, i) / 32].alive &= ~(1u << thread_at(w, i) % 32);
    fibered = true;
    loop_end = INT32_MIN;
}

// On the OS stack, whose own thread is done: lets the others finish.
__attribute__((noinline)) inline void end_fibers() {
    Worker &w = *worker;
    exit_thread(w);
    if (w.alive) switch_to(w, &w.main_ctx, pick_next(w));
    fibered = false;
}

// Reduces what the n threads brought: each warp, then the warps, as block_reduce_* does it on a GPU.
inline uint64_t block_tree(Worker &w) {
    uint64_t part[32], v[32];
    const int warps = w.n / 32;
    for (int i = 0; i < warps; i++) {
        memcpy(v, w.value + i * 32, sizeof v);
        w.bar_tree(v);
        part[i] = v[0];
    }
    for (int i = warps; i < 32; i++) part[i] = w.pad[i];
    w.bar_tree(part);
    return part[0];
}

// A barrier of the block. With a tree: also reduces the value the threads bring; all get the result.
__attribute__((noinline)) inline uint64_t sync_block(const char *name, int line, Tree tree = nullptr,
                                                     uint64_t value = 0, uint64_t pad = 0) {
    if (!fibered) begin_fibers();
    Worker &w = *worker;
    if (!w.bar_n) {
        w.bar_line = line;
        w.bar_name = name;
        w.bar_thread = w.cur;
        w.bar_tree = tree;
        if (tree) std::fill(w.pad, w.pad + 32, pad);
    } else if (w.bar_line != line || w.bar_tree != tree) {
        die("reached this barrier while other threads wait in another one", line);
    }
    if (tree) {
        if (w.alive != w.n || w.n % 32) die("block_reduce_* needs all threads of the block, a multiple of 32", line);
        w.value[w.cur] = value;
    }
    if (w.bar_n + 1 == w.alive) {
        if (tree) w.bar_result = block_tree(w);
        release_barrier(w);
    } else {
        w.bar[w.bar_n++] = (uint16_t)w.cur;
        suspend(w);
    }
    return w.bar_result;
}

// A warp intrinsic: waits for the other lanes of the mask, returns what the exchange gives this lane.
__attribute__((noinline)) inline uint64_t sync_warp(WarpOp op, uint32_t mask, int line, uint64_t in, int src,
                                                    Tree tree = nullptr) {
    if (!fibered) begin_fibers();
    Worker &w = *worker;
    const int t = w.cur, lane = t % 32;
    Warp &p = w.warp[t / 32];
    if (!(mask >> lane & 1)) die("warp intrinsic called by a lane that is not in its mask", line);
    p.lane[lane] = {mask, line, op, src, tree, in, 0};
    p.waiting |= 1u << lane;
    if (!finish_group(w, t / 32, mask)) suspend(w);
    return p.lane[lane].out;
}

template <class T> uint64_t to_bits(T v) {
    static_assert(sizeof(T) <= 8, "warp intrinsics exchange at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    return bits;
}
template <class T> T from_bits(uint64_t bits) {
    T v;
    memcpy((void *)&v, &bits, sizeof v);
    return v;
}
inline int lane_id() {
    return linear_thread() % 32;
}
template <class T> T shuffle(uint32_t mask, T v, int src, int line) {
    return from_bits<T>(sync_warp(kShuffle, mask, line, to_bits(v), src));
}

// For the instructions of mma.cuh, which a warp executes as one: f gets the addresses of what every lane brought, in
// lane order, while all lanes stand still; it may read and write all of it.
inline void warp_exchange(Tree f, void *mine, int line) {
    sync_warp(kExchange, ~0u, line, (uint64_t)(uintptr_t)mine, 0, f);
}

// Reductions for cuda_common.h: the same operations in the same order as a butterfly of 5 shuffles, in one step.
template <class T> struct Sum {
    static T combine(T a, T b) { return a + b; }
    static T identity() { return 0; }
};
template <class T> struct Max {
    static T combine(T a, T b) { return b == b && !(a > b) ? b : a; }
    static T identity() { return -(T)INFINITY; }
};
template <class T, template <class> class Op> void reduce_tree(uint64_t *bits) {
    T v[32];
    for (int i = 0; i < 32; i++) v[i] = from_bits<T>(bits[i]);
    for (int o = 16; o > 0; o /= 2)
        for (int i = 0; i < o; i++) v[i] = Op<T>::combine(v[i], v[i + o]);
    bits[0] = to_bits(v[0]);
}
template <class T, template <class> class Op> T warp_reduce(T v, int line) {
    return from_bits<T>(sync_warp(kReduce, ~0u, line, to_bits(v), 0, reduce_tree<T, Op>));
}
template <class T, template <class> class Op> T block_reduce(T v, int line) {
    const uint64_t pad = to_bits(Op<T>::identity());
    return from_bits<T>(sync_block("block_reduce_*", line, reduce_tree<T, Op>, to_bits(v), pad));
}

// --------------------------------------------------------------------------------------------------------- launch
#if defined(__GNUC__) && !defined(__clang__)
#define CUDA_CPU_LOOP _Pragma("GCC ivdep")  // CUDA threads between two barriers are independent of each other
#else
#define CUDA_CPU_LOOP
#endif

// Sets blockIdx to the b-th block.
inline void set_block(int64_t b, dim3 grid) {
    blockIdx.x = (unsigned)(b % grid.x);
    blockIdx.y = (unsigned)(b / grid.x % grid.y);
    blockIdx.z = (unsigned)(b / grid.x / grid.y);
}

// Moves blockIdx on by one block; cheaper than the divisions above.
inline void next_block(dim3 grid) {
    if (++blockIdx.x < grid.x) return;
    blockIdx.x = 0;
    if (++blockIdx.y < grid.y) return;
    blockIdx.y = 0;
    blockIdx.z++;
}

// Runs the threads of the current block in the order CUDA_CPU_ORDER asks for.
__attribute__((noinline)) inline void run_block_in_order(const Launch &l, int64_t b) {
    if (!worker) make_worker();
    const int n = (int)(l.block.x * l.block.y * l.block.z);
    start_order(worker->order, n, order.seed + (unsigned)b * 7919u);
    for (int k = 0; k < n && !fibered; k++) {
        set_thread(worker->order[k]);
        position = k;
        l.run_thread(l.args);
    }
    if (fibered) end_fibers();
}

// Runs the blocks b0 <= b < b1 of a launch on this OS thread; f(a...) is one CUDA thread.
template <class F, class... A>
__attribute__((noinline)) void run_blocks(const Launch &l, F f, int64_t b0, int64_t b1, A... a) {
    if (b0 == b1) return;
    blockDim.x = l.block.x;
    blockDim.y = l.block.y;
    blockDim.z = l.block.z;
    gridDim.x = l.grid.x;
    gridDim.y = l.grid.y;
    gridDim.z = l.grid.z;
    launch = &l;
    void *smem = nullptr;
    if (l.smem && posix_memalign(&smem, 128, l.smem)) no_memory();
    shared_memory = smem;
    if (order.kind == Order::kForward) {
        set_block(b0, l.grid);
        for (int64_t b = b0; b < b1; b++) {
            if (l.smem) memset(smem, 0xff, l.smem);  // NaN: shared memory starts undefined
            for (unsigned z = 0; z < l.block.z && !fibered; z++)
                for (unsigned y = 0; y < l.block.y && !fibered; y++) {
                    threadIdx.z = z;
                    threadIdx.y = y;
                    // g is blockIdx.x*blockDim.x + threadIdx.x: with it as the loop variable the compiler can split
                    // the loop at a guard `if (i < n)` and vectorise without masks. begin_fibers() ends the loop.
                    const int base = (int)(blockIdx.x * blockDim.x);
                    loop_end = base + (int)l.block.x;
                    CUDA_CPU_LOOP
                    for (int g = base; g < loop_end; g++) {
                        threadIdx.x = (unsigned)g - (unsigned)base;
                        f(a...);
                    }
                }
            if (fibered) end_fibers();
            next_block(l.grid);
        }
    } else {
        const int64_t nb = (int64_t)l.grid.x * l.grid.y * l.grid.z;
        for (int64_t b = b0; b < b1; b++) {
            set_block(nb - 1 - b, l.grid);
            if (l.smem) memset(smem, 0xff, l.smem);
            run_block_in_order(l, nb - 1 - b);
        }
    }
    free(smem);
}

inline cudaError_t last_error = cudaSuccess;

// Dynamic shared memory that kernels have asked for with cudaFuncSetAttribute, by the kernel's address.
inline std::map<uintptr_t, int> shared_limits;
inline std::mutex shared_limits_mutex;
template <class K> uintptr_t address_of(K *kernel) {
    return reinterpret_cast<uintptr_t>(kernel);
}
// The bytes that a launch of the kernel may use.
inline size_t shared_limit(uintptr_t kernel) {
    std::lock_guard<std::mutex> lock(shared_limits_mutex);
    const auto it = shared_limits.find(kernel);
    return it == shared_limits.end() || it->second < 48 << 10 ? (size_t)48 << 10 : (size_t)it->second;
}
// The environment variable `name`, a whole number from 0 to `most`; `otherwise` where it is not set.
inline int environment_number(const char *name, int most, int otherwise) {
    const char *s = getenv(name);
    if (!s || !*s) return otherwise;
    char *end;
    const long v = strtol(s, &end, 10);
    if (*end || v < 0 || v > most) {
        fprintf(stderr, "%s=%s: expected a whole number from 0 to %d\n", name, s, most);
        exit(2);
    }
    return (int)v;
}
// The most that a kernel may ask for, in bytes.
inline int shared_most() {
    static const int bytes = environment_number("CUDA_CPU_SHARED_KIB", 227, 227) << 10;
    return bytes;
}
inline bool has_device() {
    static const int devices = environment_number("CUDA_CPU_DEVICES", 1, 1);
    return devices > 0;
}

// What LAUNCH makes of kernel<<<grid, block, smem, stream>>>; calling it with the arguments runs the grid.
template <class F> struct Launcher {
    F f;
    const char *name;
    uintptr_t kernel;
    dim3 grid, block;
    size_t smem;
    template <class... A> void operator()(A... a) const {
        const uint64_t n = (uint64_t)block.x * block.y * block.z, nb = (uint64_t)grid.x * grid.y * grid.z;
        if (!n || n > kMaxThreads || block.z > 64 || !nb || grid.y > 65535 || grid.z > 65535 ||
            (uint64_t)grid.x * block.x > INT32_MAX) {
            last_error = cudaErrorInvalidConfiguration;
            return;
        }
        if (smem > shared_limit(kernel)) {
            last_error = cudaErrorInvalidValue;
            return;
        }
        using Args = std::tuple<F, A...>;
        const Args args(f, a...);
        const auto run_thread = [](const void *p) {
            std::apply([](const F &g, auto... b) { g(b...); }, *(const Args *)p);
        };
        const Launch l{name, grid, block, smem, run_thread, &args};
#ifdef _OPENMP
        if (nb > 1 && omp_get_max_threads() > 1) {
#pragma omp parallel
            {
                const int64_t t = omp_get_num_threads(), i = omp_get_thread_num();
                const int64_t b0 = (int64_t)nb * i / t, b1 = (int64_t)nb * (i + 1) / t;
                std::apply([&](F g, auto... b) { run_blocks(l, g, b0, b1, b...); }, args);
            }
            return;
        }
#endif
        run_blocks(l, f, 0, (int64_t)nb, a...);
    }
};
template <class F>
Launcher<F> launcher(const char *name, F f, uintptr_t kernel, dim3 grid, dim3 block, size_t smem = 0,
                     cudaStream_t = nullptr) {
    return {f, name, kernel, grid, block, smem};
}
}  // namespace cuda_cpu

// A launch without dynamic shared memory does not need the kernel's address, so its template arguments may be deduced.
#define CUDA_CPU_LAUNCH(kernel, address, ...)                                                                        \
    cuda_cpu::launcher(#kernel, [](auto... a_) __attribute__((always_inline)) { kernel(a_...); }, address, __VA_ARGS__)
#define CUDA_CPU_PLAIN(kernel, ...) CUDA_CPU_LAUNCH(kernel, 0, __VA_ARGS__)
#define CUDA_CPU_SHARED(kernel, ...) CUDA_CPU_LAUNCH(kernel, cuda_cpu::address_of(kernel), __VA_ARGS__)
#define CUDA_CPU_PICK(a, b, c, d, e, f, g, h, pick, ...) pick
#define LAUNCH(kernel, ...)                                                                                          \
    CUDA_CPU_PICK(__VA_ARGS__, CUDA_CPU_SHARED, CUDA_CPU_SHARED, CUDA_CPU_SHARED, CUDA_CPU_SHARED, CUDA_CPU_SHARED,  \
                  CUDA_CPU_SHARED, CUDA_CPU_PLAIN, CUDA_CPU_PLAIN, )(kernel, __VA_ARGS__)

// ----------------------------------------------------------------------------------------- device-side intrinsics
// The line number is a default argument, so that messages can say where a thread waits.
inline void __syncthreads(int line = __builtin_LINE()) {
    cuda_cpu::sync_block("__syncthreads", line);
}
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    cuda_cpu::sync_warp(cuda_cpu::kSyncWarp, mask, line, 0, 0);
}
template <class T> T __shfl_sync(unsigned mask, T v, int src, int width = 32, int line = __builtin_LINE()) {
    const int l = cuda_cpu::lane_id();
    return cuda_cpu::shuffle(mask, v, (l & ~(width - 1)) + (src & (width - 1)), line);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned d, int width = 32, int line = __builtin_LINE()) {
    const int l = cuda_cpu::lane_id();
    return cuda_cpu::shuffle(mask, v, (l & (width - 1)) >= (int)d ? l - (int)d : l, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32, int line = __builtin_LINE()) {
    const int l = cuda_cpu::lane_id();
    return cuda_cpu::shuffle(mask, v, (l & (width - 1)) + (int)d < width ? l + (int)d : l, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int x, int width = 32, int line = __builtin_LINE()) {
    const int l = cuda_cpu::lane_id(), s = l ^ x;
    return cuda_cpu::shuffle(mask, v, s < (l & ~(width - 1)) + width ? s : l, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, int line = __builtin_LINE()) {
    return (unsigned)cuda_cpu::sync_warp(cuda_cpu::kBallot, mask, line, p != 0, 0);
}
inline int __any_sync(unsigned mask, int p, int line = __builtin_LINE()) {
    return __ballot_sync(mask, p, line) != 0;
}
inline int __all_sync(unsigned mask, int p, int line = __builtin_LINE()) {
    return __ballot_sync(mask, !p, line) == 0;
}

namespace cuda_cpu {
// Replaces *p by f(*p) atomically and returns the old value.
template <class T, class F> T atomic_update(T *p, F f) {
    T old, now;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do {
        now = f(old);
    } while (!__atomic_compare_exchange(p, &old, &now, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    return old;
}
template <class T> using Same = std::common_type_t<T>;  // lets the second argument convert to the type of the first
}  // namespace cuda_cpu
#define CUDA_CPU_ATOMIC(name, expression)                                                                            \
    template <class T> T name(T *p, cuda_cpu::Same<T> v) {                                                           \
        return cuda_cpu::atomic_update(p, [=](T old) { return (T)(expression); });                                   \
    }
CUDA_CPU_ATOMIC(atomicAdd, old + v)
CUDA_CPU_ATOMIC(atomicSub, old - v)
CUDA_CPU_ATOMIC(atomicMax, old < v ? v : old)
CUDA_CPU_ATOMIC(atomicMin, v < old ? v : old)
CUDA_CPU_ATOMIC(atomicAnd, old & v)
CUDA_CPU_ATOMIC(atomicOr, old | v)
CUDA_CPU_ATOMIC(atomicXor, old ^ v)
CUDA_CPU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
CUDA_CPU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef CUDA_CPU_ATOMIC
template <class T> T atomicExch(T *p, cuda_cpu::Same<T> v) {
    return cuda_cpu::atomic_update(p, [&](T) { return v; });
}
template <class T> T atomicCAS(T *p, cuda_cpu::Same<T> compare, cuda_cpu::Same<T> v) {
    return cuda_cpu::atomic_update(p, [=](T old) { return old == compare ? v : old; });
}
inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// min, max for mixed types, as in CUDA: two integers or two floating-point numbers.
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    static_assert(std::is_integral_v<A> == std::is_integral_v<B>, "ambiguous in CUDA: convert one argument");
    const std::common_type_t<A, B> x = a, y = b;
    return y < x ? y : x;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    static_assert(std::is_integral_v<A> == std::is_integral_v<B>, "ambiguous in CUDA: convert one argument");
    const std::common_type_t<A, B> x = a, y = b;
    return x < y ? y : x;
}
// libm's fmaxf and the like are calls, which stops vectorisation. Same result: a NaN loses against a number. Two
// selections in this form become two instructions; a condition with || becomes jumps, 40 times slower on random data.
namespace cuda_cpu {
template <class T> T max_num(T a, T b) {
    const T m = a > b ? a : b;
    return b == b ? m : a;
}
template <class T> T min_num(T a, T b) {
    const T m = a < b ? a : b;
    return b == b ? m : a;
}
}  // namespace cuda_cpu
#define fmaxf(a, b) cuda_cpu::max_num<float>(a, b)
#define fminf(a, b) cuda_cpu::min_num<float>(a, b)
#define fmax(a, b) cuda_cpu::max_num<double>(a, b)
#define fmin(a, b) cuda_cpu::min_num<double>(a, b)
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }

// Conversions: rn to nearest even, rz towards zero, ru up, rd down. Out-of-range values are not clamped as on a GPU.
inline int __float2int_rn(float x) { return (int)lrintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline int __float2int_ru(float x) { return (int)ceilf(x); }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline unsigned __float2uint_rn(float x) { return (unsigned)llrintf(x); }
inline unsigned __float2uint_rz(float x) { return (unsigned)x; }
inline long long __float2ll_rn(float x) { return llrintf(x); }
inline int __double2int_rn(double x) { return (int)lrint(x); }
inline int __double2int_rz(double x) { return (int)x; }
inline long long __double2ll_rn(double x) { return llrint(x); }
inline float __double2float_rn(double x) { return (float)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __ll2float_rn(long long x) { return (float)x; }
inline double __int2double_rn(int x) { return x; }
inline double __ll2double_rn(long long x) { return (double)x; }

// Bits.
inline float __uint_as_float(unsigned u) { return cuda_cpu::from_bits<float>(u); }
inline unsigned __float_as_uint(float f) { return (unsigned)cuda_cpu::to_bits(f); }
inline float __int_as_float(int i) { return cuda_cpu::from_bits<float>((unsigned)i); }
inline int __float_as_int(float f) { return (int)cuda_cpu::to_bits(f); }
inline double __longlong_as_double(long long i) { return cuda_cpu::from_bits<double>((uint64_t)i); }
inline long long __double_as_longlong(double d) { return (long long)cuda_cpu::to_bits(d); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    // From the products of the halves, for processors of 32 bits have no number of 128.
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), rest = a0 * b1 + (uint32_t)middle;
    return a1 * b1 + (middle >> 32) + (rest >> 32);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
template <class T> T __ldg(const T *p) { return *p; }

// 16-bit floating-point numbers, for storage: kernels convert to float, compute and convert back. Rounding is to
// nearest, ties to even, with subnormals; too large becomes infinity, a NaN the positive NaN with all fraction bits
// set, as on a GPU.
struct __nv_bfloat16 {
    unsigned short bits_;
};
struct __half {
    unsigned short bits_;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
    __half x, y;
};
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits_; }
inline unsigned short __half_as_ushort(__half h) { return h.bits_; }
inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float((unsigned)h.bits_ << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    const unsigned u = __float_as_uint(f), rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
    return {(unsigned short)((u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded)};
}
// Below 2^-14 a half is a multiple of 2^-24, which is what adding 0.5f rounds to. 65520 and above rounds to infinity.
inline __half __float2half_rn(float f) {
    const unsigned u = __float_as_uint(f), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    const unsigned normal = (a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13;
    const unsigned small = __float_as_uint(__uint_as_float(a) + 0.5f) - 0x3f000000u;
    unsigned finite = 0x7c00u;
    if (a < 0x38800000u) finite = small;
    else if (a < 0x47800000u) finite = normal;
    return {(unsigned short)(a > 0x7f800000u ? 0x7fffu : sign | finite)};
}
inline float __half2float(__half h) {
    const unsigned a = h.bits_ & 0x7fffu, sign = (h.bits_ & 0x8000u) << 16;
    const float finite = __uint_as_float(a << 13) * __uint_as_float(0x77800000u);  // 2^112 moves the exponent's bias
    return __uint_as_float(sign | (a < 0x7c00u ? __float_as_uint(finite) : 0x7f800000u | a << 13));
}
inline __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }
inline __half __float2half(float f) { return __float2half_rn(f); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 h) { return {__bfloat162float(h.x), __bfloat162float(h.y)}; }
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
inline long long clock64() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
}

// ---------------------------------------------------------------------------------------------------- runtime API
// Everything is synchronous. "Device" memory is host memory, but allocations are known by address range, so that a
// copy in the wrong direction or past the end is an error as it would be on the GPU.
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2, cudaHostAllocWriteCombined = 4 };
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
typedef struct CUevent_st {
    std::chrono::steady_clock::time_point time;
} *cudaEvent_t;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, maxThreadsPerBlock, maxThreadsPerMultiProcessor, warpSize, l2CacheSize;
};
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
    void *devicePointer, *hostPointer;
};

namespace cuda_cpu {
struct Allocation {
    size_t size;
    cudaMemoryType type;
};
inline std::map<uintptr_t, Allocation> allocations;  // from cudaMalloc and cudaMallocHost
inline std::mutex allocations_mutex;

// The kind of memory that holds all of [p, p + n); unregistered where no single allocation does. A number,
// not a pointer: compilers would warn of memory that nothing was written to.
inline cudaMemoryType memory_type(uintptr_t p, size_t n) {
    std::lock_guard<std::mutex> lock(allocations_mutex);
    auto it = allocations.upper_bound(p);
    if (it == allocations.begin()) return cudaMemoryTypeUnregistered;
    --it;
    return p + n <= it->first + it->second.size ? it->second.type : cudaMemoryTypeUnregistered;
}
inline bool on_device(const void *p, size_t n) {
    return memory_type((uintptr_t)p, n) == cudaMemoryTypeDevice;
}
inline cudaError_t result(bool ok, cudaError_t error = cudaErrorInvalidValue) {
    return ok ? cudaSuccess : (last_error = error);
}
inline cudaError_t allocate(void **p, size_t n, cudaMemoryType type) {
    *p = nullptr;
    if (!has_device()) return result(false, cudaErrorNoDevice);
    if (!n) return cudaSuccess;
    if (posix_memalign(p, 256, n)) {
        *p = nullptr;
        return result(false, cudaErrorMemoryAllocation);
    }
    if (type == cudaMemoryTypeDevice && !RUNNING_ON_VALGRIND) memset(*p, 0xff, n);  // NaN, so that a use shows
    std::lock_guard<std::mutex> lock(allocations_mutex);
    allocations[(uintptr_t)*p] = {n, type};
    return cudaSuccess;
}
inline cudaError_t release(void *p, cudaMemoryType type) {
    if (!p) return cudaSuccess;
    std::lock_guard<std::mutex> lock(allocations_mutex);
    const auto it = allocations.find((uintptr_t)p);
    if (it == allocations.end() || it->second.type != type) return result(false);
    allocations.erase(it);
    free(p);
    return cudaSuccess;
}
// Whether a copy of n bytes may read from (reading) or write to p, if kind says that p is on the device.
inline bool side_ok(const void *p, size_t n, bool device) {
    return device ? on_device(p, n) : !on_device(p, 1);
}
inline int threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
}  // namespace cuda_cpu

inline const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidMemcpyDirection: return "invalid copy direction for memcpy";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorNotSupported: return "operation not supported";
    }
    return "unrecognized error code";
}
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_cpu::last_error, cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return cuda_cpu::last_error; }

// Devices.
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaDeviceReset() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int d) { return cuda_cpu::result(d == 0, cudaErrorInvalidDevice); }
inline cudaError_t cudaGetDevice(int *d) {
    *d = 0;
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int *n) {
    *n = cuda_cpu::has_device();
    return cuda_cpu::result(*n > 0, cudaErrorNoDevice);
}
inline cudaError_t cudaDriverGetVersion(int *v) {
    *v = 0;
    return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int *v) {
    *v = 0;
    return cudaSuccess;
}
// Free and total memory of the machine.
inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    *total = page * (size_t)sysconf(_SC_PHYS_PAGES);
#ifdef _SC_AVPHYS_PAGES
    *available = page * (size_t)sysconf(_SC_AVPHYS_PAGES);
#else
    *available = *total;  // macOS does not tell
#endif
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d) {
    size_t available;
    memset((void *)p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "CPU");
    cudaMemGetInfo(&available, &p->totalGlobalMem);
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = (size_t)cuda_cpu::shared_most();
    p->maxThreadsPerBlock = cuda_cpu::kMaxThreads;
    p->maxThreadsPerMultiProcessor = 2048;
    p->warpSize = 32;
    p->multiProcessorCount = cuda_cpu::threads();
    return cuda_cpu::result(d == 0, cudaErrorInvalidDevice);
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int d) {
    cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, d);
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    default: *value = 0;
    }
    return e;
}
template <class K> cudaError_t cudaFuncSetAttribute(K *kernel, cudaFuncAttribute a, int v) {
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (v < 0 || v > cuda_cpu::shared_most()) return cuda_cpu::result(false);
    std::lock_guard<std::mutex> lock(cuda_cpu::shared_limits_mutex);
    cuda_cpu::shared_limits[cuda_cpu::address_of(kernel)] = v;
    return cudaSuccess;
}

// Memory.
template <class T> cudaError_t cudaMalloc(T **p, size_t n) {
    return cuda_cpu::allocate((void **)p, n, cudaMemoryTypeDevice);
}
template <class T> cudaError_t cudaMallocAsync(T **p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
template <class T> cudaError_t cudaMallocHost(T **p, size_t n) {
    return cuda_cpu::allocate((void **)p, n, cudaMemoryTypeHost);
}
template <class T> cudaError_t cudaHostAlloc(T **p, size_t n, unsigned) { return cudaMallocHost(p, n); }
inline cudaError_t cudaFree(void *p) { return cuda_cpu::release(p, cudaMemoryTypeDevice); }
inline cudaError_t cudaFreeAsync(void *p, cudaStream_t) { return cudaFree(p); }
inline cudaError_t cudaFreeHost(void *p) { return cuda_cpu::release(p, cudaMemoryTypeHost); }
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
    a->type = cuda_cpu::memory_type((uintptr_t)p, 1);
    a->device = a->type == cudaMemoryTypeDevice ? 0 : -1;
    a->devicePointer = a->type == cudaMemoryTypeUnregistered ? nullptr : (void *)p;
    a->hostPointer = a->type == cudaMemoryTypeDevice ? nullptr : (void *)p;
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, cudaMemcpyKind k) {
    if (!n) return cudaSuccess;
    if (k == cudaMemcpyDefault) {
        if ((cuda_cpu::on_device(dst, 1) && !cuda_cpu::on_device(dst, n)) ||
            (cuda_cpu::on_device(src, 1) && !cuda_cpu::on_device(src, n)))
            return cuda_cpu::result(false);
    } else if (!cuda_cpu::side_ok(dst, n, k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice) ||
               !cuda_cpu::side_ok(src, n, k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice)) {
        return cuda_cpu::result(false);
    }
    memmove(dst, src, n);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind k, cudaStream_t = nullptr) {
    return cudaMemcpy(dst, src, n, k);
}
inline cudaError_t cudaMemset(void *p, int v, size_t n) {
    if (n && !cuda_cpu::on_device(p, n)) return cuda_cpu::result(false);
    if (n) memset(p, v, n);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t = nullptr) { return cudaMemset(p, v, n); }
template <class T> cudaError_t cudaMemcpyToSymbol(T &symbol, const void *src, size_t n, size_t offset = 0) {
    if (offset > sizeof symbol || n > sizeof symbol - offset) return cuda_cpu::result(false);
    memcpy((char *)&symbol + offset, src, n);
    return cudaSuccess;
}
template <class T> cudaError_t cudaMemcpyFromSymbol(void *dst, const T &symbol, size_t n, size_t offset = 0) {
    if (offset > sizeof symbol || n > sizeof symbol - offset) return cuda_cpu::result(false);
    memcpy(dst, (const char *)&symbol + offset, n);
    return cudaSuccess;
}

// Streams and events.
inline cudaError_t cudaStreamCreate(cudaStream_t *s) {
    *s = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return cudaStreamCreate(s); }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned = 0) { return cudaSuccess; }
inline cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = new CUevent_st;
    return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t = nullptr) {
    e->time = std::chrono::steady_clock::now();
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    *ms = std::chrono::duration<float, std::milli>(b->time - a->time).count();
    return cudaSuccess;
}
