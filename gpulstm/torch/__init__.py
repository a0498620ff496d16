"""Drop-ins for torch's recurrent modules, over gpulstm's kernels: change one import, or :func:`replace` a model's.

    from gpulstm.torch import LSTM            # instead of: from torch.nn import LSTM
    gpulstm.torch.replace(model)              # or: every nn.LSTM, nn.GRU, nn.RNN and their cells of a model

Constructor, parameters, state-dict keys, ``forward`` and its results are torch's. :class:`Recurrent` is a stack of
layers of any cell, with what torch's have not: lengths, resets and a cell's inputs. :func:`flashrnn` is FlashRNN's
function of inputs that the caller has multiplied. One operator,
``torch.ops.gpulstm.layer_forward``, runs a layer over a whole sequence (:mod:`gpulstm.torch.operator`).
"""

from __future__ import annotations

from .any_cell import Recurrent
from .flash import flashrnn
from .modules import GRU, LSTM, RNN
from .replace import Replacement, replace
from .steps import GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Recurrent", "Replacement", "flashrnn", "replace"]
