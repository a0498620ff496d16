// The block walk: one block holds all of weight_hh in registers and walks all of time for eight sequences.
//
//   gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ + bias (x·W_ihᵀ comes from the host);  h_t, states_t, saved_t = cell(gates_t, ..)
//
// Arrays as in problem.py; T is float or a half type, sums and states are float; no projection. Blocks never wait for
// each other. Forward: a warp owns eight units and all their gates, so a thread's sums are all gates of one unit for
// two sequences: the cell, its states and the bias stay in registers. Only h goes through shared memory, in two copies,
// so that one barrier a step is enough. Gates of x and saved values of the next step are read before they are needed.
// Backward: two warps own 16 units, each with half of k = gates·units; dgates go through shared memory in two copies,
// and the pair adds its halves.
// Launch: CHUNKS chunks of 64 bytes hold a row of weight_hh; grid (⌈B/8⌉, 1, D), 32 threads for each eight units
// (forward), 64 for each 16 (backward); shared memory: SHARED_FORWARD, SHARED_BACKWARD bytes, as block.py computes.
#include "tile.cuh"

// Bytes from one column's row to the next: an odd number of chunks, so that eight lanes' 16 bytes miss each other's banks.
__host__ __device__ constexpr int pitch(int chunks) { return (chunks | 1) * CHUNK; }

template <class T>
constexpr int MOST_THREADS = CHUNK / static_cast<int>(sizeof(T)) * 4;  // a chunk

// Where a lane works: two neighbouring sequences of one unit. Indices are int (the host sees to it that they suffice)
// and follow from one that moves with the walk, since every register counts.
struct Pair {
    int direction, first, unit, hidden, batch, steps, directions;
    bool inside[2];

    __device__ Pair(int column, int unit, int hidden, int batch, int steps, int directions)
        : direction(static_cast<int>(blockIdx.z)),
          first(static_cast<int>(blockIdx.x) * COLUMNS + column),
          unit(unit),
          hidden(hidden),
          batch(batch),
          steps(steps),
          directions(directions),
          inside{unit < hidden && first < batch, unit < hidden && first + 1 < batch} {}

    // Of the first of the two: row·width + unit in an array (D, T, B, width·H), whose other is width·hidden elements on.
    __device__ int row(int t) const { return ((direction * steps + t) * batch + first) * hidden; }
    // In an array (T, B, D·H), whose other is directions·hidden on.
    __device__ int of_time(int t) const { return ((t * batch + first) * directions + direction) * hidden + unit; }
    // In an array (D, slots, B, H), whose other is hidden on.
    __device__ int of_slot(int slot, int slots) const {
        return ((direction * slots + slot) * batch + first) * hidden + unit;
    }
};

template <class T, bool TF32, class Cell, bool KEEP, int CHUNKS>
__global__ void __launch_bounds__(MOST_THREADS<T>* CHUNKS, 1)
    block_forward(const float* gates, const float* bias, const T* weight_hh, const int* lengths, T* ys, float* states,
                  T* saved, int steps, int batch, int hidden, int directions, int has_bias, int ragged) {
    constexpr int G = Cell::gates, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    constexpr int M16 = TILES_OF_GATES<G>, PITCH = pitch(CHUNKS);
    SHARED_DYNAMIC(shared);
    const Lane lane;
    const int warp = threadIdx.x / WARP;
    const Pair at(2 * lane.q, warp * 8 + lane.g, hidden, batch, steps, directions);

    Slice<T, TF32, M16, CHUNKS> slice;
    slice.load(GateRows<T>{weight_hh + static_cast<long long>(at.direction) * G * hidden * hidden, G, hidden, warp * 8, 0});
    for (int i = threadIdx.x; i < 2 * COLUMNS * PITCH / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 0;
    block_barrier();

    const int stride = (at.direction ? -1 : 1) * batch * hidden, begin = at.direction ? steps - 1 : 0;
    const int slots = KEEP ? steps + 1 : 1, initial = KEEP && at.direction ? steps : 0;
    const int of_state = directions * slots * batch * hidden;  // from one to the next
    int row = at.row(begin);
    const int to_y = at.of_time(begin + 1) - row * directions, to_state = at.of_slot(initial, slots) - row;
    T* const own = reinterpret_cast<T*>(shared + 2 * lane.q * PITCH) + at.unit;  // in the first column of the first copy
    constexpr int COPY = COLUMNS * PITCH / static_cast<int>(sizeof(T)), NEXT = PITCH / static_cast<int>(sizeof(T));

    T h[2];
    float state[2][S], offset[G], next[G][2];
    int length[2];
    const auto fetch = [&] {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int j = 0; j < G; ++j) next[j][c] = at.inside[c] ? gates[row * G + at.unit + (c * G + j) * hidden] : 0.0f;
    };
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        length[c] = ragged && at.inside[c] ? lengths[at.first + c] : steps;
        h[c] = at.inside[c] ? ys[at.of_time(at.direction ? steps + 1 : 0) + c * directions * hidden] : narrow<T>(0.0f);
        if (at.inside[c]) own[c * NEXT] = h[c];
#pragma unroll
        for (int k = 0; k < Cell::states; ++k)
            state[c][k] = at.inside[c] ? states[row + to_state + k * of_state + c * hidden] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < G; ++j)
        offset[j] = has_bias && at.unit < hidden ? bias[(at.direction * G + j) * hidden + at.unit] : 0.0f;
    fetch();
    block_barrier();

    for (int step = 0; step < steps; ++step) {
        const int t = at.direction ? steps - 1 - step : step, copy = step % 2;
        float sums[M16][4] = {};
#pragma unroll
        for (int j = 0; j < G; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) sums[j / 2][j % 2 * 2 + c] = next[j][c] + offset[j];
        row += stride;
        if (step + 1 < steps) fetch();
        slice.multiply(sums, [&](int column, int byte) {
            return *reinterpret_cast<const uint4*>(shared + (copy * COLUMNS + column) * PITCH + byte);
        });
        const int past = row - stride;  // of this step again
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            if (t < length[c]) {
                float gate[G], save[V], out;
#pragma unroll
                for (int j = 0; j < G; ++j) gate[j] = sums[j / 2][j % 2 * 2 + c];
                Cell::forward(gate, state[c], out, save);
                h[c] = narrow<T>(out);
                if (KEEP) {
#pragma unroll
                    for (int k = 0; k < Cell::saved; ++k)
                        saved[past * Cell::saved + at.unit + (c * Cell::saved + k) * hidden] = narrow<T>(save[k]);
                }
            }
            own[(1 - copy) * COPY + c * NEXT] = h[c];
            ys[past * directions + to_y + c * directions * hidden] = h[c];
            if (KEEP) {
#pragma unroll
                for (int k = 0; k < Cell::states; ++k) states[row + to_state + k * of_state + c * hidden] = state[c][k];
            }
        }
        block_barrier();
    }
    if (!KEEP) {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int k = 0; k < Cell::states; ++k)
                if (at.inside[c]) states[at.of_slot(0, 1) + k * of_state + c * hidden] = state[c][k];
    }
}

template <class T, bool TF32, class Cell, int CHUNKS>
__global__ void __launch_bounds__(MOST_THREADS<T>* CHUNKS, 1)
    block_backward(const T* dy, float* dh, float* dstates, const T* saved, const float* states, const T* ys,
                   const T* weight_hh, const int* lengths, T* dgates, int steps, int batch, int hidden, int directions,
                   int ragged) {
    constexpr int G = Cell::gates, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    constexpr int OWN = (G * CHUNKS + 1) / 2, PITCH = pitch(2 * OWN);  // chunks of k a warp; each gate begins a chunk
    constexpr int IN_CHUNK = CHUNK / static_cast<int>(sizeof(T)), PADDED = CHUNKS * IN_CHUNK;  // units of a gate
    constexpr int COPY = COLUMNS * PITCH / static_cast<int>(sizeof(T)), NEXT = PITCH / static_cast<int>(sizeof(T));
    SHARED_DYNAMIC(shared);
    const Lane lane;
    const int warp = threadIdx.x / WARP, team = warp / 2, side = warp % 2;
    const Pair at(2 * lane.q, team * 16 + side * 8 + lane.g, hidden, batch, steps, directions);
    float* const shares = reinterpret_cast<float*>(shared + 2 * COLUMNS * PITCH) + threadIdx.x % WARP * 2;  // a warp, lane

    Slice<T, TF32, 1, OWN> slice;  // of weight_hhᵀ: 16 units by half of all gates' units
    const T* const weight = weight_hh + static_cast<long long>(at.direction) * G * hidden * hidden;
    slice.load([&](int row, int k) {
        k += side * OWN * IN_CHUNK;
        const int unit = team * 16 + row, gate = k / PADDED, other = k % PADDED;
        const bool inside = unit < hidden && gate < G && other < hidden;
        return inside ? weight[(gate * hidden + other) * hidden + unit] : narrow<T>(0.0f);
    });
    for (int i = threadIdx.x; i < 2 * COLUMNS * PITCH / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 0;
    block_barrier();

    const int stride = (at.direction ? 1 : -1) * batch * hidden, begin = at.direction ? 0 : steps - 1;
    const int of_state = directions * (steps + 1) * batch * hidden, of_dstate = directions * batch * hidden;
    int row = at.row(begin);
    const int to_y = at.of_time(begin) - row * directions;
    const int to_previous = at.of_slot(begin + at.direction, steps + 1) - row;
    T* const own = reinterpret_cast<T*>(shared + 2 * lane.q * PITCH) + at.unit;

    float later[2], dstate[2][S], state[2][S], previous[2][S], from_output[2], h[2], save[2][V];
    int length[2];
    const auto fetch = [&] {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            const int y = row * directions + to_y + c * directions * hidden;
            from_output[c] = widen(dy[y]);
            h[c] = widen(ys[y + batch * directions * hidden]);
#pragma unroll
            for (int k = 0; k < Cell::saved; ++k)
                save[c][k] = widen(saved[row * Cell::saved + at.unit + (c * Cell::saved + k) * hidden]);
#pragma unroll
            for (int k = 0; k < Cell::states; ++k)
                previous[c][k] = states[row + to_previous + k * of_state + c * hidden];
        }
    };
    const int carried = at.of_slot(0, 1);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        length[c] = ragged && at.inside[c] ? lengths[at.first + c] : steps;
        later[c] = at.inside[c] ? dh[carried + c * hidden] : 0.0f;
#pragma unroll
        for (int k = 0; k < Cell::states; ++k) {
            dstate[c][k] = at.inside[c] ? dstates[k * of_dstate + carried + c * hidden] : 0.0f;
            state[c][k] = at.inside[c] ? states[row - stride + to_previous + k * of_state + c * hidden] : 0.0f;
        }
    }
    fetch();

    for (int step = 0; step < steps; ++step) {
        const int t = at.direction ? step : steps - 1 - step, copy = step % 2;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            float dgate[G] = {};
            if (t < length[c]) {
                Cell::backward(later[c] + from_output[c], h[c], save[c], state[c], previous[c], dstate[c], dgate);
                later[c] = 0.0f;
            }
#pragma unroll
            for (int j = 0; j < G; ++j) {
                const T rounded = narrow<T>(dgate[j]);
                own[copy * COPY + c * NEXT + j * PADDED] = rounded;
                dgates[row * G + at.unit + (c * G + j) * hidden] = rounded;
            }
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) state[c][k] = previous[c][k];
        }
        row += stride;
        if (step + 1 < steps) fetch();
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
            later[c] += (side ? sums[0][2 + c] : sums[0][c]) + shares[(warp ^ 1) * 2 * WARP + c];
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        if (!at.inside[c]) continue;
        dh[carried + c * hidden] = later[c];
#pragma unroll
        for (int k = 0; k < Cell::states; ++k) dstates[k * of_dstate + carried + c * hidden] = dstate[c][k];
    }
}
