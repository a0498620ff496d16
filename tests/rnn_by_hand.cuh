// The vanilla recurrent cell h' = tanh(a); rnn_by_hand.py beside this file says more. One gate, no state, nothing saved.
#pragma once
#include "numeric.cuh"

struct RnnByHandCell {
    static constexpr int gates = 1, states = 0, saved = 0;

    template <class A>
    static __device__ __forceinline__ void forward(const A* gate, A* state, A& h, A* save) {
        h = tanh(gate[0]);
    }

    template <class A>
    static __device__ __forceinline__ void backward(A dh, A h, const A* save, const A* state, const A* previous,
                                                    A* dstate, A* dgate) {
        dgate[0] = dh * (A(1) - h * h);
    }
};
