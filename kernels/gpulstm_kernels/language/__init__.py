"""The cell language: a cell's forward is written once and traced; everything else about it is derived.

:mod:`.declaration` reads what a cell declares, :mod:`.call` calls its function once, :mod:`.graph` records what that
does to values, :mod:`.operators` are the functions that it may call, :mod:`.derive` finds the gradient and what of the
forward is saved for it, :mod:`.code` writes both down in Python and in CUDA C++, :mod:`.cell` puts them together.
"""
