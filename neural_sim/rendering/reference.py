"""The slow, obvious rasterizer: dense torch, differentiable by autograd in everything, any float dtype.

EWA splatting (Zwicker et al. 2001; Kerbl et al. 2023): a Gaussian with camera-frame mean m and covariance S projects
to a 2D Gaussian with covariance J S J^T + blur, J the Jacobian of the camera's projection at m. Splats are composited
front to back in order of depth: alpha = min(0.999, opacity exp(-sigma)), splats with alpha < 1/255 are skipped, and a
pixel ends before the splat that would bring its transmittance to 1e-4 or less. With anti-aliasing the opacity shrinks
by sqrt(det J S J^T / det (J S J^T + blur)). Under a rolling shutter each Gaussian is drawn from the pose at which the
line under its mean is read. Every fast backend is tested against this file. Memory grows with N * H * W.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neural_sim.distortion import Distortion
from neural_sim.gaussians import Gaussians
from neural_sim.rendering.harmonics import sh_color
from neural_sim.rendering.lenses import depths, image_points, is_perspective, seen, view_limits
from neural_sim.rendering.motion import SHUTTER_ITERATIONS, frame_poses, is_read_by_rows
from neural_sim.rendering.view_batch import ViewBatch
from neural_sim.rendering.views import (
    ALPHA_MAX,
    ALPHA_MIN,
    BLUR_PX2,
    COVARIANCE_MAX_PX2,
    NEAR_M,
    OPACITY_FLOOR,
    QUATERNION_NORM_MIN,
    TRANSMITTANCE_MIN,
    RasterizedViews,
)


@dataclass(frozen=True)
class _View:
    """One view: frame poses [S, 1 + A, 4, 4], owners [N], intrinsics, lens, image size and options."""

    poses: Float[Tensor, "s a 4 4"]
    owner: Int[Tensor, "n"]
    K: Float[Tensor, "3 3"]
    lens: Distortion | None
    width_px: int
    height_px: int
    offset_px: Float[Tensor, "n 2"]
    direction: str
    antialias: bool

    def select(self, rows: Tensor) -> "_View":
        """The view of some of the Gaussians."""
        fields = {**vars(self), "owner": self.owner[rows], "offset_px": self.offset_px[rows]}
        return _View(**fields)


@dataclass(frozen=True)
class _Splats:
    """N projected Gaussians: centres [N, 2] px, covariances [N, 2, 2] px^2, depth [N] m, opacity [N], colour [N, 3]."""

    means_px: Float[Tensor, "n 2"]
    covariances_px2: Float[Tensor, "n 2 2"]
    depths_m: Float[Tensor, "n"]
    opacities: Float[Tensor, "n"]
    colors: Float[Tensor, "n 3"]
    seen: Bool[Tensor, "n"]


def rasterize_reference(gaussians: Gaussians, batch: ViewBatch) -> RasterizedViews:
    """Draw V views; arguments and result as in `neural_sim.rendering.rasterize.rasterize`."""
    views = [_rasterize_view(gaussians, view) for view in _views(gaussians, batch)]
    rgb, depth_sum, opacity, visible = (torch.stack(parts) for parts in zip(*views, strict=True))
    return RasterizedViews(rgb, depth_sum / opacity.clamp_min(OPACITY_FLOOR), opacity, visible)


def _views(gaussians: Gaussians, batch: ViewBatch) -> list[_View]:
    count, means = len(gaussians), gaussians.means_m
    poses = frame_poses(batch).to(means)
    owner = batch.actors.owner.long() if batch.actors else torch.zeros(count, dtype=torch.long)
    offset = means.new_zeros(len(batch), count, 2) if batch.means_px_offset is None else batch.means_px_offset
    direction = batch.shutter.direction if batch.shutter else ""
    size = (batch.width_px, batch.height_px)
    return [
        _View(
            poses[v],
            owner.to(means.device),
            batch.K[v].to(means),
            batch.lens,
            *size,
            offset[v],
            direction,
            batch.antialias,
        )
        for v in range(len(batch))
    ]


def _rasterize_view(gaussians: Gaussians, view: _View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One view: colour [H, W, 3], sum of weight times depth [H, W], opacity [H, W], visible [N]."""
    with torch.no_grad():
        splats = _project(gaussians, view)
        visible = _is_visible(gaussians, splats, view)
        kept = torch.nonzero(visible)[:, 0]
        kept = kept[torch.argsort(splats.depths_m[kept], stable=True)]
    subset = Gaussians(**{name: tensor[kept] for name, tensor in gaussians.tensors().items()})
    splats = _project(subset, view.select(kept))
    weights = _weights(splats, _pixel_centers(view.width_px, view.height_px, splats.means_px))
    shape = (view.height_px, view.width_px)
    rgb = (weights.T @ splats.colors).reshape(*shape, 3)
    depth_sum = (weights.T @ splats.depths_m).reshape(shape)
    return rgb, depth_sum, weights.sum(0).reshape(shape), visible


def _rotation_matrices(quaternions_xyzw: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    x, y, z, w = (quaternions_xyzw / quaternions_xyzw.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _jacobians(points_m: Float[Tensor, "n 3"], view: _View) -> Float[Tensor, "n 2 3"]:
    """Jacobian of the projection; that of a perspective lens is taken no farther out than its limits."""
    if is_perspective(view.lens):
        left, right, top, bottom = view_limits(view.K.cpu().numpy(), view.width_px, view.height_px, view.lens)
        x, y, z = points_m.unbind(-1)
        points_m = torch.stack([(x / z).clamp(left, right) * z, (y / z).clamp(top, bottom) * z, z], dim=-1)
    if not len(points_m):
        return points_m.new_zeros(0, 2, 3)
    return torch.func.vmap(torch.func.jacrev(lambda point: image_points(point, view.K, view.lens)))(points_m)


def _poses_at(times: Float[Tensor, "n"], view: _View) -> Float[Tensor, "n 4 4"]:
    """Pose of each Gaussian's frame at its own time, 0..1: linear between the knots."""
    steps = len(view.poses) - 1
    if steps == 0:
        return view.poses[0, view.owner]
    before = (times.detach() * steps).floor().long().clamp(0, steps - 1)
    share = (times * steps - before)[:, None, None]
    return (1 - share) * view.poses[before, view.owner] + share * view.poses[before + 1, view.owner]


def _points(means_m: Float[Tensor, "n 3"], poses: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n 3"]:
    return torch.einsum("nij,nj->ni", poses[:, :3, :3], means_m) + poses[:, :3, 3]


def _exposure_times(means_m: Float[Tensor, "n 3"], view: _View) -> Float[Tensor, "n"]:
    """When the line under each mean is read: 0 the first line, 1 the last. Differentiable.

    The time solves t = line(t), so its derivative is that of the line at fixed t over 1 - dline / dt.
    """
    axis, size = (1, view.height_px) if is_read_by_rows(view.direction) else (0, view.width_px)
    rate = 1 / max(size - 1, 1) if view.direction in ("top-to-bottom", "left-to-right") else -1 / max(size - 1, 1)
    first = 0.5 if rate > 0 else size - 0.5

    def line(times: Tensor) -> Tensor:
        return (image_points(_points(means_m, _poses_at(times, view)), view.K, view.lens)[:, axis] - first) * rate

    with torch.no_grad():
        times = free = torch.full_like(means_m[:, 0], 0.5)
        for _ in range(SHUTTER_ITERATIONS):
            free = line(times)
            times = free.clamp(0.0, 1.0)
        inside = (free > 0) & (free < 1)
    moving = times.clone().requires_grad_()
    with torch.enable_grad():
        slope = torch.autograd.grad(line(moving).sum(), moving)[0]
    change = line(times)
    return times + torch.where(inside, (change - change.detach()) / (1 - slope), 0.0)


def _project(gaussians: Gaussians, view: _View) -> _Splats:
    means = gaussians.means_m
    times = _exposure_times(means, view) if view.direction else torch.zeros_like(means[:, 0])
    poses = _poses_at(times, view)
    rotation, points = poses[:, :3, :3], _points(means, poses)
    axes = rotation @ _rotation_matrices(gaussians.quaternions_xyzw) * torch.exp(gaussians.log_scales)[:, None, :]
    footprint = _jacobians(points, view) @ axes
    sharp = footprint @ footprint.transpose(-1, -2)
    covariances = sharp + BLUR_PX2 * torch.eye(2).to(sharp)
    opacities = torch.sigmoid(gaussians.opacity_logits)
    if view.antialias:
        opacities = opacities * torch.sqrt(torch.det(sharp) / torch.det(covariances))
    means_px = image_points(points, view.K, view.lens) + view.offset_px
    # The camera centre in the frame of the Gaussian, so that the harmonics of an actor turn with it.
    rays = means + torch.einsum("nji,nj->ni", rotation, poses[:, :3, 3])
    colors = sh_color(gaussians.sh, torch.nn.functional.normalize(rays, dim=-1))
    inside = seen(points, view.lens)
    return _Splats(means_px, covariances, depths(points, view.lens), opacities, colors, inside)


def _is_visible(gaussians: Gaussians, splats: _Splats, view: _View) -> Bool[Tensor, "n"]:
    """Sound Gaussians that the lens sees and whose alpha reaches 1/255 inside the image's bounds."""
    variance = torch.diagonal(splats.covariances_px2, dim1=-2, dim2=-1)
    parts = [splats.means_px, variance, splats.depths_m[:, None], splats.opacities[:, None], splats.colors]
    sound = torch.cat(parts, dim=-1).isfinite().all(-1) & (variance < COVARIANCE_MAX_PX2).all(-1)
    sound &= gaussians.quaternions_xyzw.norm(dim=-1) > QUATERNION_NORM_MIN
    sound &= splats.seen & (splats.depths_m >= NEAR_M) & (splats.opacities >= ALPHA_MIN)
    reach = torch.sqrt(2 * torch.log(splats.opacities / ALPHA_MIN).clamp_min(0.0))[:, None] * variance.sqrt()
    upper = torch.tensor([view.width_px, view.height_px]).to(reach) - 0.5
    inside = (splats.means_px + reach >= 0.5) & (splats.means_px - reach <= upper)
    return sound & inside.all(-1)


def _pixel_centers(width_px: int, height_px: int, like: Tensor) -> Float[Tensor, "p 2"]:
    y, x = torch.meshgrid(torch.arange(height_px), torch.arange(width_px), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).to(like) + 0.5


def _weights(splats: _Splats, pixels: Float[Tensor, "p 2"]) -> Float[Tensor, "n p"]:
    """Share of each splat in each pixel; splats are in order of depth."""
    delta = pixels[None] - splats.means_px[:, None]
    conic = torch.linalg.inv(splats.covariances_px2)
    sigma = 0.5 * torch.einsum("npi,nij,npj->np", delta, conic, delta)
    alpha = (splats.opacities[:, None] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    # `after` never rises, so the splats that pass this test form the front part of the list.
    return torch.where(after > TRANSMITTANCE_MIN, alpha * before, 0.0)
