// A slice of a weight matrix that stays in a warp's registers, and its product with vectors.
//
//   sums (16·M16 x 8) += slice (16·M16 x k) · operand (k x 8),   eight columns: eight sequences of the batch
//
// k goes in chunks of 64 bytes of a row: 32 half values or 16 floats. Within a chunk lane (g = lane / 4, q = lane % 4)
// works on the 16 bytes from byte 16·q: any order of k will do, as long as both factors are in it, and so one 16-byte
// access of the operand feeds two mma. Whatever the type, a chunk of a 16-row tile takes 8 registers of a lane:
// a[r][0] holds the r-th 32 bits of those 16 bytes in row g, a[r][1] in row g + 8. Products are by
//   half types           mma m16n8k16, sums in float
//   float with TF32      mma m16n8k8, factors rounded to 10 bits of mantissa
//   float                fused multiply-add: a lane sums its share of k for all eight columns, and four lanes (one g)
//                        then scatter and add their shares
// and leave sums as mma does: [0], [1] row g, columns 2q and 2q + 1; [2], [3] row g + 8.
#pragma once
#include "numeric.cuh"

constexpr int CHUNK = 64;  // bytes
constexpr int COLUMNS = 8;

struct Lane {
    int g, q;
    __device__ Lane() : g(static_cast<int>(threadIdx.x % WARP) / 4), q(static_cast<int>(threadIdx.x % WARP) % 4) {}
};

// The bits of neighbouring elements as mma reads them.
template <bool TF32>
__device__ __forceinline__ unsigned packed(const float* value) {
    return TF32 ? to_tf32(value[0]) : as_bits(value[0]);
}
template <bool TF32, class Half>
__device__ __forceinline__ unsigned packed(const Half* value) {
    static_assert(sizeof(Half) == 2, "two to a register");
    return *reinterpret_cast<const unsigned*>(value);
}

template <class T, bool TF32, int M16, int CHUNKS>
struct Slice {
    static constexpr int IN_CHUNK = CHUNK / sizeof(T);  // elements of k
    static constexpr int OF_LANE = 16 / sizeof(T);      // of them
    static constexpr int IN_REGISTER = 4 / sizeof(T);
    unsigned a[CHUNKS][M16][4][2];

    // element(row, k) gives what the slice holds there, zero outside the matrix.
    template <class Element>
    __device__ __forceinline__ void load(Element element) {
        const Lane lane;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
            for (int tile = 0; tile < M16; ++tile) {
#pragma unroll
                for (int r = 0; r < 4; ++r)
#pragma unroll
                    for (int low = 0; low < 2; ++low) {
                        alignas(4) T value[IN_REGISTER];
#pragma unroll
                        for (int i = 0; i < IN_REGISTER; ++i)
                            value[i] = element(16 * tile + 8 * low + lane.g,
                                               chunk * IN_CHUNK + lane.q * OF_LANE + r * IN_REGISTER + i);
                        a[chunk][tile][r][low] = packed<TF32>(value);
                        keep_in_register(a[chunk][tile][r][low]);  // half values apart would take twice the registers
                    }
                warp_barrier();  // not all loads of the slice at once, which would take more registers than there are
            }
    }

    // operand(column, byte) gives the 16 bytes from that byte of the column's k.
    template <class Operand>
    __device__ __forceinline__ void multiply(float (&sums)[M16][4], Operand operand) const {
        if constexpr (sizeof(T) == 4 && !TF32)
            multiply_exactly(sums, operand);
        else
            multiply_by_mma(sums, operand);
    }

   private:
    template <class Operand>
    __device__ __forceinline__ void multiply_by_mma(float (&sums)[M16][4], Operand operand) const {
        const Lane lane;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const uint4 bytes = operand(lane.g, chunk * CHUNK + lane.q * 16);
            const unsigned word[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                unsigned b[2] = {word[2 * half], word[2 * half + 1]};
                if constexpr (TF32) b[0] = to_tf32(as_float(b[0])), b[1] = to_tf32(as_float(b[1]));
#pragma unroll
                for (int tile = 0; tile < M16; ++tile) {
                    const auto& part = a[chunk][tile];
                    const unsigned rows[4] = {part[2 * half][0], part[2 * half][1], part[2 * half + 1][0],
                                              part[2 * half + 1][1]};
                    multiply_add(sums[tile], rows, b, T());
                }
            }
        }
    }
    static __device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&rows)[4],
                                                        const unsigned (&b)[2], float) {
        mma_tf32(d, rows, b);
    }
    static __device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&rows)[4],
                                                        const unsigned (&b)[2], __half) {
        mma_f16(d, rows, b);
    }
    static __device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&rows)[4],
                                                        const unsigned (&b)[2], __nv_bfloat16) {
        mma_bf16(d, rows, b);
    }

    template <class Operand>
    __device__ __forceinline__ void multiply_exactly(float (&sums)[M16][4], Operand operand) const {
        // tiles that share a read of the operand, where there are registers for their sums
        constexpr int AT_ONCE = M16 % 2 || M16 * CHUNKS > 8 ? 1 : 2;
        const Lane lane;
#pragma unroll
        for (int first = 0; first < M16; first += AT_ONCE) {
            float partial[AT_ONCE][2][COLUMNS] = {};
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
                for (int column = 0; column < COLUMNS; ++column) {
                    const uint4 bytes = operand(column, chunk * CHUNK + lane.q * 16);
                    const float k[4] = {as_float(bytes.x), as_float(bytes.y), as_float(bytes.z), as_float(bytes.w)};
#pragma unroll
                    for (int tile = 0; tile < AT_ONCE; ++tile)
#pragma unroll
                        for (int low = 0; low < 2; ++low)
#pragma unroll
                            for (int r = 0; r < 4; ++r)
                                partial[tile][low][column] += as_float(a[chunk][first + tile][r][low]) * k[r];
                }
#pragma unroll
            for (int tile = 0; tile < AT_ONCE; ++tile)
#pragma unroll
                for (int low = 0; low < 2; ++low) {
                    float four[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const float near = partial[tile][low][j], far = partial[tile][low][4 + j];
                        four[j] = (lane.q & 2 ? far : near) + shuffle_xor(lane.q & 2 ? near : far, 2);
                    }
#pragma unroll
                    for (int j = 0; j < 2; ++j)
                        sums[first + tile][2 * low + j] +=
                            (lane.q & 1 ? four[2 + j] : four[j]) + shuffle_xor(lane.q & 1 ? four[j] : four[2 + j], 1);
                }
        }
    }
};

// What cells take and give, for the two sequences of a lane: gate j is row j of sums when the rows of a slice are gate
// by gate, eight units each (tile j / 2, its upper or lower half).
template <int G>
constexpr int TILES_OF_GATES = (G + 1) / 2;

// The element of weight_hh (G·H x H) in such a slice of the eight units from `first`.
template <class T>
struct GateRows {
    const T* weight;
    int gates, hidden, first, k_first;
    __device__ __forceinline__ T operator()(int row, int k) const {
        const int gate = row / 8, unit = first + row % 8;
        k += k_first;
        const bool inside = gate < gates && unit < hidden && k < hidden;
        return inside ? weight[(gate * hidden + unit) * hidden + k] : narrow<T>(0.0f);
    }
};
