"""Sound files, and what of them a recogniser sees: the logarithm of the energy in bands, some times a second."""

from __future__ import annotations

import wave
from functools import cache
from pathlib import Path

import numpy as np

BANDS = 40
STACKED = 3  # frames that are one step
_FRAME, _HOP = 0.025, 0.010  # seconds
_FLOOR = 1e-8  # energy below which nothing is heard
_LEAST_RATE = 4000  # samples a second, of speech that can be understood


def read_wav(file: str | Path) -> tuple[np.ndarray, int]:
    """Samples (N,) float32 in -1..1 and their number a second, of a WAV file with one channel of 16 bits.

    Raises:
        ValueError: another file, channels or bits, a file that was cut short, or silence; the message names it.
        OSError: it cannot be read.
    """
    if Path(file).suffix.lower() != ".wav":
        raise ValueError(f"{file}: expected a .wav file of one channel and 16 bits")
    try:
        with wave.open(str(file), "rb") as stream:
            channels, width, rate, size = stream.getparams()[:4]
            content = stream.readframes(size)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{file}: expected a WAV file: {str(error) or 'it ends too early'}") from error
    if (channels, width) != (1, 2):
        raise ValueError(f"{file}: expected one channel of 16 bits, got {channels} of {8 * width}")
    if rate < _LEAST_RATE:
        raise ValueError(f"{file}: expected at least {_LEAST_RATE} samples a second, got {rate}")
    if len(content) != 2 * size:
        raise ValueError(f"{file}: cut short: expected {size} samples, got {len(content) // 2}")
    samples = np.frombuffer(content, "<i2")
    if len(samples) < 1 + int(_FRAME * rate) or samples.min() == samples.max():
        raise ValueError(f"{file}: expected speech, got {'silence' if len(samples) else 'nothing'} "
                         f"of {len(samples) / rate:.3f} s")  # fmt: skip
    return samples.astype(np.float32) / 32768, rate


def log_mel(samples: np.ndarray, rate: int) -> np.ndarray:
    """Of ``samples`` (N,), at ``rate`` a second, the logarithm of the energy in 40 bands: (T, 40) float32.

    Frames of 25 ms, one each 10 ms, under a Hann window; the shortest power of 2 that holds them is transformed.
    """
    frame, hop = round(_FRAME * rate), round(_HOP * rate)
    size = 1 << (frame - 1).bit_length()
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
    power = np.abs(np.fft.rfft(frames * window, size)) ** 2 / np.sum(window**2)
    return np.log(power @ _filters(rate, size).T + _FLOOR).astype(np.float32)


def steps(samples: np.ndarray, rate: int) -> np.ndarray:
    """:func:`log_mel`, three frames side by side: (T, 120), a step each 30 ms. What is left over at the end is padded
    with its last frame."""
    frames = log_mel(samples, rate)
    frames = np.pad(frames, ((0, -len(frames) % STACKED), (0, 0)), mode="edge")
    return frames.reshape(-1, STACKED * BANDS)


def mel(hertz: np.ndarray) -> np.ndarray:
    """The mel scale of Slaney's Auditory Toolbox (1998): linear up to 1000 Hz, 15 of it, then logarithmic."""
    above = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, hertz * 3 / 200, above)


def hertz(mel: np.ndarray) -> np.ndarray:
    """The inverse of :func:`mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27))


@cache
def _filters(rate: int, size: int) -> np.ndarray:
    """Triangles (40, size/2 + 1), even on the mel scale from 0 to half of ``rate``, each of area 1 in Hz (Slaney)."""
    edges = hertz(np.linspace(0, mel(np.array(rate / 2)), BANDS + 2))
    low, middle, high = (edges[k : BANDS + k, None] for k in range(3))
    at = np.arange(size // 2 + 1) * rate / size
    triangles = np.minimum((at - low) / (middle - low), (high - at) / (high - middle))
    return np.maximum(triangles, 0) * 2 / (high - low)
