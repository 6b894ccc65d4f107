"""Plans as a policy hands them over: checked, and placed in the world."""

import numpy as np
from jaxtyping import Bool, Float

from controllers.reference import WorldPlan, world_plan
from neural_sim.errors import InputError
from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS

BACKWARDS_M = 0.5
STANDING_WITHIN_M = 0.1
DRIVING_MPS = 1.0
ODD_PLAN_DETAILS = {
    "plan_backwards": "the plan goes backwards; the car does not reverse and stands instead",
    "plan_stands_still": "the plan stands still while the car drives; it brakes to a stop",
}


def checked_plans(plans: Float[np.ndarray, "b 64 3"], batch_size: int) -> Float[np.ndarray, "b 64 3"]:
    """A float64 copy of `plans`, shorter ones filled with NaN, which makes them rejected.

    Raises `InputError` when the array is not numbers of shape [B, 64 or less, 3].
    """
    plans = np.asarray(plans)
    expected = (batch_size, PLAN_STEPS, 3)
    fits = plans.ndim == 3 and plans.shape[::2] == expected[::2] and plans.shape[1] <= PLAN_STEPS
    if not fits or not np.issubdtype(plans.dtype, np.number):
        raise InputError(
            f"plans: found {plans.dtype} of shape {plans.shape}, expected numbers of shape {expected} "
            "(rollouts, 0.1 s steps, (x, y, yaw) in the rig frame); convert the policy's output"
        )
    filled = np.full(expected, np.nan)
    filled[:, : plans.shape[1]] = plans
    return filled


def drivable_rows(plans: Float[np.ndarray, "b 64 3"], max_step_m: float) -> Bool[np.ndarray, "b"]:
    """Which plans (rig frame, m and rad) are finite and move at most `max_step_m` in each 0.1 s."""
    finite = np.asarray(np.isfinite(plans).all(axis=(1, 2)))
    return finite & (_step_lengths_m(np.where(finite[:, None, None], plans, 0.0)) <= max_step_m).all(axis=1)


def rejection_detail(plan: Float[np.ndarray, "64 3"], max_step_m: float) -> str:
    """One line on why a plan is not among `drivable_rows`."""
    finite = np.isfinite(plan).all(axis=1)
    if not finite.all():
        return (
            f"{int((~finite).sum())} of {PLAN_STEPS} poses are not finite, the first at step {int(np.argmin(finite))}"
        )
    step_m = _step_lengths_m(plan[None])[0]
    worst = int(np.argmax(step_m))
    return f"jumps {step_m[worst]:.4g} m into step {worst}, at most {max_step_m:g} m in 0.1 s are accepted"


def odd_plans(
    plans: Float[np.ndarray, "b 64 3"], speed_mps: Float[np.ndarray, "b"]
) -> dict[str, Bool[np.ndarray, "b"]]:
    """Which plans (rig frame, m and rad) are drivable and yet unlikely to be meant, by kind of event.

    - `plan_backwards`: moves more than `BACKWARDS_M` against its own headings. Such steps count as standing still.
    - `plan_stands_still`: never leaves the place while the car drives. The car brakes to a stop.
    """
    finite = np.asarray(np.isfinite(plans).all(axis=(1, 2)))
    known = np.where(finite[:, None, None], plans, 0.0)
    steps = np.diff(known[..., :2], axis=1, prepend=0.0)
    forward_m = np.cos(known[..., 2]) * steps[..., 0] + np.sin(known[..., 2]) * steps[..., 1]
    reach_m = np.hypot(known[..., 0], known[..., 1]).max(axis=1)
    return {
        "plan_backwards": finite & (np.minimum(forward_m, 0.0).sum(axis=1) < -BACKWARDS_M),
        "plan_stands_still": finite & (reach_m < STANDING_WITHIN_M) & (speed_mps > DRIVING_MPS),
    }


def placed_plan(plans: Float[np.ndarray, "b 64 3"], ego_planar: Float[np.ndarray, "b 3"], t_us: int) -> WorldPlan:
    """Plans in the rig frame at `t_us` (m and rad) fixed in the world at the true rig poses (x, y, yaw) of that time.

    The policy plans relative to its own estimate of the rig: T_true * T_est^-1 maps the plan from the estimated world
    to the true one, which is the same as to place it at the true pose.
    """
    yaw_rad = np.ascontiguousarray(ego_planar[:, 2])
    cosine, sine = np.cos(yaw_rad)[:, None], np.sin(yaw_rad)[:, None]
    local = np.concatenate([np.zeros_like(plans[:, :1]), plans], axis=1)
    x_m = ego_planar[:, :1] + cosine * local[..., 0] - sine * local[..., 1]
    y_m = ego_planar[:, 1:2] + sine * local[..., 0] + cosine * local[..., 1]
    # Wrapped first, so that a huge angle cannot swallow the heading.
    turned_rad = (local[..., 2] + np.pi) % (2 * np.pi) - np.pi
    start_us = np.full(len(plans), t_us, np.int64)
    return world_plan(start_us, PLAN_STEP_US, x_m, y_m, yaw_rad[:, None] + turned_rad)


def _step_lengths_m(plans: Float[np.ndarray, "b 64 3"]) -> Float[np.ndarray, "b 64"]:
    """Distance of each pose from the one before, the first from the rig itself, m."""
    with np.errstate(over="ignore"):
        return np.hypot(np.diff(plans[..., 0], axis=1, prepend=0.0), np.diff(plans[..., 1], axis=1, prepend=0.0))
