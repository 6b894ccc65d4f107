"""The paths that logged vehicles took, by distance, and where the log was on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from neural_sim.frames import wrap_angle
from neural_sim.road_users import Track

PATH_STEP_M = 1.0
# Logged points nearer than this to the last kept one are jitter, not path.
KEEP_EVERY_M = 0.3
SPEED_WINDOW_S = 0.4


@dataclass(frozen=True)
class LoggedPaths:
    """Paths of R vehicles, sampled every `PATH_STEP_M` and extended straight on by padding.

    Attributes:
        x_m, y_m, yaw_rad, z_m: float64 [R, P], world frame; yaw not wrapped.
        length_m: float64 [R].
        start_us: int64 [R], when each vehicle enters.
        logged_m: float64 [T, R], distance along the path in the log, m.
        logged_mps: float64 [T, R], speed along the path in the log, m/s.
        fastest_mps: float64 [R], fastest logged speed, m/s.
    """

    x_m: Float[np.ndarray, "r p"]
    y_m: Float[np.ndarray, "r p"]
    yaw_rad: Float[np.ndarray, "r p"]
    z_m: Float[np.ndarray, "r p"]
    length_m: Float[np.ndarray, "r"]
    start_us: Int[np.ndarray, "r"]
    logged_m: Float[np.ndarray, "t r"]
    logged_mps: Float[np.ndarray, "t r"]
    fastest_mps: Float[np.ndarray, "r"]

    def at(self, along_m: Float[np.ndarray, "b r"]) -> tuple[Float[np.ndarray, "b r 3"], Float[np.ndarray, "b r"]]:
        """(x, y, yaw) and height of the box centre `along_m` from the start of each path, world frame, m and rad."""
        rows = np.arange(len(self.length_m))
        index = np.clip((along_m / PATH_STEP_M).astype(int), 0, self.x_m.shape[1] - 2)
        fraction = along_m / PATH_STEP_M - index
        columns = []
        for values in (self.x_m, self.y_m, self.yaw_rad, self.z_m):
            low = values[rows, index]
            columns.append(low + fraction * (values[rows, index + 1] - low))
        return np.stack(columns[:3], axis=-1), columns[3]

    def project_ahead(
        self, row: Int[np.ndarray, "p"], along_m: Float[np.ndarray, "p"], other: Float[np.ndarray, "p 3"], view_m: float
    ) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
        """Where `other` (x, y, yaw) lies on path `row` within `view_m` ahead of `along_m`.

        Returns the distance ahead (m, negative behind), the offset to the left (m) and the yaw relative to the path.
        """
        first = np.clip((along_m / PATH_STEP_M).astype(int), 0, self.x_m.shape[1] - 1)
        index = first[:, None] + np.arange(int(view_m / PATH_STEP_M) + 1)
        index = np.minimum(index, self.x_m.shape[1] - 1)
        off_x = other[:, 0, None] - self.x_m[row[:, None], index]
        off_y = other[:, 1, None] - self.y_m[row[:, None], index]
        nearest = (off_x * off_x + off_y * off_y).argmin(axis=1)
        pairs = np.arange(len(row))
        place = index[pairs, nearest]
        yaw_rad = self.yaw_rad[row, place]
        cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
        off_x, off_y = off_x[pairs, nearest], off_y[pairs, nearest]
        ahead_m = place * PATH_STEP_M + cosine * off_x + sine * off_y - along_m
        return ahead_m, cosine * off_y - sine * off_x, wrap_angle(other[:, 2] - yaw_rad)


def logged_paths(tracks: Sequence[Track], t_us: Int[np.ndarray, "t"]) -> LoggedPaths:
    """Paths of `tracks` and their logged motion at `t_us` (us); nobody drives backwards on them."""
    driven = [_path_knots(track) for track in tracks]
    lengths = np.array([arc_m[-1] for arc_m, _ in driven])
    points = int(lengths.max(initial=0.0) / PATH_STEP_M) + 2 + int(10.0 / PATH_STEP_M)
    sampled = np.zeros((4, len(tracks), points))
    logged_m = np.zeros((len(t_us), len(tracks)))
    for r, (track, (arc_m, knots)) in enumerate(zip(tracks, driven, strict=True)):
        sampled[:, r] = _sampled(arc_m[knots], track, knots, points)
        logged_m[:, r] = np.interp(t_us, track.trajectory.t_us, arc_m)
    logged_mps = _speeds(logged_m, t_us, tracks)
    return LoggedPaths(
        *sampled,
        length_m=lengths,
        start_us=np.array([track.trajectory.start_us for track in tracks], np.int64),
        logged_m=logged_m,
        logged_mps=logged_mps,
        fastest_mps=np.maximum(logged_mps.max(axis=0, initial=0.0), 1.0),
    )


def _path_knots(track: Track) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "k"]]:
    """Distance along the path at each logged pose, m, and the poses that make the path."""
    xy = track.trajectory.planar[:, :2]
    arc_m, kept = np.zeros(len(xy)), [0]
    for i in range(1, len(xy)):
        step_m = float(np.hypot(*(xy[i] - xy[kept[-1]])))
        arc_m[i] = max(arc_m[kept[-1]] + step_m, arc_m[i - 1])
        if step_m >= KEEP_EVERY_M:
            kept.append(i)
    return arc_m, np.array(kept)


def _sampled(
    knots_m: Float[np.ndarray, "k"], track: Track, knots: Int[np.ndarray, "k"], points: int
) -> Float[np.ndarray, "4 p"]:
    """x, y, yaw and z every `PATH_STEP_M`; past the last pose straight on."""
    at_m = np.arange(points) * PATH_STEP_M
    planar = track.trajectory.planar[knots]
    z_m = track.trajectory.T_world_rig[knots, 2, 3]
    columns = (planar[:, 0], planar[:, 1], np.unwrap(planar[:, 2]), z_m)
    x_m, y_m, yaw_rad, z_m = (np.interp(at_m, knots_m, values) for values in columns)
    beyond_m = np.maximum(at_m - knots_m[-1], 0.0)
    return np.stack([x_m + beyond_m * np.cos(yaw_rad[-1]), y_m + beyond_m * np.sin(yaw_rad[-1]), yaw_rad, z_m])


def _speeds(
    logged_m: Float[np.ndarray, "t r"], t_us: Int[np.ndarray, "t"], tracks: Sequence[Track]
) -> Float[np.ndarray, "t r"]:
    """Speeds by differences over `SPEED_WINDOW_S`, cut at the ends of each track, m/s."""
    half_us = round(SPEED_WINDOW_S * 5e5)
    speeds = np.zeros_like(logged_m)
    for r, track in enumerate(tracks):
        span_us = np.array([track.trajectory.start_us, track.trajectory.end_us])
        first_us, last_us = np.clip(span_us, t_us[0], t_us[-1])
        before, after = (np.clip(t_us + shift, first_us, last_us) for shift in (-half_us, half_us))
        moved_m = np.interp(after, t_us, logged_m[:, r]) - np.interp(before, t_us, logged_m[:, r])
        speeds[:, r] = moved_m / np.maximum((after - before) * 1e-6, 1e-3)
    return speeds
