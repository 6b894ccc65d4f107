"""Lookup in the sky on the CPU as a differentiable torch function."""

from typing import Any

import torch
from torch import Tensor

from neural_sim.rendering.cpu.sky import look_up, spread


class SampleSky(torch.autograd.Function):
    """Sky float32 [6, S, S, 3], rays float32 [*n, 3] -> colours [*n, 3]; differentiable in the sky."""

    @staticmethod
    def forward(ctx: Any, sky: Tensor, directions: Tensor) -> Tensor:
        """Bilinear colours; black along zero."""
        rays = directions.reshape(-1, 3).contiguous().numpy()
        ctx.rays, ctx.size = rays, sky.shape[1]
        return torch.from_numpy(look_up(sky.detach().contiguous().numpy(), rays)).reshape(directions.shape)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        """Gradient of the sky."""
        gradient = cotangents[0].reshape(-1, 3).contiguous().numpy()
        return torch.from_numpy(spread(gradient, ctx.rays, ctx.size)), None
