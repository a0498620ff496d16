"""One module a contender; the interface is :class:`bench.gpu.grid.Contender`."""
