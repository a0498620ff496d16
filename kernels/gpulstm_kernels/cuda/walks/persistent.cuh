// What the persistent walks share beside their products: the cell, for one unit of two neighbouring sequences a lane.
//
// T is float or a half type; sums and states are float. What is carried from step to step stays in registers, and the
// inputs of a step are prefetched while the step before it is under way. Arrays are as in buffers.py; where the lane's
// values lie in them is told by a class At, derived from Pair, with a position p that each walk counts in its own way:
//   value(p, c, n, k)  of sequence first + c, the k-th of n values a unit in an array (D, T, B, n·H)
//   y(p, c)            in ys, h of the step
//   forward:  first_y(c), first_state(k, c)   what the walk begins with;  state(p, k, c)   after the step
//   backward: dy(p, c);  last_state(k, c)   after the last step of time;  state_before(p, k, c)   before the step
//   carried(k, c)      in an array (S, D, B, H)
// Where a sequence has ended (t >= its length), h and states pass unchanged, and there is no gradient.
#pragma once
#include "tile.cuh"

// One unit of the sequences `first` and `first + 1`, and whether each of them is there, if any is.
struct Pair {
    int direction, first, unit, hidden, batch, steps, directions;
    bool inside[2];

    __device__ Pair(bool there, int first, int unit, int hidden, int batch, int steps, int directions)
        : direction(static_cast<int>(blockIdx.z)),
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

// Forward. `operand` is where h goes as a factor of the next product, `pitch` elements from one sequence to the next.
template <class T, class Cell, bool TRAINING>
struct CellForward {
    static constexpr int G = Cell::gates, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    const float* gates;  // (D, T, B, G·H): of x, without the bias
    T* ys;
    float* states;
    T* saved;
    T h[2];
    float state[2][S], bias[G], next[G][2];
    int length[2];

    __device__ __forceinline__ CellForward(const float* gates, T* ys, float* states, T* saved)
        : gates(gates), ys(ys), states(states), saved(saved) {}

    template <class At>
    __device__ __forceinline__ void begin(const At& at, const float* biases, int has_bias, const int* lengths,
                                          int ragged, T* operand, int pitch) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            length[c] = at.length(lengths, ragged, c);
            h[c] = at.inside[c] ? ys[at.first_y(c)] : narrow<T>(0.0f);
            if (at.inside[c]) operand[c * pitch] = h[c];
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) state[c][k] = at.inside[c] ? states[at.first_state(k, c)] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < G; ++j)
            bias[j] = has_bias && at.unit < at.hidden ? biases[(at.direction * G + j) * at.hidden + at.unit] : 0.0f;
    }

    // The gates of x at position p, which `input` then gives with their bias.
    template <class At>
    __device__ __forceinline__ void prefetch(const At& at, int p) {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int j = 0; j < G; ++j) next[j][c] = at.inside[c] ? gates[at.value(p, c, G, j)] : 0.0f;
    }
    __device__ __forceinline__ float input(int j, int c) const { return next[j][c] + bias[j]; }

    // sums: all of the gates, as Slice::multiply leaves them.
    template <class At>
    __device__ __forceinline__ void step(const At& at, int p, int t, const float (&sums)[TILES_OF_GATES<G>][4],
                                         T* operand, int pitch) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            if (t < length[c]) {
                float gate[G], save[V], out;
#pragma unroll
                for (int j = 0; j < G; ++j) gate[j] = sums[j / 2][j % 2 * 2 + c];
                Cell::forward(gate, state[c], out, save);
                h[c] = narrow<T>(out);
                if (TRAINING) {
#pragma unroll
                    for (int k = 0; k < Cell::saved; ++k)
                        saved[at.value(p, c, Cell::saved, k)] = narrow<T>(save[k]);
                }
            }
            operand[c * pitch] = h[c];
            ys[at.y(p, c)] = h[c];
            if (TRAINING) {
#pragma unroll
                for (int k = 0; k < Cell::states; ++k) states[at.state(p, k, c)] = state[c][k];
            }
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

// Backward: dh is the gradient of h that came from later steps; dgates go to the array and, as a factor of the product
// that gives the next dh, to `operand`: `pitch` elements from one sequence to the next, `gate_pitch` between gates.
template <class T, class Cell>
struct CellBackward {
    static constexpr int G = Cell::gates, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    const T* dy;
    const T* saved;
    const float* states;
    const T* ys;
    T* dgates;
    float dh[2], dstate[2][S], state[2][S], before[2][S], from_output[2], h[2], save[2][V];
    int length[2];

    __device__ __forceinline__ CellBackward(const T* dy, const T* saved, const float* states, const T* ys, T* dgates)
        : dy(dy), saved(saved), states(states), ys(ys), dgates(dgates) {}

    template <class At>
    __device__ __forceinline__ void begin(const At& at, const float* last_dh, const float* dstates, const int* lengths,
                                          int ragged) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            length[c] = at.length(lengths, ragged, c);
            dh[c] = at.inside[c] ? last_dh[at.carried(0, c)] : 0.0f;
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) {
                dstate[c][k] = at.inside[c] ? dstates[at.carried(k, c)] : 0.0f;
                state[c][k] = at.inside[c] ? states[at.last_state(k, c)] : 0.0f;
            }
        }
    }

    template <class At>
    __device__ __forceinline__ void prefetch(const At& at, int p) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            from_output[c] = widen(dy[at.dy(p, c)]);
            h[c] = widen(ys[at.y(p, c)]);
#pragma unroll
            for (int k = 0; k < Cell::saved; ++k)
                save[c][k] = widen(saved[at.value(p, c, Cell::saved, k)]);
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) before[c][k] = states[at.state_before(p, k, c)];
        }
    }

    template <class At>
    __device__ __forceinline__ void step(const At& at, int p, int t, T* operand, int pitch, int gate_pitch) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            float dgate[G] = {};
            if (t < length[c]) {
                Cell::backward(dh[c] + from_output[c], h[c], save[c], state[c], before[c], dstate[c], dgate);
                dh[c] = 0.0f;
            }
#pragma unroll
            for (int j = 0; j < G; ++j) {
                const T rounded = narrow<T>(dgate[j]);
                operand[c * pitch + j * gate_pitch] = rounded;
                dgates[at.value(p, c, G, j)] = rounded;
            }
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) state[c][k] = before[c][k];
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
