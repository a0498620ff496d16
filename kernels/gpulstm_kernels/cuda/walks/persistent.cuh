// What the persistent walks share beside their products: the cell, for one unit of two neighbouring sequences a lane.
//
// T is float or a half type; sums and states are float. What is carried from step to step stays in registers, and the
// inputs of a step are fetched while another step or its product is under way. Arrays are as in buffers.py; where the
// lane's values lie in them is told by a class At, derived from Pair, with a position p that each walk counts in its own
// way, beside the time t:
//   value(p, c, n, k)  of sequence first + c, the k-th of n values a unit in an array (D, T, B, n·H)
//   y(p, c)            in ys, h of the step
//   forward:  first_y(c), first_state(k, c)   what the walk begins with;  state(p, k, c)   after the step
//   backward: dy(p, c);  last_y(c), last_state(k, c)   after the last step of time;  y_before(p, c),
//             state_before(p, k, c)   before the step
//   carried(k, c)      in an array (S, D, B, H)
//   place(t, c, k)     in an array (·, T, B), in the k-th part
// Where a sequence has ended (t >= its length), h and states pass unchanged, and there is no gradient. Where one begins
// anew (RESETS), h and states are zero before the step, in the product too, and gradients end there.
// With HEADS the recurrent weights are (D, HEADS, Gh·H/HEADS, H/HEADS), and a launch has that many times as many blocks
// along z: each head is a recurrence of its own, of units that lie beside the other heads' in all other arrays.
#pragma once
#include "cell.cuh"
#include "tile.cuh"

// The head that a block works on: its number among those of all directions, and which units it has.
template <int HEADS>
struct Head {
    int number, direction, units, first;

    __device__ explicit Head(int hidden)
        : number(static_cast<int>(blockIdx.z)),
          direction(number / HEADS),
          units(hidden / HEADS),
          first(number % HEADS * units) {}
    // Whether there is such a unit of the head; where there is one head, the layer's units are asked for that anyway.
    __device__ __forceinline__ bool has(int unit) const { return HEADS == 1 || unit < units; }
};

// One unit of the sequences `first` and `first + 1`, and whether each of them is there, if any is.
struct Pair {
    int direction, first, unit, hidden, batch, steps, directions;
    bool inside[2];

    __device__ Pair(bool there, int direction, int first, int unit, int hidden, int batch, int steps, int directions)
        : direction(direction),
          first(first),
          unit(unit),
          hidden(hidden),
          batch(batch),
          steps(steps),
          directions(directions),
          inside{there && unit < hidden && first < batch, there && unit < hidden && first + 1 < batch} {}

    __device__ __forceinline__ int length(const int* lengths, int ragged, int c) const {
        return ragged && inside[c] ? lengths[first + c] : steps;
    }
};

// What a cell is given beside h: parameters, which stay, and inputs of a step; each for the lane's two sequences.
template <class T, class Cell>
struct Given {
    using Of = Parts<Cell>;
    static constexpr int PARAMS = Of::FIRST_INPUT - Of::READS_H, INPUTS = Of::GIVEN - Of::FIRST_INPUT;
    const T* inputs;
    int width;  // of a row of inputs: a value a unit, or 1 for all
    float param[at_least_one(PARAMS)], input[2][at_least_one(INPUTS)];

    template <class At>
    __device__ __forceinline__ void begin(const At& at, const T* params, const T* of_steps, int input_width) {
        inputs = of_steps;
        width = input_width;
#pragma unroll
        for (int k = 0; k < PARAMS; ++k)
            param[k] = at.unit < at.hidden ? widen(params[(at.direction * PARAMS + k) * at.hidden + at.unit]) : 0.0f;
    }
    template <class At>
    __device__ __forceinline__ void fetch(const At& at, int t) {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int k = 0; k < INPUTS; ++k)
                input[c][k] = at.inside[c] ? widen(inputs[at.place(t, c, k) * width + (width > 1 ? at.unit : 0)]) : 0.0f;
    }
    __device__ __forceinline__ void values(int c, float before, float (&given)[at_least_one(Of::GIVEN)]) const {
        if constexpr (Of::READS_H) given[0] = before;
#pragma unroll
        for (int k = 0; k < PARAMS; ++k) given[Of::READS_H + k] = param[k];
#pragma unroll
        for (int k = 0; k < INPUTS; ++k) given[Of::FIRST_INPUT + k] = input[c][k];
    }
};

// Forward. `operand` is where h goes as a factor of the next product, `pitch` elements from one sequence to the next.
// The order of a step: `input`, `prefetch` of the next step, `fetch` of this one, the product, `step`.
template <class T, class Cell, bool TRAINING, bool RESETS>
struct CellForward {
    using Of = Parts<Cell>;
    static constexpr int G = Cell::gates, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    static constexpr int ALONE = Of::FIRST_OF_H, BOTH = Of::OF_X - ALONE;  // gates of x alone, and of both products
    const float* gates;  // (D, T, B, G·H): of x, without the bias
    T* ys;
    float* states;
    T* saved;
    const Byte* resets;
    T h[2];
    float state[2][S], bias[G], next[at_least_one(BOTH)][2], alone[at_least_one(ALONE)][2];
    Given<T, Cell> given;
    int length[2];
    bool begins[2], follows[2];  // whether a sequence begins with this step, and with the one after it

    __device__ __forceinline__ CellForward(const float* gates, T* ys, float* states, T* saved, const Byte* resets)
        : gates(gates), ys(ys), states(states), saved(saved), resets(resets) {}

    template <class At>
    __device__ __forceinline__ void begin(const At& at, const float* biases, int has_bias, const T* params,
                                          const T* inputs, int input_width, const int* lengths, int ragged, T* operand,
                                          int pitch) {
        given.begin(at, params, inputs, input_width);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            length[c] = at.length(lengths, ragged, c);
            h[c] = at.inside[c] ? ys[at.first_y(c)] : narrow<T>(0.0f);
            if constexpr (RESETS) begins[c] = at.inside[c] && !at.direction && resets[at.place(0, c, 0)];
            if (at.inside[c]) operand[c * pitch] = RESETS && begins[c] ? narrow<T>(0.0f) : h[c];
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) state[c][k] = at.inside[c] ? states[at.first_state(k, c)] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < G; ++j)
            bias[j] = has_bias && at.unit < at.hidden ? biases[(at.direction * G + j) * at.hidden + at.unit] : 0.0f;
    }

    // The gates of x at position p that h's product is added to; `input` then gives gate j of that product, with its bias.
    template <class At>
    __device__ __forceinline__ void prefetch(const At& at, int p) {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int j = 0; j < BOTH; ++j)
                next[j][c] = at.inside[c] ? gates[at.value(p, c, G, ALONE + j)] : 0.0f;
    }
    __device__ __forceinline__ float input(int j, int c) const {
        return j < BOTH ? next[j < BOTH ? j : 0][c] + bias[ALONE + j] : bias[ALONE + j];
    }

    // What step t at position p needs only after its product.
    template <class At>
    __device__ __forceinline__ void fetch(const At& at, int p, int t) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
            for (int j = 0; j < ALONE; ++j) alone[j][c] = at.inside[c] ? gates[at.value(p, c, G, j)] : 0.0f;
            if constexpr (RESETS) {
                const int border = t + 1 - at.direction;
                follows[c] = at.inside[c] && border < at.steps && resets[at.place(border, c, 0)];
            }
        }
        given.fetch(at, t);
    }

    // sums: all gates of h's product, as Slice::multiply leaves them.
    template <class At>
    __device__ __forceinline__ void step(const At& at, int p, int t,
                                         const float (&sums)[TILES_OF_GATES<Of::OF_H>][4], T* operand, int pitch) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            if (t < length[c]) {
                float gate[G], save[V], out, own[at_least_one(Of::GIVEN)];
                if (RESETS && begins[c]) {
                    h[c] = narrow<T>(0.0f);
#pragma unroll
                    for (int k = 0; k < Cell::states; ++k) state[c][k] = 0.0f;
                }
#pragma unroll
                for (int j = 0; j < ALONE; ++j) gate[j] = alone[j][c] + bias[j];
#pragma unroll
                for (int j = 0; j < Of::OF_H; ++j) gate[ALONE + j] = sums[j / 2][j % 2 * 2 + c];
                given.values(c, widen(h[c]), own);
                cell_forward<Cell>(gate, state[c], out, save, own);
                h[c] = narrow<T>(out);
                if (TRAINING) {
#pragma unroll
                    for (int k = 0; k < Cell::saved; ++k)
                        saved[at.value(p, c, Cell::saved, k)] = narrow<T>(save[k]);
                }
            }
            operand[c * pitch] = RESETS && follows[c] ? narrow<T>(0.0f) : h[c];
            ys[at.y(p, c)] = h[c];
            if (TRAINING) {
#pragma unroll
                for (int k = 0; k < Cell::states; ++k) states[at.state(p, k, c)] = state[c][k];
            }
            if constexpr (RESETS) begins[c] = follows[c];
        }
    }

    // Where states are not kept step by step, they are written once.
    template <class At>
    __device__ __forceinline__ void end(const At& at) {
        if (TRAINING) return;
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int k = 0; k < Cell::states; ++k)
                if (at.inside[c]) states[at.carried(k, c)] = state[c][k];
    }
};

// Backward: dh is the gradient of h that came from later steps; dgates go to the array and, those of h's product as a
// factor of the product that gives the next dh, to `operand`: `pitch` elements from one sequence to the next,
// `gate_pitch` between gates. After `step` comes that product, which is added to dh, then `cut`.
template <class T, class Cell, bool RESETS>
struct CellBackward {
    using Of = Parts<Cell>;
    static constexpr int S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    const T* dy;
    const T* saved;
    const float* states;
    const T* ys;
    T* dgates;
    const Byte* resets;
    float dh[2], dstate[2][S], state[2][S], before[2][S], from_output[2], h[2], h_before[2], save[2][V];
    Given<T, Cell> given;
    int length[2];
    bool begins[2], ends[2];  // whether a sequence begins with this step; whether no gradient passes it

    __device__ __forceinline__ CellBackward(const T* dy, const T* saved, const float* states, const T* ys, T* dgates,
                                            const Byte* resets)
        : dy(dy), saved(saved), states(states), ys(ys), dgates(dgates), resets(resets) {}

    template <class At>
    __device__ __forceinline__ void begin(const At& at, const float* last_dh, const float* dstates, const T* params,
                                          const T* inputs, int input_width, const int* lengths, int ragged) {
        given.begin(at, params, inputs, input_width);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            length[c] = at.length(lengths, ragged, c);
            dh[c] = at.inside[c] ? last_dh[at.carried(0, c)] : 0.0f;
            if constexpr (RESETS) ends[c] = false;
            if constexpr (Of::READS_H) h_before[c] = at.inside[c] ? widen(ys[at.last_y(c)]) : 0.0f;
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) {
                dstate[c][k] = at.inside[c] ? dstates[at.carried(k, c)] : 0.0f;
                state[c][k] = at.inside[c] ? states[at.last_state(k, c)] : 0.0f;
            }
        }
    }

    // What the step of time t at position p reads.
    template <class At>
    __device__ __forceinline__ void prefetch(const At& at, int p, int t) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            from_output[c] = widen(dy[at.dy(p, c)]);
            if constexpr (Of::READS_H) {
                h[c] = h_before[c];
                h_before[c] = widen(ys[at.y_before(p, c)]);
            } else {
                h[c] = widen(ys[at.y(p, c)]);
            }
#pragma unroll
            for (int k = 0; k < Cell::saved; ++k)
                save[c][k] = widen(saved[at.value(p, c, Cell::saved, k)]);
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) before[c][k] = states[at.state_before(p, k, c)];
            if constexpr (RESETS) {
                const int border = t + at.direction;
                begins[c] = border < at.steps && resets[at.place(border, c, 0)];
            }
        }
        given.fetch(at, t);
    }

    template <class At>
    __device__ __forceinline__ void step(const At& at, int p, int t, T* operand, int pitch, int gate_pitch) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            float row[Of::ROW] = {};
            if constexpr (RESETS) ends[c] = begins[c] && t < length[c];
            if (t < length[c]) {
                float previous[S], own[at_least_one(Of::GIVEN)], dbefore = 0.0f;
#pragma unroll
                for (int k = 0; k < Cell::states; ++k) previous[k] = RESETS && begins[c] ? 0.0f : before[c][k];
                given.values(c, Of::READS_H && !(RESETS && begins[c]) ? h_before[c] : 0.0f, own);
                cell_backward<Cell>(dh[c] + from_output[c], h[c], save[c], state[c], previous, dstate[c], own, row, dbefore);
                dh[c] = dbefore;
                if (RESETS && begins[c]) {
#pragma unroll
                    for (int k = 0; k < Cell::states; ++k) dstate[c][k] = 0.0f;
                }
            }
#pragma unroll
            for (int j = 0; j < Of::ROW; ++j) {
                const T rounded = narrow<T>(row[j]);
                if (j >= Of::FIRST_OF_H && j < Cell::gates)
                    operand[c * pitch + (j - Of::FIRST_OF_H) * gate_pitch] = rounded;
                dgates[at.value(p, c, Of::ROW, j)] = rounded;
            }
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) state[c][k] = before[c][k];
        }
    }

    // Once the product has been added to dh: where a sequence began anew, no gradient goes further.
    __device__ __forceinline__ void cut() {
        if constexpr (RESETS) {
#pragma unroll
            for (int c = 0; c < 2; ++c)
                if (ends[c]) dh[c] = 0.0f;
        }
    }

    template <class At>
    __device__ __forceinline__ void end(const At& at, float* first_dh, float* dstates) const {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            first_dh[at.carried(0, c)] = dh[c];
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) dstates[at.carried(k, c)] = dstate[c][k];
        }
    }
};
