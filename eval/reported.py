"""What cameras and driver reported during the rollout."""

import numpy as np

from eval.context import ScoringContext
from eval.protocol import EvaluationProtocol
from eval.results import RolloutScore, Series
from neural_sim.errors import InputError
from neural_sim.simulation.reports import IMAGE_IS_BLACK, SAFETY_MONITOR


def score_reported(context: ScoringContext) -> dict[str, Series]:
    """Flags that the record holds as events; 0 also for a simulation without images and a driver without a monitor.

    - `img_is_black`: no pixel of the newest image of the first camera exceeds 10 of 255; maximum over time;
    - `safety_monitor_triggered`: the driver's own monitor objects; maximum over time.
    """
    kinds = {"img_is_black": IMAGE_IS_BLACK, "safety_monitor_triggered": SAFETY_MONITOR}
    result: dict[str, Series] = {}
    for name, kind in kinds.items():
        reported_us = [event.t_us for event in context.record.events if event.kind == kind]
        result[name] = context.series(np.isin(context.t_us, reported_us), "max")
    return result


def reject_black_images(score: RolloutScore, protocol: EvaluationProtocol) -> None:
    """Raise `InputError` for a rollout with a black image after warm-up, where the protocol rejects such rollouts."""
    black = (score.series["img_is_black"].values > 0) & ~score.is_warmup
    if protocol.reject_black_images and black.any():
        raise InputError(
            f"{int(black.sum())} of its {len(black)} images are black, the first at {score.t_us[black.argmax()]} us; "
            "look at its video and at the scene"
        )
