"""Which device a stage computes on, and why: the start-up banner."""

import logging
import os

import torch

from neural_sim.errors import InputError
from neural_sim.rendering.rasterize import choose_backend

logger = logging.getLogger("roadloop")


def resolve_device(device: str) -> str:
    """Turn `auto` into `cuda` or `cpu`. Raises `InputError` when `cuda` is asked for and there is none."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        # Libraries that find DeepSpeed import it; it guesses from what is installed and warns.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device here; install a CUDA build of torch or use cpu")
    return device


def banner(stage: str, device: str, seed: int, workers: int) -> str:
    """Log one line: stage, device, renderer backend and the reason for it, workers, seed. Returns the device."""
    resolved = resolve_device(device)
    backend, reason = choose_backend(resolved)
    logger.info(
        "roadloop %s: device %s, renderer %s (%s), workers %d, seed %d", stage, resolved, backend, reason, workers, seed
    )
    return resolved
