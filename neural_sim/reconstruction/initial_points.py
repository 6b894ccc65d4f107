"""Coloured points that the first Gaussians are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError

from neural_sim.reconstruction.views import View

# Which image positions (px) of a view show something that stands still.
PixelTest = Callable[[View, Float[np.ndarray, "n 2"]], Bool[np.ndarray, "n"]]

# A far point is only placed where the image varies this much between neighbouring pixels: sky and clouds vary less.
_FAR_TEXTURE = 0.04
_TEXTURE_REACH_PX = 2
_LIDAR_VOXEL_M = 0.15


@dataclass(frozen=True)
class ColoredPoints:
    """Points with colours.

    Attributes:
        points_m: float64 [P, 3], m.
        colors: float64 [P, 3], RGB 0..1.
    """

    points_m: Float[np.ndarray, "p 3"]
    colors: Float[np.ndarray, "p 3"]

    def __len__(self) -> int:
        return len(self.points_m)

    def keep(self, wanted: Bool[np.ndarray, "p"]) -> "ColoredPoints":
        """The points for which `wanted` holds."""
        return ColoredPoints(self.points_m[wanted], self.colors[wanted])

    @staticmethod
    def concatenate(parts: "Sequence[ColoredPoints]") -> "ColoredPoints":
        """Join point sets of one frame."""
        return ColoredPoints(
            np.concatenate([part.points_m for part in parts] or [np.zeros((0, 3))]),
            np.concatenate([part.colors for part in parts] or [np.zeros((0, 3))]),
        )


def color_from_views(
    points_m: Float[np.ndarray, "p 3"],
    views: Sequence[View],
    T_world_points: Sequence[Float[np.ndarray, "4 4"] | None] | None = None,
) -> ColoredPoints:
    """Colour points by the pixels they project to; points that no view shows are dropped.

    Views are weighted by 1 / depth^2, because near views are sharper and less often occluded. `T_world_points` gives
    the pose of the points' frame at each view (None: not there), for points on moving bodies.
    """
    total, weights = np.zeros((len(points_m), 3)), np.zeros(len(points_m))
    for index, view in enumerate(views):
        pose = np.eye(4) if T_world_points is None else T_world_points[index]
        if pose is None:
            continue
        pixels, depth, inside = view.project(points_m @ pose[:3, :3].T + pose[:3, 3])
        weight = 1.0 / depth[inside] ** 2
        total[inside] += weight[:, None] * view.colors_at(pixels[inside])
        weights[inside] += weight
    seen = weights > 0
    return ColoredPoints(points_m[seen], total[seen] / weights[seen, None])


def interpolated_points(
    known_m: Float[np.ndarray, "p 3"],
    seen: Sequence[np.ndarray],
    views: Sequence[View],
    count_per_view: int,
    rng: np.random.Generator,
    is_static: PixelTest,
) -> ColoredPoints:
    """Random static pixels of each view, placed at the depth interpolated between the known points seen there.

    `seen[i]` holds the indices of the known points that view i observed. Inverse depth is linear over the triangles
    between them, as it is on planes through a pinhole, and nearly through other lenses. Pixels outside all triangles
    and those that are not usable give no point.
    """
    parts = []
    for view, indices in zip(views, seen, strict=True):
        pixels, depth, inside = view.project(known_m[indices])
        if inside.sum() < 4:
            continue
        wanted = rng.uniform((0, 0), (view.camera.width_px, view.camera.height_px), (count_per_view, 2))
        try:
            inverse_depth = LinearNDInterpolator(pixels[inside], 1.0 / depth[inside])(wanted)
        except QhullError:  # all on one line
            continue
        found = np.isfinite(inverse_depth) & view.is_usable(wanted) & is_static(view, wanted)
        wanted, at_m = wanted[found], 1.0 / inverse_depth[found]
        points = view.ray_origins(wanted) + at_m[:, None] * view.ray_directions(wanted)
        parts.append(ColoredPoints(points, view.colors_at(wanted)))
    return ColoredPoints.concatenate(parts)


def far_points(
    near: ColoredPoints,
    views: Sequence[View],
    count: int,
    distance_m: tuple[float, float],
    rng: np.random.Generator,
    is_static: PixelTest,
) -> ColoredPoints:
    """Points at a far distance behind textured static pixels that no near point covers: distant houses and trees."""
    if count == 0:
        return ColoredPoints.concatenate([])
    per_view = int(np.ceil(count / len(views)))
    parts = []
    for view in views:
        free = _textured(view) & ~_covered(view, near.points_m)
        rows, columns = np.nonzero(free)
        if len(rows) == 0:
            continue
        chosen = rng.choice(len(rows), min(per_view, len(rows)), replace=False)
        pixels = np.column_stack([columns[chosen], rows[chosen]]) + 0.5
        rays = view.ray_directions(pixels)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        reach = np.exp(rng.uniform(np.log(distance_m[0]), np.log(distance_m[1]), len(rays)))
        above = (rays[:, 2] > -0.02) & is_static(view, pixels)
        points = view.ray_origins(pixels) + reach[:, None] * rays
        parts.append(ColoredPoints(points, view.colors_at(pixels)).keep(above))
    return ColoredPoints.concatenate(parts)


def thin_out(points_m: Float[np.ndarray, "p 3"], voxel_m: float = _LIDAR_VOXEL_M) -> Float[np.ndarray, "q 3"]:
    """Keep the first point of each voxel."""
    _, first = np.unique(np.floor(points_m / voxel_m).astype(np.int64), axis=0, return_index=True)
    return points_m[np.sort(first)]


def _textured(view: View) -> np.ndarray:
    gray = view.image.mean(axis=2) / 255.0
    steps = np.zeros_like(gray)
    steps[:, 1:] = np.abs(np.diff(gray, axis=1))
    steps[1:] = np.maximum(steps[1:], np.abs(np.diff(gray, axis=0)))
    textured = steps > _FAR_TEXTURE
    if view.usable is not None:
        # The step at the rim of what is not usable is none of the world.
        textured &= cv2.erode(view.usable.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return textured


def _covered(view: View, points_m: np.ndarray) -> np.ndarray:
    """Pixels [H, W] within a few pixels of a projected point."""
    height, width = view.image.shape[:2]
    covered = np.zeros((height, width), bool)
    pixels, _, inside = view.project(points_m)
    column, row = np.floor(pixels[inside]).astype(int).T
    for dy in range(-_TEXTURE_REACH_PX, _TEXTURE_REACH_PX + 1):
        for dx in range(-_TEXTURE_REACH_PX, _TEXTURE_REACH_PX + 1):
            y = np.clip(row + dy, 0, height - 1)
            covered[y, np.clip(column + dx, 0, width - 1)] = True
    return covered
