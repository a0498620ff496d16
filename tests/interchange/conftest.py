"""Keras on torch, chosen before any test imports it: keras reads the variable once."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"
