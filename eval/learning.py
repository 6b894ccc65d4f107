"""Checkpoints of one training run over its steps: curves, the best of them, and whether it fits its scenes too well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.aggregate import summarise
from eval.metric_names import METRIC_TEXTS
from eval.results import EvaluationResult, Summary, TrainingProgress, open_loop_name
from neural_sim.errors import InputError

ALL_SCENES, TRAINING_SCENES, HELD_OUT_SCENES = "all scenes", "training scenes", "held-out scenes"
DRIVING_SCORE, INCIDENTS, DISTANCE_TO_EXPERT = "driving_score", "incidents_per_km", "dist_to_gt_trajectory"
LEARNING_FORMAT_VERSION = 1


@dataclass(frozen=True)
class BestCheckpoint:
    """The checkpoint that is best by `metric`, and its value there."""

    policy: str
    metric: str
    value: float


@dataclass(frozen=True)
class Learning:
    """What a training run learned.

    Attributes:
        progress: the steps behind the checkpoints.
        checkpoints: their names in the order of steps.
        groups: the aggregated evaluation of each group of scenes, `TRAINING_SCENES` and `HELD_OUT_SCENES`, or
            `ALL_SCENES` where none is held out.
        best: the best checkpoint on held-out scenes, or on all where none is held out; None without a value.
    """

    progress: TrainingProgress
    checkpoints: tuple[str, ...]
    groups: Mapping[str, Summary]
    best: BestCheckpoint | None

    def values(self, group: str, metric: str) -> list[float | None]:
        """Means of `metric` on a group of scenes by checkpoint; None where there is no finite value."""
        cells = [self.groups[group].policies[name].get(metric) for name in self.checkpoints]
        return [None if cell is None else cell.mean for cell in cells]

    def to_json(self, metrics: Sequence[str]) -> dict[str, Any]:
        """The curves of `metrics`, plain JSON values."""
        return {
            "format_version": LEARNING_FORMAT_VERSION,
            "checkpoints": list(self.checkpoints),
            "steps": [self.progress.steps[name] for name in self.checkpoints],
            "best": None if self.best is None else vars(self.best),
            "curves": {group: {metric: self.values(group, metric) for metric in metrics} for group in self.groups},
        }


def learning_of(evaluation: EvaluationResult) -> Learning | None:
    """The learning curves of an evaluation; None when fewer than two of its checkpoints have a known step."""
    progress = evaluation.progress
    if progress is None:
        return None
    known = [name for name in evaluation.policies if name in progress.steps and name not in evaluation.baselines]
    checkpoints = tuple(sorted(known, key=lambda name: progress.steps[name]))
    if len(checkpoints) < 2:
        return None
    groups = {title: summarise(_in_scenes(evaluation, ids)) for title, ids in _groups(evaluation, progress).items()}
    learning = Learning(progress, checkpoints, groups, None)
    return replace(learning, best=_best(learning))


def require_metric(name: str) -> None:
    """Raise `InputError` unless checkpoints can be ranked by this metric."""
    if not _better(name):
        known = ", ".join(text.name for text in METRIC_TEXTS if text.better)
        raise InputError(f"best_by: found {name!r}, expected a metric with a better side: {known}, or open_loop_...")


def overfitting_notes(learning: Learning) -> list[str]:
    """A sentence when training beyond a checkpoint helps on training scenes and hurts on held-out ones, else none.

    Measured in incidents per km, which is finite wherever the car moved: the best checkpoint on held-out scenes
    against the last one.
    """
    if HELD_OUT_SCENES not in learning.groups:
        return []
    held_out, trained = (learning.values(group, INCIDENTS) for group in (HELD_OUT_SCENES, TRAINING_SCENES))
    known = [place for place, value in enumerate(held_out) if value is not None]
    if len(known) < 2:
        return []
    best, last = min(known, key=lambda place: held_out[place] or 0.0), known[-1]
    if best == last or None in (trained[best], trained[last]):
        return []
    before, after = ([curve[place] or 0.0 for curve in (trained, held_out)] for place in (best, last))
    if not (after[0] <= before[0] and after[1] > before[1]):
        return []
    steps = [learning.progress.steps[learning.checkpoints[place]] for place in (best, last)]
    return [
        f"Overfitting: from step {steps[0]} to step {steps[1]} incidents per km went from {before[0]:.2f} to "
        f"{after[0]:.2f} on training scenes but from {before[1]:.2f} to {after[1]:.2f} on held-out scenes."
    ]


def _groups(evaluation: EvaluationResult, progress: TrainingProgress) -> dict[str, set[str]]:
    scenes = {item.scene_id for item in (*evaluation.scores, *evaluation.failures)}
    held_out = scenes & set(progress.held_out)
    if not held_out or held_out == scenes:
        return {ALL_SCENES: scenes}
    return {TRAINING_SCENES: scenes - held_out, HELD_OUT_SCENES: held_out}


def _in_scenes(evaluation: EvaluationResult, scene_ids: set[str]) -> EvaluationResult:
    return replace(
        evaluation,
        scores=tuple(item for item in evaluation.scores if item.scene_id in scene_ids),
        failures=tuple(item for item in evaluation.failures if item.scene_id in scene_ids),
        open_loop=tuple(item for item in evaluation.open_loop if item.scene_id in scene_ids),
    )


def _best(learning: Learning) -> BestCheckpoint | None:
    """The best; of equal ones the one nearest to the recorded drives, then the first.

    The driving score is ranked by its inverse, which is finite without incidents too.
    """
    asked = learning.progress.best_by
    metric = INCIDENTS if asked == DRIVING_SCORE else asked
    group = HELD_OUT_SCENES if HELD_OUT_SCENES in learning.groups else next(iter(learning.groups))
    sign = -1.0 if _better(metric) == "more" else 1.0
    values, distances_m = (learning.values(group, each) for each in (metric, DISTANCE_TO_EXPERT))
    ranked = [
        (sign * value, float("inf") if distance_m is None else distance_m, place)
        for place, (value, distance_m) in enumerate(zip(values, distances_m, strict=True))
        if value is not None
    ]
    if not ranked:
        return None
    least, _, place = min(ranked)
    return BestCheckpoint(learning.checkpoints[place], metric, sign * least)


def _better(name: str) -> str:
    """Which side of a metric is better; open-loop distances and miss rates are better when they are less."""
    if open_loop_name(name):
        return "less"
    return next((text.better for text in METRIC_TEXTS if text.name == name), "")
