"""Nearest places on a polyline."""

import numpy as np
from jaxtyping import Float, Int


def project_on_path(
    points_m: Float[np.ndarray, "t 2"],
    path_m: Float[np.ndarray, "m 2"],
    num_segments: Int[np.ndarray, "t"] | None = None,
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """Distance (m) of each point to a polyline and arc length (m) of the closest place on it.

    Point t sees only the first `num_segments[t]` segments (at least one). Of equally close places the first counts.
    """
    if len(path_m) == 1:
        return np.linalg.norm(points_m - path_m[0], axis=1), np.zeros(len(points_m))
    start, along = path_m[:-1], np.diff(path_m, axis=0)
    length_m = np.hypot(along[:, 0], along[:, 1])
    offset_x, offset_y = points_m[:, :1] - start[:, 0], points_m[:, 1:] - start[:, 1]
    share = (offset_x * along[:, 0] + offset_y * along[:, 1]) / np.maximum(length_m**2, 1e-12)
    np.clip(share, 0.0, 1.0, out=share)
    squared_m2 = (offset_x - share * along[:, 0]) ** 2 + (offset_y - share * along[:, 1]) ** 2
    if num_segments is not None:
        squared_m2[np.arange(len(along)) >= np.maximum(num_segments, 1)[:, None]] = np.inf
    closest = squared_m2.argmin(axis=1)
    rows = np.arange(len(points_m))
    arc_m = np.concatenate([[0.0], np.cumsum(length_m)])[closest] + share[rows, closest] * length_m[closest]
    return np.sqrt(squared_m2[rows, closest]), arc_m
