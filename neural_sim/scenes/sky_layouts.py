"""Sky cubemaps of other tools as ours, and back.

NVIDIA's reconstruction stores six faces +X, -X, -Y, +Y, +Z, -Z of axes x right, y down, z forward; the texel in row i
and column j has its centre at v = (2 i + 1) / S - 1 and u = (2 j + 1) / S - 1 and lies in direction

    face  0 (1, v, -u)   1 (-1, v, u)   2 (u, -1, v)   3 (u, 1, -v)   4 (u, v, 1)   5 (-u, v, -1)

so that every face is the upright picture that a camera takes. Tools differ in where these axes lie in the world:

| layout | x, y, z of the cubemap are | found in |
|---|---|---|
| `nurec` | -y, -z, +x of the world: face 4 looks along +x and face 2 up | `.background.textures` of NuRec volumes |
| `axes` | x, y, z of the frame of the Gaussians | `.sky.npz` of Instant NuRec |
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.errors import InputError
from neural_sim.frames import R_RIG_FORWARD_CAMERA
from neural_sim.rendering.sky import sample_sky, texel_directions

SKY_LAYOUTS = ("nurec", "axes")


def sky_from_layout(
    stored: Float[Tensor, "6 s s 3"], layout: str, R_world_file: Float[np.ndarray, "3 3"] | None = None
) -> Float[Tensor, "6 s s 3"]:
    """Our sky from one stored in `layout` (one of `SKY_LAYOUTS`).

    `R_world_file` turns the frame of the file into the world. Without it every texel is one of the stored ones; turned
    by other than quarter turns the sky is resampled. Raises `InputError` on another layout.
    """
    directions = texel_directions(stored.shape[1]).double()
    if R_world_file is not None:
        directions = directions @ torch.from_numpy(R_world_file)
    rays = directions @ _axes(layout)
    if R_world_file is not None and not _is_quarter_turn(R_world_file):
        upright = _permuted(stored, texel_directions(stored.shape[1]).double())
        return sample_sky(upright, rays.float())
    return _permuted(stored, rays)


def sky_to_layout(sky: Float[Tensor, "6 s s 3"], layout: str) -> Float[Tensor, "6 s s 3"]:
    """Inverse of `sky_from_layout` without a turn; exact."""
    numbers = torch.arange(sky[..., 0].numel()).reshape(sky[..., :1].shape)
    stored = torch.empty_like(sky.reshape(-1, 3))
    stored[sky_from_layout(numbers, layout).flatten()] = sky.reshape(-1, 3)
    return stored.reshape(sky.shape)


def _axes(layout: str) -> Float[Tensor, "3 3"]:
    """Rotation from the axes of the cubemap to those of the frame of the file."""
    if layout not in SKY_LAYOUTS:
        raise InputError(f"sky layout is {layout!r}, expected one of {', '.join(SKY_LAYOUTS)}")
    return torch.from_numpy(R_RIG_FORWARD_CAMERA if layout == "nurec" else np.eye(3)).double()


def _is_quarter_turn(rotation: Float[np.ndarray, "3 3"]) -> bool:
    return bool(np.allclose(np.abs(rotation).max(axis=1), 1, atol=1e-6))


def _permuted(stored: Float[Tensor, "6 s s 3"], rays: Float[Tensor, "6 s s 3"]) -> Float[Tensor, "6 s s 3"]:
    """The texel of a cubemap in our axes that holds each of `rays`, given in the axes of the cubemap."""
    size = stored.shape[1]
    x, y, z = (rays / rays.abs().amax(dim=-1, keepdim=True)).unbind(-1)
    axis = rays.abs().argmax(dim=-1)
    positive = torch.where(axis == 0, x, torch.where(axis == 1, y, z)) > 0
    face = torch.where(axis == 1, torch.where(positive, 3, 2), 2 * axis + (~positive).long())
    u = torch.where(axis == 0, torch.where(positive, -z, z), torch.where((axis == 2) & ~positive, -x, x))
    v = torch.where(axis == 1, torch.where(positive, -z, z), y)
    column, row = (((w + 1) / 2 * size).floor().long().clamp(0, size - 1) for w in (u, v))
    return stored[face, row, column]
