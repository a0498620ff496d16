// The step walk: one fused pointwise kernel around a matrix product a step, any size and any type.
//
//   gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ   (products: the host's, cuBLAS)
//   h_t, states_t, saved_t = cell(gates_t + bias, states_{t-1}, given)   (given: h_{t-1}, parameters, inputs)
//
// Arrays are as in buffers.py; beside them h (D, B, P), the operand of the next product, which is zero where a sequence
// begins anew. In training the cell's saved values and the states of all steps are kept.
// Where a sequence has ended (t >= its length), h and states pass unchanged, and there is no gradient.
// With HEADS, the factors and results of the products lie head by head: h and dh are (D·HEADS, B, H/HEADS), h's product
// is no part of gates but `product` (D·HEADS, B, Gh·H/HEADS), and what dh adds up comes from `factor`, such dgates.
// Launch: a thread takes UNITS neighbouring units of one sequence; grid (⌈B·⌈H/UNITS⌉ / 128⌉, 1, D), 128 threads.
// UNITS is 4 where H/HEADS is a multiple of 4 (one vector access a value), else 1.
#include "cell.cuh"

constexpr int THREADS = 128;
// Of a multiprocessor; 0: as many as ptxas thinks best, for which it spills a few bytes of cells with more than gates.
template <class Cell, bool RESETS>
constexpr int LEAST_BLOCKS = Parts<Cell>::GIVEN > 0 || RESETS ? 1 : 0;

// Where a thread works; `step` counts the steps of the walk, t is the time it has reached.
template <int UNITS>
struct Location {
    int direction, b, unit, t;
    bool inside;

    __device__ Location(int time, int reverse_time, int batch, int units) {
        const int groups = (units + UNITS - 1) / UNITS;
        const int flat = blockIdx.x * blockDim.x + threadIdx.x;
        direction = blockIdx.z;
        inside = flat < batch * groups;
        b = flat / groups;
        unit = flat % groups * UNITS;
        t = direction ? reverse_time : time;
    }
    __device__ long long row(int steps, int batch) const {
        return (static_cast<long long>(direction) * steps + t) * batch + b;
    }
    // Of `count` values of the first unit the k-th, in an array (D·HEADS, B, count·units); `here` counts the rows (D, B).
    template <int HEADS>
    __device__ __forceinline__ long long of_head(long long here, int batch, int units, int count = 1, int k = 0) const {
        if constexpr (HEADS == 1) {
            return here * units + unit;  // where nothing but h and its gradient lies so
        } else {
            const int own = units / HEADS, head = unit / own;
            return ((static_cast<long long>(direction * HEADS + head) * batch + b) * count + k) * own + (unit - head * own);
        }
    }
    // Whether a sequence begins anew between this step and the one before or after it in the walk of its direction.
    __device__ bool begins(const Byte* resets, int steps, int batch) const {
        return border(resets, t + direction, steps, batch);
    }
    __device__ bool ends(const Byte* resets, int steps, int batch) const {
        return (t > 0 || !direction) && border(resets, t + 1 - direction, steps, batch);  // none behind all of time
    }

   private:
    __device__ bool border(const Byte* resets, int time, int steps, int batch) const {
        return time < steps && resets[static_cast<long long>(time) * batch + b];
    }
};

// What a cell is given for UNITS units: h before the step, parameters, inputs.
template <class T, class Cell, int UNITS>
__device__ __forceinline__ void load_given(const T* params, const T* inputs, const Location<UNITS>& at, int steps,
                                           int batch, int hidden_size, int input_width,
                                           const accumulate_t<T> (&before)[UNITS],
                                           accumulate_t<T> (&given)[UNITS][at_least_one(Parts<Cell>::GIVEN)]) {
    using P = Parts<Cell>;
    accumulate_t<T> value[UNITS];
    if constexpr (P::READS_H) {
#pragma unroll
        for (int u = 0; u < UNITS; ++u) given[u][0] = before[u];
    }
#pragma unroll
    for (int k = P::READS_H; k < P::GIVEN; ++k) {
        if (k < P::FIRST_INPUT) {
            const int row = at.direction * (P::FIRST_INPUT - P::READS_H) + k - P::READS_H;
            load<UNITS>(params + static_cast<long long>(row) * hidden_size + at.unit, value);
        } else {
            const long long row = (static_cast<long long>(k - P::FIRST_INPUT) * steps + at.t) * batch + at.b;
            if (input_width == 1) {
#pragma unroll
                for (int u = 0; u < UNITS; ++u) value[u] = widen(inputs[row]);
            } else {
                load<UNITS>(inputs + row * hidden_size + at.unit, value);
            }
        }
#pragma unroll
        for (int u = 0; u < UNITS; ++u) given[u][k] = value[u];
    }
}

// Pre-activation j of UNITS units, without its bias.
template <class Cell, int HEADS, class A, int UNITS>
__device__ __forceinline__ void load_gate(const A* gates, const A* product, const Location<UNITS>& at, long long row,
                                          long long here, int batch, int hidden_size, int j, A (&value)[UNITS]) {
    using P = Parts<Cell>;
    if (HEADS == 1 || j < P::OF_X) load<UNITS>(gates + (row * P::G + j) * hidden_size + at.unit, value);
    if (HEADS == 1 || j < P::FIRST_OF_H) return;
    A of_h[UNITS];
    load<UNITS>(product + at.template of_head<HEADS>(here, batch, hidden_size, P::OF_H, j - P::FIRST_OF_H), of_h);
#pragma unroll
    for (int u = 0; u < UNITS; ++u) value[u] = j < P::OF_X ? value[u] + of_h[u] : of_h[u];
}

template <class T, class Cell, bool TRAINING, int UNITS, bool RESETS, int HEADS = 1>
__global__ void __launch_bounds__(THREADS, LEAST_BLOCKS<Cell, RESETS>)
    step_forward(const accumulate_t<T>* gates, const accumulate_t<T>* bias, const int* lengths, T* h, T* ys,
                 accumulate_t<T>* states, T* saved, T* hidden, int step, int steps, int batch, int hidden_size,
                 int outputs, int directions, int has_bias, int ragged, int projected, const T* params,
                 const T* inputs, const Byte* resets, int input_width, const accumulate_t<T>* product) {
    using A = accumulate_t<T>;
    using P = Parts<Cell>;
    constexpr int G = Cell::gates, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    const Location<UNITS> at(step, steps - 1 - step, batch, hidden_size);
    if (!at.inside) return;
    const long long row = at.row(steps, batch), here = static_cast<long long>(at.direction) * batch + at.b;
    T* const output = ys + ((at.t + 1LL) * batch + at.b) * directions * outputs + at.direction * outputs + at.unit;
    const bool ended = ragged && at.t >= lengths[at.b];

    const int slots = TRAINING ? steps + 1 : 1;
    const int from = TRAINING ? at.t + at.direction : 0, to = TRAINING ? at.t + 1 - at.direction : 0;
    const bool begins = RESETS && at.begins(resets, steps, batch), ends = RESETS && at.ends(resets, steps, batch);
    A state[UNITS][S], result[S][UNITS], out[UNITS];
    A* first[S];
#pragma unroll
    for (int k = 0; k < Cell::states; ++k) {
        first[k] = states + ((k * directions + at.direction) * static_cast<long long>(slots) * batch + at.b) *
                                hidden_size + at.unit;
        A value[UNITS];
        load<UNITS>(first[k] + static_cast<long long>(from) * batch * hidden_size, value);
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            if (begins) value[u] = A(0);
            state[u][k] = result[k][u] = value[u];
        }
    }
    if (ended) {
        if (!projected) load<UNITS>(h + at.template of_head<HEADS>(here, batch, outputs), out);
    } else {
        A gate[UNITS][G], save[UNITS][V], before[UNITS], given[UNITS][at_least_one(P::GIVEN)];
#pragma unroll
        for (int j = 0; j < G; ++j) {
            A value[UNITS], offset[UNITS];
            load_gate<Cell, HEADS>(gates, product, at, row, here, batch, hidden_size, j, value);
            if (has_bias) load<UNITS>(bias + (at.direction * G + j) * hidden_size + at.unit, offset);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) gate[u][j] = has_bias ? value[u] + offset[u] : value[u];
        }
        if constexpr (P::READS_H) load<UNITS>(h + at.template of_head<HEADS>(here, batch, outputs), before);
        load_given<T, Cell, UNITS>(params, inputs, at, steps, batch, hidden_size, input_width, before, given);
#pragma unroll
        for (int u = 0; u < UNITS; ++u) cell_forward<Cell>(gate[u], state[u], out[u], save[u], given[u]);
        if (TRAINING) {
#pragma unroll
            for (int k = 0; k < Cell::saved; ++k) {
                A value[UNITS];
#pragma unroll
                for (int u = 0; u < UNITS; ++u) value[u] = save[u][k];
                store<UNITS>(value, saved + (row * Cell::saved + k) * hidden_size + at.unit);
            }
        }
#pragma unroll
        for (int k = 0; k < Cell::states; ++k)
#pragma unroll
            for (int u = 0; u < UNITS; ++u) result[k][u] = state[u][k];
    }
#pragma unroll
    for (int k = 0; k < Cell::states; ++k)
        store<UNITS>(result[k], first[k] + static_cast<long long>(to) * batch * hidden_size);
    if (projected) {
        if (ended) {  // the gradient of weight_hr multiplies its rows by zeros, and a NaN would survive that
#pragma unroll
            for (int u = 0; u < UNITS; ++u) out[u] = A(0);
        }
        store<UNITS>(out, hidden + (TRAINING ? row : here) * hidden_size + at.unit);
    } else {
        A next[UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; ++u) next[u] = ends ? A(0) : out[u];
        store<UNITS>(next, h + at.template of_head<HEADS>(here, batch, outputs));
        store<UNITS>(out, output);
    }
}

// With a projection: product = hidden·W_hrᵀ (D, B, P) becomes h unless the sequence has ended; h goes to ys.
template <class T, bool RESETS>
__global__ void __launch_bounds__(THREADS)
    step_project(const accumulate_t<T>* product, const int* lengths, T* h, T* ys, int step, int steps, int batch,
                 int outputs, int directions, int ragged, const Byte* resets) {
    const Location<1> at(step, steps - 1 - step, batch, outputs);
    if (!at.inside) return;
    const long long here = (static_cast<long long>(at.direction) * batch + at.b) * outputs + at.unit;
    if (!(ragged && at.t >= lengths[at.b])) h[here] = narrow<T>(product[here]);
    ys[((at.t + 1LL) * batch + at.b) * directions * outputs + at.direction * outputs + at.unit] = h[here];
    if (RESETS && at.ends(resets, steps, batch)) h[here] = narrow<T>(accumulate_t<T>(0));
}

// h before the first step of the walk: the initial one, but zero where a sequence begins with that step.
template <class T, int HEADS = 1>
__global__ void __launch_bounds__(THREADS)
    step_begin(const T* ys, const Byte* resets, T* h, int steps, int batch, int outputs, int directions) {
    const Location<1> at(0, steps - 1, batch, outputs);
    if (!at.inside) return;
    const long long slot = at.direction ? steps + 1 : 0;
    const T first = ys[((slot * batch + at.b) * directions + at.direction) * outputs + at.unit];
    const bool begins = at.begins(resets, steps, batch);
    const long long here = static_cast<long long>(at.direction) * batch + at.b;
    h[at.template of_head<HEADS>(here, batch, outputs)] = begins ? narrow<T>(accumulate_t<T>(0)) : first;
}

// Backward: dh behind the last step of the walk goes no further where a sequence began with that step.
template <class T, int HEADS = 1>
__global__ void __launch_bounds__(THREADS)
    step_end(accumulate_t<T>* dh, const Byte* resets, int steps, int batch, int outputs) {
    const Location<1> at(0, steps - 1, batch, outputs);
    const long long here = static_cast<long long>(at.direction) * batch + at.b;
    if (at.inside && at.begins(resets, steps, batch))
        dh[at.template of_head<HEADS>(here, batch, outputs)] = accumulate_t<T>(0);
}

// With a projection, backward: the whole gradient of h_t to dprojected (D, T, B, P); dh becomes
// zero but for sequences that have ended, since the host's product of this step adds to it.
template <class T, bool RESETS>
__global__ void __launch_bounds__(THREADS)
    step_unproject(const T* dy, accumulate_t<T>* dh, const int* lengths, T* dprojected, int step, int steps, int batch,
                   int outputs, int directions, int ragged, const Byte* resets) {
    using A = accumulate_t<T>;
    const Location<1> at(steps - 1 - step, step, batch, outputs);
    if (!at.inside) return;
    const long long here = (static_cast<long long>(at.direction) * batch + at.b) * outputs + at.unit;
    const bool ended = ragged && at.t >= lengths[at.b];
    const A later = RESETS && at.ends(resets, steps, batch) ? A(0) : dh[here];
    A total = A(0);
    if (!ended)
        total = later +
                widen(dy[(static_cast<long long>(at.t) * batch + at.b) * directions * outputs +
                         at.direction * outputs + at.unit]);
    dprojected[at.row(steps, batch) * outputs + at.unit] = narrow<T>(total);
    dh[here] = ended ? later : A(0);
}

// Backward: dh (D, B, P) holds the gradient from later steps, not yet cut where a sequence begins anew with the next
// one, and dstates (S, D, B, H) that of the states; writes a row of dgates. dh is then the gradient of h before the step
// as the cell reads it, to which the host's product adds dgates·W_hh, but for sequences that have ended.
// With a projection, dhidden (D, B, H) is the whole gradient of the unprojected h, and dh is not touched.
template <class T, class Cell, int UNITS, bool RESETS, int HEADS = 1>
__global__ void __launch_bounds__(THREADS, LEAST_BLOCKS<Cell, RESETS>)
    step_backward(const T* dy, accumulate_t<T>* dh, const accumulate_t<T>* dhidden, accumulate_t<T>* dstates,
                  const T* saved, const accumulate_t<T>* states, const T* ys, const T* hidden, const int* lengths,
                  T* dgates, int step, int steps, int batch, int hidden_size, int outputs, int directions, int ragged,
                  int projected, const T* params, const T* inputs, const Byte* resets, int input_width, T* factor) {
    using A = accumulate_t<T>;
    using P = Parts<Cell>;
    constexpr int R = P::ROW, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    const Location<UNITS> at(steps - 1 - step, step, batch, hidden_size);
    if (!at.inside) return;
    const long long row = at.row(steps, batch), here = static_cast<long long>(at.direction) * batch + at.b;
    const int column = at.direction * outputs + at.unit, width = directions * outputs;
    A drow[UNITS][R] = {};
    if (!(ragged && at.t >= lengths[at.b])) {
        const bool begins = RESETS && at.begins(resets, steps, batch), ends = RESETS && at.ends(resets, steps, batch);
        A total[UNITS], value[UNITS], h[UNITS], save[UNITS][V], state[UNITS][S], previous[UNITS][S], dstate[UNITS][S];
        A before[UNITS] = {}, dbefore[UNITS] = {}, given[UNITS][at_least_one(P::GIVEN)];
        if (projected) {
            load<UNITS>(dhidden + here * hidden_size + at.unit, total);
            load<UNITS>(hidden + row * hidden_size + at.unit, h);
        } else {
            load<UNITS>(dh + at.template of_head<HEADS>(here, batch, outputs), total);
            load<UNITS>(dy + (static_cast<long long>(at.t) * batch + at.b) * width + column, value);
            load<UNITS>(ys + ((at.t + 1LL) * batch + at.b) * width + column, h);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) total[u] = (ends ? A(0) : total[u]) + value[u];
            if constexpr (!P::READS_H) store<UNITS>(dbefore, dh + at.template of_head<HEADS>(here, batch, outputs));
        }
        if constexpr (P::READS_H) {
            if (!begins) load<UNITS>(ys + ((at.t + 2LL * at.direction) * batch + at.b) * width + column, before);
        }
        load_given<T, Cell, UNITS>(params, inputs, at, steps, batch, hidden_size, input_width, before, given);
#pragma unroll
        for (int k = 0; k < Cell::saved; ++k) {
            load<UNITS>(saved + (row * Cell::saved + k) * hidden_size + at.unit, value);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) save[u][k] = value[u];
        }
        A* first[S];
#pragma unroll
        for (int k = 0; k < Cell::states; ++k) {
            const long long sequence = static_cast<long long>(k) * directions + at.direction;
            const A* of_states = states + (sequence * (steps + 1) * batch + at.b) * hidden_size + at.unit;
            const long long slot = static_cast<long long>(batch) * hidden_size;
            load<UNITS>(of_states + (at.t + 1 - at.direction) * slot, value);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) state[u][k] = value[u];
            load<UNITS>(of_states + (at.t + at.direction) * slot, value);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) previous[u][k] = begins ? A(0) : value[u];
            first[k] = dstates + (sequence * batch + at.b) * hidden_size + at.unit;
            load<UNITS>(first[k], value);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) dstate[u][k] = value[u];
        }
#pragma unroll
        for (int u = 0; u < UNITS; ++u)
            cell_backward<Cell>(total[u], h[u], save[u], state[u], previous[u], dstate[u], given[u], drow[u], dbefore[u]);
        if constexpr (P::READS_H) store<UNITS>(dbefore, dh + at.template of_head<HEADS>(here, batch, outputs));
#pragma unroll
        for (int k = 0; k < Cell::states; ++k) {
#pragma unroll
            for (int u = 0; u < UNITS; ++u) value[u] = begins ? A(0) : dstate[u][k];
            store<UNITS>(value, first[k]);
        }
    }
#pragma unroll
    for (int j = 0; j < R; ++j) {
        A value[UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; ++u) value[u] = drow[u][j];
        store<UNITS>(value, dgates + (row * R + j) * hidden_size + at.unit);
        if (HEADS > 1 && j >= P::FIRST_OF_H && j < Cell::gates)
            store<UNITS>(value, factor + at.template of_head<HEADS>(here, batch, hidden_size, P::OF_H, j - P::FIRST_OF_H));
    }
}
