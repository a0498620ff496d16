"""One module a provider; the interface is :class:`bench.registry.Provider`."""
