// Where the values of a lane lie, as both kinds of the block walk's kernels count it, and sizes of their shared memory.
#pragma once
#include "persistent.cuh"

// Bytes from one column's row to the next: an odd number of chunks, so that eight lanes' 16 bytes miss each other's banks.
__host__ __device__ constexpr int pitch(int chunks) { return (chunks | 1) * CHUNK; }

template <class T>
constexpr int MOST_THREADS = CHUNK / static_cast<int>(sizeof(T)) * 4;  // a chunk

// Indices are int (the host sees to it that they suffice) and follow from one that moves with the walk, since every
// register counts: a position is the row first·H of the step in an array (D, T, B, H).
struct Row : Pair {
    using Pair::Pair;
    int to_y, to_state, of_state;  // from a row to the lane's value in ys and states; from one state to the next

    __device__ int place(int t, int c, int k) const { return (k * steps + t) * batch + first + c; }
    // Of step t.
    __device__ int row(int t) const { return ((direction * steps + t) * batch + first) * hidden; }
    // In an array (T, B, D·H), whose second sequence is directions·hidden elements on.
    __device__ int of_time(int t) const { return ((t * batch + first) * directions + direction) * hidden + unit; }
    // In an array (D, slots, B, H), whose second sequence is hidden elements on.
    __device__ int of_slot(int slot, int slots) const {
        return ((direction * slots + slot) * batch + first) * hidden + unit;
    }
    __device__ int value(int p, int c, int count, int k) const { return p * count + unit + (c * count + k) * hidden; }
    __device__ int carried(int k, int c) const {
        return k * directions * batch * hidden + of_slot(0, 1) + c * hidden;
    }
};

template <bool TRAINING>
struct ForwardRow : Row {
    int stride;  // from the row of a step to that of the next

    template <int HEADS>
    __device__ ForwardRow(const Head<HEADS>& head, int first, int own, int hidden, int batch, int steps, int directions)
        : Row(head.has(own), head.direction, first, head.first + own, hidden, batch, steps, directions) {
        const int begin = row(first_step()), slots = TRAINING ? steps + 1 : 1;
        stride = (direction ? -1 : 1) * batch * hidden;
        to_y = of_time(first_step() + 1) - begin * directions;
        to_state = of_slot(TRAINING && direction ? steps : 0, slots) - begin;
        of_state = directions * slots * batch * hidden;
    }
    __device__ int first_step() const { return direction ? steps - 1 : 0; }
    __device__ int y(int p, int c) const { return p * directions + to_y + c * directions * hidden; }
    __device__ int first_y(int c) const { return of_time(direction ? steps + 1 : 0) + c * directions * hidden; }
    __device__ int first_state(int k, int c) const { return row(first_step()) + to_state + k * of_state + c * hidden; }
    __device__ int state(int p, int k, int c) const { return p + stride + to_state + k * of_state + c * hidden; }
};

struct BackwardRow : Row {
    int stride;

    template <int HEADS>
    __device__ BackwardRow(const Head<HEADS>& head, int first, int own, int hidden, int batch, int steps, int directions)
        : Row(head.has(own), head.direction, first, head.first + own, hidden, batch, steps, directions) {
        const int begin = row(first_step());
        stride = (direction ? 1 : -1) * batch * hidden;
        to_y = of_time(first_step()) - begin * directions;
        to_state = of_slot(first_step() + direction, steps + 1) - begin;
        of_state = directions * (steps + 1) * batch * hidden;
    }
    __device__ int first_step() const { return direction ? 0 : steps - 1; }
    __device__ int dy(int p, int c) const { return p * directions + to_y + c * directions * hidden; }
    __device__ int y(int p, int c) const { return dy(p, c) + batch * directions * hidden; }
    __device__ int y_before(int p, int c) const { return dy(p, c) + 2 * direction * batch * directions * hidden; }
    __device__ int last_y(int c) const { return y(row(first_step()), c); }
    __device__ int last_state(int k, int c) const {
        return row(first_step()) - stride + to_state + k * of_state + c * hidden;
    }
    __device__ int state_before(int p, int k, int c) const { return p + to_state + k * of_state + c * hidden; }
};
