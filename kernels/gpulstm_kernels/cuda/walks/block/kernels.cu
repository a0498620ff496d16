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
// Launch: CHUNKS chunks of 64 bytes hold a row of weight_hh; grid (⌈B/8⌉, 1, D·HEADS), 32 threads for each eight units
// of a head (forward), 64 for each 16 (backward); shared memory as host.py computes it.
#include "rows.cuh"

template <class T, bool TF32, class Cell, bool TRAINING, bool RESETS, int CHUNKS, int HEADS = 1>
__global__ void __launch_bounds__(MOST_THREADS<T>* CHUNKS, 1)
    block_forward(const float* gates, const float* bias, const T* weight_hh, const T* params, const T* inputs,
                  const Byte* resets, const int* lengths, T* ys, float* states, T* saved, int steps, int batch,
                  int hidden, int directions, int input_width, int has_bias, int ragged) {
    constexpr int G = Parts<Cell>::OF_H, M16 = TILES_OF_GATES<G>, PITCH = pitch(CHUNKS);
    constexpr int COPY = COLUMNS * PITCH / static_cast<int>(sizeof(T)), NEXT = PITCH / static_cast<int>(sizeof(T));
    SHARED_DYNAMIC(shared);
    const Lane lane;
    const Head<HEADS> head(hidden);
    const int warp = threadIdx.x / WARP, units = head.units;

    Slice<T, TF32, M16, CHUNKS> slice;
    slice.load(GateRows<T>{weight_hh + static_cast<long long>(head.number) * G * units * units, G, units, warp * 8, 0});
    for (int i = threadIdx.x; i < 2 * COLUMNS * PITCH / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 0;
    block_barrier();

    // only now: while the slice is loaded, every register is taken
    const int own = warp * 8 + lane.g;
    const ForwardRow<TRAINING> at(head, static_cast<int>(blockIdx.x) * COLUMNS + 2 * lane.q, own, hidden, batch, steps,
                                  directions);
    T* const operand = reinterpret_cast<T*>(shared + 2 * lane.q * PITCH) + own;  // of the first copy
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

template <class T, bool TF32, class Cell, bool RESETS, int CHUNKS, int HEADS = 1>
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
    const Head<HEADS> head(hidden);
    const int warp = threadIdx.x / WARP, team = warp / 2, side = warp % 2, units = head.units;
    float* const shares = reinterpret_cast<float*>(shared + 2 * COLUMNS * PITCH) + threadIdx.x % WARP * 2;  // a warp, lane

    Slice<T, TF32, 1, OWN> slice;  // of weight_hhᵀ: 16 units by half of all gates' units
    const T* const weight = weight_hh + static_cast<long long>(head.number) * G * units * units;
    slice.load([&](int row, int k) {
        k += side * OWN * IN_CHUNK;
        const int unit = team * 16 + row, gate = k / PADDED, other = k % PADDED;
        const bool inside = unit < units && gate < G && other < units;
        return inside ? weight[(gate * units + other) * units + unit] : narrow<T>(0.0f);
    });
    for (int i = threadIdx.x; i < 2 * COLUMNS * PITCH / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 0;
    block_barrier();

    const int own = team * 16 + side * 8 + lane.g;
    const BackwardRow at(head, static_cast<int>(blockIdx.x) * COLUMNS + 2 * lane.q, own, hidden, batch, steps, directions);
    T* const operand = reinterpret_cast<T*>(shared + 2 * lane.q * PITCH) + own;  // of the first copy
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
