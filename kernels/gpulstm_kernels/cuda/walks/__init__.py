"""How time is walked, a folder a walk: its kernels, its host side and, where there is one, its Numba twin."""
