"""Kernels beside the walks: what layers, arrays, networks and optimizers need."""
