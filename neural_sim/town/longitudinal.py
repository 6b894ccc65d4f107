"""How fast the cars of the town drive: curve speeds, the intelligent driver model, limited jerk."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_sim.town.lateral import LateralPlan
from neural_sim.town.road import STEP_M, Road

STEP_S = 0.01
CURVE_ACCEL_MPS2 = 1.5
CURVE_BRAKE_MPS2 = 0.9
MIN_ACCEL_MPS2, MAX_ACCEL_MPS2 = -3.2, 1.3
MAX_JERK_MPS3, MAX_BRAKE_JERK_MPS3 = 2.0, 3.0
TIME_HEADWAY_S = 1.4
STANDSTILL_GAP_M = 3.0
COMFORT_BRAKE_MPS2 = 1.5
SPEED_GAIN_PER_S = 0.8
# A leader this far behind the follower's front is none: the follower has passed it.
PASSED_M = -1.0


@dataclass(frozen=True)
class Leader:
    """What a follower must not run into, at every simulation step: a car ahead, or a line to stop at.

    Attributes:
        gap_origin_m: float64 [T], road coordinate of its rear bumper less the follower's front overhang, m, counted in
            driving direction; inf while it is of no concern.
        speed_mps: float64 [T].
    """

    gap_origin_m: Float[np.ndarray, "t"]
    speed_mps: Float[np.ndarray, "t"]


def curve_speeds(
    curvature_per_m: Float[np.ndarray, "n"], limit_mps: float, direction: float, lateral_mps2: float = CURVE_ACCEL_MPS2
) -> Float[np.ndarray, "n"]:
    """Highest comfortable speed at every `STEP_M` of a path with this curvature, m/s.

    Lateral acceleration stays under `lateral_mps2`, and a car that drives in `direction` (+1 or -1 along s) can slow
    down to it at 0.9 m/s^2.
    """
    bound = np.minimum(limit_mps, np.sqrt(lateral_mps2 / np.maximum(np.abs(curvature_per_m), 1e-6)))
    bound = bound if direction > 0 else bound[::-1]
    for i in range(len(bound) - 2, -1, -1):
        bound[i] = min(bound[i], np.sqrt(bound[i + 1] ** 2 + 2 * CURVE_BRAKE_MPS2 * STEP_M))
    return bound if direction > 0 else bound[::-1]


def drive(
    road: Road,
    plan: LateralPlan,
    direction: float,
    start_s_m: float,
    limit_mps: Float[np.ndarray, "t"],
    leaders: Sequence[Leader] = (),
    headway_s: float = TIME_HEADWAY_S,
    start_mps: float | None = None,
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """Simulate one car along a path in steps of 10 ms; returns road coordinate s (m) and speed (m/s).

    `limit_mps` is the speed the driver wants at each step where nothing is in the way. Acceleration is the smallest of
    speed keeping and, for every leader, the intelligent driver model (Treiber et al. 2000), with limited jerk.
    `start_mps`: speed at the start; None for what the driver wants there.
    """
    bound = curve_speeds(plan.path_curvature(road), float(limit_mps.max()), direction)
    stretch = 1.0 - road.curvature_per_m * plan.d_m
    s_m, accel = start_s_m, 0.0
    speed = min(_at(bound, start_s_m), float(limit_mps[0])) if start_mps is None else start_mps
    positions, speeds = np.empty(len(limit_mps)), np.empty(len(limit_mps))
    for step, wanted_mps in enumerate(limit_mps):
        positions[step], speeds[step] = s_m, speed
        wanted = SPEED_GAIN_PER_S * (min(wanted_mps, _at(bound, s_m + direction * 0.5 * speed)) - speed)
        for leader in leaders:
            gap_m = float(leader.gap_origin_m[step]) - direction * s_m
            if PASSED_M < gap_m < np.inf:
                wanted = min(wanted, _following_accel(speed, gap_m, float(leader.speed_mps[step]), headway_s))
        wanted = min(max(wanted, MIN_ACCEL_MPS2), MAX_ACCEL_MPS2)
        accel += min(max(wanted - accel, -MAX_BRAKE_JERK_MPS3 * STEP_S), MAX_JERK_MPS3 * STEP_S)
        speed += accel * STEP_S
        if speed <= 0.0:
            speed, accel = 0.0, max(accel, 0.0)
        s_m += direction * speed * STEP_S / _at(stretch, s_m)
    return positions, speeds


def _at(values: Float[np.ndarray, "n"], s_m: float) -> float:
    """Linear interpolation in an array with a value every `STEP_M`."""
    place = min(max(s_m / STEP_M, 0.0), len(values) - 1.001)
    i = int(place)
    return float(values[i] + (place - i) * (values[i + 1] - values[i]))


def _following_accel(speed_mps: float, gap_m: float, leader_mps: float, headway_s: float) -> float:
    """Interaction term of the intelligent driver model, m/s^2."""
    braking = speed_mps * (speed_mps - leader_mps) / (2 * (MAX_ACCEL_MPS2 * COMFORT_BRAKE_MPS2) ** 0.5)
    wanted_gap_m = STANDSTILL_GAP_M + max(0.0, speed_mps * headway_s + braking)
    return MAX_ACCEL_MPS2 * (1.0 - (wanted_gap_m / max(gap_m, 0.1)) ** 2)
