"""The kernels of gpulstm: cells (pointwise maths) times walks (how time is walked), one sub-package a backend.

Never imports ``gpulstm``. ``reference`` is the truth in float64 NumPy; ``cells`` holds the maths of each cell;
``cpu`` walks time on a CPU through Numba, ``cuda`` on a GPU. A backend is a module with two functions over one layer
of both directions, ``layer_forward`` and ``layer_backward``; :mod:`gpulstm_kernels.reference` documents them.
"""
