"""What kernels are made of: vector registers, tiles, activations and narrow types, and how all of it is compiled."""
