// The step walk where h enters no product: each unit of each sequence goes by itself, and one launch walks all of time.
//
//   h_t, states_t, saved_t = cell(x_t·W_ihᵀ + bias, states_{t-1}, given)   (given: h_{t-1}, parameters, inputs)
//
// Arrays are as in buffers.py; h, states and their gradients stay in registers. A step is short and its values come from
// memory, so they are asked for AHEAD steps before they are used, in the type in which they lie there.
// Launch: a thread a unit; grid (⌈B·H / 64⌉, 1, D), 64 threads: few, so that many multiprocessors get some.
#include "cell.cuh"

constexpr int THREADS = 64;

// How many steps ahead `values` of a step are asked for: about as many as registers may hold.
constexpr int ahead(int values) { return values <= 4 ? 8 : values <= 8 ? 4 : 2; }

// A unit of a sequence in a direction, and where its values lie.
struct Unit {
    int direction, b, unit, steps, batch, hidden, directions;
    bool inside;

    __device__ Unit(int steps, int batch, int hidden, int directions)
        : direction(blockIdx.z), steps(steps), batch(batch), hidden(hidden), directions(directions) {
        const int flat = blockIdx.x * blockDim.x + threadIdx.x;
        inside = flat < batch * hidden;
        b = flat / hidden, unit = flat % hidden;
    }
    __device__ long long time_row(int t) const { return static_cast<long long>(t) * batch + b; }
    // Of the k-th of n values a unit in an array (D, T, B, n·H).
    __device__ long long value(int t, int n, int k) const {
        return ((static_cast<long long>(direction) * steps * batch + time_row(t)) * n + k) * hidden + unit;
    }
    __device__ long long y(int slot) const { return (time_row(slot) * directions + direction) * hidden + unit; }
    __device__ long long state(int k, int slot, int slots) const {
        return ((static_cast<long long>(k) * directions + direction) * slots * batch + time_row(slot)) * hidden + unit;
    }
    __device__ long long input(int k, int t, int width) const {
        return (static_cast<long long>(k) * steps * batch + time_row(t)) * width + (width > 1 ? unit : 0);
    }
    // Whether a sequence begins anew between step t and the one before it in the walk of its direction.
    __device__ Byte begins(const Byte* resets, int t) const {
        return t + direction < steps ? resets[time_row(t + direction)] : Byte(0);
    }
    template <class Cell, class T>
    __device__ void load_params(const T* params, accumulate_t<T>* given) const {
        constexpr int FIRST = Parts<Cell>::READS_H, COUNT = Parts<Cell>::FIRST_INPUT - FIRST;
#pragma unroll
        for (int k = 0; k < COUNT; ++k)
            given[FIRST + k] = widen(params[(static_cast<long long>(direction) * COUNT + k) * hidden + unit]);
    }
};

template <class T, class Cell, bool TRAINING, bool RESETS>
__global__ void __launch_bounds__(THREADS, 1)
    scan_forward(const accumulate_t<T>* gates, const accumulate_t<T>* bias, const T* params, const T* inputs,
                 const Byte* resets, const int* lengths, T* ys, accumulate_t<T>* states, T* saved, int steps, int batch,
                 int hidden, int directions, int input_width, int has_bias, int ragged) {
    using A = accumulate_t<T>;
    using P = Parts<Cell>;
    constexpr int G = Cell::gates, S = Cell::states, V = Cell::saved, I = P::GIVEN - P::FIRST_INPUT;
    constexpr int AHEAD = ahead(G + I + RESETS);
    const Unit at(steps, batch, hidden, directions);
    if (!at.inside) return;
    const int length = ragged ? lengths[at.b] : steps, slots = TRAINING ? steps + 1 : 1;
    A state[at_least_one(S)], given[at_least_one(P::GIVEN)], offset[G];
    T h = ys[at.y(at.direction ? steps + 1 : 0)];
#pragma unroll
    for (int k = 0; k < S; ++k) state[k] = states[at.state(k, TRAINING && at.direction ? steps : 0, slots)];
#pragma unroll
    for (int j = 0; j < G; ++j) offset[j] = has_bias ? bias[(at.direction * G + j) * hidden + at.unit] : A(0);
    at.load_params<Cell>(params, given);

    // where the walk is, and where it asks; one of the other direction goes back
    int t = at.direction ? steps - 1 : 0, ahead_t = t;
    const int to_next = at.direction ? -1 : 1;
    const long long row = to_next * static_cast<long long>(batch) * hidden;
    const long long input_row = to_next * static_cast<long long>(batch) * input_width;
    const A* of_gates = gates + at.value(t, G, 0);
    const T* of_inputs = I ? inputs + at.input(0, t, input_width) : nullptr;
    const long long of_input = static_cast<long long>(steps) * batch * input_width;
    T *y = ys + at.y(t + 1), *save_to = V && TRAINING ? saved + at.value(t, V, 0) : nullptr;
    A* state_to = S && TRAINING ? states + at.state(0, t + 1 - at.direction, slots) : nullptr;
    const long long of_state = static_cast<long long>(directions) * slots * batch * hidden;

    A next_gate[AHEAD][G];
    T next_input[AHEAD][at_least_one(I)];
    Byte next_begins[AHEAD] = {};
    auto ask = [&](int place) {
        if (static_cast<unsigned>(ahead_t) >= static_cast<unsigned>(steps)) return;
#pragma unroll
        for (int j = 0; j < G; ++j) next_gate[place][j] = of_gates[j * hidden];
#pragma unroll
        for (int k = 0; k < I; ++k) next_input[place][k] = of_inputs[k * of_input];
        if (RESETS) next_begins[place] = at.begins(resets, ahead_t);
        ahead_t += to_next, of_gates += G * row;
        if (I) of_inputs += input_row;
    };
#pragma unroll
    for (int place = 0; place < AHEAD; ++place) ask(place);

    for (int first = 0; first < steps; first += AHEAD) {
#pragma unroll
        for (int place = 0; place < AHEAD; ++place) {
            if (first + place >= steps) break;
            A gate[G], save[at_least_one(V)], out;
#pragma unroll
            for (int j = 0; j < G; ++j) gate[j] = next_gate[place][j] + offset[j];
#pragma unroll
            for (int k = 0; k < I; ++k) given[P::FIRST_INPUT + k] = widen(next_input[place][k]);
            if (RESETS && next_begins[place]) {
                h = narrow<T>(A(0));
#pragma unroll
                for (int k = 0; k < S; ++k) state[k] = A(0);
            }
            ask(place);
            if (t < length) {
                if constexpr (P::READS_H) given[0] = widen(h);
                cell_forward<Cell>(gate, state, out, save, given);
                h = narrow<T>(out);
                if (TRAINING) {
#pragma unroll
                    for (int k = 0; k < V; ++k) save_to[k * hidden] = narrow<T>(save[k]);
                }
            }
            *y = h;
            if (TRAINING) {
#pragma unroll
                for (int k = 0; k < S; ++k) state_to[k * of_state] = state[k];
            }
            t += to_next, y += directions * row;
            if (V && TRAINING) save_to += V * row;
            if (S && TRAINING) state_to += row;
        }
    }
    if (!TRAINING) {
#pragma unroll
        for (int k = 0; k < S; ++k) states[at.state(k, 0, slots)] = state[k];
    }
}

// Backward: dh (D, B, H) and dstates (S, D, B, H) are those of the final state, and in the end those of the initial one.
template <class T, class Cell, bool RESETS>
__global__ void __launch_bounds__(THREADS, 1)
    scan_backward(const T* dy, accumulate_t<T>* dh, accumulate_t<T>* dstates, const T* saved,
                  const accumulate_t<T>* states, const T* ys, const T* params, const T* inputs, const Byte* resets,
                  const int* lengths, T* dgates, int steps, int batch, int hidden, int directions, int input_width,
                  int ragged) {
    using A = accumulate_t<T>;
    using P = Parts<Cell>;
    constexpr int R = P::ROW, S = Cell::states, V = Cell::saved, I = P::GIVEN - P::FIRST_INPUT;
    constexpr int AHEAD = ahead(2 + S + V + I + RESETS);
    const Unit at(steps, batch, hidden, directions);
    if (!at.inside) return;
    const int length = ragged ? lengths[at.b] : steps;
    A state[at_least_one(S)], dstate[at_least_one(S)], given[at_least_one(P::GIVEN)];
    A later = dh[at.state(0, 0, 1)];
    T h = ys[at.y(at.direction ? 1 : steps)];
#pragma unroll
    for (int k = 0; k < S; ++k) {
        state[k] = states[at.state(k, at.direction ? 0 : steps, steps + 1)];
        dstate[k] = dstates[at.state(k, 0, 1)];
    }
    at.load_params<Cell>(params, given);

    int t = at.direction ? 0 : steps - 1, ahead_t = t;
    const int to_next = at.direction ? 1 : -1;
    const long long row = to_next * static_cast<long long>(batch) * hidden;
    const long long input_row = to_next * static_cast<long long>(batch) * input_width;
    const T *of_dy = dy + at.y(t), *of_h = ys + at.y(t + 2 * at.direction);
    const T* of_saved = V ? saved + at.value(t, V, 0) : nullptr;
    const A* of_states = S ? states + at.state(0, t + at.direction, steps + 1) : nullptr;
    const T* of_inputs = I ? inputs + at.input(0, t, input_width) : nullptr;
    const long long of_input = static_cast<long long>(steps) * batch * input_width;
    const long long of_state = static_cast<long long>(directions) * (steps + 1) * batch * hidden;
    T* to = dgates + at.value(t, R, 0);

    T next_dy[AHEAD], next_h[AHEAD], next_save[AHEAD][at_least_one(V)], next_input[AHEAD][at_least_one(I)];
    A next_state[AHEAD][at_least_one(S)];
    Byte next_begins[AHEAD] = {};
    auto ask = [&](int place) {
        if (static_cast<unsigned>(ahead_t) >= static_cast<unsigned>(steps)) return;
        next_dy[place] = *of_dy;
        next_h[place] = *of_h;
#pragma unroll
        for (int k = 0; k < V; ++k) next_save[place][k] = of_saved[k * hidden];
#pragma unroll
        for (int k = 0; k < S; ++k) next_state[place][k] = of_states[k * of_state];
#pragma unroll
        for (int k = 0; k < I; ++k) next_input[place][k] = of_inputs[k * of_input];
        if (RESETS) next_begins[place] = at.begins(resets, ahead_t);
        ahead_t += to_next, of_dy += directions * row, of_h += directions * row;
        if (V) of_saved += V * row;
        if (S) of_states += row;
        if (I) of_inputs += input_row;
    };
#pragma unroll
    for (int place = 0; place < AHEAD; ++place) ask(place);

    for (int first = 0; first < steps; first += AHEAD) {
#pragma unroll
        for (int place = 0; place < AHEAD; ++place) {
            if (first + place >= steps) break;
            const bool begins = RESETS && next_begins[place];
            const T earlier = next_h[place];
            A gradient[R] = {}, save[at_least_one(V)], previous[at_least_one(S)], before[at_least_one(S)];
            const A total = later + widen(next_dy[place]);
#pragma unroll
            for (int k = 0; k < V; ++k) save[k] = widen(next_save[place][k]);
#pragma unroll
            for (int k = 0; k < S; ++k) {
                before[k] = next_state[place][k];
                previous[k] = begins ? A(0) : before[k];
            }
#pragma unroll
            for (int k = 0; k < I; ++k) given[P::FIRST_INPUT + k] = widen(next_input[place][k]);
            ask(place);
            if (t < length) {
                if constexpr (P::READS_H) given[0] = begins ? A(0) : widen(earlier);
                later = A(0);
                cell_backward<Cell>(total, widen(h), save, state, previous, dstate, given, gradient, later);
                if (begins) {  // the gradient goes no further
                    later = A(0);
#pragma unroll
                    for (int k = 0; k < S; ++k) dstate[k] = A(0);
                }
            }
#pragma unroll
            for (int j = 0; j < R; ++j) to[j * hidden] = narrow<T>(gradient[j]);
            t += to_next, to += R * row;
            h = earlier;
#pragma unroll
            for (int k = 0; k < S; ++k) state[k] = before[k];
        }
    }
    dh[at.state(0, 0, 1)] = later;
#pragma unroll
    for (int k = 0; k < S; ++k) dstates[at.state(k, 0, 1)] = dstate[k];
}
