"""The Numba CPU backend: serial kernels without the GIL, spread over threads by :mod:`.threads`.

``compile`` makes a cell an argument that Numba can specialise on; ``vector`` gives Numba vector registers and
``activations`` what cells compute with them; ``tile`` is the one inner loop of every matrix product; ``gemm`` and
``sequence`` are built from it; ``layer`` is the backend.
"""
