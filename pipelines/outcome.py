"""How a rollout went: how far, for how long, and what ended it."""

from dataclasses import dataclass

import numpy as np

from eval.aggregate import reduce_rollout
from eval.protocol import EvaluationProtocol
from eval.scorers import score_rollout
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.record import RolloutRecord

FAR_FROM_LOG = "far from log"


@dataclass(frozen=True)
class Outcome:
    """One rollout from the hand-over to its end, to its first incident, or to where it got too far from the log.

    Attributes:
        driven_m: distance driven until then, m.
        driven_s: time driven until then, s.
        failure: name of the incident, "far from log", or empty when the rollout came to its end.
        failed_us: when it failed, us; None when it did not.
        failed_at_m: where it failed, (x, y) of the rig, world frame, m; None when it did not.
        too_far_us: first time at which it was too far from the log, us; None if never.
    """

    driven_m: float
    driven_s: float
    failure: str
    failed_us: int | None
    failed_at_m: tuple[float, float] | None
    too_far_us: int | None


def rollout_outcome(record: RolloutRecord, scene: Scene, max_distance_to_log_m: float) -> Outcome:
    """Judge one rollout by the rules of the evaluation (`eval.protocol`), with this limit on the distance to the log.

    Raises `InputError` when the rollout has no step after the warm-up.
    """
    protocol = EvaluationProtocol(max_distance_to_log_m=max_distance_to_log_m)
    reduced = reduce_rollout(score_rollout(record, scene, protocol, policy="rollout"), protocol)
    failure = {"incident": reduced.incident, FAR_FROM_LOG: FAR_FROM_LOG}.get(reduced.ended, "")
    place = int(np.searchsorted(record.t_us, reduced.cut_us))
    x_m, y_m = record.T_world_rig[place, :2, 3].tolist()
    return Outcome(
        driven_m=float(reduced.metrics["dist_traveled_m"]),
        driven_s=reduced.evaluated_s,
        failure=failure,
        failed_us=reduced.cut_us if failure else None,
        failed_at_m=(x_m, y_m) if failure else None,
        too_far_us=first_time_too_far_us(record, scene, max_distance_to_log_m),
    )


def first_time_too_far_us(record: RolloutRecord, scene: Scene, max_distance_m: float) -> int | None:
    """First time at which the rig is farther than `max_distance_m` from the recorded path, us; None if never."""
    path = scene.expert.planar[:, :2]
    rig = record.T_world_rig[:, :2, 3]
    distance = np.array([np.linalg.norm(path - point, axis=1).min() for point in rig])
    beyond = np.flatnonzero(distance > max_distance_m)
    return int(record.t_us[beyond[0]]) if beyond.size else None
