// The block walk: one block holds all of weight_hh in registers and walks all of time for eight sequences.
//
//   gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ + bias (x·W_ihᵀ comes from the host);  h_t, states_t, saved_t = cell(gates_t, ..)
//
// Gates of h's product, here G, are rows of weight_hh; those of x alone take no part in it.
// Arrays as in buffers.py, the cell as in persistent.cuh; no projection. Blocks never wait for each other.
// Forward: a warp owns eight units and all their gates, so a lane's sums are all gates of one unit for two sequences.
// Only h goes through shared memory, in two copies, so that one barrier a step is enough.
// Backward: two warps own 16 units, each with half of k = gates·units; dgates go through shared memory in two copies,
// and the two warps add their halves.
// Launch: CHUNKS chunks of 64 bytes hold a row of weight_hh; grid (⌈B/8⌉, 1, D), 32 threads for each eight units
// (forward), 64 for each 16 (backward); shared memory as host.py computes it.
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

    __device__ ForwardRow(int first, int unit, int hidden, int batch, int steps, int directions)
        : Row(true, first, unit, hidden, batch, steps, directions) {
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

    __device__ BackwardRow(int first, int unit, int hidden, int batch, int steps, int directions)
        : Row(true, first, unit, hidden, batch, steps, directions) {
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

template <class T, bool TF32, class Cell, bool TRAINING, bool RESETS, int CHUNKS>
__global__ void __launch_bounds__(MOST_THREADS<T>* CHUNKS, 1)
    block_forward(const float* gates, const float* bias, const T* weight_hh, const T* params, const T* inputs,
                  const Byte* resets, const int* lengths, T* ys, float* states, T* saved, int steps, int batch,
                  int hidden, int directions, int input_width, int has_bias, int ragged) {
    constexpr int G = Parts<Cell>::OF_H, M16 = TILES_OF_GATES<G>, PITCH = pitch(CHUNKS);
    constexpr int COPY = COLUMNS * PITCH / static_cast<int>(sizeof(T)), NEXT = PITCH / static_cast<int>(sizeof(T));
    SHARED_DYNAMIC(shared);
    const Lane lane;
    const int warp = threadIdx.x / WARP;

    Slice<T, TF32, M16, CHUNKS> slice;
    slice.load(GateRows<T>{weight_hh + static_cast<long long>(blockIdx.z) * G * hidden * hidden, G, hidden, warp * 8, 0});
    for (int i = threadIdx.x; i < 2 * COLUMNS * PITCH / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 0;
    block_barrier();

    // only now: while the slice is loaded, every register is taken
    const ForwardRow<TRAINING> at(static_cast<int>(blockIdx.x) * COLUMNS + 2 * lane.q, warp * 8 + lane.g, hidden, batch,
                                  steps, directions);
    T* const operand = reinterpret_cast<T*>(shared + 2 * lane.q * PITCH) + at.unit;  // of the first copy
    int row = at.row(at.first_step());
    CellForward<T, Cell, TRAINING, RESETS> cell(gates, ys, states, saved, resets);
    cell.begin(at, bias, has_bias, params, inputs, input_width, lengths, ragged, operand, NEXT);
    cell.prefetch(at, row);
    block_barrier();

    for (int step = 0; step < steps; ++step) {
        const int t = at.direction ? steps - 1 - step : step, copy = step % 2;
        float sums[M16][4] = {};
#pragma unroll
        for (int j = 0; j < G; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) sums[j / 2][j % 2 * 2 + c] = cell.input(j, c);
        row += at.stride;
        if (step + 1 < steps) cell.prefetch(at, row);
        cell.fetch(at, row - at.stride, t);
        slice.multiply(sums, [&](int column, int byte) {
            return *reinterpret_cast<const uint4*>(shared + (copy * COLUMNS + column) * PITCH + byte);
        });
        cell.step(at, row - at.stride, t, sums, operand + (1 - copy) * COPY, NEXT);
        block_barrier();
    }
    cell.end(at);
}

template <class T, bool TF32, class Cell, bool RESETS, int CHUNKS>
__global__ void __launch_bounds__(MOST_THREADS<T>* CHUNKS, 1)
    block_backward(const T* dy, float* dh, float* dstates, const T* saved, const float* states, const T* ys,
                   const T* weight_hh, const T* params, const T* inputs, const Byte* resets, const int* lengths,
                   T* dgates, int steps, int batch, int hidden, int directions, int input_width, int ragged) {
    constexpr int G = Parts<Cell>::OF_H;
    constexpr int OWN = (G * CHUNKS + 1) / 2, PITCH = pitch(2 * OWN);  // chunks of k a warp; each gate begins a chunk
    constexpr int IN_CHUNK = CHUNK / static_cast<int>(sizeof(T)), PADDED = CHUNKS * IN_CHUNK;  // units of a gate
    constexpr int COPY = COLUMNS * PITCH / static_cast<int>(sizeof(T)), NEXT = PITCH / static_cast<int>(sizeof(T));
    SHARED_DYNAMIC(shared);
    const Lane lane;
    const int warp = threadIdx.x / WARP, team = warp / 2, side = warp % 2;
    float* const shares = reinterpret_cast<float*>(shared + 2 * COLUMNS * PITCH) + threadIdx.x % WARP * 2;  // a warp, lane

    Slice<T, TF32, 1, OWN> slice;  // of weight_hhᵀ: 16 units by half of all gates' units
    const T* const weight = weight_hh + static_cast<long long>(blockIdx.z) * G * hidden * hidden;
    slice.load([&](int row, int k) {
        k += side * OWN * IN_CHUNK;
        const int unit = team * 16 + row, gate = k / PADDED, other = k % PADDED;
        const bool inside = unit < hidden && gate < G && other < hidden;
        return inside ? weight[(gate * hidden + other) * hidden + unit] : narrow<T>(0.0f);
    });
    for (int i = threadIdx.x; i < 2 * COLUMNS * PITCH / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 0;
    block_barrier();

    const BackwardRow at(static_cast<int>(blockIdx.x) * COLUMNS + 2 * lane.q, team * 16 + side * 8 + lane.g, hidden,
                         batch, steps, directions);
    T* const operand = reinterpret_cast<T*>(shared + 2 * lane.q * PITCH) + at.unit;  // of the first copy
    int row = at.row(at.first_step());
    CellBackward<T, Cell, RESETS> cell(dy, saved, states, ys, dgates, resets);
    cell.begin(at, dh, dstates, params, inputs, input_width, lengths, ragged);
    cell.prefetch(at, row, at.direction ? 0 : steps - 1);

    for (int step = 0; step < steps; ++step) {
        const int t = at.direction ? step : steps - 1 - step, copy = step % 2;
        cell.step(at, row, t, operand + copy * COPY, NEXT, PADDED);
        row += at.stride;
        if (step + 1 < steps) cell.prefetch(at, row, at.direction ? t + 1 : t - 1);
        block_barrier();
        float sums[1][4] = {};
        slice.multiply(sums, [&](int column, int byte) {
            return *reinterpret_cast<const uint4*>(shared + (copy * COLUMNS + column) * PITCH + side * OWN * CHUNK + byte);
        });
#pragma unroll
        for (int c = 0; c < 2; ++c) shares[warp * 2 * WARP + c] = side ? sums[0][c] : sums[0][2 + c];  // the other's
        named_barrier(1 + team, 2 * WARP);
#pragma unroll
        for (int c = 0; c < 2; ++c)
            cell.dh[c] += (side ? sums[0][2 + c] : sums[0][c]) + shares[(warp ^ 1) * 2 * WARP + c];
        cell.cut();
    }
    cell.end(at, dh, dstates);
}
