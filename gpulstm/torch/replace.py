"""Swap the recurrent modules of a model for gpulstm's, in place."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.utils import parametrize

from .modules import GRU, LSTM, NONLINEARITIES, RNN
from .steps import GRUCell, LSTMCell, RNNCell

_BY_TYPE: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.LSTM: LSTM,
    torch.nn.GRU: GRU,
    torch.nn.RNN: RNN,
    torch.nn.LSTMCell: LSTMCell,
    torch.nn.GRUCell: GRUCell,
    torch.nn.RNNCell: RNNCell,
}
_OURS = tuple(_BY_TYPE.values())
_WORDS = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Replacement:
    """What :func:`replace` did, by the names of ``model.named_modules()``.

    Attributes:
        replaced: name to the name of the class that it was.
        left: name to the reason why it was left as it is.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name or '(the model)'}: {kind} replaced" for name, kind in self.replaced.items()]
        lines += [f"{name or '(the model)'}: left, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "no recurrent modules"


def replace(model: torch.nn.Module) -> Replacement:
    """Let every ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and cell of these of ``model`` compute with gpulstm, in place.

    A module stays the object that it is and only changes its class: parameters, and the optimizers that hold them,
    gradients, hooks, parametrizations, training mode and every reference to it stay as they are. The model may be such
    a module itself; one that is shared is named once.

    Returns:
        which were replaced; and which recurrent modules were left, and why: a subclass, a ``forward`` of its
        own, quantized or scripted ones.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    report = Replacement()
    for name, module in model.named_modules():
        kind = parametrize.type_before_parametrizations(module)
        if kind in _OURS or not _is_recurrent(module, kind):
            continue
        reason = _why_not(module, kind)
        if reason is None:
            report.replaced[name] = kind.__name__
            _change_class(module, kind)
        else:
            report.left[name] = reason
    return report


def _is_recurrent(module: torch.nn.Module, kind: type) -> bool:
    if isinstance(module, (torch.nn.RNNBase, torch.nn.RNNCellBase)):
        return True
    name = getattr(module, "original_name", kind.__name__)  # of a scripted module: that of the class it was made from
    from_torch = kind.__module__.startswith(("torch.ao.nn", "torch.nn.quantized", "torch.jit"))
    return from_torch and any(word in name for word in _WORDS)


def _why_not(module: torch.nn.Module, kind: type) -> str | None:
    """Why ``module`` cannot be replaced; None where it can."""
    known = ", ".join(f"nn.{cls.__name__}" for cls in _BY_TYPE)
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted, so its code is fixed"
    if kind not in _BY_TYPE:
        base = next((cls for cls in _BY_TYPE if issubclass(kind, cls)), None)
        if base is not None:
            return f"{kind.__name__} is a subclass of nn.{base.__name__} that may do something else"
        return f"{kind.__module__}.{kind.__name__} is none of {known}"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    if getattr(module, "nonlinearity", "tanh") not in NONLINEARITIES:
        return f"nonlinearity={module.nonlinearity!r}: no kernel computes it"
    return None


def _change_class(module: torch.nn.Module, kind: type[torch.nn.Module]) -> None:
    ours, current = _BY_TYPE[kind], type(module)
    if current is not kind:  # parametrized: a class made for this module, whose properties compute the weights
        own = {key: value for key, value in vars(current).items() if key not in ("__dict__", "__weakref__")}
        ours = type(current.__name__, (ours,), own)
    module.__class__ = ours
