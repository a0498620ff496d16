// The block walk of cells with stages, backward: staged.cu says how.
#include "staged.cuh"

template <class T, class Cell, bool RESETS, bool TF32, int CHUNKS>
struct StagedBackward {
    using Of = Parts<Cell>;
    using Pass = typename Cell::Backward;
    static constexpr int S = Cell::states, V = Cell::saved, ROWS = Cell::saved_of_row, ROW = Of::ROW, Q = Cell::products;
    static constexpr int IN_CHUNK = CHUNK / static_cast<int>(sizeof(T)), PADDED = CHUNKS * IN_CHUNK;  // units of a gate
    static constexpr int OWN = (Of::OF_H * CHUNKS + 1) / 2, OWN_Q = (CHUNKS + 1) / 2;  // chunks of k a warp
    static constexpr int PITCH = pitch(2 * OWN), PITCH_Q = pitch(2 * OWN_Q);           // of dgates, of a dproduct
    using OfGates = SharedSlice<T, TF32, 1, OWN>;
    using OfProduct = SharedSlice<T, TF32, 1, OWN_Q>;
    const BackwardRow at;
    const T *dy, *saved, *ys;
    const float *states, *of_rows;
    const Byte* resets;
    T *dgates, *dproducts, *multiplied;
    int t, p;
    unsigned char *slices, *operands;  // of dgates, then of each dproduct
    float* shares;                     // (products, warps, lanes, 2)
    Kept<T, Cell, Pass> kept;
    float dh[2], from_output[2], before[2], h[2], save[2][at_least_one(V)], row[2][at_least_one(ROWS)];
    float dstate[at_least_one(S)][2], state[at_least_one(S)][2], old[at_least_one(S)][2], dbefore[2];
    int length[2];
    bool begins[2], ends[2];  // whether a sequence begins with the step; and with the one whose stages are through

    struct Io : Sequence<StagedBackward> {
        using Sequence<StagedBackward>::Sequence;
        using Sequence<StagedBackward>::walk;
        using Sequence<StagedBackward>::c;
        __device__ __forceinline__ float old(int k) const { return RESETS && walk.begins[c] ? 0.0f : walk.old[k][c]; }
        __device__ __forceinline__ float before() const { return RESETS && walk.begins[c] ? 0.0f : walk.before[c]; }
        __device__ __forceinline__ float h() const { return walk.h[c]; }
        __device__ __forceinline__ float dh() const { return walk.dh[c] + walk.from_output[c]; }
        __device__ __forceinline__ float state(int k) const { return walk.state[k][c]; }
        __device__ __forceinline__ float dstate(int k) const { return walk.dstate[k][c]; }
        __device__ __forceinline__ float saved(int k) const { return walk.save[c][k]; }
        __device__ __forceinline__ float saved_of_row(int k) const { return walk.row[c][k]; }
        __device__ __forceinline__ void set_gradient(int k, float value) const {
            const T rounded = narrow<T>(value);
            walk.dgates[walk.at.value(walk.p, c, ROW, k)] = rounded;
            if (k >= Of::FIRST_OF_H && k < Cell::gates) walk.operand(c)[(k - Of::FIRST_OF_H) * PADDED] = rounded;
        }
        __device__ __forceinline__ void set_dproduct(int k, float value) const {
            const T rounded = narrow<T>(value);
            walk.dproducts[walk.at.value(walk.p, c, Q, k)] = rounded;
            walk.operand_of_product(k, c) = rounded;
        }
        __device__ __forceinline__ void set_operand(int k, float value) const {
            walk.multiplied[walk.at.value(walk.p, c, Cell::operands, k)] = narrow<T>(value);
        }
        __device__ __forceinline__ void set_dstate(int k, float value) const { walk.dstate[k][c] = value; }
        __device__ __forceinline__ void set_dbefore(float value) const { walk.dbefore[c] = value; }
    };

    __device__ __forceinline__ T* operand(int c) const {
        const Lane lane;
        return reinterpret_cast<T*>(operands + (2 * lane.q + c) * PITCH) + at.unit;
    }
    __device__ __forceinline__ T& operand_of_product(int k, int c) const {
        const Lane lane;
        return reinterpret_cast<T*>(operands + COLUMNS * PITCH + (k * COLUMNS + 2 * lane.q + c) * PITCH_Q)[at.unit];
    }

    __device__ __forceinline__ void begin(const float* last_dh, const float* dstates) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            dh[c] = at.inside[c] ? last_dh[at.carried(0, c)] : 0.0f;
#pragma unroll
            for (int k = 0; k < S; ++k) {
                dstate[k][c] = at.inside[c] ? dstates[at.carried(k, c)] : 0.0f;
                old[k][c] = at.inside[c] ? states[at.last_state(k, c)] : 0.0f;
            }
        }
    }

    // What step t at position p reads; the states after it are those before the one that was walked first.
    __device__ __forceinline__ void fetch(int step_t, int position) {
        t = step_t, p = position;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            begins[c] = false;
#pragma unroll
            for (int k = 0; k < S; ++k) state[k][c] = old[k][c];
            if (!at.inside[c]) continue;
            from_output[c] = widen(dy[at.dy(p, c)]);
            h[c] = widen(ys[at.y(p, c)]);
            before[c] = Of::READS_H ? widen(ys[at.y_before(p, c)]) : 0.0f;
#pragma unroll
            for (int k = 0; k < V; ++k) save[c][k] = widen(saved[at.value(p, c, V, k)]);
#pragma unroll
            for (int k = 0; k < ROWS; ++k) row[c][k] = of_rows[at.place(t, c, at.direction) * ROWS + k];
#pragma unroll
            for (int k = 0; k < S; ++k) old[k][c] = states[at.state_before(p, k, c)];
            if constexpr (RESETS) {
                const int border = t + at.direction;
                begins[c] = border < at.steps && resets[at.place(border, c, 0)];
            }
        }
        kept.given.fetch(at, t);
    }

    __device__ __forceinline__ bool is_there(int c) const { return at.inside[c] && t < length[c]; }

    template <int K>
    __device__ __forceinline__ void stage() {
        kept.template clear<K>();
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            Io io(*this, c);
            ends[c] = false;
            if (is_there(c)) {
                Pass::template stage<K>(io);
                if constexpr (K + 1 == Pass::stages) {
                    dh[c] = dbefore[c], ends[c] = begins[c];
#pragma unroll
                    for (int k = 0; k < S; ++k)
                        if (RESETS && begins[c]) dstate[k][c] = 0.0f;
                }
            } else if (K == 0 && at.inside[c]) {  // nothing of it is in the gradients of weights
#pragma unroll
                for (int k = 0; k < ROW; ++k) io.set_gradient(k, 0.0f);
#pragma unroll
                for (int k = 0; k < Q; ++k) io.set_dproduct(k, 0.0f);
#pragma unroll
                for (int k = 0; k < Cell::operands; ++k) io.set_operand(k, 0.0f);
            }
        }
        kept.template add<K>();
    }

    // The half of k that is this warp's, of 16 units by eight columns: the lane's own two values, and the other warp's,
    // which go to it behind the next barrier.
    template <class Slice>
    __device__ __forceinline__ void half_of(float (&own)[2], int number, const Slice& slice, Columns columns) const {
        const int warp = threadIdx.x / WARP, side = warp % 2;
        float sums[1][4] = {};
        slice.multiply(sums, columns);
        float* const others = share(number, warp);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            own[c] = side ? sums[0][2 + c] : sums[0][c];
            others[c] = side ? sums[0][c] : sums[0][2 + c];
        }
    }
    __device__ __forceinline__ float* share(int number, int warp) const {
        const int lanes = static_cast<int>(blockDim.x), lane = threadIdx.x % WARP;
        return shares + (number * lanes + warp * WARP + lane) * 2;
    }
    __device__ __forceinline__ float other_half(int number, int c) const {
        return share(number, static_cast<int>(threadIdx.x) / WARP ^ 1)[c];
    }

    template <int K>
    __device__ __forceinline__ void multiply() {
        if constexpr (Pass::multiplies(K) > 0) {
            multiply_from<K, 0>();
            block_barrier();
#pragma unroll
            for (int q = 0; q < Q; ++q)
#pragma unroll
                for (int c = 0; c < 2; ++c)
                    if (Pass::behind(q) == K) kept.products[q][c] += other_half(q, c);
        }
    }
    template <int K, int FIRST>
    __device__ __forceinline__ void multiply_from() {
        if constexpr (FIRST < Q) {
            if constexpr (Pass::behind(FIRST) == K) {
                const int side = static_cast<int>(threadIdx.x) / WARP % 2;
                const unsigned char* const first = operands + COLUMNS * PITCH + FIRST * COLUMNS * PITCH_Q;
                half_of(kept.products[FIRST], FIRST, of_product(FIRST), Columns{first + side * OWN_Q * CHUNK, PITCH_Q});
            }
            multiply_from<K, FIRST + 1>();
        }
    }
    // What reaches h before the step: added to what the cell itself gives it. Where a sequence began anew nothing does.
    __device__ __forceinline__ void multiply_gates() {
        const int side = static_cast<int>(threadIdx.x) / WARP % 2;
        float through[2];
        half_of(through, 0, OfGates(slices), Columns{operands + side * OWN * CHUNK, PITCH});
        block_barrier();
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            dh[c] += through[c] + other_half(0, c);
            if (RESETS && ends[c]) dh[c] = 0.0f;
        }
    }

    __device__ __forceinline__ OfProduct of_product(int number) const {
        const int warps = static_cast<int>(blockDim.x) / WARP;
        return OfProduct(slices + (OfGates::BYTES + number * OfProduct::BYTES) * warps);
    }
    // Of weight_hhᵀ and of the cell's own weightsᵀ: 16 units by half of k.
    __device__ __forceinline__ void load(const T* weight_hh, const T* own) const {
        const int hidden = at.hidden, team = static_cast<int>(threadIdx.x) / WARP / 2 * 16;
        const int side = static_cast<int>(threadIdx.x) / WARP % 2;
        const T* const weight = weight_hh + at.direction * Of::OF_H * hidden * hidden;
        OfGates(slices).load([&](int row, int k) {
            k += side * OWN * IN_CHUNK;
            const int unit = team + row, gate = k / PADDED, other = k % PADDED;
            const bool inside = unit < hidden && gate < Of::OF_H && other < hidden;
            return inside ? weight[(gate * hidden + other) * hidden + unit] : narrow<T>(0.0f);
        });
#pragma unroll 1
        for (int q = 0; q < Q; ++q) {
            const T* const of_one = own + (at.direction * Q + q) * hidden * hidden;
            of_product(q).load([&](int row, int k) {
                k += side * OWN_Q * IN_CHUNK;
                const int unit = team + row;
                return unit < hidden && k < hidden ? of_one[k * hidden + unit] : narrow<T>(0.0f);
            });
        }
    }
};

template <class T, bool TF32, class Cell, bool RESETS, int CHUNKS>
__global__ void __launch_bounds__(MOST_THREADS<T>* CHUNKS, 1)
    block_staged_backward(const T* dy, float* dh, float* dstates, const T* saved, const float* rows, const float* states,
                          const T* ys, const T* weight_hh, const T* own, const T* params, const T* inputs,
                          const Byte* resets, const int* lengths, T* dgates, T* dproducts, T* operands, int steps,
                          int batch, int hidden, int directions, int input_width, int ragged) {
    using Walk = StagedBackward<T, Cell, RESETS, TF32, CHUNKS>;
    SHARED_DYNAMIC(shared);
    const Lane lane;
    const int unit = static_cast<int>(threadIdx.x) / WARP * 8 + lane.g, threads = static_cast<int>(blockDim.x);
    constexpr int OPERANDS = COLUMNS * (Walk::PITCH + Cell::products * Walk::PITCH_Q);
    constexpr int SHARES = Cell::products > 1 ? Cell::products : 1;
    unsigned char* const factors =
        shared + (Walk::OfGates::BYTES + Cell::products * Walk::OfProduct::BYTES) * (threads / WARP);
    float* const shares = reinterpret_cast<float*>(factors + OPERANDS);
    Walk walk{{Head<1>(hidden), static_cast<int>(blockIdx.x) * COLUMNS + 2 * lane.q, unit, hidden, batch, steps, directions},
              dy, saved, ys, states, rows, resets, dgates, dproducts, operands, 0, 0, shared, factors, shares};
    walk.kept.params = params;
    walk.kept.sums.partial = shares + SHARES * threads * 2;
    walk.kept.given.begin(walk.at, params, inputs, input_width);
    for (int c = 0; c < 2; ++c) walk.length[c] = walk.at.length(lengths, ragged, c);
    walk.load(weight_hh, own);
    for (int i = threadIdx.x; i < OPERANDS / 4; i += threads) reinterpret_cast<unsigned*>(factors)[i] = 0;
    block_barrier();
    walk.begin(dh, dstates);
    int position = walk.at.row(walk.at.first_step());
    walk.fetch(walk.at.first_step(), position);
    for (int step = 0; step < steps; ++step) {
        run_stages<typename Walk::Pass>(walk);
        position += walk.at.stride;
        if (step + 1 < steps) walk.fetch(walk.at.direction ? walk.t + 1 : walk.t - 1, position);
        walk.multiply_gates();
    }
    for (int c = 0; c < 2; ++c) {
        if (!walk.at.inside[c]) continue;
        dh[walk.at.carried(0, c)] = walk.dh[c];
        for (int k = 0; k < Cell::states; ++k) dstates[walk.at.carried(k, c)] = walk.dstate[k][c];
    }
}
