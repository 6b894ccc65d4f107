"""Plans fixed in the world, read by absolute time or by distance along the path.

Every operation works row by row, so a rollout's result does not depend on the batch around it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class WorldPlan:
    """A plan for each of B rollouts, anchored in the world. Entry 0 is where the rollout was when it planned.

    Attributes:
        start_us: int64 [B], time of entry 0, us; rollouts that keep an older plan have an earlier start.
        step_us: time between entries, us.
        x_m, y_m: float64 [B, P], world frame, m.
        yaw_rad: float64 [B, P], not wrapped, rad.
        travelled_m: float64 [B, P], distance along the path from entry 0, m, never decreasing: as the vehicle does not
            reverse, steps against the heading count as standing still.
        slid_m: float64 [B, P], how far the path has moved sideways to its own heading since entry 0, m, left positive;
            near zero for a plan whose headings fit its positions.
    """

    start_us: Int[np.ndarray, "b"]
    step_us: int
    x_m: Float[np.ndarray, "b p"]
    y_m: Float[np.ndarray, "b p"]
    yaw_rad: Float[np.ndarray, "b p"]
    travelled_m: Float[np.ndarray, "b p"]
    slid_m: Float[np.ndarray, "b p"]


@dataclass(frozen=True)
class PathPoint:
    """The point of each plan's path that is nearest to its vehicle.

    Attributes:
        x_m, y_m, yaw_rad: float64 [B], world frame, m and rad.
        travelled_m: float64 [B], distance along the path from the start of the plan, m.
    """

    x_m: Float[np.ndarray, "b"]
    y_m: Float[np.ndarray, "b"]
    yaw_rad: Float[np.ndarray, "b"]
    travelled_m: Float[np.ndarray, "b"]


def world_plan(
    start_us: Int[np.ndarray, "b"],
    step_us: int,
    x_m: Float[np.ndarray, "b p"],
    y_m: Float[np.ndarray, "b p"],
    yaw_rad: Float[np.ndarray, "b p"],
) -> WorldPlan:
    """Build plans from poses in the world frame (m, rad); yaw is unwrapped along each plan."""
    yaw_rad = np.unwrap(np.ascontiguousarray(yaw_rad), axis=-1)
    middle = 0.5 * (yaw_rad[:, 1:] + yaw_rad[:, :-1])
    cosine, sine = np.cos(middle), np.sin(middle)
    step_x, step_y = np.diff(x_m, axis=-1), np.diff(y_m, axis=-1)
    travelled_m, slid_m = np.zeros_like(yaw_rad), np.zeros_like(yaw_rad)
    np.cumsum(np.maximum(cosine * step_x + sine * step_y, 0.0), axis=-1, out=travelled_m[:, 1:])
    np.cumsum(cosine * step_y - sine * step_x, axis=-1, out=slid_m[:, 1:])
    return WorldPlan(np.asarray(start_us), step_us, x_m, y_m, yaw_rad, travelled_m, slid_m)


def replace_rows(plan: WorldPlan, fallback: WorldPlan, keep: Bool[np.ndarray, "b"]) -> WorldPlan:
    """`plan` where `keep`, else `fallback`, row by row; both have the same number of entries and step."""
    row = keep[:, None]
    return WorldPlan(
        np.where(keep, plan.start_us, fallback.start_us),
        plan.step_us,
        np.where(row, plan.x_m, fallback.x_m),
        np.where(row, plan.y_m, fallback.y_m),
        np.where(row, plan.yaw_rad, fallback.yaw_rad),
        np.where(row, plan.travelled_m, fallback.travelled_m),
        np.where(row, plan.slid_m, fallback.slid_m),
    )


def poses_at(plan: WorldPlan, query_us: Int[np.ndarray, "m"]) -> Float[np.ndarray, "b m 3"]:
    """(x, y, yaw) of each plan at absolute times, world frame, m and rad (not wrapped); the ends hold outside."""
    index, fraction = _time_index(plan, query_us)
    columns = [_interpolate(values, index, fraction) for values in (plan.x_m, plan.y_m, plan.yaw_rad)]
    return np.stack(columns, axis=-1)


def travelled_at(plan: WorldPlan, query_us: Int[np.ndarray, "m"]) -> Float[np.ndarray, "b m"]:
    """Distance along each plan's path at absolute times, m; the ends hold outside, so past its end a plan stops."""
    index, fraction = _time_index(plan, query_us)
    return _interpolate(plan.travelled_m, index, fraction)


def speed_at(plan: WorldPlan, query_us: Int[np.ndarray, "m"], half_window_us: int) -> Float[np.ndarray, "b m"]:
    """Planned speed at absolute times, m/s, averaged over `half_window_us` to each side; 0 past the plan's end.

    Before the start of the plan nothing is known, so the window is cut there.
    """
    query_us = np.asarray(query_us)
    after_us = query_us + half_window_us
    before_us = np.maximum(query_us[None] - half_window_us, plan.start_us[:, None])
    window_s = np.maximum((after_us[None] - before_us) * 1e-6, 1e-3)
    return (travelled_at(plan, after_us) - travelled_at(plan, query_us - half_window_us)) / window_s


def shape_along(
    plan: WorldPlan, travelled_m: Float[np.ndarray, "b m"]
) -> tuple[Float[np.ndarray, "b m"], Float[np.ndarray, "b m"]]:
    """Heading (rad, not wrapped) and `slid_m` (m) where each plan's path is `travelled_m` from its start.

    The ends hold outside.
    """
    index, fraction = _distance_index(plan, travelled_m)
    return _interpolate(plan.yaw_rad, index, fraction), _interpolate(plan.slid_m, index, fraction)


def point_along(
    plan: WorldPlan, travelled_m: Float[np.ndarray, "b"]
) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]]:
    """(x, y) where each plan's path is `travelled_m` from its start, world frame, m; past its end straight on."""
    index, fraction = _distance_index(plan, travelled_m[:, None])
    beyond_m = np.maximum(travelled_m - plan.travelled_m[:, -1], 0.0)
    last_yaw = np.ascontiguousarray(plan.yaw_rad[:, -1])
    x_m = _interpolate(plan.x_m, index, fraction)[:, 0] + beyond_m * np.cos(last_yaw)
    return x_m, _interpolate(plan.y_m, index, fraction)[:, 0] + beyond_m * np.sin(last_yaw)


def nearest_point(plan: WorldPlan, x_m: Float[np.ndarray, "b"], y_m: Float[np.ndarray, "b"]) -> PathPoint:
    """The point of each plan's polyline nearest to (x, y), world frame, m."""
    step_x, step_y = np.diff(plan.x_m, axis=-1), np.diff(plan.y_m, axis=-1)
    to_x, to_y = x_m[:, None] - plan.x_m[:, :-1], y_m[:, None] - plan.y_m[:, :-1]
    squared_m2 = step_x * step_x + step_y * step_y
    along = np.clip((to_x * step_x + to_y * step_y) / np.maximum(squared_m2, 1e-12), 0.0, 1.0)
    off_x, off_y = to_x - along * step_x, to_y - along * step_y
    index = np.argmin(off_x * off_x + off_y * off_y, axis=-1)[:, None]
    fraction = np.take_along_axis(along, index, axis=1)
    columns = (plan.x_m, plan.y_m, plan.yaw_rad, plan.travelled_m)
    return PathPoint(*(_interpolate(values, index, fraction)[:, 0] for values in columns))


def row_sum(values: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b"]:
    """Sum of each row, always added left to right; `np.sum` may group the terms otherwise in another batch size."""
    return np.cumsum(values, axis=-1)[:, -1]


def _time_index(
    plan: WorldPlan, query_us: Int[np.ndarray, "m"]
) -> tuple[Int[np.ndarray, "b m"], Float[np.ndarray, "b m"]]:
    """Entry before each time and the fraction of the way to the next, clamped to the plan."""
    steps = (np.asarray(query_us)[None] - plan.start_us[:, None]) / plan.step_us
    steps = np.clip(steps, 0.0, plan.x_m.shape[1] - 1)
    index = np.minimum(steps.astype(np.int64), plan.x_m.shape[1] - 2)
    return index, steps - index


def _distance_index(
    plan: WorldPlan, travelled_m: Float[np.ndarray, "b m"]
) -> tuple[Int[np.ndarray, "b m"], Float[np.ndarray, "b m"]]:
    """Entry before each distance from the start and the fraction of the way to the next, clamped to the plan."""
    passed = (plan.travelled_m[:, None, :] <= travelled_m[:, :, None]).sum(axis=-1)
    index = np.clip(passed - 1, 0, plan.travelled_m.shape[1] - 2)
    low = np.take_along_axis(plan.travelled_m, index, axis=1)
    span = np.take_along_axis(plan.travelled_m, index + 1, axis=1) - low
    return index, np.clip((travelled_m - low) / np.maximum(span, 1e-9), 0.0, 1.0)


def _interpolate(
    values: Float[np.ndarray, "b p"], index: Int[np.ndarray, "b m"], fraction: Float[np.ndarray, "b m"]
) -> Float[np.ndarray, "b m"]:
    low = np.take_along_axis(values, index, axis=1)
    return low + fraction * (np.take_along_axis(values, index + 1, axis=1) - low)
