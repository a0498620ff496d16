// The CTC loss and its gradient, as in gpulstm_kernels/cpu/alignments.py: all sums in double and in one order, whatever
// the schedule of threads. Four kernels in a row: the normalisers of all rows of logits (T, B, V), a walk through time,
// one back that leaves the probabilities of all states, and the gradient. 256 threads a block.
#include "numeric.cuh"

constexpr int THREADS = 256;

// log(exp a + exp b + exp c); -inf where all are.
__device__ __forceinline__ double log_sum(double a, double b, double c) {
    const double most = maximum(maximum(a, b), c);
    return most == -double(infinity()) ? most : most + log(exp(a - most) + exp(b - most) + exp(c - most));
}

// norms[t, b] = log Σ exp(logits[t, b, :]). A warp a row.
template <class T>
__global__ void __launch_bounds__(THREADS) ctc_norms(const T* logits, double* norms, int rows, int classes) {
    const int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;  // a whole warp
    const T* const from = logits + static_cast<long long>(row) * classes;
    double most = -double(infinity()), sum = 0;
    for (int c = lane; c < classes; c += WARP) most = widen(from[c]) > most ? widen(from[c]) : most;
    for (int mask = WARP / 2; mask; mask /= 2) {
        const double other = shuffle_xor(most, mask);
        most = other > most ? other : most;
    }
    for (int c = lane; c < classes; c += WARP) sum += exp(widen(from[c]) - most);
    for (int mask = WARP / 2; mask; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane == 0) norms[row] = log(sum) + most;
}

// totals[b] = the log-probability of all alignments of a sequence, and trellis[b] (T + 1, 2, S + 1) the sums forward: of
// blanks, then of labels, the first row before the first step. losses[b] = -totals[b] scales[b]. counted[b]: steps that
// have a gradient, none of them where a loss is infinite and that counts as zero. A block a sequence, a thread a blank
// and the label behind it.
template <class T>
__global__ void __launch_bounds__(THREADS)
    ctc_forward(const T* logits, const double* norms, const int* targets, const int* input_lengths,
                const int* target_lengths, const double* scales, double* trellis, double* totals, double* losses,
                int* counted, int blank, int zero_infinity, int steps, int batch, int classes, int longest) {
    const int b = blockIdx.x, last = input_lengths[b], length = target_lengths[b], width = longest + 1;
    const double none = -double(infinity());
    const int* const labels = targets + static_cast<long long>(b) * longest;
    double* const rows = trellis + static_cast<long long>(b) * (steps + 1) * 2 * width;
    for (int k = threadIdx.x; k <= length; k += THREADS) {
        rows[k] = k ? none : 0;
        rows[width + k] = none;
    }
    block_barrier();
    for (int t = 0; t < last; ++t) {
        const double* const before = rows + static_cast<long long>(t) * 2 * width;
        double* const after = rows + static_cast<long long>(t + 1) * 2 * width;
        const double norm = norms[static_cast<long long>(t) * batch + b];
        const T* const from = logits + (static_cast<long long>(t) * batch + b) * classes;
        for (int k = threadIdx.x; k <= length; k += THREADS) {
            const double previous = k ? before[width + k - 1] : none;
            after[k] = log_sum(before[k], previous, none) + (widen(from[blank]) - norm);
            if (k == length) break;
            const double skipped = k && labels[k] != labels[k - 1] ? previous : none;
            after[width + k] = log_sum(before[width + k], before[k], skipped) + (widen(from[labels[k]]) - norm);
        }
        block_barrier();
    }
    if (threadIdx.x > 0) return;
    const double* const final = rows + static_cast<long long>(last) * 2 * width;
    const double total = log_sum(final[length], length ? final[width + length - 1] : none, none);
    const bool impossible = zero_infinity && total == none;
    totals[b] = total;
    losses[b] = impossible ? 0 : -total * scales[b];
    counted[b] = impossible ? 0 : last;
}

// From the sums forward to the probabilities that each state is passed at each step, in their place. `later`
// (B, 2, 2, S + 1): sums from the end, of this step and the one after it in turn. Blocks and threads as above.
template <class T>
__global__ void __launch_bounds__(THREADS)
    ctc_backward(const T* logits, const double* norms, const int* targets, const int* target_lengths,
                 const double* totals, const int* counted, double* trellis, double* later, int blank, int steps,
                 int batch, int classes, int longest) {
    const int b = blockIdx.x, last = counted[b], length = target_lengths[b], width = longest + 1;
    const double none = -double(infinity()), total = totals[b];
    const int* const labels = targets + static_cast<long long>(b) * longest;
    double* const ends = later + static_cast<long long>(b) * 4 * width;
    for (int k = threadIdx.x; k <= length; k += THREADS) {
        ends[k] = k == length ? 0 : none;
        ends[width + k] = none;
        ends[3 * width + k] = none;  // behind the last label it stays so
    }
    block_barrier();
    for (int t = last - 1; t >= 0; --t) {
        const double* const after = ends + (last - 1 - t) % 2 * 2 * width;
        double* const now = ends + (last - t) % 2 * 2 * width;
        double* const passed = trellis + (static_cast<long long>(b) * (steps + 1) + t + 1) * 2 * width;
        const double norm = norms[static_cast<long long>(t) * batch + b];
        const T* const from = logits + (static_cast<long long>(t) * batch + b) * classes;
        for (int k = threadIdx.x; k <= length; k += THREADS) {
            const double of_blank = log_sum(after[k], after[width + k], none);
            passed[k] = exp(passed[k] + of_blank - total);
            now[k] = of_blank + (widen(from[blank]) - norm);
            if (k == length) break;
            const double skipped = k + 1 < length && labels[k] != labels[k + 1] ? after[width + k + 1] : none;
            const double of_label = log_sum(after[width + k], after[k + 1], skipped);
            passed[width + k] = exp(passed[width + k] + of_label - total);
            now[width + k] = of_label + (widen(from[labels[k]]) - norm);
        }
        block_barrier();
    }
}

// dlogits[t, b, :] = scales[b] (softmax(logits[t, b, :]) - the probabilities of the states that say each class), zero
// from counted[b] on. firsts (B, V): the first of a sequence's labels that is that class; nexts (B, S): the next one of
// the same class; -1 for none. A warp a row.
template <class T>
__global__ void __launch_bounds__(THREADS)
    ctc_gradient(const T* logits, const double* norms, const double* trellis, const int* firsts, const int* nexts,
                 const int* target_lengths, const int* counted, const double* scales, T* dlogits, int blank, int steps,
                 int batch, int classes, int longest) {
    const int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= steps * batch) return;  // a whole warp
    const int t = row / batch, b = row % batch, width = longest + 1;
    const T* const from = logits + static_cast<long long>(row) * classes;
    T* const to = dlogits + static_cast<long long>(row) * classes;
    if (t >= counted[b]) {
        for (int c = lane; c < classes; c += WARP) to[c] = narrow<T>(accumulate_t<T>(0));
        return;
    }
    const double* const passed = trellis + (static_cast<long long>(b) * (steps + 1) + t + 1) * 2 * width;
    double of_blank = 0;
    for (int k = lane; k <= target_lengths[b]; k += WARP) of_blank += passed[k];
    for (int mask = WARP / 2; mask; mask /= 2) of_blank += shuffle_xor(of_blank, mask);
    for (int c = lane; c < classes; c += WARP) {
        double of_class = c == blank ? of_blank : 0;
        for (int k = firsts[static_cast<long long>(b) * classes + c]; k >= 0;
             k = nexts[static_cast<long long>(b) * longest + k])
            of_class += passed[width + k];
        to[c] = narrow<T>(accumulate_t<T>(scales[b] * (exp(widen(from[c]) - norms[row]) - of_class)));
    }
}
