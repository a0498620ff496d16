// The block walk of cells whose step products and means cut into stages: one block walks all of time for eight sequences.
//
//   gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ + bias (x·W_ihᵀ comes from the host); then stage by stage what the cell computes,
//   between them its own products v·Wᵀ and the means over the units of a row;  the gradient likewise, with v·W
//
// Arrays as in buffers.py; no projection. All weights lie in shared memory, in the lanes' order, since a cell that keeps
// values from stage to stage needs the registers. A lane has one unit of two sequences in both passes, and all that the
// cell keeps of it, in registers; h, the products' operands and the sums of a mean go through shared memory. A barrier
// of the block ends each stage; none of what lies in shared memory is written again before another one.
// Forward: a warp owns eight units and all their gates and products. Backward: two warps own 16 units, each with half
// of k, and add their halves behind one more barrier.
// Launch: as kernels.cu; shared memory as staged_host.py computes it.
#include "staged.cuh"

template <class T, class Cell, bool TRAINING, bool RESETS, bool TF32, int CHUNKS>
struct StagedForward {
    using Of = Parts<Cell>;
    using Pass = typename Cell::Forward;
    static constexpr int G = Cell::gates, S = Cell::states, ROWS = Cell::saved_of_row, PITCH = pitch(CHUNKS);
    static constexpr int OPERAND = COLUMNS * PITCH;  // bytes
    const ForwardRow<TRAINING> at;
    const float *gates, *bias;
    T *ys, *saved;
    float *states, *rows;
    const Byte* resets;
    int has_bias, t, p;
    unsigned char *slices, *operands;  // the first operand is h
    Kept<T, Cell, Pass> kept;
    float gate[G][2], state[at_least_one(S)][2];
    T h[2];
    int length[2];
    bool begins[2], follows[2];

    struct Io : Sequence<StagedForward> {
        using Sequence<StagedForward>::Sequence;
        using Sequence<StagedForward>::walk;
        using Sequence<StagedForward>::c;
        __device__ __forceinline__ float gate(int k) const { return walk.gate[k][c]; }
        __device__ __forceinline__ float old(int k) const { return walk.state[k][c]; }
        __device__ __forceinline__ float before() const { return widen(walk.h[c]); }
        __device__ __forceinline__ void set_operand(int k, float value) const {
            walk.operand(1 + k)[c * (PITCH / static_cast<int>(sizeof(T)))] = narrow<T>(value);
        }
        __device__ __forceinline__ void set_state(int k, float value) const { walk.state[k][c] = value; }
        __device__ __forceinline__ void set_h(float value) const { walk.h[c] = narrow<T>(value); }
        __device__ __forceinline__ void set_saved(int k, float value) const {
            if constexpr (TRAINING) walk.saved[walk.at.value(walk.p, c, Cell::saved, k)] = narrow<T>(value);
        }
        __device__ __forceinline__ void set_saved_of_row(int k, float value) const {
            if constexpr (TRAINING)
                if (walk.at.unit == 0) walk.rows[walk.at.place(walk.t, c, walk.at.direction) * ROWS + k] = value;
        }
    };

    __device__ __forceinline__ T* operand(int number) const {
        const Lane lane;
        return reinterpret_cast<T*>(operands + number * OPERAND + 2 * lane.q * PITCH) + at.unit;
    }
    __device__ __forceinline__ void store_h(int c, bool anew) const {
        operand(0)[c * (PITCH / static_cast<int>(sizeof(T)))] = RESETS && anew ? narrow<T>(0.0f) : h[c];
    }

    __device__ __forceinline__ void begin() {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            begins[c] = RESETS && at.inside[c] && !at.direction && resets[at.place(0, c, 0)];
            h[c] = at.inside[c] ? ys[at.first_y(c)] : narrow<T>(0.0f);
            if (at.inside[c]) store_h(c, begins[c]);
#pragma unroll
            for (int k = 0; k < S; ++k) state[k][c] = at.inside[c] ? states[at.first_state(k, c)] : 0.0f;
        }
    }

    // What step t at position p reads.
    __device__ __forceinline__ void fetch(int step_t, int position) {
        t = step_t, p = position;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
            for (int j = 0; j < Of::OF_X; ++j) gate[j][c] = at.inside[c] ? gates[at.value(p, c, G, j)] : 0.0f;
            if constexpr (RESETS) {
                const int border = t + 1 - at.direction;
                follows[c] = at.inside[c] && border < at.steps && resets[at.place(border, c, 0)];
            }
        }
        kept.given.fetch(at, t);
    }

    // All gates: h's product is added to those of x, and the bias.
    __device__ __forceinline__ void multiply_h() {
        constexpr int N = Of::OF_H, M16 = TILES_OF_GATES<N>;
        float sums[M16][4] = {};
        SharedSlice<T, TF32, M16, CHUNKS>(slices).multiply(sums, Columns{operands, PITCH});
#pragma unroll
        for (int j = 0; j < G; ++j) {
            const float constant = has_bias && at.unit < at.hidden ? bias[(at.direction * G + j) * at.hidden + at.unit] : 0.0f;
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int of_h = j - Of::FIRST_OF_H;
                const float product = of_h < 0 ? 0.0f : sums[of_h < 0 ? 0 : of_h / 2][of_h % 2 * 2 + c];
                gate[j][c] = (j < Of::OF_X ? gate[j][c] + constant : constant) + product;
            }
        }
    }

    __device__ __forceinline__ bool is_there(int c) const { return at.inside[c] && t < length[c]; }

    template <int K>
    __device__ __forceinline__ void stage() {
        kept.template clear<K>();
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (K == 0 && RESETS && begins[c] && is_there(c)) {
                h[c] = narrow<T>(0.0f);
#pragma unroll
                for (int k = 0; k < S; ++k) state[k][c] = 0.0f;
            }
            Io io(*this, c);
            if (is_there(c)) Pass::template stage<K>(io);
            if (K + 1 < Pass::stages || !at.inside[c]) continue;
            store_h(c, follows[c]);
            ys[at.y(p, c)] = h[c];
            if (TRAINING) {
#pragma unroll
                for (int k = 0; k < S; ++k) states[at.state(p, k, c)] = state[k][c];
            }
            if constexpr (RESETS) begins[c] = follows[c];
        }
        kept.template add<K>();
    }

    // The products behind a stage, run by run.
    template <int K>
    __device__ __forceinline__ void multiply() {
        constexpr int FIRST = Runs<Cell>::first(K);
        multiply_run<FIRST, FIRST + Pass::multiplies(K)>();
    }
    template <int FIRST, int END>
    __device__ __forceinline__ void multiply_run() {
        if constexpr (FIRST < END) {
            constexpr int N = Runs<Cell>::length(FIRST), M16 = TILES_OF_GATES<N>;
            float sums[M16][4] = {};
            const SharedSlice<T, TF32, M16, CHUNKS> slice(place(FIRST));
            slice.multiply(sums, Columns{operands + (1 + Cell::operand(FIRST)) * OPERAND, PITCH});
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
                for (int c = 0; c < 2; ++c) kept.products[FIRST + j][c] = sums[j / 2][j % 2 * 2 + c];
            multiply_run<FIRST + N, END>();
        }
    }
    // Of the slices of the products from the `first` on.
    __device__ __forceinline__ unsigned char* place(int first) const {
        return slices + Runs<Cell>::tiles(first) * CHUNKS * 32 * static_cast<int>(blockDim.x);
    }

    template <int FIRST>
    __device__ __forceinline__ void load_run(const T* own, int unit) const {
        if constexpr (FIRST < Cell::products) {
            constexpr int N = Runs<Cell>::length(FIRST);
            const T* const weight = own + (at.direction * Cell::products + FIRST) * at.hidden * at.hidden;
            SharedSlice<T, TF32, TILES_OF_GATES<N>, CHUNKS>(place(FIRST)).load(GateRows<T>{weight, N, at.hidden, unit, 0});
            load_run<FIRST + N>(own, unit);
        }
    }
    __device__ __forceinline__ void load(const T* weight_hh, const T* own) const {
        const int unit = static_cast<int>(threadIdx.x) / WARP * 8;
        const T* const weight = weight_hh + at.direction * Of::OF_H * at.hidden * at.hidden;
        SharedSlice<T, TF32, TILES_OF_GATES<Of::OF_H>, CHUNKS>(slices).load(GateRows<T>{weight, Of::OF_H, at.hidden, unit, 0});
        load_run<0>(own, unit);
    }
};

template <class T, bool TF32, class Cell, bool TRAINING, bool RESETS, int CHUNKS>
__global__ void __launch_bounds__(MOST_THREADS<T>* CHUNKS, 1)
    block_staged_forward(const float* gates, const float* bias, const T* weight_hh, const T* own, const T* params,
                         const T* inputs, const Byte* resets, const int* lengths, T* ys, float* states, T* saved,
                         float* rows, int steps, int batch, int hidden, int directions, int input_width, int has_bias,
                         int ragged) {
    using Walk = StagedForward<T, Cell, TRAINING, RESETS, TF32, CHUNKS>;
    SHARED_DYNAMIC(shared);
    const Lane lane;
    const int unit = static_cast<int>(threadIdx.x) / WARP * 8 + lane.g, threads = static_cast<int>(blockDim.x);
    constexpr int OPERANDS = (1 + Cell::operands) * Walk::OPERAND;
    unsigned char* const operands = shared + Runs<Cell>::tiles(Cell::products) * CHUNKS * 32 * threads;
    Walk walk{{Head<1>(hidden), static_cast<int>(blockIdx.x) * COLUMNS + 2 * lane.q, unit, hidden, batch, steps, directions},
              gates, bias, ys, saved, states, rows, resets, has_bias, 0, 0, shared, operands};
    walk.kept.params = params;
    walk.kept.sums.partial = reinterpret_cast<float*>(operands + OPERANDS);
    walk.kept.given.begin(walk.at, params, inputs, input_width);
    for (int c = 0; c < 2; ++c) walk.length[c] = walk.at.length(lengths, ragged, c);
    walk.load(weight_hh, own);
    for (int i = threadIdx.x; i < OPERANDS / 4; i += threads) reinterpret_cast<unsigned*>(operands)[i] = 0;
    block_barrier();
    walk.begin();
    int position = walk.at.row(walk.at.first_step());
    walk.fetch(walk.at.first_step(), position);
    block_barrier();
    for (int step = 0; step < steps; ++step) {
        walk.multiply_h();
        if constexpr (Walk::Pass::stages == 1) block_barrier();
        run_stages<typename Walk::Pass>(walk);
        position += walk.at.stride;
        if (step + 1 < steps) walk.fetch(walk.at.direction ? walk.t - 1 : walk.t + 1, position);
    }
    if (TRAINING) return;
    for (int c = 0; c < 2; ++c)
        for (int k = 0; k < Cell::states; ++k)
            if (walk.at.inside[c]) states[walk.at.carried(k, c)] = walk.state[k][c];
}
