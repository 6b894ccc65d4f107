"""Whether consecutive plans would feel alike to a passenger: the extended comfort of NAVSIM v2."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.signal import savgol_filter

from eval.context import ScoringContext
from eval.results import Series
from neural_sim.simulation.observation import PLAN_STEP_US

PLAN_GAP_US = 500_000
COMPARED_STEPS = 40
MAX_ACCELERATION_MPS2, MAX_JERK_MPS3 = 0.7, 0.5
MAX_YAW_RATE_RADPS, MAX_YAW_ACCELERATION_RADPS2 = 0.1, 0.1
_STEP_S = PLAN_STEP_US * 1e-6
_EARLIER_STEPS = PLAN_GAP_US // PLAN_STEP_US


def score_extended_comfort(context: ScoringContext) -> dict[str, Series]:
    """`extended_comfort`: 1 where a plan feels like the one handed over 0.5 s before it; mean over time.

    Over the next 4 s, at the same times, the root mean square differences of the two plans stay within 0.7 m/s^2 of
    acceleration, 0.5 m/s^3 of jerk, 0.1 rad/s of yaw rate and 0.1 rad/s^2 of yaw acceleration. Acceleration is the norm
    of the second derivative of the places, jerk its derivative; derivatives are those of fitted parabolas
    (Savitzky-Golay over 9, 15, 5 and 5 steps). NAVSIM first lets a controller drive the plans; here they are compared
    as they are. Invalid without both plans. Not in AlpaSim.
    """
    earlier, later = _pairs(context)
    values, valid = np.zeros(len(context.t_us)), np.zeros(len(context.t_us), bool)
    if len(later):
        valid[later] = True
        planar = context.planned_rig_planar
        before = _motion(planar[earlier])[:, :, _EARLIER_STEPS : _EARLIER_STEPS + COMPARED_STEPS]
        now = _motion(planar[later])[:, :, :COMPARED_STEPS]
        values[later] = _alike(before, now)
    return {"extended_comfort": context.series(values, "mean", valid)}


def _pairs(context: ScoringContext) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """Steps with a plan 0.5 s apart, the earlier and the later ones."""
    later = np.flatnonzero(context.has_plan)
    earlier = np.searchsorted(context.t_us, context.t_us[later] - PLAN_GAP_US)
    matched = (context.t_us[earlier] == context.t_us[later] - PLAN_GAP_US) & context.has_plan[earlier]
    return earlier[matched], later[matched]


def _motion(planar: Float[np.ndarray, "k p 3"]) -> Float[np.ndarray, "4 k p"]:
    """Acceleration (m/s^2), jerk (m/s^3), yaw rate (rad/s) and yaw acceleration (rad/s^2) along K plans."""
    x_m, y_m, yaw_rad = planar[..., 0], planar[..., 1], np.unwrap(planar[..., 2], axis=1)
    acceleration = np.hypot(_derivative(x_m, 9, 2), _derivative(y_m, 9, 2))
    jerk = _derivative(acceleration, 15, 1)
    return np.stack([acceleration, jerk, _derivative(yaw_rad, 5, 1), _derivative(yaw_rad, 5, 2)])


def _derivative(values: Float[np.ndarray, "k p"], num_steps: int, order: int) -> Float[np.ndarray, "k p"]:
    """Derivative along each row, per s or s^2, of the parabolas fitted to `num_steps` steps."""
    return np.asarray(savgol_filter(values, num_steps, 2, deriv=order, delta=_STEP_S, axis=1))


def _alike(before: Float[np.ndarray, "4 k n"], now: Float[np.ndarray, "4 k n"]) -> Bool[np.ndarray, "k"]:
    limits = np.array([MAX_ACCELERATION_MPS2, MAX_JERK_MPS3, MAX_YAW_RATE_RADPS, MAX_YAW_ACCELERATION_RADPS2])
    root_mean_square = np.sqrt(((now - before) ** 2).mean(axis=-1))
    return np.all(root_mean_square <= limits[:, None], axis=0)
