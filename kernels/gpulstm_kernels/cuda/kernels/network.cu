// What a model has beside its recurrent layers: rows of an embedding, a bias, losses, the norm of the gradient. Sums run
// in one order whatever the schedule of threads, so that a training step gives the same bits on every run.
// 256 threads a block.
#include "numeric.cuh"

constexpr int THREADS = 256;

__device__ inline long long thread_index() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }

// The sum of all threads' values, in their order by halves; every thread calls it, the first has the sum.
__device__ inline double block_sum(double value) {
    SHARED_ARRAY(double, partial, THREADS);
    partial[threadIdx.x] = value;
    for (int half = THREADS / 2; half; half /= 2) {
        block_barrier();
        if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    return partial[0];
}

// to[n, :] = rows[ids[n], :]; an id outside 0..size-1 gives NaN, since telling the host would mean waiting. A thread an
// element.
template <class T>
__global__ void take_rows(const T* rows, const int* ids, T* to, int count, int size, int features) {
    const long long i = thread_index();
    if (i >= static_cast<long long>(count) * features) return;
    const int id = ids[i / features];
    to[i] = id >= 0 && id < size ? rows[static_cast<long long>(id) * features + i % features]
                                 : narrow<T>(accumulate_t<T>(not_a_number()));
}

// rows[ids[n], :] = from[n, :], each id once at most. A thread an element.
template <class T>
__global__ void scatter_rows(const T* from, const int* ids, T* rows, int count, int features) {
    const long long i = thread_index();
    if (i < static_cast<long long>(count) * features)
        rows[static_cast<long long>(ids[i / features]) * features + i % features] = from[i];
}

// sums[r, :] = Σ over n with ids[n] == r of values[n, :], in the order of n. A block a row, a thread a feature: each looks
// at all ids, which stay in cache, and at its own values only.
template <class T>
__global__ void __launch_bounds__(THREADS) sum_by_id(const T* values, const int* ids, T* sums, int count, int features) {
    const int row = blockIdx.x;
    for (int feature = threadIdx.x; feature < features; feature += blockDim.x) {
        accumulate_t<T> sum = 0;
        for (int n = 0; n < count; ++n)
            if (ids[n] == row) sum += widen(values[static_cast<long long>(n) * features + feature]);
        sums[static_cast<long long>(row) * features + feature] = narrow<T>(sum);
    }
}

// y[n, :] += bias. A thread an element.
template <class T>
__global__ void add_bias(T* y, const T* bias, int count, int features) {
    const long long i = thread_index();
    if (i < static_cast<long long>(count) * features) y[i] = narrow<T>(widen(y[i]) + widen(bias[i % features]));
}

// Softmax and cross-entropy of rows: losses[n] = log Σ exp(logits[n, :]) - Σ share[c] logits[n, c], and the gradient of
// their mean over `counted` rows. All of share is the target's but for smoothing = `smoothing` + `smoothing_rest`, which
// all classes share alike. A target of -1 does not count: no loss, no gradient; one outside 0..classes-1 gives NaN. A
// warp a row. (Without the 1 in its bounds ptxas spills on Blackwell, to have more blocks at a time.)
template <class T>
__global__ void __launch_bounds__(THREADS, 1)
    cross_entropy(const T* logits, const int* targets, T* dlogits, accumulate_t<T>* losses, float smoothing,
                  float smoothing_rest, int counted, int count, int classes) {
    using A = accumulate_t<T>;
    const int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= count) return;  // a whole warp
    const T* const from = logits + static_cast<long long>(row) * classes;
    T* const to = dlogits + static_cast<long long>(row) * classes;
    const int target = targets[row];
    const A all = A(smoothing) + A(smoothing_rest), own = A(1) - all, each = all / A(classes);
    A most = -A(infinity()), sum = 0, mean = 0;
    for (int c = lane; c < classes; c += WARP) most = widen(from[c]) > most ? widen(from[c]) : most;
    for (int mask = WARP / 2; mask; mask /= 2) {
        const A other = shuffle_xor(most, mask);
        most = other > most ? other : most;
    }
    for (int c = lane; c < classes; c += WARP) {
        sum += exp(widen(from[c]) - most);
        if (all > 0) mean += each * (widen(from[c]) - most);  // -inf of a masked class times 0 would be NaN
    }
    for (int mask = WARP / 2; mask; mask /= 2) {
        sum += shuffle_xor(sum, mask);
        mean += shuffle_xor(mean, mask);
    }
    const bool counts = target != -1, known = target >= 0 && target < classes;
    for (int c = lane; c < classes; c += WARP) {
        const A gradient = exp(widen(from[c]) - most) / sum - (c == target ? own : A(0)) - each;
        to[c] = narrow<T>(!counts ? A(0) : known ? gradient / A(counted) : A(not_a_number()));
    }
    if (lane == 0) {
        const A loss = known ? log(sum) - own * (widen(from[target]) - most) - mean : A(not_a_number());
        losses[row] = counts ? loss : A(0);
    }
}

// difference = a - b. A thread an element.
template <class T>
__global__ void subtract(const T* a, const T* b, T* difference, int count) {
    const long long i = thread_index();
    if (i < count) difference[i] = narrow<T>(widen(a[i]) - widen(b[i]));
}

// values *= 2 / count: from the difference to the gradient of the mean of its square. A thread an element.
template <class T>
__global__ void mse_gradient(T* values, int count) {
    using A = accumulate_t<T>;
    const long long i = thread_index();
    if (i < count) values[i] = narrow<T>(widen(values[i]) * (A(2) / A(count)));
}

// Of d = a - b: losses d²/2 where |d| <= delta, else delta (|d| - delta/2), and the gradient of their mean. delta is
// `delta` + `delta_rest`. A thread an element.
template <class T>
__global__ void huber(const T* a, const T* b, T* gradient, accumulate_t<T>* losses, float delta, float delta_rest,
                      int count) {
    using A = accumulate_t<T>;
    const long long i = thread_index();
    if (i >= count) return;
    const A d = widen(a[i]) - widen(b[i]), most = A(delta) + A(delta_rest);
    const A near = d > most ? most : d < -most ? -most : d;
    gradient[i] = narrow<T>(near / A(count));
    losses[i] = near * (d - near / 2);
}

// Of d = target - prediction at one of `levels` levels, q = `q` + `q_rest`: losses max(q d, (q - 1) d), and the gradient
// of their mean over all levels; 0 where d is. A thread a target.
template <class T>
__global__ void quantile(const T* prediction, const T* target, T* gradient, accumulate_t<T>* losses, float q,
                         float q_rest, int level, int levels, int count) {
    using A = accumulate_t<T>;
    const long long n = thread_index();
    if (n >= count) return;
    const long long i = n * levels + level;
    const A d = widen(target[n]) - widen(prediction[i]), share = A(q) + A(q_rest);
    const A slope = d > 0 ? -share : d < 0 ? A(1) - share : d;
    gradient[i] = narrow<T>(slope / (A(count) * A(levels)));
    losses[i] = -slope * d;
}

// partial[first + block] = Σ of the block's share of values, or of their squares, in double: float would overflow.
template <class T, bool SQUARES>
__global__ void __launch_bounds__(THREADS) partial_sums(const T* values, double* partial, int first, int count) {
    double sum = 0;
    for (long long i = thread_index(); i < count; i += static_cast<long long>(gridDim.x) * blockDim.x) {
        const double value = widen(values[i]);
        sum += SQUARES ? value * value : value;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[first + blockIdx.x] = sum;
}

// result = Σ partial / over, or with ROOT the square root of that. One block.
template <bool ROOT>
__global__ void __launch_bounds__(THREADS) total(const double* partial, double* result, int over, int count) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *result = ROOT ? sqrt(sum / over) : sum / over;
}

// values *= most / norm where the norm is finite and above `most`. A thread an element.
template <class T>
__global__ void clip(T* values, const double* norm, float most, int count) {
    const long long i = thread_index();
    if (i < count && *norm > most && *norm < infinity())
        values[i] = narrow<T>(static_cast<accumulate_t<T>>(widen(values[i]) * (most / *norm)));
}
