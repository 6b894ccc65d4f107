"""Whether a passenger would find the drive comfortable, by the bounds of nuPlan and NAVSIM."""

import numpy as np
from jaxtyping import Float
from scipy.signal import savgol_filter

from eval.context import ScoringContext
from eval.results import Series

MIN_LONGITUDINAL_MPS2, MAX_LONGITUDINAL_MPS2 = -4.05, 2.40
MAX_LATERAL_MPS2 = 4.89
MAX_JERK_MPS3 = 8.37
MAX_LONGITUDINAL_JERK_MPS3 = 4.13
MAX_YAW_RATE_RADPS = 0.95
MAX_YAW_ACCELERATION_RADPS2 = 1.93
# Rates of change are slopes of parabolas through this many steps.
SMOOTHING_STEPS = 7


def score_comfort_bounds(context: ScoringContext) -> dict[str, Series]:
    """`comfort`: 1 where all of these hold, minimum over time. AlpaSim has no such metric.

    - longitudinal acceleration in [-4.05, 2.40] m/s^2, lateral acceleration within 4.89 m/s^2;
    - norm of the jerk within 8.37 m/s^3, longitudinal jerk within 4.13 m/s^3;
    - yaw rate within 0.95 rad/s, yaw acceleration within 1.93 rad/s^2.

    Accelerations are the rig's own, from the vehicle model. Jerk and yaw acceleration are the slope of the parabola
    fitted to 7 steps (Savitzky-Golay, as nuPlan fits 8 to 15), so a single step of the actuator does not count as
    a jolt. Invalid in the first 4 steps after warm-up, whose fit would look into the replayed log, and in rollouts of
    fewer than 7 steps.
    """
    record, steps = context.record, len(context.t_us)
    if steps < SMOOTHING_STEPS:
        return {"comfort": context.series(np.zeros(steps), "min", np.zeros(steps, bool))}
    jerk = _slope(record.acceleration_mps2, context)
    yaw_acceleration = _slope(record.velocity[:, 2:], context)[:, 0]
    longitudinal, lateral = record.acceleration_mps2.T
    comfortable = (
        (longitudinal >= MIN_LONGITUDINAL_MPS2)
        & (longitudinal <= MAX_LONGITUDINAL_MPS2)
        & (np.abs(lateral) <= MAX_LATERAL_MPS2)
        & (np.hypot(jerk[:, 0], jerk[:, 1]) <= MAX_JERK_MPS3)
        & (np.abs(jerk[:, 0]) <= MAX_LONGITUDINAL_JERK_MPS3)
        & (np.abs(record.velocity[:, 2]) <= MAX_YAW_RATE_RADPS)
        & (np.abs(yaw_acceleration) <= MAX_YAW_ACCELERATION_RADPS2)
    )
    since_handover = np.cumsum(context.evaluated) - 1
    return {"comfort": context.series(comfortable, "min", context.evaluated & (since_handover > SMOOTHING_STEPS // 2))}


def _slope(values: Float[np.ndarray, "t k"], context: ScoringContext) -> Float[np.ndarray, "t k"]:
    step_s = float(np.diff(context.t_us).mean()) * 1e-6
    slope = savgol_filter(values, SMOOTHING_STEPS, polyorder=2, deriv=1, delta=step_s, axis=0, mode="interp")
    return np.asarray(slope)
