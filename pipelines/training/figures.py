"""Memory of a training process."""

import resource
import sys

import torch


def peak_memory_gb(device: str) -> float:
    """Most memory that this process has held: of the GPU, or on the CPU resident memory, GB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
