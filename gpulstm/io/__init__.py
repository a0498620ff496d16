"""Weights in and out: safetensors, torch, Keras and ONNX. No pickle is read and no code in a file is run.

Loading gives layers on NumPy arrays (or on ``device=``); saving writes a file whole or leaves what was there. A file
that cannot be used is a :class:`WeightsError`, a ValueError that names the file and the reason.

    layer = gpulstm.io.load_torch(module.state_dict(), prefix="encoder.lstm.")

"""

from .common import WeightsError
from .onnx_read import OnnxNode, load_onnx, onnx_layers
from .safetensors_files import load_safetensors, save_safetensors
from .torch_names import load_torch, save_torch

__all__ = [
    "OnnxNode",
    "WeightsError",
    "load_onnx",
    "load_safetensors",
    "load_torch",
    "onnx_layers",
    "save_safetensors",
    "save_torch",
]
