// Each promise of device.cuh by itself, in kernels so small that NumPy can say what they must give: test_primitives.py.
// Those of clusters are in clusters.cu, for they need compute capability 9.0.
#include "numeric.cuh"

using Four = float[4];
using Rows = unsigned[4];
using Columns = unsigned[2];
__device__ __forceinline__ void multiply_add(Four& d, const Rows& a, const Columns& b, __half) { mma_f16(d, a, b); }
__device__ __forceinline__ void multiply_add(Four& d, const Rows& a, const Columns& b, __nv_bfloat16) {
    mma_bf16(d, a, b);
}

// One warp: d (16 x 8) += a (16 x k)·b (k x 8), given b's columns as rows. Fragments are filled as device.cuh says.
template <class Half>
__global__ void product_of_halves(const Half* a, const Half* b, float* d) {
    constexpr int K = 16;
    const int g = static_cast<int>(threadIdx.x) / 4, q = static_cast<int>(threadIdx.x) % 4;
    const auto pair = [q](const Half* row, int k) { return *reinterpret_cast<const unsigned*>(row + k + 2 * q); };
    const Rows rows = {pair(a + g * K, 0), pair(a + (g + 8) * K, 0), pair(a + g * K, 8), pair(a + (g + 8) * K, 8)};
    const Columns columns = {pair(b + g * K, 0), pair(b + g * K, 8)};
    Four sums = {};
    multiply_add(sums, rows, columns, Half());
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * q + i % 2] += sums[i];
}

template <bool ROUNDED>
__global__ void product_of_tf32(const float* a, const float* b, float* d) {
    constexpr int K = 8;
    const int g = static_cast<int>(threadIdx.x) / 4, q = static_cast<int>(threadIdx.x) % 4;
    const auto bits = [](float value) { return ROUNDED ? to_tf32(value) : as_bits(value); };
    const Rows rows = {bits(a[g * K + q]), bits(a[(g + 8) * K + q]), bits(a[g * K + q + 4]),
                       bits(a[(g + 8) * K + q + 4])};
    const Columns columns = {bits(b[g * K + q]), bits(b[g * K + q + 4])};
    Four sums;
    for (int i = 0; i < 4; ++i) sums[i] = d[(g + i / 2 * 8) * 8 + 2 * q + i % 2];
    mma_tf32(sums, rows, columns);
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = sums[i];
}

__global__ void round_to_tf32(const float* x, float* y, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) y[i] = as_float(to_tf32(x[i]));
}

template <class Half>
__global__ void convert(const float* x, Half* narrowed, const Half* y, float* widened, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    narrowed[i] = narrow<Half>(x[i]);
    widened[i] = widen(y[i]);
}

// From lane `source`, from the next lane, from lane ^ mask: three times the block's threads.
template <class V>
__global__ void shuffles(const V* x, V* y, int source, int mask) {
    const int lane = static_cast<int>(threadIdx.x), next = (lane + 1) % WARP;
    y[lane] = shuffle(x[lane], source);
    y[blockDim.x + lane] = shuffle(x[lane], next);
    y[2 * blockDim.x + lane] = shuffle_xor(x[lane], mask);
}

// Two groups of copies, looked at when the first must have landed, and when both have; words of 4 bytes.
template <int BYTES>
__global__ void copies(const unsigned* x, unsigned* y) {
    constexpr int WORDS = BYTES / 4;
    SHARED_DYNAMIC(memory);
    unsigned* const own = reinterpret_cast<unsigned*>(memory) + threadIdx.x * 2 * WORDS;
    for (int group = 0; group < 2; ++group) {
        copy_async<BYTES>(own + group * WORDS, x + (threadIdx.x * 2 + group) * WORDS);
        copy_async_commit();
    }
    copy_async_wait<1>();
    for (int i = 0; i < 2 * WORDS; ++i) y[threadIdx.x * 2 * WORDS + i] = own[i];
    copy_async_wait<0>();
    for (int i = 0; i < 2 * WORDS; ++i) y[(blockDim.x + threadIdx.x) * 2 * WORDS + i] = own[i];
}

// A pipeline of two warps: warp 0 fills one of two buffers while warp 1 adds up the other.
__global__ void named_barriers(const float* x, float* y, int rounds) {
    SHARED_ARRAY(float, buffer, 2 * WARP);
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    float sum = 0;
    for (int i = 0; i <= rounds; ++i) {
        if (threadIdx.x < WARP && i < rounds) buffer[i % 2 * WARP + lane] = x[i * WARP + lane];
        if (threadIdx.x >= WARP && i > 0) sum += buffer[(i + 1) % 2 * WARP + (lane + 1) % WARP];
        named_barrier(3, 2 * WARP);
    }
    if (threadIdx.x >= WARP) y[lane] = sum;
}

// Every block hands its number on to the next, `rounds` times; x and y are one number a block, z twice that.
__global__ void ring_of_blocks(const float* x, float* y, float* z, unsigned* counter, int rounds) {
    unsigned passed = 0;
    float own = x[blockIdx.x];
    for (int i = 0; i < rounds; ++i) {
        float* const half = z + i % 2 * gridDim.x;
        if (threadIdx.x == 0) half[(blockIdx.x + 1) % gridDim.x] = own;
        grid_barrier(counter, gridDim.x, passed);
        own = load_global_cg(half + blockIdx.x);
    }
    if (threadIdx.x == 0) y[blockIdx.x] = own;
}

// y counts up from zero: the number of every thread in the launch.
__global__ void places(int* y) {
    const int block = static_cast<int>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    const int thread = static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    y[block * threads + thread] += block * threads + thread;
}

// What cells are written in, of each pair of a and b: a row of y for each function, as activation_checks.py names them.
template <class A>
__global__ void activations(const A* a, const A* b, A* y, int count) {
    static_assert(sizeof(tanh(A())) == sizeof(A) && sizeof(exp(A())) == sizeof(A) && sizeof(log(A())) == sizeof(A) &&
                      sizeof(sqrt(A())) == sizeof(A),
                  "C++'s own functions are those of double");
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const A results[] = {tanh(a[i]),
                         sigmoid(a[i]),
                         exp(a[i]),
                         log(a[i]),
                         sqrt(a[i]),
                         absolute(a[i]),
                         softplus(a[i]),
                         maximum(a[i], b[i]),
                         minimum(a[i], b[i]),
                         select(a[i], b[i], A(0.5), a[i]),
                         maximum(minimum(a[i], A(2.5)), A(-0.5))};
    int row = 0;
    for (const A result : results) y[row++ * count + i] = result;
}
