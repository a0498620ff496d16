"""gpulstm with weights in bfloat16: ``gpulstm.quantize(lstm, "bf16")``."""

from __future__ import annotations

from functools import partial

from . import gpulstm

setup = gpulstm.setup
inference = partial(gpulstm.inference, kind="bf16")
