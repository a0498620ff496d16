// What clusters.cuh promises, compute capability 9.0 and above: see primitives.cu.
#include "../../bench/gpu/clusters.cuh"

// Every block hands its number on to the next of its cluster, `rounds` times, through that block's shared memory.
__global__ void ring_of_cluster(const float* x, float* y, int rounds) {
    SHARED_ARRAY(unsigned, inbox, 2);
    const unsigned next = (cluster_rank() + 1) % cluster_size();
    float own = x[blockIdx.x];
    for (int i = 0; i < rounds; ++i) {
        if (threadIdx.x == 0) store_remote(map_shared(inbox + i % 2, next), as_bits(own));
        cluster_barrier_arrive();
        cluster_barrier_wait();
        own = as_float(inbox[i % 2]);
    }
    if (threadIdx.x == 0) y[blockIdx.x] = own + 0 * as_float(load_remote(map_shared(inbox, cluster_rank())));
    cluster_barrier_arrive();  // no block may end while others read its memory
    cluster_barrier_wait();
}

// Every block of a cluster gives its number to all, which add them up with weights; by mbarriers, `rounds` times. A
// buffer is written again once all have sent what they made of it.
__global__ void sums_by_mbarrier(const float* x, float* y, int rounds) {
    constexpr int MOST = 8;
    SHARED_ARRAY(unsigned, inbox, 2 * MOST);
    SHARED_ARRAY(unsigned long long, filled, 2);
    const unsigned size = cluster_size();
    if (threadIdx.x < 2) mbarrier_init(filled + threadIdx.x, size);
    cluster_barrier_arrive();
    cluster_barrier_wait();
    float own = x[blockIdx.x];
    for (int i = 0; i < rounds; ++i) {
        const int half = i % 2;
        block_barrier();
        if (threadIdx.x < size) {
            store_remote(map_shared(inbox + half * MOST + cluster_rank(), threadIdx.x), as_bits(own));
            mbarrier_arrive_remote(map_shared(filled + half, threadIdx.x));
        }
        while (!mbarrier_ended(filled + half, i / 2 % 2)) pause();
        own = 0;
        for (unsigned j = 0; j < size; ++j) own += static_cast<float>(j + 1) * as_float(inbox[half * MOST + j]);
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = own;
    cluster_barrier_arrive();
    cluster_barrier_wait();
}
