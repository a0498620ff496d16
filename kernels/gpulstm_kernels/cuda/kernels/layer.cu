// What a layer needs around its walk: conversions between the element type T and the type of sums A, the bias of the
// gates, and its gradient. One thread an element, 256 a block; sum_rows: 32 columns a block, 32 x 8 threads.
#include "numeric.cuh"

template <class T>
__global__ void to_accumulate(const T* from, accumulate_t<T>* to, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = widen(from[i]);
}

template <class T>
__global__ void from_accumulate(const accumulate_t<T>* from, T* to, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = narrow<T>(from[i]);
}

// bias = bias_ih + bias_hh
template <class T>
__global__ void add_biases(const T* bias_ih, const T* bias_hh, accumulate_t<T>* bias, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) bias[i] = widen(bias_ih[i]) + widen(bias_hh[i]);
}

// sums[c] = Σ over rows of values[row, c], each column by eight threads in a fixed order.
template <class T>
__global__ void __launch_bounds__(256) sum_rows(const T* values, T* sums, int rows, int columns) {
    using A = accumulate_t<T>;
    SHARED_ARRAY(A, partial, 256);
    const int column = blockIdx.x * 32 + threadIdx.x;
    A sum = A(0);
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += 8) sum += widen(values[static_cast<long long>(row) * columns + column]);
    partial[threadIdx.y * 32 + threadIdx.x] = sum;
    block_barrier();
    if (threadIdx.y == 0 && column < columns) {
        for (int y = 1; y < 8; ++y) sum += partial[y * 32 + threadIdx.x];
        sums[column] = narrow<T>(sum);
    }
}
