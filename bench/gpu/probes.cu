// What a GPU's own costs are, apart from any LSTM: launches, barriers among blocks, and shared memory of other blocks.
//
// empty: nothing. barriers: `count` grid barriers, all blocks of the grid resident; each block checks that every other
// arrived. cluster_barriers: the same in clusters of SIZE blocks. ring: `count` times each block of a cluster writes a
// word to the next one's shared memory and waits for the cluster; `sums` gets what arrived. chase: one thread follows
// `count` loads, each of whose address depends on the last, through another block's shared memory.
#include "clusters.cuh"

__global__ void empty() {}

// seen (blocks): how often a block found, after a barrier, that another had not written before it.
__global__ void barriers(unsigned* counter, unsigned* marks, unsigned* seen, int count) {
    unsigned passed = 0, wrong = 0;
    for (int i = 1; i <= count; ++i) {
        if (threadIdx.x == 0) marks[blockIdx.x] = static_cast<unsigned>(i);
        grid_barrier(counter, gridDim.x, passed);
        if (threadIdx.x == 0)
            wrong += load_acquire(marks + (blockIdx.x + static_cast<unsigned>(i)) % gridDim.x) < static_cast<unsigned>(i);
    }
    if (threadIdx.x == 0) seen[blockIdx.x] = wrong;
}

#if GPULSTM_HOPPER && !defined(GPULSTM_EMULATOR)
template <int SIZE>
__global__ void __cluster_dims__(SIZE, 1, 1) cluster_barriers(int count) {
    for (int i = 0; i < count; ++i) {
        cluster_barrier_arrive();
        cluster_barrier_wait();
    }
}

template <int SIZE>
__global__ void __cluster_dims__(SIZE, 1, 1) ring(unsigned* sums, int count) {
    SHARED_ARRAY(unsigned, word, 2);
    const unsigned rank = cluster_rank();
    unsigned sum = 0;
    cluster_barrier_arrive();
    cluster_barrier_wait();
    for (int i = 0; i < count; ++i) {
        if (threadIdx.x == 0) store_remote(map_shared(word + i % 2, (rank + 1) % SIZE), rank + static_cast<unsigned>(i));
        cluster_barrier_arrive();
        cluster_barrier_wait();
        sum += word[i % 2];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    cluster_barrier_arrive();  // no block may end while another can still write to its memory
    cluster_barrier_wait();
}

template <int SIZE>
__global__ void __cluster_dims__(SIZE, 1, 1) chase(unsigned* end, int count) {
    SHARED_ARRAY(unsigned, next, 32);
    if (threadIdx.x < 32) next[threadIdx.x] = map_shared(next + (threadIdx.x + 7) % 32, (cluster_rank() + 1) % SIZE);
    cluster_barrier_arrive();
    cluster_barrier_wait();
    if (threadIdx.x == 0) {
        unsigned address = next[0];
        for (int i = 0; i < count; ++i) address = load_remote(address);
        end[blockIdx.x] = address;
    }
    cluster_barrier_arrive();
    cluster_barrier_wait();
}
#endif
