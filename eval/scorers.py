"""The list of scorers, and the score of one rollout."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from eval.collision import score_collision
from eval.comfort import score_comfort_bounds
from eval.composite import score_epdms, score_scene
from eval.context import ScoringContext
from eval.distance import score_distance, score_progress
from eval.extended_comfort import score_extended_comfort
from eval.lanes import score_lanes, score_speed_limit
from eval.motion import score_comfort, score_plan_deviation
from eval.offroad import score_offroad
from eval.plan_quality import score_displacement, score_open_loop_collision
from eval.protocol import EvaluationProtocol
from eval.reported import score_reported
from eval.results import RolloutScore, Series
from eval.shared import shared_geometry
from eval.standstill import score_standstill
from eval.time_to_collision import score_time_to_collision
from neural_sim.errors import InputError
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.record import RolloutRecord

Scorer = Callable[[ScoringContext], dict[str, Series]]

SCORERS: tuple[Scorer, ...] = (
    score_collision,
    score_offroad,
    score_distance,
    score_progress,
    score_plan_deviation,
    score_comfort,
    score_comfort_bounds,
    score_extended_comfort,
    score_time_to_collision,
    score_standstill,
    score_lanes,
    score_speed_limit,
    score_open_loop_collision,
    score_displacement,
    score_reported,
)
COMPOSITES: tuple[Callable[[ScoringContext, Mapping[str, Series]], dict[str, Series]], ...] = (score_scene, score_epdms)


def score_rollout(
    record: RolloutRecord, scene: Scene, protocol: EvaluationProtocol | None = None, *, policy: str
) -> RolloutScore:
    """Run every scorer on a rollout that `policy` drove. Nothing is cut; see `eval.aggregate` for that.

    Raises `InputError` when the record does not belong to the scene or the scene cannot be judged.
    """
    if record.scene_id != scene.scene_id:
        raise InputError(
            f"rollout {record.rollout_index} was driven in scene {record.scene_id!r}, not in {scene.scene_id!r}; "
            "score it with its own scene"
        )
    context = ScoringContext(record, scene, protocol or EvaluationProtocol(), shared_geometry(scene))
    series: dict[str, Series] = {
        "eval_relevant": context.series(context.evaluated, "max"),
        "duration_frac_20s": _duration(context),
    }
    for scorer in SCORERS:
        series.update(scorer(context))
    series.update(_incidents(context, series))
    for composite in COMPOSITES:
        series.update(composite(context, series))
    return RolloutScore(
        policy=policy,
        scene_id=record.scene_id,
        rollout_index=record.rollout_index,
        seed=record.seed,
        t_us=record.t_us,
        is_warmup=record.is_warmup,
        series=series,
        ego_planar=context.ego_planar,
        expert_planar=context.expert_planar,
        map_source=scene.road_map.source,
        event_counts=dict(sorted(Counter(event.kind for event in record.events).items())),
    )


def _duration(context: ScoringContext) -> Series:
    """Time since the warm-up in units of 20 s."""
    start_us = context.t_us[context.evaluated.argmax()]
    return context.series(np.maximum(context.t_us - start_us, 0) / 20e6, "last")


def _incidents(context: ScoringContext, series: dict[str, Series]) -> dict[str, Series]:
    """Flags made of flags: `offroad_or_collision` (any) and `offroad_or_collision_at_fault` (front or lateral)."""
    offroad = series["offroad"].values
    return {
        "offroad_or_collision": context.series(np.maximum(offroad, series["collision_any"].values), "max"),
        "offroad_or_collision_at_fault": context.series(
            np.maximum(offroad, series["collision_at_fault"].values), "max"
        ),
    }
