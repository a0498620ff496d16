"""The CUDA kernels a second time, in Python: for those who want to read, change or run them without C++ headers."""
