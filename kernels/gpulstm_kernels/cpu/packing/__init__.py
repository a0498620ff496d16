"""Parameters in the order in which tiles read them, and the cache of what was packed."""
