"""gpulstm with weights in int8: ``gpulstm.quantize(lstm, "int8")``."""

from __future__ import annotations

from functools import partial

from . import gpulstm

setup = gpulstm.setup
inference = partial(gpulstm.inference, kind="int8")
