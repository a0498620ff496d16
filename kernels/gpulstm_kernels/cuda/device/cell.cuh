// What kernels know of a cell beside its struct, and how they call it.
#pragma once
#include "numeric.cuh"

// Counts x_gates, h_gates, params, inputs, differentiable, and whether it reads h before the step (reads_h): source.py
// writes it for each cell.
template <class Cell>
struct Declared;

template <class Cell>
struct Parts {
    using D = Declared<Cell>;
    static constexpr bool READS_H = D::reads_h;
    static constexpr int G = Cell::gates, OF_X = G - D::h_gates, OF_H = G - D::x_gates;  // gates, and of each product
    static constexpr int FIRST_OF_H = D::x_gates;
    static constexpr int FIRST_INPUT = READS_H + D::params, GIVEN = FIRST_INPUT + D::inputs;
    static constexpr int OWN = D::params + D::differentiable;  // gradients of what is given that lie behind the gates'
    static constexpr int ROW = G + OWN;                        // gradients of a step
};

// `given`, not read where there is nothing to give: h before the step where it is read, parameters, inputs.
template <class Cell, class A>
__device__ __forceinline__ void cell_forward(const A* gate, A* state, A& h, A* save, const A* given) {
    if constexpr (Parts<Cell>::GIVEN > 0)
        Cell::forward(gate, state, h, save, given);
    else
        Cell::forward(gate, state, h, save);
}

// `row`, of Parts<Cell>::ROW, gets the gradients of the gates and behind them those of parameters and inputs;
// `dbefore` that of h before the step where it is read, and is not touched elsewhere.
template <class Cell, class A>
__device__ __forceinline__ void cell_backward(A dh, A h, const A* save, const A* state, const A* previous, A* dstate,
                                              const A* given, A* row, A& dbefore) {
    using P = Parts<Cell>;
    if constexpr (P::GIVEN > 0) {
        A dgiven[at_least_one(P::READS_H + P::OWN)];
        Cell::backward(dh, h, save, state, previous, dstate, row, given, dgiven);
        if constexpr (P::READS_H) dbefore = dgiven[0];
#pragma unroll
        for (int k = 0; k < P::OWN; ++k) row[P::G + k] = dgiven[P::READS_H + k];
    } else {
        Cell::backward(dh, h, save, state, previous, dstate, row);
    }
}
