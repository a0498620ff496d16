"""Threads that run one kernel together, and what they share: words of memory, barriers, signals."""
