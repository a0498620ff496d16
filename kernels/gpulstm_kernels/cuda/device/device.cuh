// All that kernels ask of the machine they run on: the one file that knows a GPU from the emulator in the tests.
//
// On a GPU these are instructions (PTX ISA 9.0); under GPULSTM_EMULATOR calls into the emulator, which gives the same
// results and reports what a GPU leaves undefined. Fragments of mma are in the layouts of the PTX ISA, section 9.7.14;
// lane = 4·g + q below:
//   A (16 x k): a[0] row g, a[1] row g+8, low half of k; a[2], a[3] the same rows, high half of k
//   B (k x 8):  b[0] column g, low half of k; b[1] its high half        within a half of k, lane q has the q-th pair of
//   D (16 x 8): d[0], d[1] row g, columns 2q and 2q+1; d[2], d[3] row g+8        16-bit values, or the q-th tf32
#pragma once
#ifdef GPULSTM_EMULATOR
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define SHARED_ARRAY(T, name, count) __shared__ T name[count]
#define SHARED_DYNAMIC(name)                                 \
    extern __shared__ __align__(16) unsigned char name##_[]; \
    unsigned char* const name = name##_

constexpr int WARP = 32;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define GPULSTM_AMPERE 1
#else
#define GPULSTM_AMPERE 0
#endif

__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Barriers. Each orders memory among the threads that it waits for.
__device__ __forceinline__ void block_barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }
// `id` from 1 to 15, `threads` a multiple of 32.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Values of other lanes; all 32 lanes take part.
template <class V>
__device__ __forceinline__ V shuffle(V value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}
template <class V>
__device__ __forceinline__ V shuffle_xor(V value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Words that blocks signal each other with.
__device__ __forceinline__ unsigned load_acquire(const unsigned* word) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}
__device__ __forceinline__ void add_release(unsigned* word, unsigned value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
__device__ __forceinline__ void pause() { __nanosleep(20); }

// Reads what other blocks wrote during this kernel: past the L1 cache, which is not kept coherent. 4, 8 or 16 bytes.
template <class V>
__device__ __forceinline__ V load_global_cg(const V* from) {
    return __ldcg(from);
}

// Copies global memory to shared memory behind the thread's back; done after commit and wait<groups still under way>.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "the sizes of cp.async");
#if GPULSTM_AMPERE
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(BYTES)
                 : "memory");
#else
    if (BYTES == 4) *static_cast<unsigned*>(shared) = *static_cast<const unsigned*>(global);
    if (BYTES == 8) *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
    if (BYTES == 16) *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}
__device__ __forceinline__ void copy_async_commit() {
#if GPULSTM_AMPERE
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int GROUPS>
__device__ __forceinline__ void copy_async_wait() {
#if GPULSTM_AMPERE
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

// Tensor cores: d += a·b, sums in float. A warp takes part as one.
__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if GPULSTM_AMPERE
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // Turing: half of k at a time
#pragma unroll
    for (int k = 0; k < 2; ++k)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
}
// The next two are for compute capability 8.0 and above: the host launches them nowhere else.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if GPULSTM_AMPERE
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if GPULSTM_AMPERE
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}
// A float rounded to the nearest TF32 (10 bits of mantissa), ties away from zero.
__device__ __forceinline__ unsigned to_tf32(float value) {
#if GPULSTM_AMPERE
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    return rounded;
#else
    return __float_as_uint(value);
#endif
}
// Makes the compiler keep a value in its register, instead of computing it again where it is used.
__device__ __forceinline__ void keep_in_register(unsigned& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ float as_float(unsigned bits) { return __uint_as_float(bits); }
__device__ __forceinline__ unsigned as_bits(float value) { return __float_as_uint(value); }
#endif

// A barrier among `blocks` blocks that are all resident and share the word `counter`, zero before the launch. Every
// thread of each calls it; `passed` counts the barriers behind the caller. What any of them wrote before is seen by
// all of them after: block_barrier hands the writes of a block to its first thread, whose release and acquire are
// cumulative.
__device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned blocks, unsigned& passed) {
    ++passed;
    block_barrier();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        add_release(counter, 1);
        while (load_acquire(counter) < passed * blocks) pause();
    }
    block_barrier();
}
