// One update of one parameter, elementwise: gpulstm/optim/rules.py says what each rule computes.
// A thread an element, 256 a block.
// `rates` are the rule's numbers of this step, in device memory so that a CUDA graph reads new ones at each replay.
// Where `loss` or `norm` is given and not finite, nothing changes.
#include "numeric.cuh"

// rates: lr, weight decay, momentum, nesterov
struct Sgd {
    template <class A>
    static __device__ void step(A& p, A g, A& v, A&, const double* rates, bool slots) {
        g += A(rates[1]) * p;
        if (slots) {
            v = A(rates[2]) * v + g;
            g = rates[3] != 0 ? A(rates[2]) * v + g : v;
        }
        p -= A(rates[0]) * g;
    }
};

// rates: lr, weight decay, alpha, eps, momentum
struct RmsProp {
    template <class A>
    static __device__ void step(A& p, A g, A& s, A& v, const double* rates, bool slots) {
        g += A(rates[1]) * p;
        s = A(rates[2]) * s + A(1 - rates[2]) * g * g;
        A change = g / (sqrt(s) + A(rates[3]));
        if (slots) change = v = A(rates[4]) * v + change;
        p -= A(rates[0]) * change;
    }
};

// rates: lr·√(1-β₂ᵗ)/(1-β₁ᵗ), weight decay as a penalty, 1 - lr·weight decay if decoupled, β₁, β₂, eps·√(1-β₂ᵗ)
struct Adam {
    template <class A>
    static __device__ void step(A& p, A g, A& m, A& v, const double* rates, bool) {
        p *= A(rates[2]);
        g += A(rates[1]) * p;
        m += A(1 - rates[3]) * (g - m);
        v = A(rates[4]) * v + A(1 - rates[4]) * g * g;
        p -= A(rates[0]) * (m / (sqrt(v) + A(rates[5])));
    }
};

// `slots`: whether the rule's optional slot is there; one that is absent is a null pointer.
template <class A, class Rule>
__global__ void update(A* params, const A* grads, A* first, A* second, const double* rates, const double* loss,
                       const double* norm, int slots, int count) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count || (loss && !(fabs(*loss) < infinity())) || (norm && !(fabs(*norm) < infinity()))) return;
    A p = params[i], a = first ? first[i] : A(0), b = second ? second[i] : A(0);
    Rule::step(p, grads[i], a, b, rates, slots != 0);
    params[i] = p;
    if (first) first[i] = a;
    if (second) second[i] = b;
}
