"""All that is between Python and a CUDA device: its runtime, sources, products, and what kernels ask of it."""
