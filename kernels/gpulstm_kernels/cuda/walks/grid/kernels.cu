// The grid walk: weight_hh spread over the registers of many blocks, all of time in one launch, one barrier a step.
//
//   gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ + bias (x·W_ihᵀ comes from the host);  h_t, states_t, saved_t = cell(gates_t, ..)
//
// Gates of h's product, here G, are rows of weight_hh; those of x alone take no part in it.
// Arrays as in buffers.py, the cell as in persistent.cuh; no projection. A block owns eight units of one direction (of
// one head of it, where there are HEADS) for one group of the batch: `tiles` tiles of eight sequences. The blocks of a
// direction (or head) and group are a team; teams run side by side and share nothing.
// Forward: the block's warps split k, each with its chunks of the eight units' gate rows in registers; the shares of a
// tile are added by the warp of its number, which has the cell, states and bias of the tile in registers. h goes to the
// team through global memory: exchange (2, D·HEADS, groups, tiles·8, k), zero at launch, k padded to whole chunks. One
// barrier a step is enough because of the two copies: a block writes a copy again only after a barrier that every block
// reached once it had read that copy.
// Backward: the same rows of weight_hh, transposed, give a block's share of dh for every unit; it goes to the unit's
// owner through exchange (2, D·HEADS, groups, owner, source, tiles·8, 8) of float and is added there in the order of sources,
// so that results are the same on every run.
// Launch: cooperative, grid (⌈H/HEADS/8⌉, groups, D·HEADS), 32·WARPS threads, tiles <= WARPS; `counters`
// (D·HEADS·groups) zero at launch.
#include "persistent.cuh"

// The lane's pair of one tile: its warp has the cell of the tile's sequences and the block's eight units. A position is
// the time t. SLOTS: whether states of all steps are kept, T + 1 of them. At the largest slices every register is taken,
// and sums in another order spill: the compile tests tell.
template <bool SLOTS>
struct Owner : Pair {
    template <int HEADS>
    __device__ Owner(const Head<HEADS>& head, int tile, int tiles, int hidden, int batch, int steps, int directions)
        : Pair(tile < tiles && head.has(static_cast<int>(blockIdx.x) * 8 + Lane().g), head.direction,
               (static_cast<int>(blockIdx.y) * tiles + tile) * COLUMNS + 2 * Lane().q,
               head.first + static_cast<int>(blockIdx.x) * 8 + Lane().g, hidden, batch, steps, directions) {}
    __device__ long long place(int t, int c, int k) const {
        return (static_cast<long long>(k) * steps + t) * batch + first + c;
    }
    __device__ long long value(int t, int c, int count, int k) const {
        return ((static_cast<long long>(direction) * steps + t) * batch + first + c) * count * hidden + (k * hidden + unit);
    }
    // In an array (T, B, D·H).
    __device__ long long of_time(int t, int c) const {
        return ((static_cast<long long>(t) * batch + first + c) * directions + direction) * hidden + unit;
    }
    // In an array (S, D, slots, B, H).
    __device__ long long of_slot(int k, int slot, int slots, int c) const {
        return (((static_cast<long long>(k) * directions + direction) * slots + slot) * batch + first + c) * hidden + unit;
    }
    __device__ long long carried(int k, int c) const { return of_slot(k, 0, 1, c); }
    __device__ long long y(int t, int c) const { return of_time(t + 1, c); }
    __device__ long long dy(int t, int c) const { return of_time(t, c); }
    __device__ long long y_before(int t, int c) const { return of_time(t + 2 * direction, c); }
    __device__ long long last_y(int c) const { return of_time(direction ? 1 : steps, c); }
    __device__ long long first_y(int c) const { return of_time(direction ? steps + 1 : 0, c); }
    __device__ long long first_state(int k, int c) const {
        return of_slot(k, SLOTS && direction ? steps : 0, SLOTS ? steps + 1 : 1, c);
    }
    __device__ long long last_state(int k, int c) const { return of_slot(k, direction ? 0 : steps, steps + 1, c); }
    __device__ long long state(int t, int k, int c) const { return of_slot(k, t + 1 - direction, steps + 1, c); }
    __device__ long long state_before(int t, int k, int c) const { return of_slot(k, t + direction, steps + 1, c); }
};

template <class T, bool TF32, class Cell, bool TRAINING, bool RESETS, int WARPS, int CHUNKS, int HEADS = 1>
__global__ void __launch_bounds__(32 * WARPS, 1)
    grid_forward(const float* gates, const float* bias, const T* weight_hh, const T* params, const T* inputs,
                 const Byte* resets, const int* lengths, T* ys, float* states, T* saved, T* exchange,
                 unsigned* counters, int steps, int batch, int hidden, int directions, int input_width, int has_bias,
                 int ragged, int tiles) {
    constexpr int G = Parts<Cell>::OF_H, M16 = TILES_OF_GATES<G>, IN_CHUNK = CHUNK / static_cast<int>(sizeof(T));
    constexpr int PADDED = WARPS * CHUNKS * IN_CHUNK;  // elements of k
    SHARED_DYNAMIC(shared);
    float* const shares = reinterpret_cast<float*>(shared);  // (tile, warp, M16·4, lane)
    const Lane lane;
    const Head<HEADS> head(hidden);
    const int warp = threadIdx.x / WARP, number = threadIdx.x % WARP, units = head.units;
    const Owner<TRAINING> at(head, warp, tiles, hidden, batch, steps, directions);

    Slice<T, TF32, M16, CHUNKS> slice;
    slice.load(GateRows<T>{weight_hh + static_cast<long long>(head.number) * G * units * units, G, units,
                           static_cast<int>(blockIdx.x) * 8, warp * CHUNKS * IN_CHUNK});
    const int team = head.number * static_cast<int>(gridDim.y) + static_cast<int>(blockIdx.y);
    const long long of_copy = static_cast<long long>(directions * HEADS) * gridDim.y * tiles * COLUMNS * PADDED;
    T* const of_team = exchange + static_cast<long long>(team) * tiles * COLUMNS * PADDED;
    T* const operand = of_team + static_cast<long long>(warp * COLUMNS + 2 * lane.q) * PADDED + (at.unit - head.first);
    unsigned passed = 0;

    CellForward<T, Cell, TRAINING, RESETS> cell(gates, ys, states, saved, resets);
    cell.begin(at, bias, has_bias, params, inputs, input_width, lengths, ragged, operand, PADDED);
    cell.prefetch(at, at.direction ? steps - 1 : 0);
    grid_barrier(counters + team, gridDim.x, passed);

    for (int step = 0; step < steps; ++step) {
        const int t = at.direction ? steps - 1 - step : step;
        cell.fetch(at, t, t);
        const T* const from = of_team + (step % 2) * of_copy + warp * CHUNKS * IN_CHUNK;
        for (int tile = 0; tile < tiles; ++tile) {
            float sums[M16][4] = {};
            const T* const rows = from + static_cast<long long>(tile) * COLUMNS * PADDED;
            slice.multiply(sums, [&](int column, int byte) {
                const char* const row = reinterpret_cast<const char*>(rows + column * PADDED);
                return load_global_cg(reinterpret_cast<const uint4*>(row + byte));
            });
            float* const share = shares + (tile * WARPS + warp) * M16 * 4 * WARP + number;
#pragma unroll
            for (int i = 0; i < M16 * 4; ++i) share[i * WARP] = sums[i / 4][i % 4];
        }
        block_barrier();
        if (warp < tiles) {
            float sums[M16][4];
#pragma unroll
            for (int i = 0; i < M16 * 4; ++i) {
                float sum = i / 2 < G ? cell.input(i / 2 < G ? i / 2 : 0, i % 2) : 0.0f;
                for (int of = 0; of < WARPS; ++of) sum += shares[((warp * WARPS + of) * M16 * 4 + i) * WARP + number];
                sums[i / 4][i % 4] = sum;
            }
            cell.step(at, t, t, sums, operand + (1 - step % 2) * of_copy, PADDED);
        }
        if (warp < tiles && step + 1 < steps) cell.prefetch(at, at.direction ? steps - 2 - step : step + 1);
        if (step + 1 < steps) grid_barrier(counters + team, gridDim.x, passed);
    }
    cell.end(at);
}

template <class T, bool TF32, class Cell, bool RESETS, int WARPS, int TILES, int HEADS = 1>
__global__ void __launch_bounds__(32 * WARPS, 1)
    grid_backward(const T* dy, float* dh, float* dstates, const T* saved, const float* states, const T* ys,
                  const T* weight_hh, const T* params, const T* inputs, const Byte* resets, const int* lengths,
                  T* dgates, float* exchange, unsigned* counters, int steps, int batch, int hidden, int directions,
                  int input_width, int ragged, int tiles) {
    constexpr int G = Parts<Cell>::OF_H;
    constexpr int CHUNKS = (G * 8 * static_cast<int>(sizeof(T)) + CHUNK - 1) / CHUNK;  // of the block's gate rows
    constexpr int IN_CHUNK = CHUNK / static_cast<int>(sizeof(T)), PITCH = (CHUNKS | 1) * IN_CHUNK;
    SHARED_DYNAMIC(shared);
    T* const of_tiles = reinterpret_cast<T*>(shared);  // dgates (tiles·8, PITCH) of the block's units
    float* const shares = reinterpret_cast<float*>(shared + tiles * COLUMNS * PITCH * sizeof(T));  // (tile, warp, 64)
    const Lane lane;
    const Head<HEADS> head(hidden);
    const int warp = threadIdx.x / WARP, number = threadIdx.x % WARP, blocks = static_cast<int>(gridDim.x);
    const Owner<true> at(head, warp, tiles, hidden, batch, steps, directions);
    const int first_unit = static_cast<int>(blockIdx.x) * 8, columns = tiles * COLUMNS;

    Slice<T, TF32, TILES, CHUNKS> slice;  // of weight_hhᵀ: 16·TILES units a warp by the block's gate rows
    const int units = head.units;
    const T* const weight = weight_hh + static_cast<long long>(head.number) * G * units * units;
    slice.load([&](int row, int k) {
        const int unit = warp * TILES * 16 + row, gate = k / 8, other = first_unit + k % 8;
        const bool inside = unit < units && gate < G && other < units;
        return inside ? weight[(gate * units + other) * units + unit] : narrow<T>(0.0f);
    });
    for (int i = threadIdx.x; i < columns * PITCH; i += blockDim.x) of_tiles[i] = narrow<T>(0.0f);
    block_barrier();

    const int team = head.number * static_cast<int>(gridDim.y) + static_cast<int>(blockIdx.y);
    const long long of_owner = static_cast<long long>(blocks) * columns * 8;
    const long long of_copy = static_cast<long long>(directions * HEADS) * gridDim.y * blocks * of_owner;
    float* const of_team = exchange + static_cast<long long>(team) * blocks * of_owner;
    unsigned passed = 0;

    CellBackward<T, Cell, RESETS> cell(dy, saved, states, ys, dgates, resets);
    cell.begin(at, dh, dstates, params, inputs, input_width, lengths, ragged);
    cell.prefetch(at, at.direction ? 0 : steps - 1, at.direction ? 0 : steps - 1);
    T* const operand = of_tiles + (warp * COLUMNS + 2 * lane.q) * PITCH + lane.g;

    for (int step = 0; step < steps; ++step) {
        const int t = at.direction ? step : steps - 1 - step;
        cell.step(at, t, t, operand, PITCH, 8);
        const int then = at.direction ? t + 1 : t - 1;
        if (step + 1 < steps) cell.prefetch(at, then, then);
        block_barrier();

        float* const copy = of_team + (step % 2) * of_copy;
        for (int tile = 0; tile < tiles; ++tile) {
            float sums[TILES][4] = {};
            slice.multiply(sums, [&](int column, int byte) {
                const char* const row = reinterpret_cast<const char*>(of_tiles + (tile * COLUMNS + column) * PITCH);
                return *reinterpret_cast<const uint4*>(row + byte);
            });
#pragma unroll
            for (int i = 0; i < TILES * 2; ++i) {  // eight units at a time, which are one owner's
                const int owner = warp * TILES * 2 + i;
                if (owner >= blocks) continue;
                float* const to = copy + owner * of_owner + (static_cast<long long>(blockIdx.x) * columns + tile * COLUMNS) * 8;
#pragma unroll
                for (int c = 0; c < 2; ++c) to[(2 * lane.q + c) * 8 + lane.g] = sums[i / 2][i % 2 * 2 + c];
            }
        }
        grid_barrier(counters + team, gridDim.x, passed);

        const float* const mine = copy + static_cast<long long>(blockIdx.x) * of_owner;
        for (int tile = 0; tile < tiles; ++tile) {  // each warp adds some of the sources, each lane two neighbouring units
            float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 4
            for (int source = warp; source < blocks; source += WARPS) {
                const float* const shares_of = mine + (static_cast<long long>(source) * columns + tile * COLUMNS) * 8;
                const float2 share = load_global_cg(reinterpret_cast<const float2*>(shares_of) + number);
                sum.x += share.x;
                sum.y += share.y;
            }
            reinterpret_cast<float2*>(shares + (tile * WARPS + warp) * 64)[number] = sum;
        }
        block_barrier();
        if (warp < tiles) {
#pragma unroll
            for (int c = 0; c < 2; ++c)
                for (int of = 0; of < WARPS; ++of)
                    cell.dh[c] += shares[(warp * WARPS + of) * 64 + (2 * lane.q + c) * 8 + lane.g];
            cell.cut();
        }
    }
    cell.end(at, dh, dstates);
}
