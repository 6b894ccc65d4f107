"""Lens models in torch, differentiable to any order, and where their linearisation holds.

The models are those of `neural_sim.distortion`; None is the pinhole. Pinhole and OpenCV lenses are perspective: depth
is along the optical axis. Fisheye and f-theta lenses go by the angle off the axis and may see behind the camera's
plane: their depth is the distance from the camera.
"""

import functools

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neural_sim.cameras import Camera
from neural_sim.distortion import Distortion, EquidistantFisheye, FTheta, RadialTangential
from neural_sim.rendering.views import JACOBIAN_MARGIN, NEAR_M

_BISECTIONS = 60
_BORDER_POINTS = 33


def is_perspective(lens: Distortion | None) -> bool:
    """Whether the lens maps the plane z = 1 rather than the angle off the axis."""
    return lens is None or isinstance(lens, RadialTangential)


def image_points(points_m: Float[Tensor, "*n 3"], K: Float[Tensor, "3 3"], lens: Distortion | None) -> Tensor:
    """Pixels [*n, 2] of camera-frame points; anything where the lens does not see them."""
    if isinstance(lens, EquidistantFisheye | FTheta):
        plane = _angular_plane(points_m, lens)
    else:
        plane = points_m[..., :2] / points_m[..., 2:]
        plane = plane if lens is None else _bent(plane, lens)
    if isinstance(lens, FTheta):
        return plane @ torch.from_numpy(lens.linear_map).to(plane).T + K[:2, 2]
    return plane * torch.diagonal(K)[:2] + K[:2, 2]


def seen(points_m: Float[Tensor, "n 3"], lens: Distortion | None) -> Bool[Tensor, "n"]:
    """Which camera-frame points lie beyond the near limit and inside what the lens covers; false for NaN."""
    if isinstance(lens, EquidistantFisheye | FTheta):
        radius = points_m[:, :2].norm(dim=-1)
        inside = torch.atan2(radius, points_m[:, 2]) <= lens.limit_rad
        return inside & (points_m.norm(dim=-1) >= NEAR_M)
    ahead = points_m[:, 2] >= NEAR_M
    if lens is None:
        return ahead
    return ahead & (points_m[:, :2].norm(dim=-1) <= lens.max_tangent * points_m[:, 2])


def depths(points_m: Float[Tensor, "n 3"], lens: Distortion | None) -> Float[Tensor, "n"]:
    """What splats are ordered by and the depth image averages, m."""
    return points_m[:, 2] if is_perspective(lens) else points_m.norm(dim=-1)


def _bent(plane: Float[Tensor, "*n 2"], lens: RadialTangential) -> Float[Tensor, "*n 2"]:
    k1, k2, k3, k4, k5, k6 = (*lens.radial, 0.0, 0.0, 0.0)[:6]
    p1, p2 = lens.tangential
    x, y = plane.unbind(-1)
    r2 = x * x + y * y
    factor = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    bent_x = x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = y * factor + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return torch.stack([bent_x, bent_y], dim=-1)


def _angular_plane(points_m: Float[Tensor, "*n 3"], lens: EquidistantFisheye | FTheta) -> Float[Tensor, "*n 2"]:
    # The added square keeps derivatives finite on the axis; it is far below what any coordinate resolves.
    across = torch.sqrt((points_m[..., :2] ** 2).sum(-1) + 1e-24)
    angle = torch.atan2(across, points_m[..., 2])
    return (_radius(angle, lens) / across)[..., None] * points_m[..., :2]


def _radius(angle: Float[Tensor, "*n"], lens: EquidistantFisheye | FTheta) -> Float[Tensor, "*n"]:
    if isinstance(lens, EquidistantFisheye):
        return _polynomial(lens.polynomial, angle)
    if lens.reference == "angle_to_radius":
        return _polynomial(lens.angle_to_radius_px, angle)
    coefficients = lens.radius_px_to_angle
    low, high = torch.zeros_like(angle), torch.full_like(angle, lens.limit_px)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        short = _polynomial(coefficients, middle) < angle
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    slope = tuple(power * value for power, value in enumerate(coefficients))[1:]
    radius = 0.5 * (low + high)
    # The root is found already. Each Newton step adds one right derivative; the Jacobian's gradient takes two.
    for _ in range(2):
        radius = radius - (_polynomial(coefficients, radius) - angle) / _polynomial(slope, radius)
    return radius


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


@functools.lru_cache(maxsize=256)
def jacobian_limits(
    focal_px: tuple[float, float],
    center_px: tuple[float, float],
    size_px: tuple[int, int],
    lens: RadialTangential | None,
) -> tuple[float, float, float, float]:
    """Bounds (least x/z, largest x/z, least y/z, largest y/z) at which a perspective lens is still linearised.

    A mean farther off the image borrows the Jacobian from the bound: the linearisation at its own place would smear a
    wide splat over the whole image. They lie `JACOBIAN_MARGIN` of half the field of view beyond the image.
    """
    (width, height), (fx, fy), (cx, cy) = size_px, focal_px, center_px
    along = np.linspace(0.0, 1.0, _BORDER_POINTS)
    sides = [np.stack([along * width, np.full_like(along, y)], axis=-1) for y in (0, height)]
    sides += [np.stack([np.full_like(along, x), along * height], axis=-1) for x in (0, width)]
    border = np.concatenate(sides)
    if lens is None:
        plane = (border - [cx, cy]) / [fx, fy]
    else:
        camera = Camera("border", width, height, fx, fy, cx, cy, np.eye(4), distortion=lens)
        rays, _ = camera.unproject(border)
        plane = rays[:, :2] / rays[:, 2:]
    low, high = plane.min(axis=0), plane.max(axis=0)
    margin = 0.5 * JACOBIAN_MARGIN * (high - low)
    (left, top), (right, bottom) = low - margin, high + margin
    return float(left), float(right), float(top), float(bottom)


def view_limits(
    K: np.ndarray, width_px: int, height_px: int, lens: Distortion | None
) -> tuple[float, float, float, float]:
    """`jacobian_limits` of a camera matrix; without bounds for lenses that go by the angle."""
    if isinstance(lens, EquidistantFisheye | FTheta):
        return -np.inf, np.inf, -np.inf, np.inf
    focal, center = (float(K[0, 0]), float(K[1, 1])), (float(K[0, 2]), float(K[1, 2]))
    return jacobian_limits(focal, center, (width_px, height_px), lens)


@functools.lru_cache(maxsize=16)
def pixel_rays(
    focal_px: tuple[float, float], center_px: tuple[float, float], size_px: tuple[int, int], lens: Distortion | None
) -> Float[np.ndarray, "h w 3"]:
    """Unit camera-frame directions float32 of the pixel centres; zero where the lens reaches no ray. Read-only."""
    (width, height), (fx, fy), (cx, cy) = size_px, focal_px, center_px
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    camera = Camera("rays", width, height, fx, fy, cx, cy, np.eye(4), distortion=lens)
    rays, reached = camera.unproject(np.stack([columns, rows], axis=-1))
    result = np.where(reached[..., None], rays, 0.0).astype(np.float32)
    result.flags.writeable = False
    return result


def view_rays(K: np.ndarray, width_px: int, height_px: int, lens: Distortion | None) -> Float[np.ndarray, "h w 3"]:
    """`pixel_rays` of a camera matrix."""
    focal, center = (float(K[0, 0]), float(K[1, 1])), (float(K[0, 2]), float(K[1, 2]))
    return pixel_rays(focal, center, (width_px, height_px), lens)
