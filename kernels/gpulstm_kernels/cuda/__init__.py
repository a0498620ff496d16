"""LSTM kernels in CUDA C++, compiled at run time, and the Python that launches them."""
