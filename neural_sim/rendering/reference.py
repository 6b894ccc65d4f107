"""The slow, obvious rasterizer: dense torch, differentiable by autograd in everything, any float dtype.

EWA splatting (Zwicker et al. 2001; Kerbl et al. 2023): a Gaussian with camera-frame mean m and covariance S projects
to a 2D Gaussian with covariance J S J^T + blur, J the Jacobian of the pinhole projection at m. Splats are composited
front to back in order of depth: alpha = min(0.999, opacity exp(-sigma)), splats with alpha < 1/255 are skipped, and a
pixel ends before the splat that would bring its transmittance to 1e-4 or less. Every fast backend is tested against
this file. Memory grows with N * H * W.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neural_sim.gaussians import Gaussians
from neural_sim.rendering.harmonics import sh_color
from neural_sim.rendering.views import (
    ALPHA_MAX,
    ALPHA_MIN,
    BLUR_PX2,
    COVARIANCE_MAX_PX2,
    JACOBIAN_MARGIN,
    NEAR_M,
    OPACITY_FLOOR,
    QUATERNION_NORM_MIN,
    TRANSMITTANCE_MIN,
    RasterizedViews,
)


@dataclass(frozen=True)
class _Splats:
    """N projected Gaussians: centres [N, 2] px, covariances [N, 2, 2] px^2, depth [N] m, opacity [N], colour [N, 3]."""

    means_px: Float[Tensor, "n 2"]
    covariances_px2: Float[Tensor, "n 2 2"]
    depths_m: Float[Tensor, "n"]
    opacities: Float[Tensor, "n"]
    colors: Float[Tensor, "n 3"]


def rasterize_reference(
    gaussians: Gaussians,
    T_camera_world: Float[Tensor, "v 4 4"],
    K: Float[Tensor, "v 3 3"],
    width_px: int,
    height_px: int,
    means_px_offset: Float[Tensor, "v n 2"] | None = None,
) -> RasterizedViews:
    """Draw V views; arguments and result as in `neural_sim.rendering.rasterize.rasterize`."""
    if means_px_offset is None:
        means_px_offset = gaussians.means_m.new_zeros(len(K), len(gaussians), 2)
    views = [
        _rasterize_view(gaussians, T_camera_world[v], K[v], width_px, height_px, means_px_offset[v])
        for v in range(len(K))
    ]
    rgb, depth_sum, opacity, visible = (torch.stack(parts) for parts in zip(*views, strict=True))
    return RasterizedViews(rgb, depth_sum / opacity.clamp_min(OPACITY_FLOOR), opacity, visible)


def _rasterize_view(
    gaussians: Gaussians,
    T_camera_world: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    width_px: int,
    height_px: int,
    offset_px: Float[Tensor, "n 2"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One view: colour [H, W, 3], sum of weight times depth [H, W], opacity [H, W], visible [N]."""
    with torch.no_grad():
        splats = _project(gaussians, T_camera_world, K, width_px, height_px, offset_px)
        visible = _is_visible(gaussians, splats, width_px, height_px)
        kept = torch.nonzero(visible)[:, 0]
        kept = kept[torch.argsort(splats.depths_m[kept], stable=True)]
    subset = Gaussians(**{name: tensor[kept] for name, tensor in gaussians.tensors().items()})
    splats = _project(subset, T_camera_world, K, width_px, height_px, offset_px[kept])
    weights = _weights(splats, _pixel_centers(width_px, height_px, splats.means_px))
    rgb = (weights.T @ splats.colors).reshape(height_px, width_px, 3)
    depth_sum = (weights.T @ splats.depths_m).reshape(height_px, width_px)
    return rgb, depth_sum, weights.sum(0).reshape(height_px, width_px), visible


def _rotation_matrices(quaternions_xyzw: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    x, y, z, w = (quaternions_xyzw / quaternions_xyzw.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _jacobians(
    means_camera_m: Float[Tensor, "n 3"], K: Float[Tensor, "3 3"], width_px: int, height_px: int
) -> Float[Tensor, "n 2 3"]:
    """Jacobian of the pinhole projection, taken not farther off the image than `JACOBIAN_MARGIN` allows."""
    x, y, z = means_camera_m.unbind(-1)
    margin_x, margin_y = JACOBIAN_MARGIN * 0.5 * width_px / K[0, 0], JACOBIAN_MARGIN * 0.5 * height_px / K[1, 1]
    x_over_z = (x / z).clamp(-K[0, 2] / K[0, 0] - margin_x, (width_px - K[0, 2]) / K[0, 0] + margin_x)
    y_over_z = (y / z).clamp(-K[1, 2] / K[1, 1] - margin_y, (height_px - K[1, 2]) / K[1, 1] + margin_y)
    zero = torch.zeros_like(z)
    row_u = torch.stack([K[0, 0] / z, zero, -K[0, 0] * x_over_z / z], dim=-1)
    row_v = torch.stack([zero, K[1, 1] / z, -K[1, 1] * y_over_z / z], dim=-1)
    return torch.stack([row_u, row_v], dim=-2)


def _project(
    gaussians: Gaussians,
    T_camera_world: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    width_px: int,
    height_px: int,
    offset_px: Float[Tensor, "n 2"],
) -> _Splats:
    rotation, translation = T_camera_world[:3, :3], T_camera_world[:3, 3]
    means_camera = gaussians.means_m @ rotation.T + translation
    axes = rotation @ _rotation_matrices(gaussians.quaternions_xyzw) * torch.exp(gaussians.log_scales)[:, None, :]
    footprint = _jacobians(means_camera, K, width_px, height_px) @ axes
    covariances = footprint @ footprint.transpose(-1, -2) + BLUR_PX2 * torch.eye(2).to(footprint)
    means_px = means_camera[:, :2] / means_camera[:, 2:] * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2] + offset_px
    camera_center = -rotation.T @ translation
    directions = torch.nn.functional.normalize(gaussians.means_m - camera_center, dim=-1)
    colors = sh_color(gaussians.sh, directions)
    return _Splats(means_px, covariances, means_camera[:, 2], torch.sigmoid(gaussians.opacity_logits), colors)


def _is_visible(gaussians: Gaussians, splats: _Splats, width_px: int, height_px: int) -> Bool[Tensor, "n"]:
    """Sound Gaussians in front of the near plane whose alpha reaches 1/255 inside the image's bounds."""
    variance = torch.diagonal(splats.covariances_px2, dim1=-2, dim2=-1)
    parts = [splats.means_px, variance, splats.depths_m[:, None], splats.opacities[:, None], splats.colors]
    sound = torch.cat(parts, dim=-1).isfinite().all(-1) & (variance < COVARIANCE_MAX_PX2).all(-1)
    sound &= gaussians.quaternions_xyzw.norm(dim=-1) > QUATERNION_NORM_MIN
    sound &= (splats.depths_m >= NEAR_M) & (splats.opacities >= ALPHA_MIN)
    reach = torch.sqrt(2 * torch.log(splats.opacities / ALPHA_MIN).clamp_min(0.0))[:, None] * variance.sqrt()
    upper = torch.tensor([width_px, height_px]).to(reach) - 0.5
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
