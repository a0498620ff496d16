"""Weights in and out: safetensors, torch, Keras and ONNX. No pickle is read and no code in a file is run.

Loading gives layers on NumPy arrays (or on ``device=``); saving writes a file whole or leaves what was there. A file
that cannot be used is a :class:`WeightsError`, a ValueError that names the file and the reason.

    layer = gpulstm.io.load_torch(module.state_dict(), prefix="encoder.lstm.")
    gpulstm.io.export_onnx(layer, "layer.onnx")

ONNX and Keras files need the extras ``gpulstm[onnx]`` and ``gpulstm[keras]``.
"""

from .common import WeightsError
from .convert import convert
from .keras_read import load_keras
from .keras_write import save_keras
from .onnx_read import OnnxNode, load_onnx, onnx_layers
from .onnx_write import export_onnx
from .safetensors_files import load_safetensors, save_safetensors
from .torch_dicts import load_torch, save_torch

__all__ = [
    "OnnxNode",
    "WeightsError",
    "convert",
    "export_onnx",
    "load_keras",
    "load_onnx",
    "load_safetensors",
    "load_torch",
    "onnx_layers",
    "save_keras",
    "save_safetensors",
    "save_torch",
]
