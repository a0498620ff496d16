// What a network does to arrays between its layers: padding cleared, dropout, what cells are given. One thread an element, 256 a block.
#include "numeric.cuh"

// to[t, b, :] = from[t, b, :] where t < lengths[b], else 0: padding may hold anything, NaN included.
template <class T>
__global__ void clear_padding(const T* from, T* to, const int* lengths, int steps, int batch, int features) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    const long long row = i / features;
    if (row < static_cast<long long>(steps) * batch)
        to[i] = row / batch < lengths[row % batch] ? from[i] : narrow<T>(accumulate_t<T>(0));
}

// Philox-4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011): four 32-bit numbers from a
// counter and a key, so that any element's number is known without those before it.
__device__ inline uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long a = 0xD2511F53ull * counter.x, b = 0xCD9E8D57ull * counter.z;
        counter = make_uint4(static_cast<unsigned>(b >> 32) ^ counter.y ^ key.x, static_cast<unsigned>(b),
                             static_cast<unsigned>(a >> 32) ^ counter.w ^ key.y, static_cast<unsigned>(a));
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

// mask[i] = whether dropout with probability p keeps element i: the numbers of the generator `seed` (two words), its
// `draw`-th use, four elements a thread.
__global__ void draw_mask(unsigned char* mask, const unsigned* seed, int draw, float p, int count) {
    const int quad = blockIdx.x * blockDim.x + threadIdx.x;
    if (quad >= (count + 3) / 4) return;
    const uint4 drawn = philox(make_uint4(quad, draw, 0, 0), make_uint2(seed[0], seed[1]));
    const unsigned numbers[4] = {drawn.x, drawn.y, drawn.z, drawn.w};
    for (int j = 0; j < 4 && quad * 4 + j < count; ++j)
        mask[quad * 4 + j] = static_cast<float>(numbers[j] >> 8) * 0x1p-24f >= p;  // uniform in [0, 1)
}

// values[t, b, u] = hit where the number of 24 bits that is drawn there is less than `below`, else miss: numbers of the
// generator `seed` (two words) by place, of the first step at all of them with `once`. Four units a thread.
template <class T>
__global__ void draw_noise(T* values, const unsigned* seed, int stream, int below, float hit, float miss, int once,
                           int steps, int batch, int units) {
    const int quads = (units + 3) / 4;
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x, row = i / quads;
    if (row >= static_cast<long long>(steps) * batch) return;
    const int quad = static_cast<int>(i % quads), t = static_cast<int>(row / batch), b = static_cast<int>(row % batch);
    const uint4 drawn = philox(make_uint4(quad, stream, b, once ? 0 : t), make_uint2(seed[0], seed[1]));
    const unsigned numbers[4] = {drawn.x, drawn.y, drawn.z, drawn.w};
    for (int j = 0; j < 4 && quad * 4 + j < units; ++j)
        values[row * units + quad * 4 + j] =
            narrow<T>(accumulate_t<T>(static_cast<int>(numbers[j] >> 8) < below ? hit : miss));
}

// to = from / (1 - p) where the mask is not zero, else 0; `scale` is 1 / (1 - p).
template <class T>
__global__ void drop(const T* from, const unsigned char* mask, T* to, float scale, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = narrow<T>(mask[i] ? widen(from[i]) * scale : accumulate_t<T>(0));
}

// to = 1 or 0
template <class T>
__global__ void from_bools(const Byte* from, T* to, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = narrow<T>(accumulate_t<T>(from[i] ? 1 : 0));
}

// Each element of `from` `times` times.
template <class T>
__global__ void repeat(const T* from, T* to, int count, int times) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = from[i / times];
}

template <class T>
__global__ void add(const T* a, const T* b, T* sum, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) sum[i] = narrow<T>(widen(a[i]) + widen(b[i]));
}
