// What the staged kernels of the block walk have beside the cell: weights, operands and sums of rows in shared memory.
//
// In order: slices of weights, one of h's product and then one for each run of products of one operand (forward), or for
// each product (backward); the operands that they multiply; the sums of units a mean is made of, and backward the
// shares of two warps. staged_host.py counts the same bytes.
#pragma once
#include "rows.cuh"

// A warp's slice of a weight matrix as its lanes hold it (tile.cuh), 16 bytes of a lane beside those of the next: read
// without conflicts, and where it is multiplied, so that it takes no registers elsewhere.
template <class T, bool TF32, int M16, int CHUNKS>
class SharedSlice {
    uint4* own;

   public:
    static constexpr int BYTES = M16 * CHUNKS * 32 * WARP;  // a warp

    // `all` slices of this shape, one a warp.
    __device__ __forceinline__ explicit SharedSlice(unsigned char* all)
        : own(reinterpret_cast<uint4*>(all + static_cast<int>(threadIdx.x) / WARP * BYTES) + threadIdx.x % WARP) {}

    template <class Element>
    __device__ __forceinline__ void load(Element element) const {
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            Slice<T, TF32, M16, 1> part;
            part.load([&](int row, int k) { return element(row, chunk * Slice<T, TF32, M16, 1>::IN_CHUNK + k); });
#pragma unroll
            for (int tile = 0; tile < M16; ++tile)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const auto& a = part.a[0][tile];
                    own[((chunk * M16 + tile) * 2 + half) * WARP] =
                        uint4{a[2 * half][0], a[2 * half][1], a[2 * half + 1][0], a[2 * half + 1][1]};
                }
        }
    }

    template <class Operand>
    __device__ __forceinline__ void multiply(float (&sums)[M16][4], Operand operand) const {
#pragma unroll 1
        for (int chunk = 0; chunk + PIECE <= CHUNKS; chunk += PIECE) multiply_some<PIECE>(sums, operand, chunk);
        constexpr int LEFT = CHUNKS % PIECE;
        if constexpr (LEFT > 0) multiply_some<LEFT>(sums, operand, CHUNKS - LEFT);
    }

   private:
    static constexpr int PIECE = M16 < 4 ? 4 / M16 : 1;  // chunks whose words a lane holds at a time: about 32 registers

    template <int COUNT, class Operand>
    __device__ __forceinline__ void multiply_some(float (&sums)[M16][4], Operand operand, int first) const {
        Slice<T, TF32, M16, COUNT> slice;
#pragma unroll
        for (int chunk = 0; chunk < COUNT; ++chunk)
#pragma unroll
            for (int tile = 0; tile < M16; ++tile)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint4 words = own[(((first + chunk) * M16 + tile) * 2 + half) * WARP];
                    auto& a = slice.a[chunk][tile];
                    a[2 * half][0] = words.x, a[2 * half][1] = words.y;
                    a[2 * half + 1][0] = words.z, a[2 * half + 1][1] = words.w;
                }
        slice.multiply(sums, [&](int column, int byte) { return operand(column, first * CHUNK + byte); });
    }
};

// A tile's operand, eight columns of k: read 16 bytes at a time.
struct Columns {
    const unsigned char* first;
    int pitch;
    __device__ __forceinline__ uint4 operator()(int column, int byte) const {
        return *reinterpret_cast<const uint4*>(first + column * pitch + byte);
    }
};

// The sums over the units of each of the block's eight rows, (sums, warps, COLUMNS), in one order always: those of a
// warp's units as a tree, then warp by warp. A barrier of the block lies between the two.
struct RowSums {
    float* partial;

    // Of the lane's two sequences; all lanes take part, those without a unit with 0.
    __device__ __forceinline__ void add(int number, const float (&value)[2]) const {
        const Lane lane;
        const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            float sum = value[c];
#pragma unroll
            for (int mask = 4; mask < WARP; mask *= 2) sum += shuffle_xor(sum, mask);
            if (lane.g == 0) partial[(number * warps + warp) * COLUMNS + 2 * lane.q + c] = sum;
        }
    }
    __device__ __forceinline__ float total(int number, int c) const {
        const Lane lane;
        const int warps = blockDim.x / WARP;
        float sum = 0.0f;
        for (int warp = 0; warp < warps; ++warp) sum += partial[(number * warps + warp) * COLUMNS + 2 * lane.q + c];
        return sum;
    }
};

// The products of a step in runs of one operand, which a slice holds gate by gate; products are numbered so.
template <class Cell>
struct Runs {
    static __host__ __device__ constexpr int length(int first) {
        int count = 1;
        while (first + count < Cell::products && Cell::operand(first + count) == Cell::operand(first)) ++count;
        return count;
    }
    // 16-row tiles of the products before `first`, and of h's.
    static __host__ __device__ constexpr int tiles(int first) {
        int count = TILES_OF_GATES<Parts<Cell>::OF_H>;
        for (int product = 0; product < first; product += length(product)) count += (length(product) + 1) / 2;
        return count;
    }
    // The first of the products behind a stage of the forward.
    static __host__ __device__ constexpr int first(int stage) {
        int count = 0;
        for (int before = 0; before < stage; ++before) count += Cell::Forward::multiplies(before);
        return count;
    }
};

// What either pass has of a unit of the lane's two sequences, as the stages of a cell load and store it; Io adds the rest.
template <class T, class Cell, class Pass>
struct Kept {
    static constexpr int PARAMS = Given<T, Cell>::PARAMS;
    float slots[at_least_one(Pass::slots)][2], means[at_least_one(Pass::means)][2];
    float products[at_least_one(Cell::products)][2];
    Given<T, Cell> given;
    const T* params;  // (D, PARAMS, H): read where they are used, since registers are few
    RowSums sums;

    template <class At>
    __device__ __forceinline__ float param(const At& at, int k) const {
        return widen(params[(at.direction * PARAMS + k) * at.hidden + at.unit]);
    }
    // Before a stage: what is not added to is 0. After it: a warp's sums.
    template <int K>
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < Pass::sums(K); ++j) means[Pass::first_mean(K) + j][0] = means[Pass::first_mean(K) + j][1] = 0.0f;
    }
    template <int K>
    __device__ __forceinline__ void add() {
#pragma unroll
        for (int j = 0; j < Pass::sums(K); ++j) sums.add(Pass::first_mean(K) + j, means[Pass::first_mean(K) + j]);
    }
    template <int K>
    __device__ __forceinline__ void take_means(int hidden) {
#pragma unroll
        for (int j = 0; j < Pass::sums(K); ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c)
                means[Pass::first_mean(K) + j][c] = sums.total(Pass::first_mean(K) + j, c) / static_cast<float>(hidden);
    }
};

// One of the lane's two sequences, for the stages of a cell.
template <class Walk>
struct Sequence {
    using A = float;
    Walk& walk;
    const int c;
    __device__ __forceinline__ Sequence(Walk& walk, int c) : walk(walk), c(c) {}

    __device__ __forceinline__ float slot(int k) const { return walk.kept.slots[k][c]; }
    __device__ __forceinline__ float mean(int k) const { return walk.kept.means[k][c]; }
    __device__ __forceinline__ float product(int k) const { return walk.kept.products[k][c]; }
    __device__ __forceinline__ float param(int k) const { return walk.kept.param(walk.at, k); }
    __device__ __forceinline__ float input(int k) const { return walk.kept.given.input[c][k]; }
    __device__ __forceinline__ void set_slot(int k, float value) const { walk.kept.slots[k][c] = value; }
    __device__ __forceinline__ void add_mean(int k, float value) const { walk.kept.means[k][c] = value; }
};

// One barrier a stage, behind which products and means are there.
template <class Pass, int K = 0, class Walk>
__device__ __forceinline__ void run_stages(Walk& walk) {
    walk.template stage<K>();
    block_barrier();
    if constexpr (K + 1 < Pass::stages) {
        walk.kept.template take_means<K>(walk.at.hidden);
        walk.template multiply<K>();
        run_stages<Pass, K + 1>(walk);
    }
}
