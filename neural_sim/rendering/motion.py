"""Where the frames of the Gaussians are, seen from each camera, while its shutter is open. Differentiable."""

import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.rendering.view_batch import ViewBatch

# Poses are exact at this many times from the first to the last line and linear, entry by entry, in between: 0.05 rad of
# rotation while the shutter is open then leaves an error of 5e-6.
SHUTTER_KNOTS = 9
# Fixed-point steps from the middle of the exposure to the time at which the line under a Gaussian's mean is read. Each
# shrinks the error by the share of the image that a point crosses meanwhile.
SHUTTER_ITERATIONS = 4
# Squared sine or angle below which series replace quotients that end as 0 / 0.
_SMALL = 1e-8


def frame_poses(batch: ViewBatch) -> Float[Tensor, "v s a 4 4"]:
    """float64 poses [V, S, 1 + A, 4, 4] that map the world frame (0) and actor a (1 + a) to the camera, m.

    S is 1 for a global shutter, else `SHUTTER_KNOTS` equal steps from open to close. Hidden actors have NaN poses.
    """
    cameras = batch.T_camera_world.double()[:, None]
    times = torch.linspace(0.0, 1.0, SHUTTER_KNOTS, dtype=torch.float64, device=cameras.device)
    if batch.shutter is not None:
        close = batch.shutter.T_camera_world_close.double()
        cameras = _inverse(interpolate_rigid(_inverse(cameras[:, 0]), _inverse(close), times))
    if batch.actors is None:
        return cameras[:, :, None]
    start, end = batch.actors.T_world_actor.double(), batch.actors.T_world_actor_close
    hidden = ~start.isfinite().all(-1).all(-1)[..., None, None]
    if end is not None:
        hidden = hidden | ~end.isfinite().all(-1).all(-1)[..., None, None]
    identity = torch.eye(4, dtype=start.dtype, device=start.device)
    # Replaced before any arithmetic, because a NaN would pass through a later `where` into the gradient.
    placed = torch.where(hidden, identity, start)[:, None]
    if end is not None:
        placed = interpolate_rigid(placed[:, 0], torch.where(hidden, identity, end.double()), times)
    actors = torch.where(hidden[:, None], torch.nan, cameras[:, :, None] @ placed)
    return torch.cat([cameras[:, :, None], actors], dim=2)


def line_poses(
    T_world_camera: Float[Tensor, "v 4 4"],
    T_world_camera_close: Float[Tensor, "v 4 4"],
    direction: str,
    width_px: int,
    height_px: int,
) -> Float[Tensor, "v l 4 4"]:
    """Camera pose as each line is read: of rows from the top, or of columns from the left. Differentiable."""
    lines = height_px if is_read_by_rows(direction) else width_px
    shares = torch.linspace(0.0, 1.0, lines, dtype=T_world_camera.dtype, device=T_world_camera.device)
    shares = shares if direction in ("top-to-bottom", "left-to-right") else shares.flip(0)
    return interpolate_rigid(T_world_camera, T_world_camera_close, shares)


def is_read_by_rows(direction: str) -> bool:
    """Whether the lines of a rolling shutter are rows."""
    return direction in ("top-to-bottom", "bottom-to-top")


def interpolate_rigid(
    start: Float[Tensor, "v *a 4 4"], end: Float[Tensor, "v *a 4 4"], shares: Float[Tensor, "s"]
) -> Float[Tensor, "v s *a 4 4"]:
    """Rigid transforms [V, S, *A, 4, 4] on the way from `start` to `end`: translation linear, rotation by slerp.

    Differentiable, also where start and end agree; the rotation between them must be below pi.
    """
    first, last = start[:, None], end[:, None]
    shares = shares.reshape(-1, *[1] * (first.ndim - 3))
    turn = _rotation_vector(first[..., :3, :3].transpose(-1, -2) @ last[..., :3, :3])
    rotation = first[..., :3, :3] @ _rotation_matrix(shares * turn)
    translation = first[..., :3, 3] + shares * (last[..., :3, 3] - first[..., :3, 3])
    return _assemble(rotation, translation)


def _assemble(rotation: Float[Tensor, "*n 3 3"], translation: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 4 4"]:
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(rotation).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, translation[..., None]], dim=-1), bottom], dim=-2)


def _inverse(pose: Float[Tensor, "*n 4 4"]) -> Float[Tensor, "*n 4 4"]:
    rotation = pose[..., :3, :3].transpose(-1, -2)
    return _assemble(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])


def _rotation_vector(rotation: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3"]:
    """Axis times angle of rotations below pi."""
    m = rotation
    rows = [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]]
    sine_axis = 0.5 * torch.stack(rows, dim=-1)
    sine2 = (sine_axis * sine_axis).sum(-1, keepdim=True)
    cosine = 0.5 * (torch.diagonal(m, dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1)
    sine = sine2.clamp_min(_SMALL).sqrt()
    return sine_axis * torch.where(sine2 > _SMALL, torch.atan2(sine, cosine) / sine, 1 + sine2 / 6)


def _rotation_matrix(vector: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Rodrigues' formula."""
    angle2 = (vector * vector).sum(-1)[..., None, None]
    angle = angle2.clamp_min(_SMALL).sqrt()
    first = torch.where(angle2 > _SMALL, angle.sin() / angle, 1 - angle2 / 6)
    second = torch.where(angle2 > _SMALL, (1 - angle.cos()) / (angle * angle), 0.5 - angle2 / 24)
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*vector.shape[:-1], 3, 3)
    return torch.eye(3).to(cross) + first * cross + second * (cross @ cross)
