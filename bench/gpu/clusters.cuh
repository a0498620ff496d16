// What device.cuh does for one block, for clusters of blocks (compute capability 9.0 and above): barriers among them, and
// each other's shared memory. No walk uses it yet; probes.cu measures it, and tests/cuda/clusters.cu tests it.
#pragma once
#include "device.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define GPULSTM_HOPPER 1
#else
#define GPULSTM_HOPPER 0
#endif

#if GPULSTM_HOPPER && !defined(GPULSTM_EMULATOR)  // the emulator has its own
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
__device__ __forceinline__ void cluster_barrier_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_barrier_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The address of `shared` in the block of `rank`, for store_remote, load_remote and mbarrier_arrive_remote.
__device__ __forceinline__ unsigned map_shared(const void* shared, unsigned rank) {
    unsigned address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
    return address;
}
__device__ __forceinline__ void store_remote(unsigned address, unsigned value) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned load_remote(unsigned address) {
    unsigned value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}
// A barrier in shared memory that threads of the whole cluster arrive at; a phase ends after `count` arrivals.
__device__ __forceinline__ void mbarrier_init(unsigned long long* barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_remote(unsigned address) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
__device__ __forceinline__ bool mbarrier_ended(unsigned long long* barrier, unsigned parity) {
    unsigned ended;
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return ended != 0;
}
#endif
