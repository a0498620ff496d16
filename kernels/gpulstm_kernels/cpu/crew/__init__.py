"""A thread pool for kernels.

The *crew* (:mod:`.thread_pool`) is the pool of the process: Python threads, which wait for work without Python's lock.
The *team* of a call (:mod:`.team`) are the threads that compute it, each one share: what they are handed, their
barriers, and how a call is aborted. :mod:`.claims` schedules parts of a step dynamically, :mod:`.handlers` lets Python
run handlers of signals, :mod:`.atomics` are the words of memory that all of this is made of, :mod:`.cores` counts
cores.
"""
