// What a layer needs around its walk: conversions between the element type T and the type of sums A, the bias of the
// gates, and sums of gradients. One thread an element, 256 a block; sum_rows: 32 columns a block, sum_columns: 8 rows,
// 32 x 8 threads.
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

// sums[c] = Σ over rows of values[row, c], each column by eight threads in a fixed order; `width` elements a row.
template <class T>
__global__ void __launch_bounds__(256) sum_rows(const T* values, T* sums, int rows, int columns, int width) {
    using A = accumulate_t<T>;
    SHARED_ARRAY(A, partial, 256);
    const int column = blockIdx.x * 32 + threadIdx.x;
    A sum = A(0);
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += 8) sum += widen(values[static_cast<long long>(row) * width + column]);
    partial[threadIdx.y * 32 + threadIdx.x] = sum;
    block_barrier();
    if (threadIdx.y == 0 && column < columns) {
        for (int y = 1; y < 8; ++y) sum += partial[y * 32 + threadIdx.x];
        sums[column] = narrow<T>(sum);
    }
}

// sums[row] = Σ of the `columns` values of each row from `first`, by 32 threads in a fixed order; `width` elements a row.
template <class T>
__global__ void __launch_bounds__(256) sum_columns(const T* values, T* sums, int rows, int first, int columns, int width) {
    using A = accumulate_t<T>;
    SHARED_ARRAY(A, partial, 256);
    const int row = blockIdx.x * 8 + threadIdx.y;
    A sum = A(0);
    if (row < rows)
        for (int c = threadIdx.x; c < columns; c += 32) sum += widen(values[static_cast<long long>(row) * width + first + c]);
    partial[threadIdx.y * 32 + threadIdx.x] = sum;
    block_barrier();
    if (threadIdx.x == 0 && row < rows) {
        for (int x = 1; x < 32; ++x) sum += partial[threadIdx.y * 32 + x];
        sums[row] = narrow<T>(sum);
    }
}

// h before each step of a direction (T, B, P) out of ys (T+2, B, D·P): zero where a sequence begins anew.
template <class T>
__global__ void h_before(const T* ys, const Byte* resets, T* before, int direction, int directions, int steps,
                         int batch, int outputs) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x, row = i / outputs;
    if (row >= static_cast<long long>(steps) * batch) return;
    const bool begins = row / batch + direction < steps && resets[row + direction * batch];
    const long long from = (row + 2LL * direction * batch) * directions + direction;
    before[i] = begins ? narrow<T>(accumulate_t<T>(0)) : ys[from * outputs + i % outputs];
}

// values[row, first ...] = 0 in each of the rows, of `width` elements.
template <class A>
__global__ void clear_columns(A* values, int rows, int first, int width) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x, row = i / (width - first);
    if (row < rows) values[row * width + first + i % (width - first)] = A(0);
}
