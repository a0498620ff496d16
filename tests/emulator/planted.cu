// Kernels with bugs on purpose: with BUG each has the one its name says, without it is right. test_planted_bugs.py says
// which lane must catch which.
#include "numeric.cuh"

// y = x reversed, through shared memory. 64 threads.
template <bool BUG>
__global__ void missing_block_barrier(const float* x, float* y) {
    SHARED_ARRAY(float, shared, 64);
    shared[threadIdx.x] = x[threadIdx.x];
    if (!BUG) block_barrier();
    y[threadIdx.x] = shared[63 - threadIdx.x];
}

// The second barrier is missing: a fast thread overwrites what a slow one has yet to read. 64 threads.
template <bool BUG>
__global__ void missing_barrier_before_reuse(const float* x, float* y) {
    SHARED_ARRAY(float, shared, 64);
    float sum = 0;
    for (int i = 0; i < 2; ++i) {
        shared[threadIdx.x] = x[threadIdx.x];
        block_barrier();
        sum += shared[63 - threadIdx.x];
        if (!BUG) block_barrier();
    }
    y[threadIdx.x] = sum / 2;
}

// 32 threads.
template <bool BUG>
__global__ void missing_warp_barrier(const float* x, float* y) {
    SHARED_ARRAY(float, shared, 32);
    shared[threadIdx.x] = x[threadIdx.x];
    if (!BUG) warp_barrier();
    y[threadIdx.x] = shared[31 - threadIdx.x];
}

// 64 threads.
template <bool BUG>
__global__ void missing_copy_wait(const float* x, float* y) {
    SHARED_ARRAY(float, shared, 64);
    copy_async<4>(shared + threadIdx.x, x + threadIdx.x);
    copy_async_commit();
    if (!BUG) copy_async_wait<0>();
    block_barrier();
    y[threadIdx.x] = shared[63 - threadIdx.x];
}

// 64 threads, and 64 floats of dynamic shared memory.
template <bool BUG>
__global__ void outside_shared_memory(const float* x, float* y) {
    SHARED_DYNAMIC(bytes);
    float* const shared = reinterpret_cast<float*>(bytes);
    shared[threadIdx.x + (BUG && threadIdx.x == 63 ? 1 : 0)] = x[threadIdx.x];
    block_barrier();
    y[threadIdx.x] = shared[threadIdx.x];
}

// x and y of 64 floats.
template <bool BUG>
__global__ void outside_global_memory(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x + (BUG ? 1 : 0)];
}

// x of 64 floats, a multiple of 16 bytes.
template <bool BUG>
__global__ void misaligned_access(const float* x, float* y) {
    float value[4];
    load<4>(x + (BUG && threadIdx.x ? 4 * threadIdx.x - 2 : 4 * threadIdx.x), value);
    for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = value[i];
}

// 64 threads.
template <bool BUG>
__global__ void divergent_barrier(const float* x, float* y) {
    if (!BUG || threadIdx.x < 63) block_barrier();
    y[threadIdx.x] = x[threadIdx.x];
}

// 64 threads: two groups of 32, one of which counts on 64.
template <bool BUG>
__global__ void uneven_named_barrier(const float* x, float* y) {
    named_barrier(1 + static_cast<int>(threadIdx.x) / 32, BUG && threadIdx.x < 32 ? 64 : 32);
    y[threadIdx.x] = x[threadIdx.x];
}

// 64 threads.
template <bool BUG>
__global__ void uninitialised_shared_memory(const float* x, float* y) {
    SHARED_ARRAY(float, shared, 64);
    if (!BUG || threadIdx.x != 5) shared[threadIdx.x] = x[threadIdx.x];
    block_barrier();
    y[threadIdx.x] = shared[threadIdx.x];
}

// Two blocks of 32 threads, of which the second also writes the first's elements: the same numbers in either order.
template <bool BUG>
__global__ void race_between_blocks(const float* x, float* y) {
    y[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
    if (BUG && blockIdx.x == 1) y[threadIdx.x] = x[threadIdx.x];
}

// Two blocks of 32 threads: each gives the other's numbers. counter is zero.
template <bool BUG>
__global__ void missing_grid_barrier(const float* x, float* y, float* between, unsigned* counter) {
    unsigned passed = 0;
    between[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
    if (BUG)
        block_barrier();
    else
        grid_barrier(counter, gridDim.x, passed);
    y[(1 - blockIdx.x) * 32 + threadIdx.x] = between[(1 - blockIdx.x) * 32 + threadIdx.x];
}

// The same with a barrier for one block more than there is.
template <bool BUG>
__global__ void lost_arrival(const float* x, float* y, unsigned* counter) {
    unsigned passed = 0;
    grid_barrier(counter, gridDim.x + (BUG ? 1 : 0), passed);
    y[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
}

// 32 threads, of which the last takes no part in the shuffle.
template <bool BUG>
__global__ void missing_lane(const float* x, float* y) {
    float value = x[threadIdx.x];
    if (!BUG || threadIdx.x < 31) value = shuffle_xor(value, 1);
    y[threadIdx.x ^ 1] = value;
}
