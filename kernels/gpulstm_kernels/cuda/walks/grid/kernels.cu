// The grid walk: weight_hh spread over the registers of many blocks, all of time in one launch, one barrier a step.
//
//   gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ + bias (x·W_ihᵀ comes from the host);  h_t, states_t, saved_t = cell(gates_t, ..)
//
// Arrays as in problem.py; T is float or a half type, sums and states are float; no projection. A block owns eight
// units of one direction for one group of the batch: `tiles` tiles of eight sequences. The blocks of a direction and
// group are a team; teams run side by side and share nothing.
// Forward: the block's warps split k, each with its chunks of the eight units' gate rows in registers; the shares of a
// tile are added by the warp of its number, which has the cell, states and bias of the tile in registers. h goes to the
// team through global memory: exchange (2, D, groups, tiles·8, k), zero at launch, k padded to whole chunks. The barrier
// comes once a step because of the two copies: who writes a copy again has passed the barrier that each reader of it
// reached after reading.
// Backward: the same rows of weight_hh, transposed, give a block's share of dh for every unit; it goes to the unit's
// owner through exchange (2, D, groups, owner, source, tiles·8, 8) of float and is added there in the order of sources,
// so that results are the same on every run.
// Launch: cooperative, grid (⌈H/8⌉, groups, D), 32·WARPS threads, tiles <= WARPS; `counters` (D·groups) zero at launch.
#include "tile.cuh"

// The lane's two sequences of one tile: its warp owns them in the block of eight units.
struct Owner {
    int direction, group, first, unit, hidden, batch, steps, directions;
    bool inside[2];

    __device__ Owner(int tile, int tiles, int hidden, int batch, int steps, int directions)
        : direction(static_cast<int>(blockIdx.z)),
          group(static_cast<int>(blockIdx.y)),
          hidden(hidden),
          batch(batch),
          steps(steps),
          directions(directions) {
        const Lane lane;
        first = (group * tiles + tile) * COLUMNS + 2 * lane.q;
        unit = static_cast<int>(blockIdx.x) * 8 + lane.g;
        for (int c = 0; c < 2; ++c) inside[c] = tile < tiles && unit < hidden && first + c < batch;
    }
    // of an array (D, T, B, width·H)
    __device__ long long of_direction(int t, int c, int width) const {
        return ((static_cast<long long>(direction) * steps + t) * batch + first + c) * width * hidden + unit;
    }
    // of an array (T, B, D·H)
    __device__ long long of_time(int t, int c) const {
        return ((static_cast<long long>(t) * batch + first + c) * directions + direction) * hidden + unit;
    }
    // of an array (S, D, slots, B, H)
    __device__ long long of_slot(int k, int slot, int slots, int c) const {
        return (((static_cast<long long>(k) * directions + direction) * slots + slot) * batch + first + c) * hidden + unit;
    }
};

template <class T, bool TF32, class Cell, bool KEEP, int WARPS, int CHUNKS>
__global__ void __launch_bounds__(32 * WARPS, 1)
    grid_forward(const float* gates, const float* bias, const T* weight_hh, const int* lengths, T* ys, float* states,
                 T* saved, T* exchange, unsigned* counters, int steps, int batch, int hidden, int directions,
                 int has_bias, int ragged, int tiles) {
    constexpr int G = Cell::gates, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    constexpr int M16 = TILES_OF_GATES<G>, IN_CHUNK = CHUNK / static_cast<int>(sizeof(T));
    constexpr int PADDED = WARPS * CHUNKS * IN_CHUNK;  // elements of k
    SHARED_DYNAMIC(shared);
    float* const shares = reinterpret_cast<float*>(shared);  // (tile, warp, M16·4, lane)
    const Lane lane;
    const int warp = threadIdx.x / WARP, number = threadIdx.x % WARP;
    const Owner at(warp, tiles, hidden, batch, steps, directions);

    Slice<T, TF32, M16, CHUNKS> slice;
    slice.load(GateRows<T>{weight_hh + static_cast<long long>(at.direction) * G * hidden * hidden, G, hidden,
                           static_cast<int>(blockIdx.x) * 8, warp * CHUNKS * IN_CHUNK});
    const int team = at.direction * static_cast<int>(gridDim.y) + at.group;
    const long long of_copy = static_cast<long long>(directions) * gridDim.y * tiles * COLUMNS * PADDED;
    T* const of_team = exchange + static_cast<long long>(team) * tiles * COLUMNS * PADDED;
    T* const own = of_team + static_cast<long long>(warp * COLUMNS + 2 * lane.q) * PADDED + at.unit;
    unsigned passed = 0;

    const int slots = KEEP ? steps + 1 : 1;
    T h[2];
    float state[2][S], offset[G], next[G][2];
    int length[2];
    const auto fetch = [&](int step) {
        const int t = at.direction ? steps - 1 - step : step;
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int j = 0; j < G; ++j)
                next[j][c] = at.inside[c] ? gates[at.of_direction(t, c, G) + j * hidden] : 0.0f;
    };
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        length[c] = ragged && at.inside[c] ? lengths[at.first + c] : steps;
        h[c] = at.inside[c] ? ys[at.of_time(at.direction ? steps + 1 : 0, c)] : narrow<T>(0.0f);
        if (at.inside[c]) own[c * PADDED] = h[c];
#pragma unroll
        for (int k = 0; k < Cell::states; ++k)
            state[c][k] = at.inside[c] ? states[at.of_slot(k, KEEP && at.direction ? steps : 0, slots, c)] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < G; ++j)
        offset[j] = has_bias && at.unit < hidden ? bias[(at.direction * G + j) * hidden + at.unit] : 0.0f;
    fetch(0);
    grid_barrier(counters + team, gridDim.x, passed);

    for (int step = 0; step < steps; ++step) {
        const int t = at.direction ? steps - 1 - step : step;
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
                float sum = i / 2 < G ? next[i / 2 < G ? i / 2 : 0][i % 2] + offset[i / 2 < G ? i / 2 : 0] : 0.0f;
                for (int of = 0; of < WARPS; ++of) sum += shares[((warp * WARPS + of) * M16 * 4 + i) * WARP + number];
                sums[i / 4][i % 4] = sum;
            }
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
                            saved[at.of_direction(t, c, Cell::saved) + k * hidden] = narrow<T>(save[k]);
                    }
                }
                own[(1 - step % 2) * of_copy + c * PADDED] = h[c];
                ys[at.of_time(t + 1, c)] = h[c];
                if (KEEP) {
#pragma unroll
                    for (int k = 0; k < Cell::states; ++k)
                        states[at.of_slot(k, t + 1 - at.direction, slots, c)] = state[c][k];
                }
            }
            if (step + 1 < steps) fetch(step + 1);
        }
        if (step + 1 < steps) grid_barrier(counters + team, gridDim.x, passed);
    }
    if (!KEEP) {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int k = 0; k < Cell::states; ++k)
                if (at.inside[c]) states[at.of_slot(k, 0, 1, c)] = state[c][k];
    }
}

template <class T, bool TF32, class Cell, int WARPS, int TILES>
__global__ void __launch_bounds__(32 * WARPS, 1)
    grid_backward(const T* dy, float* dh, float* dstates, const T* saved, const float* states, const T* ys,
                  const T* weight_hh, const int* lengths, T* dgates, float* exchange, unsigned* counters, int steps,
                  int batch, int hidden, int directions, int ragged, int tiles) {
    constexpr int G = Cell::gates, S = at_least_one(Cell::states), V = at_least_one(Cell::saved);
    constexpr int CHUNKS = (G * 8 * static_cast<int>(sizeof(T)) + CHUNK - 1) / CHUNK;  // of the block's own gate rows
    constexpr int IN_CHUNK = CHUNK / static_cast<int>(sizeof(T)), PITCH = (CHUNKS | 1) * IN_CHUNK;
    SHARED_DYNAMIC(shared);
    T* const of_tiles = reinterpret_cast<T*>(shared);  // dgates (tiles·8, PITCH) of the block's units
    float* const shares = reinterpret_cast<float*>(shared + tiles * COLUMNS * PITCH * sizeof(T));  // (tile, warp, 64)
    const Lane lane;
    const int warp = threadIdx.x / WARP, number = threadIdx.x % WARP, blocks = static_cast<int>(gridDim.x);
    const Owner at(warp, tiles, hidden, batch, steps, directions);
    const int first_unit = static_cast<int>(blockIdx.x) * 8, columns = tiles * COLUMNS;

    Slice<T, TF32, TILES, CHUNKS> slice;  // of weight_hhᵀ: 16·TILES units a warp by the block's gate rows
    const T* const weight = weight_hh + static_cast<long long>(at.direction) * G * hidden * hidden;
    slice.load([&](int row, int k) {
        const int unit = warp * TILES * 16 + row, gate = k / 8, own = first_unit + k % 8;
        const bool inside = unit < hidden && gate < G && own < hidden;
        return inside ? weight[(gate * hidden + own) * hidden + unit] : narrow<T>(0.0f);
    });
    for (int i = threadIdx.x; i < columns * PITCH; i += blockDim.x) of_tiles[i] = narrow<T>(0.0f);
    block_barrier();

    const int team = at.direction * static_cast<int>(gridDim.y) + at.group;
    const long long of_owner = static_cast<long long>(blocks) * columns * 8;
    const long long of_copy = static_cast<long long>(directions) * gridDim.y * blocks * of_owner;
    float* const of_team = exchange + static_cast<long long>(team) * blocks * of_owner;
    unsigned passed = 0;

    float later[2], dstate[2][S], state[2][S], previous[2][S], from_output[2], h[2], save[2][V];
    int length[2];
    const auto fetch = [&](int step) {
        const int t = at.direction ? step : steps - 1 - step;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (!at.inside[c]) continue;
            from_output[c] = widen(dy[at.of_time(t, c)]);
            h[c] = widen(ys[at.of_time(t + 1, c)]);
#pragma unroll
            for (int k = 0; k < Cell::saved; ++k)
                save[c][k] = widen(saved[at.of_direction(t, c, Cell::saved) + k * hidden]);
#pragma unroll
            for (int k = 0; k < Cell::states; ++k)
                previous[c][k] = states[at.of_slot(k, t + at.direction, steps + 1, c)];
        }
    };
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        length[c] = ragged && at.inside[c] ? lengths[at.first + c] : steps;
        later[c] = at.inside[c] ? dh[at.of_slot(0, 0, 1, c)] : 0.0f;
#pragma unroll
        for (int k = 0; k < Cell::states; ++k) {
            dstate[c][k] = at.inside[c] ? dstates[at.of_slot(k, 0, 1, c)] : 0.0f;
            state[c][k] = at.inside[c] ? states[at.of_slot(k, at.direction ? 0 : steps, steps + 1, c)] : 0.0f;
        }
    }
    fetch(0);

    for (int step = 0; step < steps; ++step) {
        const int t = at.direction ? step : steps - 1 - step;
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
                of_tiles[(warp * COLUMNS + 2 * lane.q + c) * PITCH + j * 8 + lane.g] = rounded;
                dgates[at.of_direction(t, c, G) + j * hidden] = rounded;
            }
#pragma unroll
            for (int k = 0; k < Cell::states; ++k) state[c][k] = previous[c][k];
        }
        if (step + 1 < steps) fetch(step + 1);
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
                const float* const place = mine + (static_cast<long long>(source) * columns + tile * COLUMNS) * 8;
                const float2 share = load_global_cg(reinterpret_cast<const float2*>(place) + number);
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
                    later[c] += shares[(warp * WARPS + of) * 64 + (2 * lane.q + c) * 8 + lane.g];
        }
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        if (!at.inside[c]) continue;
        dh[at.of_slot(0, 0, 1, c)] = later[c];
#pragma unroll
        for (int k = 0; k < Cell::states; ++k) dstates[at.of_slot(k, 0, 1, c)] = dstate[c][k];
    }
}
