"""Drop-ins for torch's recurrent modules, over gpulstm's kernels: change one import, or :func:`replace` a model's.

    from gpulstm.torch import LSTM            # instead of: from torch.nn import LSTM
    gpulstm.torch.replace(model)              # or: every nn.LSTM, nn.RNN and nn.LSTMCell of a model, in place

Constructor, parameters, state-dict keys, ``forward`` and its results are torch's. One operator,
``torch.ops.gpulstm.layer_forward``, runs a layer over a whole sequence (:mod:`gpulstm.torch.operator`).
"""

from __future__ import annotations

from .modules import LSTM, RNN, LSTMCell
from .replace import Replacement, replace

__all__ = ["LSTM", "RNN", "LSTMCell", "Replacement", "replace"]
