"""The benchmark: ``python -m bench run cpu`` times gpulstm beside the LSTMs it competes with, ``run cells`` its
other cells beside what computes them elsewhere.

Each provider lives in a process of its own (:mod:`bench.worker`) and shows its outputs before it is timed
(:mod:`bench.verify`); turns are taken in interleaved rounds (:mod:`bench.run`); what is printed and drawn
(:mod:`bench.report`, :mod:`bench.plot`) is derived from one JSON record.
``python -m bench run gpu`` is :mod:`bench.gpu`.
"""
