"""The sky as a cubemap around the world's axes, looked up by ray direction.

A sky is [6, S, S, 3], RGB in 0..1. Faces +X -X +Y -Y +Z -Z look along the axes of the world frame (z up); the texel in
row i and column j has its centre at t = (2 i + 1) / S - 1 and s = (2 j + 1) / S - 1 and lies in direction

    face  direction        seen from the centre
    +X    ( 1, -s, -t)     top row towards +Z, columns from left to right
    -X    (-1,  s, -t)     likewise
    +Y    ( s,  1, -t)     likewise
    -Y    (-s, -1, -t)     likewise
    +Z    ( t, -s,  1)     as after tilting the head back from +X: bottom row meets the top row of +X
    -Z    (-t, -s, -1)     as after tilting the head down from +X: top row meets the bottom row of +X

Lookup is bilinear inside a face and takes the nearest texels at its edges.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_sim.distortion import Distortion
from neural_sim.rendering.lenses import view_rays
from neural_sim.rendering.motion import is_read_by_rows, line_poses


def view_directions(
    K: Float[Tensor, "v 3 3"],
    T_world_camera: Float[Tensor, "v 4 4"],
    width_px: int,
    height_px: int,
    lens: Distortion | None = None,
    close: tuple[Float[Tensor, "v 4 4"], str] | None = None,
) -> Float[Tensor, "v h w 3"]:
    """Unit world-frame directions of the rays through all pixel centres of V views; zero where a lens reaches no ray.

    Under a rolling shutter `T_world_camera` is the pose when the first line is read, and `close` the pose at the last
    and the direction. Differentiable in the poses, and for a pinhole in `K`.
    """
    if lens is None and close is None and _is_for_kernels(K) and _is_for_kernels(T_world_camera):
        from neural_sim.rendering.cpu.sky import pinhole_directions

        cameras = zip(K.double().numpy(), T_world_camera[:, :3, :3].double().numpy(), strict=True)
        return torch.from_numpy(np.stack([pinhole_directions(k, r, width_px, height_px) for k, r in cameras]))
    if lens is None:
        rays = _pinhole_rays(K, width_px, height_px)
    else:
        every = [view_rays(k, width_px, height_px, lens) for k in K.detach().cpu().double().numpy()]
        rays = torch.from_numpy(np.stack(every)).to(K)
    if close is None:
        return torch.einsum("vij,vhwj->vhwi", T_world_camera[:, :3, :3].to(rays), rays)
    poses = line_poses(T_world_camera.to(rays), close[0].to(rays), close[1], width_px, height_px)
    lines = "vhij,vhwj->vhwi" if is_read_by_rows(close[1]) else "vwij,vhwj->vhwi"
    return torch.einsum(lines, poses[..., :3, :3], rays)


def _is_for_kernels(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not tensor.requires_grad


def _pinhole_rays(K: Float[Tensor, "v 3 3"], width_px: int, height_px: int) -> Float[Tensor, "v h w 3"]:
    y, x = torch.meshgrid(
        torch.arange(height_px, dtype=K.dtype, device=K.device) + 0.5,
        torch.arange(width_px, dtype=K.dtype, device=K.device) + 0.5,
        indexing="ij",
    )
    u = (x - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None]
    v = (y - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None]
    return torch.nn.functional.normalize(torch.stack([u, v, torch.ones_like(u)], dim=-1), dim=-1)


def sample_sky(sky: Float[Tensor, "6 s s 3"], directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Colours seen along world-frame `directions` of any length; black along zero. Differentiable in `sky`."""
    if sky.device.type == "cpu" and sky.dtype == directions.dtype == torch.float32:
        from neural_sim.rendering.cpu.sky_function import SampleSky

        return SampleSky.apply(sky, directions.detach())
    return sample_sky_reference(sky, directions)


def sample_sky_reference(sky: Float[Tensor, "6 s s 3"], directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """What `sample_sky` gives, of any type and on any device, in torch."""
    size = sky.shape[1]
    face, s, t = _face_coordinates(directions.detach())
    column, row = ((s + 1) * 0.5 * size - 0.5).clamp(0, size - 1), ((t + 1) * 0.5 * size - 0.5).clamp(0, size - 1)
    left, top = column.floor().long().clamp(max=max(size - 2, 0)), row.floor().long().clamp(max=max(size - 2, 0))
    right, bottom = (left + 1).clamp(max=size - 1), (top + 1).clamp(max=size - 1)
    a, b = (column - left)[..., None], (row - top)[..., None]
    texels = sky.reshape(-1, 3)

    def texel(i: Tensor, j: Tensor) -> Tensor:
        return texels[(face * size + i) * size + j]

    upper = texel(top, left) * (1 - a) + texel(top, right) * a
    color = upper * (1 - b) + (texel(bottom, left) * (1 - a) + texel(bottom, right) * a) * b
    return color * (directions.detach() != 0).any(-1, keepdim=True)


def texel_directions(size: int) -> Float[Tensor, "6 s s 3"]:
    """World-frame directions of all texel centres of a sky of `size`, not normalised."""
    centers = (2 * torch.arange(size) + 1) / size - 1
    t, s = torch.meshgrid(centers, centers, indexing="ij")
    one = torch.ones_like(s)
    faces = [(one, -s, -t), (-one, s, -t), (s, one, -t), (-s, -one, -t), (t, -s, one), (-t, -s, -one)]
    return torch.stack([torch.stack(face, dim=-1) for face in faces])


def _face_coordinates(
    directions: Float[Tensor, "*n 3"],
) -> tuple[Int[Tensor, "*n"], Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Face index and (s, t) in -1..1 where the direction meets the unit cube."""
    x, y, z = directions.unbind(-1)
    axis = directions.abs().argmax(-1)
    major = directions.gather(-1, axis[..., None])[..., 0]
    negative = major < 0
    size = major.abs().clamp_min(1e-12)
    sign = torch.where(negative, -1.0, 1.0).to(directions)
    s = torch.where(axis == 0, -sign * y, torch.where(axis == 1, sign * x, -y)) / size
    t = torch.where(axis == 2, sign * x, -z) / size
    return 2 * axis + negative.long(), s, t
