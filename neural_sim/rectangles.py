"""When oriented rectangles touch, for many pairs at once (separating axes)."""

import numpy as np
from jaxtyping import Bool, Float


def overlap(
    first: Float[np.ndarray, "p 3"],
    first_half_m: Float[np.ndarray, "p 2"],
    second: Float[np.ndarray, "p 3"],
    second_half_m: Float[np.ndarray, "p 2"],
) -> Bool[np.ndarray, "p"]:
    """Whether rectangles at (x, y, yaw; m, rad) with half length and half width (m) touch. False for NaN poses."""
    apart = np.ones(len(first), bool)
    for offset_m, reach_m, _ in _along_axes(first, first_half_m, second, second_half_m, np.zeros((len(first), 2))):
        apart &= np.abs(offset_m) <= reach_m
    return apart


def contact_time_s(
    first: Float[np.ndarray, "p 3"],
    first_half_m: Float[np.ndarray, "p 2"],
    second: Float[np.ndarray, "p 3"],
    second_half_m: Float[np.ndarray, "p 2"],
    approach_mps: Float[np.ndarray, "p 2"],
) -> Float[np.ndarray, "p"]:
    """Time until rectangles touch when the second moves by `approach_mps` relative to the first and neither turns, s.

    0 while they touch, inf if they never do. Exact: on every axis the overlap lasts for one interval of time; the
    rectangles touch in the intersection of the four.
    """
    enter_s, leave_s = np.zeros(len(first)), np.full(len(first), np.inf)
    for offset_m, reach_m, rate_mps in _along_axes(first, first_half_m, second, second_half_m, approach_mps):
        moving = np.abs(rate_mps) > 1e-9
        rate = np.where(moving, rate_mps, 1.0)
        ends = np.stack([(-reach_m - offset_m) / rate, (reach_m - offset_m) / rate])
        always = np.where(np.abs(offset_m) <= reach_m, -np.inf, np.inf)
        enter_s = np.maximum(enter_s, np.where(moving, ends.min(axis=0), always))
        leave_s = np.minimum(leave_s, np.where(moving, ends.max(axis=0), -always))
    return np.where(enter_s <= leave_s, enter_s, np.inf)


def _along_axes(
    first: Float[np.ndarray, "p 3"],
    first_half_m: Float[np.ndarray, "p 2"],
    second: Float[np.ndarray, "p 3"],
    second_half_m: Float[np.ndarray, "p 2"],
    approach_mps: Float[np.ndarray, "p 2"],
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Offset of the centres (m), sum of half extents (m) and rate of the offset (m/s) along the four side normals."""
    delta = second[:, :2] - first[:, :2]
    extents = [(*_directions(first[:, 2]), first_half_m), (*_directions(second[:, 2]), second_half_m)]
    result = []
    for forward, left, _ in extents:
        for axis in (forward, left):
            reach_m = sum(
                half[:, 0] * np.abs(_dot(axis, ahead)) + half[:, 1] * np.abs(_dot(axis, side))
                for ahead, side, half in extents
            )
            result.append((_dot(axis, delta), np.asarray(reach_m), _dot(axis, approach_mps)))
    return result


def _directions(yaw_rad: Float[np.ndarray, "p"]) -> tuple[Float[np.ndarray, "p 2"], Float[np.ndarray, "p 2"]]:
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.stack([cosine, sine], axis=-1), np.stack([-sine, cosine], axis=-1)


def _dot(a: Float[np.ndarray, "p 2"], b: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p"]:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1]
