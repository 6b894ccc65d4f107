"""What all tests share."""

import os

# Before anything loads a math library: the tests run in several processes, and more threads than cores only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from neural_sim.gaussians import Gaussians
from neural_sim.rendering.rasterize import rasterize


@pytest.fixture(scope="session")
def compiled_rasterizer() -> None:
    """The rasterizer's kernels in the cache on disk, so that processes started by a test do not all compile them."""
    gaussians = Gaussians(
        torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.zeros(1, 3), torch.ones(1),
        torch.ones(1, 4, 3, requires_grad=True),
    )  # fmt: skip
    K = torch.tensor([[[20.0, 0.0, 16.0], [0.0, 20.0, 16.0], [0.0, 0.0, 1.0]]])
    rasterize(gaussians, torch.eye(4)[None], K, 32, 32).rgb.sum().backward()
