"""``python -m bench run gpu``: every walk beside ``torch.nn.LSTM`` (cuDNN) on a GPU, within a budget of seconds.

First the tests that need a device, then :mod:`.probes`, then the grid of :mod:`.grid`, the most telling shapes first.
All of it runs in one process that is replaced when it dies (:mod:`.worker`); what was measured is in a JSON record at
every moment, and the next run continues where an interrupted one stopped (:mod:`.run`).
"""
