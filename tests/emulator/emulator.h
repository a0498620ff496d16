// CUDA C++ on a CPU, for tests: what device.cuh and the benchmark's clusters.cuh promise, as calls into emulator.cpp.
// Kernels see nothing else.
//
// Every CUDA thread is a fiber on one OS thread, so runs repeat from their seed; emulator.cpp says how they take turns.
// NVIDIA's cuda_fp16.h and cuda_bf16.h compile as they are, so half arithmetic is bit-true.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace emulator {
struct Place {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
enum class Numbers { f16, bf16, tf32 };
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes;
};
extern "C" {
extern Place* emulator_place;  // of the running thread
void emulator_barrier(int id, int threads);
void emulator_warp_barrier();
void emulator_exchange(const void* mine, void* theirs, int bytes, int lane);  // without order of memory
void emulator_mma(const unsigned* a, const unsigned* b, float* d, Numbers numbers);
void* emulator_shared_dynamic();
void* emulator_shared_static(const void* key, size_t bytes);
unsigned emulator_load_acquire(const unsigned* word);
void emulator_add_release(unsigned* word, unsigned value);
void emulator_pause();
void emulator_copy_issue(void* to, const void* from, int bytes);
void emulator_copy_commit();
const Copy* emulator_copy_landed(int groups, int* count);  // those that a wait for all but `groups` groups ends
int emulator_lane();
unsigned emulator_cluster_rank();
unsigned emulator_cluster_size();
void emulator_cluster_arrive();
void emulator_cluster_wait();
unsigned emulator_map_shared(const void* shared, unsigned rank);
void* emulator_shared_of(unsigned address);
void emulator_mbarrier_init(unsigned long long* barrier, unsigned count);
void emulator_mbarrier_arrive(unsigned long long* barrier);
bool emulator_mbarrier_ended(unsigned long long* barrier, unsigned parity);
}

// Calls a kernel with the arguments at these addresses, as cuLaunchKernel does.
template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
}
template <class... A>
void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}
// A letter for each argument: p a pointer, i an int, f a float, ? anything else.
template <class... A>
const char* signature(void (*)(A...)) {
    static const char letters[] = {(std::is_pointer_v<A>                ? 'p'
                                    : std::is_same_v<A, int>   ? 'i'
                                    : std::is_same_v<A, float> ? 'f'
                                                               : '?')...,
                                   0};
    return letters;
}
}  // namespace emulator

#define threadIdx (emulator::emulator_place->thread)
#define blockIdx (emulator::emulator_place->block)
#define blockDim (emulator::emulator_place->block_size)
#define gridDim (emulator::emulator_place->grid_size)

#define SHARED_ARRAY(T, name, count)      \
    static const char name##_key = 0;     \
    T* const name = static_cast<T*>(emulator::emulator_shared_static(&name##_key, sizeof(T) * (count)))
#define SHARED_DYNAMIC(name) unsigned char* const name = static_cast<unsigned char*>(emulator::emulator_shared_dynamic())

constexpr int WARP = 32;
using std::exp;
using std::log;
using std::max;
using std::min;
using std::sqrt;
using std::tanh;

inline void block_barrier() { emulator::emulator_barrier(0, 0); }
inline void warp_barrier() { emulator::emulator_warp_barrier(); }
inline void named_barrier(int id, int threads) { emulator::emulator_barrier(id, threads); }

template <class V>
inline V shuffle(V value, int lane) {
    V theirs;
    emulator::emulator_exchange(&value, &theirs, sizeof(V), lane & 31);
    return theirs;
}
template <class V>
inline V shuffle_xor(V value, int mask) {
    return shuffle(value, emulator::emulator_lane() ^ mask);
}

inline unsigned load_acquire(const unsigned* word) { return emulator::emulator_load_acquire(word); }
inline void add_release(unsigned* word, unsigned value) { emulator::emulator_add_release(word, value); }
inline void pause() { emulator::emulator_pause(); }
template <class V>
inline V load_global_cg(const V* from) {
    return *from;
}

template <int BYTES>
inline void copy_async(void* shared, const void* global) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "the sizes of cp.async");
    emulator::emulator_copy_issue(shared, global, BYTES);
}
inline void copy_async_commit() { emulator::emulator_copy_commit(); }
template <int GROUPS>
inline void copy_async_wait() {  // the copy is made here, in code that sanitizers watch
    int count = 0;
    const emulator::Copy* landed = emulator::emulator_copy_landed(GROUPS, &count);
    for (int i = 0; i < count; ++i)
        for (int byte = 0; byte < landed[i].bytes; ++byte) landed[i].to[byte] = landed[i].from[byte];
}

inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulator::emulator_mma(a, b, d, emulator::Numbers::f16);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulator::emulator_mma(a, b, d, emulator::Numbers::bf16);
}
inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulator::emulator_mma(a, b, d, emulator::Numbers::tf32);
}
inline void keep_in_register(unsigned&) {}
inline float as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned as_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline unsigned to_tf32(float value) {  // half a unit of the last of 10 bits, then cut: to nearest, ties away from zero
    return std::isfinite(value) ? (as_bits(value) + 0x1000u) & ~0x1fffu : as_bits(value);
}

inline unsigned cluster_rank() { return emulator::emulator_cluster_rank(); }
inline unsigned cluster_size() { return emulator::emulator_cluster_size(); }
inline void cluster_barrier_arrive() { emulator::emulator_cluster_arrive(); }
inline void cluster_barrier_wait() { emulator::emulator_cluster_wait(); }
inline unsigned map_shared(const void* shared, unsigned rank) { return emulator::emulator_map_shared(shared, rank); }
inline void store_remote(unsigned address, unsigned value) {
    *static_cast<unsigned*>(emulator::emulator_shared_of(address)) = value;
}
inline unsigned load_remote(unsigned address) { return *static_cast<unsigned*>(emulator::emulator_shared_of(address)); }
inline void mbarrier_init(unsigned long long* barrier, unsigned count) {
    emulator::emulator_mbarrier_init(barrier, count);
}
inline void mbarrier_arrive_remote(unsigned address) {
    emulator::emulator_mbarrier_arrive(static_cast<unsigned long long*>(emulator::emulator_shared_of(address)));
}
inline bool mbarrier_ended(unsigned long long* barrier, unsigned parity) {
    return emulator::emulator_mbarrier_ended(barrier, parity);
}
