"""Expert guidance of closed-loop rollouts: RoaD section 4.2 (sample-K) and 4.3 (recovery), equations 4 to 8.

All functions are pure and batched over B rollouts. Plans and expert continuations are (x, y, yaw) in m and rad, every
0.1 s, in one common frame per rollout (the rig frame at the time of planning).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.errors import InputError
from neural_sim.frames import wrap_angle
from neural_sim.road_users import EgoVehicle, box_corners

StrategyName = Literal["road", "road_no_recovery", "none", "dagger", "perturb", "expert"]


@dataclass(frozen=True)
class GuidanceConfig:
    """How the plan to execute is chosen. The defaults are the paper's (supplement B.2)."""

    strategy: StrategyName = "road"
    """`road`: sample K, choose the closest to the expert, blend towards it when all are far.
    `road_no_recovery`: without the blend. `none`: one sample, executed as it is (on-policy).
    `dagger`: one sample is executed, a privileged planner's way back to the expert is learned.
    `perturb`: the recorded drive with injected errors is executed, the way back is learned; the policy is not asked.
    `expert`: the recorded drive is executed and learned, the policy is not asked (the paper's control arm)."""

    progress: Literal["time", "path"] = "time"
    """Where on the recorded drive the expert is: at the same time, as in the paper, or where it was nearest to the car,
    so that a slower policy is not pulled forward."""

    num_samples: int = 64
    """K, plans drawn per step (equation 4). `none` draws one."""

    temperature: float = 0.8
    """Scale of the initial noise of the flow-matching head; 1 samples what was learned, 0 draws no noise."""

    distance_steps: int = 20
    """Steps of 0.1 s over which the distance to the expert is averaged (equation 6)."""

    recovery_threshold_m: float = 3.0
    """Recovery starts when the chosen plan is farther than this from the expert, m (equation 7)."""

    recovery_ramp_steps: int = 30
    """N_rec, steps of 0.1 s after which the blended plan is the expert's (equation 8)."""

    recovery_off_last_s: float = 4.0
    """No recovery when less than this is left of the recorded drive, s."""

    perturb_lateral_m: float = 0.8
    """Standard deviation of the sideways errors of `perturb`, m."""

    perturb_longitudinal_m: float = 1.5
    """Standard deviation of the errors of `perturb` along the path, m."""

    perturb_period_s: float = 4.0
    """Time between two independent errors of `perturb`, s; smooth in between."""

    def __post_init__(self) -> None:
        for name, minimum in (("num_samples", 1), ("distance_steps", 1), ("recovery_ramp_steps", 1)):
            if getattr(self, name) < minimum:
                raise InputError(f"guidance.{name} is {getattr(self, name)}, expected at least {minimum}")
        for name in (
            "temperature",
            "recovery_threshold_m",
            "recovery_off_last_s",
            "perturb_lateral_m",
            "perturb_longitudinal_m",
        ):
            if getattr(self, name) < 0:
                raise InputError(f"guidance.{name} is {getattr(self, name)}, expected zero or more")
        if not self.perturb_period_s > 0:
            raise InputError(f"guidance.perturb_period_s is {self.perturb_period_s}, expected more than zero seconds")

    @property
    def samples_per_step(self) -> int:
        """Plans to draw from the policy at each step."""
        return {"none": 1, "dagger": 1, "perturb": 0, "expert": 0}.get(self.strategy, self.num_samples)


@dataclass(frozen=True)
class GuidedPlans:
    """The plans to execute for B rollouts, and how they were chosen.

    Attributes:
        plans: float64 [B, 64, 3], the plans to execute, m and rad, rig frame.
        targets: float64 [B, 64, 3], the plans to learn; the same unless an expert was queried.
        distances_m: float64 [B, K], d^g of every candidate (equation 6).
        chosen: int64 [B], index of the closest candidate (equation 5).
        recovered: bool [B], whether the plan was blended towards the expert (equations 7 and 8).
        safety_monitor: bool [B], where the policy's own monitor objects; None for a policy without one.
    """

    plans: Float[np.ndarray, "b 64 3"]
    targets: Float[np.ndarray, "b 64 3"]
    distances_m: Float[np.ndarray, "b k"]
    chosen: Int[np.ndarray, "b"]
    recovered: Bool[np.ndarray, "b"]
    safety_monitor: Bool[np.ndarray, "b"] | None = None


def corner_distance_m(
    candidates: Float[np.ndarray, "b k n 3"],
    expert: Float[np.ndarray, "b n 3"],
    expert_valid: Bool[np.ndarray, "b n"],
    vehicle: EgoVehicle,
    num_steps: int,
) -> Float[np.ndarray, "b k"]:
    """Generalised distance d^g of each candidate to the expert continuation, m (equation 6, supplement B.2).

    The distance of one step is the mean distance of the four corners of the ego box; the steps 1..`num_steps` are
    averaged with equal weights w_k. Steps beyond the end of the recording (`expert_valid` false) have weight zero;
    where no step is valid the distance is 0.
    """
    steps = slice(0, num_steps)
    of_plan = box_corners(candidates[:, :, steps], vehicle.length_m, vehicle.width_m, vehicle.center_x_m)
    of_expert = box_corners(expert[:, None, steps], vehicle.length_m, vehicle.width_m, vehicle.center_x_m)
    per_step = np.linalg.norm(of_plan - of_expert, axis=-1).mean(axis=-1)
    weights = expert_valid[:, None, steps].astype(float)
    return (per_step * weights).sum(axis=-1) / np.maximum(weights.sum(axis=-1), 1.0)


def closest_to_expert(distances_m: Float[np.ndarray, "b k"]) -> Int[np.ndarray, "b"]:
    """Index of the candidate with the least d^g (equation 5); the first of equals."""
    return np.argmin(distances_m, axis=1)


def recovery_triggered(
    chosen_distance_m: Float[np.ndarray, "b"], time_left_s: float, config: GuidanceConfig
) -> Bool[np.ndarray, "b"]:
    """Whether d^g of the chosen plan exceeds the threshold (equation 7); never in the last seconds of the drive."""
    enabled = config.strategy == "road" and time_left_s >= config.recovery_off_last_s
    return (chosen_distance_m > config.recovery_threshold_m) & enabled


def recovery_weights(num_steps: int, ramp_steps: int) -> Float[np.ndarray, "n"]:
    """Linear schedule lambda_k = min(1, k / N_rec) for k = 1..`num_steps` (section 4.3)."""
    return np.minimum(1.0, np.arange(1, num_steps + 1) / ramp_steps)


def blend_towards_expert(
    plans: Float[np.ndarray, "b n 3"], expert: Float[np.ndarray, "b n 3"], weights: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "b n 3"]:
    """Recovery trajectory: (1 - lambda_k) plan + lambda_k expert (equation 8), yaw along the shorter arc."""
    blended = plans + weights[:, None] * (expert - plans)
    turn_rad = wrap_angle(expert[..., 2] - plans[..., 2])
    blended[..., 2] = wrap_angle(plans[..., 2] + weights * turn_rad)
    return blended


def choose_plans(
    candidates: Float[np.ndarray, "b k 64 3"],
    expert: Float[np.ndarray, "b 64 3"],
    expert_valid: Bool[np.ndarray, "b 64"],
    time_left_s: float,
    vehicle: EgoVehicle,
    config: GuidanceConfig,
) -> GuidedPlans:
    """Choose the plan to execute from K candidates per rollout (Algorithm 1, lines 6 to 10)."""
    batch = np.arange(len(expert))
    distances = corner_distance_m(candidates, expert, expert_valid, vehicle, config.distance_steps)
    chosen = closest_to_expert(distances)
    plans = candidates[batch, chosen].astype(np.float64)
    recovered = recovery_triggered(distances[batch, chosen], time_left_s, config)
    weights = recovery_weights(plans.shape[1], config.recovery_ramp_steps)
    plans = np.where(recovered[:, None, None], blend_towards_expert(plans, expert, weights), plans)
    return GuidedPlans(plans, plans, distances, chosen, recovered)


def given_plans(plans: Float[np.ndarray, "b 64 3"], targets: Float[np.ndarray, "b 64 3"]) -> GuidedPlans:
    """Plans that were not chosen among candidates of a policy: K is 0."""
    count = len(plans)
    return GuidedPlans(plans, targets, np.zeros((count, 0)), np.zeros(count, np.int64), np.zeros(count, bool))
