// The step walk of a cell whose step products and means over a row's units cut into stages.
//
//   gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ;  stages of the cell, with products operand·Wᵀ between them   (products: cuBLAS)
//
// Arrays are as in buffers.py; beside them h (D, B, H), the operand of the next step's product, which is zero where a
// sequence begins anew, and scratch of a step: slots (D, B, ·H) of A, means (D, B, ·) of A, products (D, B, Q·H) of A,
// and forward operands (D, B, V·H). A launch takes the stages from STAGE to the next one with products behind it.
// Where a sequence has ended (t >= its length), h and states pass unchanged, and there is no gradient.
// Launch: where means are taken, a block a row, whose sums are added in one order; grid (B, 1, D), 32·⌈H/32⌉ threads, at
// most 256; a thread takes every 32·⌈H/32⌉th or 256th unit, the same in each stage. Else a thread a unit, grid
// (⌈B·H / 128⌉, 1, D), 128 threads.
#include "cell.cuh"

constexpr int THREADS = 128, ROW_THREADS = 256;

// Whether any means are taken behind the stages of a launch.
template <class Pass>
__host__ __device__ constexpr bool by_row(int stage) {
    bool found = Pass::sums(stage) > 0;
    for (; stage + 1 < Pass::stages && Pass::multiplies(stage) == 0; ++stage) found = found || Pass::sums(stage + 1) > 0;
    return found;
}
template <class Pass, int STAGE>
constexpr int MOST_THREADS = by_row<Pass>(STAGE) ? ROW_THREADS : THREADS;
template <class Pass>
__host__ __device__ constexpr bool is_last(int stage) {
    while (stage + 1 < Pass::stages && Pass::multiplies(stage) == 0) ++stage;
    return stage + 1 == Pass::stages;
}

// Where a thread works: a row, its first unit, and how far it is to the next one.
template <bool BY_ROW>
struct Location {
    int direction, b, unit, stride, t;
    bool inside;

    __device__ Location(int time, int reverse_time, int batch, int hidden) {
        const int flat = blockIdx.x * blockDim.x + threadIdx.x;
        direction = blockIdx.z;
        b = BY_ROW ? blockIdx.x : flat / hidden;
        unit = BY_ROW ? threadIdx.x : flat % hidden;
        stride = BY_ROW ? blockDim.x : hidden;
        inside = b < batch;
        t = direction ? reverse_time : time;
    }
    // Whether a sequence begins anew between this step and the one before or after it in the walk of its direction.
    __device__ bool begins(const Byte* resets, int steps, int batch) const {
        return border(resets, t + direction, steps, batch);
    }
    __device__ bool ends(const Byte* resets, int steps, int batch) const {
        return (t > 0 || !direction) && border(resets, t + 1 - direction, steps, batch);
    }

   private:
    __device__ bool border(const Byte* resets, int time, int steps, int batch) const {
        return time < steps && resets[static_cast<long long>(time) * batch + b];
    }
};

// What both passes load and store of one unit of a row: parameters, inputs, and scratch. Pointers are those of the row.
template <class T, class Pass>
struct Io {
    using A = accumulate_t<T>;
    int hidden, unit, input_width;
    long long of_input;  // elements from one input to the next
    const T *params, *inputs;
    A *slots, *means;
    const A* products;
    T* operands;
    A sum[at_least_one(Pass::means)] = {};

    __device__ A param(int k) const { return widen(params[k * hidden + unit]); }
    __device__ A input(int k) const { return widen(inputs[k * of_input + (input_width > 1 ? unit : 0)]); }
    __device__ A mean(int k) const { return means[k]; }
    __device__ A product(int k) const { return products[k * hidden + unit]; }
    __device__ A slot(int k) const { return slots[k * hidden + unit]; }
    __device__ void set_slot(int k, A value) { slots[k * hidden + unit] = value; }
    __device__ void set_operand(int k, A value) { operands[k * hidden + unit] = narrow<T>(value); }
    __device__ void add_mean(int k, A value) { sum[k] += value; }
};

template <class T, class Cell, bool TRAINING>
struct ForwardIo : Io<T, typename Cell::Forward> {
    using A = accumulate_t<T>;
    const A *gates, *bias, *from;
    A *to, *rows;
    long long of_state;
    T *h, *y, *saves;
    bool begins, ends;

    __device__ A gate(int k) const {
        const int place = k * this->hidden + this->unit;
        return bias ? gates[place] + bias[place] : gates[place];
    }
    __device__ A old(int k) const { return begins ? A(0) : from[k * of_state + this->unit]; }
    __device__ A before() const { return widen(h[this->unit]); }
    __device__ void set_state(int k, A value) { to[k * of_state + this->unit] = value; }
    __device__ void set_h(A value) {
        h[this->unit] = narrow<T>(ends ? A(0) : value);
        y[this->unit] = narrow<T>(value);
    }
    __device__ void set_saved(int k, A value) {
        if (TRAINING) saves[k * this->hidden + this->unit] = narrow<T>(value);
    }
    __device__ void set_saved_of_row(int k, A value) {
        if (TRAINING && this->unit == 0) rows[k] = value;
    }
};

template <class T, class Cell>
struct BackwardIo : Io<T, typename Cell::Backward> {
    using A = accumulate_t<T>;
    const T *dy, *saves, *earlier, *y;
    const A *rows, *states, *previous;
    A *later, *dstates;
    long long of_state, of_dstate;
    T *gradients, *dproducts;
    bool begins, ends;

    __device__ A saved(int k) const { return widen(saves[k * this->hidden + this->unit]); }
    __device__ A saved_of_row(int k) const { return rows[k]; }
    __device__ A h() const { return widen(y[this->unit]); }
    __device__ A before() const { return begins ? A(0) : widen(earlier[this->unit]); }
    __device__ A state(int k) const { return states[k * of_state + this->unit]; }
    __device__ A old(int k) const { return begins ? A(0) : previous[k * of_state + this->unit]; }
    __device__ A dh() const { return (ends ? A(0) : later[this->unit]) + widen(dy[this->unit]); }
    __device__ A dstate(int k) const { return dstates[k * of_dstate + this->unit]; }
    __device__ void set_gradient(int k, A value) { gradients[k * this->hidden + this->unit] = narrow<T>(value); }
    __device__ void set_dproduct(int k, A value) { dproducts[k * this->hidden + this->unit] = narrow<T>(value); }
    __device__ void set_dstate(int k, A value) { dstates[k * of_dstate + this->unit] = begins ? A(0) : value; }
    __device__ void set_dbefore(A value) { later[this->unit] = value; }
};

// The means behind a stage, of a block's row: each warp's sum, then those of the warps, in one order.
template <class Pass, int STAGE, class Io>
__device__ __forceinline__ void take_means(Io& io) {
    using A = typename Io::A;
    constexpr int COUNT = Pass::sums(STAGE), FIRST = Pass::first_mean(STAGE), WARPS = ROW_THREADS / WARP;
    SHARED_ARRAY(A, partial, COUNT * WARPS);
    const int warps = blockDim.x / WARP;
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
        A sum = io.sum[FIRST + k];
#pragma unroll
        for (int mask = WARP / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        if (threadIdx.x % WARP == 0) partial[k * WARPS + threadIdx.x / WARP] = sum;
    }
    block_barrier();
    for (int k = threadIdx.x; k < COUNT; k += blockDim.x) {
        A sum = A(0);
        for (int warp = 0; warp < warps; ++warp) sum += partial[k * WARPS + warp];
        io.means[FIRST + k] = sum / A(io.hidden);
    }
    block_barrier();
}

// The stages of a launch, of the units from `first`.
template <class Pass, int STAGE, class Io>
__device__ __forceinline__ void stages_from(Io& io, int first, int stride) {
    for (io.unit = first; io.unit < io.hidden; io.unit += stride) Pass::template stage<STAGE>(io);
    if constexpr (Pass::sums(STAGE) > 0) take_means<Pass, STAGE>(io);
    if constexpr (STAGE + 1 < Pass::stages && Pass::multiplies(STAGE) == 0)
        stages_from<Pass, STAGE + 1>(io, first, stride);
}

template <class T, class Cell, int STAGE, bool TRAINING, bool RESETS>
__global__ void __launch_bounds__(MOST_THREADS<typename Cell::Forward, STAGE>, 1)
    staged_forward(const accumulate_t<T>* gates, const accumulate_t<T>* bias, const int* lengths, T* h, T* ys,
                   accumulate_t<T>* states, T* saved, accumulate_t<T>* rows, accumulate_t<T>* slots,
                   accumulate_t<T>* means, const accumulate_t<T>* products, T* operands, const T* params,
                   const T* inputs, const Byte* resets, int step, int steps, int batch, int hidden, int directions,
                   int has_bias, int ragged, int input_width) {
    using Pass = typename Cell::Forward;
    const Location<by_row<Pass>(STAGE)> at(step, steps - 1 - step, batch, hidden);
    if (!at.inside) return;
    const long long here = static_cast<long long>(at.direction) * batch + at.b;
    const long long row = (static_cast<long long>(at.direction) * steps + at.t) * batch + at.b;
    const long long count = TRAINING ? steps + 1 : 1, sequence = at.direction * count;
    const long long from = sequence + (TRAINING ? at.t + at.direction : 0);
    const long long to = sequence + (TRAINING ? at.t + 1 - at.direction : 0);

    ForwardIo<T, Cell, TRAINING> io;
    io.hidden = hidden, io.input_width = input_width;
    io.of_input = static_cast<long long>(steps) * batch * input_width;
    io.params = params + static_cast<long long>(at.direction) * Declared<Cell>::params * hidden;
    io.inputs = inputs + (static_cast<long long>(at.t) * batch + at.b) * input_width;
    io.slots = slots + here * Pass::slots * hidden;
    io.means = means + here * Pass::means;
    io.products = products + here * Cell::products * hidden;
    io.operands = operands + here * Cell::operands * hidden;
    io.gates = gates + row * Cell::gates * hidden;
    io.bias = has_bias ? bias + at.direction * Cell::gates * hidden : nullptr;
    io.from = Cell::states == 0 ? nullptr : states + (from * batch + at.b) * hidden;
    io.to = Cell::states == 0 ? nullptr : states + (to * batch + at.b) * hidden;
    io.of_state = directions * count * batch * hidden;
    io.rows = rows + row * Cell::saved_of_row;
    io.h = h + here * hidden;
    io.y = ys + (((at.t + 1LL) * batch + at.b) * directions + at.direction) * hidden;
    io.saves = saved + row * Cell::saved * hidden;
    io.begins = RESETS && at.begins(resets, steps, batch);
    io.ends = RESETS && at.ends(resets, steps, batch);
    if (ragged && at.t >= lengths[at.b]) {
        if (!is_last<Pass>(STAGE)) return;
        for (io.unit = at.unit; io.unit < hidden; io.unit += at.stride) {
            io.y[io.unit] = io.h[io.unit];
            for (int k = 0; k < Cell::states; ++k) io.set_state(k, io.old(k));
        }
        return;
    }
    stages_from<Pass, STAGE>(io, at.unit, at.stride);
}

// Backward: dh (D, B, H) and dstates (S, D, B, H) hold the gradients from later steps, dh not yet cut where a sequence
// begins anew with the next one; writes a row of dgates, dproducts and operands. dh is then the gradient of h before the
// step as the cell reads it, to which the host's product adds dgates·W_hh, but for sequences that have ended.
template <class T, class Cell, int STAGE, bool RESETS>
__global__ void __launch_bounds__(MOST_THREADS<typename Cell::Backward, STAGE>, 1)
    staged_backward(const T* dy, accumulate_t<T>* dh, accumulate_t<T>* dstates, const T* saved,
                    const accumulate_t<T>* rows, const accumulate_t<T>* states, const T* ys, accumulate_t<T>* slots,
                    accumulate_t<T>* means, const accumulate_t<T>* products, const int* lengths, T* dgates,
                    T* dproducts, T* operands, const T* params, const T* inputs, const Byte* resets, int step, int steps,
                    int batch, int hidden, int directions, int ragged, int input_width) {
    using Pass = typename Cell::Backward;
    constexpr int R = Parts<Cell>::ROW;
    const Location<by_row<Pass>(STAGE)> at(steps - 1 - step, step, batch, hidden);
    if (!at.inside) return;
    const long long here = static_cast<long long>(at.direction) * batch + at.b;
    const long long row = (static_cast<long long>(at.direction) * steps + at.t) * batch + at.b;
    const long long slot = static_cast<long long>(batch) * directions * hidden;  // elements of a step in ys
    const long long column = (static_cast<long long>(at.b) * directions + at.direction) * hidden;
    const long long sequence = at.direction * (steps + 1LL);

    BackwardIo<T, Cell> io;
    io.hidden = hidden, io.input_width = input_width;
    io.of_input = static_cast<long long>(steps) * batch * input_width;
    io.params = params + static_cast<long long>(at.direction) * Declared<Cell>::params * hidden;
    io.inputs = inputs + (static_cast<long long>(at.t) * batch + at.b) * input_width;
    io.slots = slots + here * Pass::slots * hidden;
    io.means = means + here * Pass::means;
    io.products = products + here * Cell::products * hidden;
    io.operands = operands + row * Cell::operands * hidden;
    io.dproducts = dproducts + row * Cell::products * hidden;
    io.gradients = dgates + row * R * hidden;
    io.dy = dy + at.t * slot + column;
    io.y = ys + (at.t + 1) * slot + column;
    io.earlier = ys + (at.t + 2 * at.direction) * slot + column;
    io.saves = saved + row * Cell::saved * hidden;
    io.rows = rows + row * Cell::saved_of_row;
    io.states = Cell::states == 0 ? nullptr : states + ((sequence + at.t + 1 - at.direction) * batch + at.b) * hidden;
    io.previous = Cell::states == 0 ? nullptr : states + ((sequence + at.t + at.direction) * batch + at.b) * hidden;
    io.of_state = directions * (steps + 1LL) * batch * hidden;
    io.later = dh + here * hidden;
    io.dstates = dstates + here * hidden;
    io.of_dstate = static_cast<long long>(directions) * batch * hidden;
    io.begins = RESETS && at.begins(resets, steps, batch);
    io.ends = RESETS && at.ends(resets, steps, batch);
    if (ragged && at.t >= lengths[at.b]) {
        if (STAGE > 0) return;
        for (io.unit = at.unit; io.unit < hidden; io.unit += at.stride) {
            for (int k = 0; k < R; ++k) io.set_gradient(k, accumulate_t<T>(0));
            for (int k = 0; k < Cell::products; ++k) io.set_dproduct(k, accumulate_t<T>(0));
            for (int k = 0; k < Cell::operands; ++k) io.set_operand(k, accumulate_t<T>(0));
        }
        return;
    }
    stages_from<Pass, STAGE>(io, at.unit, at.stride);
}
