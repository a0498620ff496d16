"""Parameters in the order in which tiles read them, and the cache that keeps them so."""
