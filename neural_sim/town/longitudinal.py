"""How fast the cars of the town drive: curve speeds, the intelligent driver model, limited jerk."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_sim.town.road import STEP_M, Road

STEP_S = 0.01
CURVE_ACCEL_MPS2 = 1.5
CURVE_BRAKE_MPS2 = 0.9
MIN_ACCEL_MPS2, MAX_ACCEL_MPS2 = -3.0, 1.3
MAX_JERK_MPS3 = 2.0
TIME_HEADWAY_S = 1.4
STANDSTILL_GAP_M = 3.0
COMFORT_BRAKE_MPS2 = 1.5
SPEED_GAIN_PER_S = 0.8


@dataclass(frozen=True)
class Leader:
    """The car ahead as a follower sees it, at every simulation step.

    Attributes:
        gap_origin_m: float64 [T], road coordinate of its rear bumper less the follower's front overhang, m, counted in
            driving direction.
        speed_mps: float64 [T].
    """

    gap_origin_m: Float[np.ndarray, "t"]
    speed_mps: Float[np.ndarray, "t"]


def curve_speeds(road: Road, d_m: float, limit_mps: float, direction: float) -> Float[np.ndarray, "n"]:
    """Highest comfortable speed at each `road.s_m` on the parallel at `d_m`, m/s.

    Lateral acceleration stays under 1.5 m/s^2, and a car that drives in `direction` (+1 or -1 along s) can slow down
    to it at 0.9 m/s^2.
    """
    curvature = np.abs(road.curvature_per_m / (1.0 - road.curvature_per_m * d_m))
    bound = np.minimum(limit_mps, np.sqrt(CURVE_ACCEL_MPS2 / np.maximum(curvature, 1e-6)))
    bound = bound if direction > 0 else bound[::-1]
    for i in range(len(bound) - 2, -1, -1):
        bound[i] = min(bound[i], np.sqrt(bound[i + 1] ** 2 + 2 * CURVE_BRAKE_MPS2 * STEP_M))
    return bound if direction > 0 else bound[::-1]


def drive(
    road: Road,
    d_m: float,
    direction: float,
    start_s_m: float,
    limit_mps: Float[np.ndarray, "t"],
    leader: Leader | None = None,
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """Simulate one car along the parallel at `d_m` in steps of 10 ms; returns road coordinate s (m) and speed (m/s).

    `limit_mps` is the speed the driver wants at each step where nothing is in the way. Acceleration is the smaller of
    speed keeping and the intelligent driver model (Treiber et al. 2000), with jerk at most 2 m/s^3.
    """
    bound = curve_speeds(road, d_m, float(limit_mps.max()), direction)
    s_m, speed, accel = start_s_m, min(float(np.interp(start_s_m, road.s_m, bound)), float(limit_mps[0])), 0.0
    positions, speeds = np.empty(len(limit_mps)), np.empty(len(limit_mps))
    for step, wanted_mps in enumerate(limit_mps):
        positions[step], speeds[step] = s_m, speed
        ahead_mps = float(np.interp(s_m + direction * 0.5 * speed, road.s_m, bound))
        wanted = SPEED_GAIN_PER_S * (min(wanted_mps, ahead_mps) - speed)
        if leader is not None:
            gap_m = float(leader.gap_origin_m[step]) - direction * s_m
            wanted = min(wanted, _following_accel(speed, gap_m, float(leader.speed_mps[step])))
        wanted = min(max(wanted, MIN_ACCEL_MPS2), MAX_ACCEL_MPS2)
        accel += float(np.clip(wanted - accel, -MAX_JERK_MPS3 * STEP_S, MAX_JERK_MPS3 * STEP_S))
        speed = max(0.0, speed + accel * STEP_S)
        stretch = 1.0 - float(road.curvature_at(s_m)) * d_m
        s_m += direction * speed * STEP_S / stretch
    return positions, speeds


def _following_accel(speed_mps: float, gap_m: float, leader_mps: float) -> float:
    """Interaction term of the intelligent driver model, m/s^2."""
    braking = speed_mps * (speed_mps - leader_mps) / (2 * np.sqrt(MAX_ACCEL_MPS2 * COMFORT_BRAKE_MPS2))
    wanted_gap_m = STANDSTILL_GAP_M + max(0.0, speed_mps * TIME_HEADWAY_S + braking)
    return MAX_ACCEL_MPS2 * (1.0 - (wanted_gap_m / max(gap_m, 0.1)) ** 2)
