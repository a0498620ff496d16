// Numbers: the type that sums are held in, conversions, vector access, and the activations that cells are written in.
#pragma once
#include "device.cuh"

// float for everything but double: half types are only ever read and written.
template <class T>
struct Accumulate {
    using type = float;
};
template <>
struct Accumulate<double> {
    using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

using Byte = unsigned char;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T narrow(accumulate_t<T> x) {
    return static_cast<T>(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// N neighbouring elements in one access; the address is a multiple of N elements.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T value[N];
};
template <int N, class T>
__device__ __forceinline__ void load(const T* from, accumulate_t<T>* to) {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = widen(pack.value[i]);
}
template <int N, class T>
__device__ __forceinline__ void store(const accumulate_t<T>* from, T* to) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.value[i] = narrow<T>(from[i]);
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Cells may have no states or save nothing, and C++ has no empty arrays.
__host__ __device__ constexpr int at_least_one(int n) { return n < 1 ? 1 : n; }

__device__ __forceinline__ float infinity() { return as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return as_float(0x7fc00000u); }

// What cells are written in, for float and double; tanh, exp, log and sqrt are C++'s own, for float as for double.
// In the logistic function expf overflows to infinity where the quotient is 0 anyway.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
__device__ __forceinline__ float absolute(float x) { return fabsf(x); }
__device__ __forceinline__ double absolute(double x) { return fabs(x); }
// log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)): nothing overflows, and log1p keeps the small results whole.
__device__ __forceinline__ float softplus(float x) { return (x > 0.0f ? x : 0.0f) + log1pf(expf(-fabsf(x))); }
__device__ __forceinline__ double softplus(double x) { return (x > 0.0 ? x : 0.0) + log1p(exp(-fabs(x))); }
// NaN where either is, unlike fmax and fmin.
template <class A>
__device__ __forceinline__ A maximum(A a, A b) {
    return a > b || a != a ? a : b;
}
template <class A>
__device__ __forceinline__ A minimum(A a, A b) {
    return a < b || a != a ? a : b;
}
// x where a > b, else y: also where a or b is NaN.
template <class A>
__device__ __forceinline__ A select(A a, A b, A x, A y) {
    return a > b ? x : y;
}
