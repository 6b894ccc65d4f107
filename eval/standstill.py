"""Standing where the expert drove on."""

import numpy as np

from eval.context import ScoringContext
from eval.results import Series

TOO_LONG_S = 5.0
EXPERT_MOVED_M = 2.0


def score_standstill(context: ScoringContext) -> dict[str, Series]:
    """How long the car stands without reason. Not in AlpaSim.

    - `standing_s`: time since the car last drove (speed >= 0.1 m/s), counted from the first step after warm-up;
      maximum over time, s;
    - `stopped_too_long`: 1 where that time is at least 5 s and the expert moved at least 2 m along its path in it;
      maximum over time. Waiting as long as the expert does is not too long.
    """
    seconds = context.t_us * 1e-6
    standing = (context.speed_mps < context.protocol.standing_speed_mps) & context.evaluated
    steps = np.arange(len(seconds))
    since = np.maximum.accumulate(np.where(standing, -1, steps))
    first = np.where(standing, np.clip(since + 1, 0, len(steps) - 1), steps)
    standing_s = np.where(standing, seconds - seconds[first], 0.0)
    moved_m = np.linalg.norm(np.diff(context.expert_planar[:, :2], axis=0), axis=1)
    expert_m = np.concatenate([[0.0], np.cumsum(moved_m)])
    waited_for_nothing = expert_m - expert_m[first] >= EXPERT_MOVED_M
    return {
        "standing_s": context.series(standing_s, "max"),
        "stopped_too_long": context.series((standing_s >= TOO_LONG_S - 1e-6) & waited_for_nothing, "max"),
    }
