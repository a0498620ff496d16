// The LSTM cell; lstm_by_hand.py beside this file prints the equations. Gates i, f, g, o; state c; saved i, f, g, o.
#pragma once
#include "numeric.cuh"

struct LstmByHandCell {
    static constexpr int gates = 4, states = 1, saved = 4;

    template <class A>
    static __device__ __forceinline__ void forward(const A* gate, A* state, A& h, A* save) {
        const A i = sigmoid(gate[0]), f = sigmoid(gate[1]), g = tanh(gate[2]), o = sigmoid(gate[3]);
        state[0] = f * state[0] + i * g;
        h = o * tanh(state[0]);
        save[0] = i, save[1] = f, save[2] = g, save[3] = o;
    }

    template <class A>
    static __device__ __forceinline__ void backward(A dh, A h, const A* save, const A* state, const A* previous,
                                                    A* dstate, A* dgate) {
        const A i = save[0], f = save[1], g = save[2], o = save[3];
        const A tanh_c = tanh(state[0]);
        const A dc = dstate[0] + dh * o * (A(1) - tanh_c * tanh_c);
        dgate[0] = dc * g * i * (A(1) - i);
        dgate[1] = dc * previous[0] * f * (A(1) - f);
        dgate[2] = dc * i * (A(1) - g * g);
        dgate[3] = dh * tanh_c * o * (A(1) - o);
        dstate[0] = dc * f;
    }
};
