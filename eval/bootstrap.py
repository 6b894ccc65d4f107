"""Intervals by resampling scenes."""

import numpy as np
from jaxtyping import Float, Int

from eval.protocol import EvaluationProtocol


def draw_scenes(num_scenes: int, protocol: EvaluationProtocol) -> Int[np.ndarray, "b s"]:
    """Scene indices of each resample, drawn with replacement; no resample when there are fewer than two scenes.

    One scene says nothing about other scenes, so no interval can be had from it.
    """
    if num_scenes < 2:
        return np.zeros((0, num_scenes), int)
    generator = np.random.default_rng(protocol.bootstrap_seed)
    return generator.integers(num_scenes, size=(protocol.bootstrap_resamples, num_scenes))


def interval(resampled: Float[np.ndarray, "b"], protocol: EvaluationProtocol) -> tuple[float | None, float | None]:
    """Percentile interval of resampled statistics; an end that is not finite is None.

    Resamples without a value (NaN) are left out; infinite ones (no incident drawn) take part, so that the upper end of
    a driving score is open when too many resamples hold no incident.
    """
    resampled = resampled[~np.isnan(resampled)]
    if not resampled.size:
        return None, None
    tail = (1 - protocol.confidence) / 2
    ends = np.quantile(resampled, [tail, 1 - tail], method="inverted_cdf")
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    return low, high
