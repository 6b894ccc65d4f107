"""What scoring and aggregation produce, as plain data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from eval.protocol import EvaluationProtocol
from neural_sim.errors import InputError
from neural_sim.road_map import RoadMap

Reducer = Literal["max", "min", "mean", "last"]
RolloutKey = tuple[str, str, int]

OPEN_LOOP_PREFIX = "open_loop_"
_OPEN_LOOP_NAME = re.compile(OPEN_LOOP_PREFIX + r"(?P<kind>[a-z_]+)_(?P<horizon_s>[0-9.]+)s(?P<unit>_m)?")


class OpenLoopName(NamedTuple):
    """What the name of an open-loop metric says, for example `open_loop_min_ade_6.4s_m`."""

    kind: str
    horizon_s: float
    unit: str


def open_loop_name(name: str) -> OpenLoopName | None:
    """Take the name of an open-loop metric apart; None for other metrics."""
    found = _OPEN_LOOP_NAME.fullmatch(name)
    return found and OpenLoopName(found["kind"], float(found["horizon_s"]), "m" if found["unit"] else "")


# With n scenes the smallest two-sided p-value of any paired sign test is 2 / 2^n, which passes 0.05 from six on;
# a bootstrap interval of fewer scenes is too narrow to be trusted.
MIN_SCENES_FOR_CLAIM = 6


@dataclass(frozen=True)
class Series:
    """One metric of one rollout over time.

    Attributes:
        t_us: int64 [T], us.
        values: float64 [T]; flags are 0 or 1.
        valid: bool [T]; where false the value means nothing and is left out of the reduction.
        reducer: how the evaluated steps become one number.
    """

    t_us: Int[np.ndarray, "t"]
    values: Float[np.ndarray, "t"]
    valid: Bool[np.ndarray, "t"]
    reducer: Reducer

    def __post_init__(self) -> None:
        if not len(self.t_us) == len(self.values) == len(self.valid):
            raise InputError(
                f"series: {len(self.t_us)} times, {len(self.values)} values and {len(self.valid)} valid flags; "
                "expected as many of each"
            )

    def reduce(self, keep: Bool[np.ndarray, "t"]) -> float:
        """One number from the steps in `keep` that are valid; NaN when there is none."""
        chosen = self.values[keep & self.valid]
        if not chosen.size:
            return float("nan")
        match self.reducer:
            case "max":
                return float(chosen.max())
            case "min":
                return float(chosen.min())
            case "mean":
                return float(chosen.mean())
            case "last":
                return float(chosen[-1])


@dataclass(frozen=True)
class RolloutScore:
    """Every metric of one rollout, uncut and with warm-up, and the paths that the report draws.

    Attributes:
        policy, scene_id, rollout_index, seed: which rollout.
        t_us: int64 [T], us.
        is_warmup: bool [T].
        series: by AlpaSim's metric name; all on `t_us`.
        ego_planar: float64 [T, 3], driven box centre (x, y, yaw), world frame, m and rad.
        expert_planar: float64 [T, 3], recorded box centre at the same times, world frame, m and rad.
        map_source: "recorded", or "derived" for a corridor made from the expert path.
        event_counts: number of simulation events by kind, for example {"plan_rejected": 2}.
    """

    policy: str
    scene_id: str
    rollout_index: int
    seed: int
    t_us: Int[np.ndarray, "t"]
    is_warmup: Bool[np.ndarray, "t"]
    series: Mapping[str, Series]
    ego_planar: Float[np.ndarray, "t 3"]
    expert_planar: Float[np.ndarray, "t 3"]
    map_source: str
    event_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> RolloutKey:
        """(policy, scene_id, rollout_index), unique within an evaluation."""
        return self.policy, self.scene_id, self.rollout_index


@dataclass(frozen=True)
class RolloutFailure:
    """A rollout that produced no record: it counts as failed and is named.

    Attributes:
        policy, scene_id, rollout_index: which rollout.
        reason: one line for a person.
    """

    policy: str
    scene_id: str
    rollout_index: int
    reason: str


@dataclass(frozen=True)
class OpenLoopScore:
    """How far a policy's sampled plans are from the recorded drive, seen from the recorded drive.

    Attributes:
        policy, scene_id: which policy and where.
        num_windows: observations that were judged.
        metrics: by name, mean over the windows.
    """

    policy: str
    scene_id: str
    num_windows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainingProgress:
    """Where the checkpoints of an evaluation stand in the training run that made them.

    Attributes:
        steps: optimiser steps behind each checkpoint, by name.
        held_out: ids of scenes that no demonstration came from.
        best_by: metric that says which checkpoint is the best.
    """

    steps: Mapping[str, int]
    held_out: tuple[str, ...] = ()
    best_by: str = "driving_score"


@dataclass(frozen=True)
class EvaluationResult:
    """Everything a report is made of.

    Attributes:
        protocol: rules of aggregation.
        scores: one per finished rollout.
        failures: rollouts that did not finish.
        road_maps: by scene id, for the top-down plots; scenes without one are drawn without road.
        videos: file of the whole rollout by (policy, scene_id, rollout_index).
        policies: names in the order of the report, the first is compared with; those left out follow as they occur.
        baselines: those of them that are no checkpoint but show the range of the scale, for example "expert".
        clips: file with the seconds before the end of counting, by (policy, scene_id, rollout_index).
        plan_distances_m: d^g of the executed plan (RoaD equation 6) at every decision, m, by rollout.
        open_loop: open-loop metrics of each policy and scene.
        notes: what a reader has to know, one sentence each.
        conditions: plain JSON values under which it was made; reports are compared only when theirs are equal.
        progress: where the checkpoints stand in a training run, if they are of one.
    """

    protocol: EvaluationProtocol
    scores: tuple[RolloutScore, ...]
    failures: tuple[RolloutFailure, ...] = ()
    road_maps: Mapping[str, RoadMap] = field(default_factory=dict)
    videos: Mapping[RolloutKey, Path] = field(default_factory=dict)
    policies: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    clips: Mapping[RolloutKey, Path] = field(default_factory=dict)
    plan_distances_m: Mapping[RolloutKey, Float[np.ndarray, "d"]] = field(default_factory=dict)
    open_loop: tuple[OpenLoopScore, ...] = ()
    notes: tuple[str, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    progress: TrainingProgress | None = None


@dataclass(frozen=True)
class ReducedRollout:
    """One rollout after the cuts, one number a metric.

    Attributes:
        policy, scene_id, rollout_index: which rollout.
        metrics: by name; NaN where no evaluated step was valid.
        incident: "offroad", "collision_front", "collision_lateral" or "collision_rear" at the last counted step, or "".
        ended: why counting stopped: "incident", "far from log" or "end".
        evaluated_s: time from the first to the last counted step, s.
        cut_us: time of the last counted step, us.
    """

    policy: str
    scene_id: str
    rollout_index: int
    metrics: Mapping[str, float]
    incident: str
    ended: str
    evaluated_s: float
    cut_us: int

    @property
    def key(self) -> RolloutKey:
        """(policy, scene_id, rollout_index), unique within an evaluation."""
        return self.policy, self.scene_id, self.rollout_index


@dataclass(frozen=True)
class Statistic:
    """One cell of the results table.

    Attributes:
        mean: over scenes, then over rollout indices; None where it is not a finite number.
        std: standard deviation over rollout indices of the scene means (divisor n - 1); None below two indices.
        low, high: bootstrap interval over scenes; None below two scenes or where not finite.
        note: why a number is missing, for a person; empty where none is.
    """

    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """One metric of a candidate minus that of the baseline, over rollouts that both finished.

    Attributes:
        metric: name.
        baseline, candidate: the metric of each over those rollouts; None where it has no finite value.
        difference: candidate minus baseline; None where one of them is missing.
        low, high: bootstrap interval of the difference over scenes drawn jointly; None below two scenes.
        p_value: two-sided, of relabelling the two policies at random scene by scene; None below two scenes.
        scenes_needed: scenes with which a difference as large as this one is seen with the chance
            `EvaluationProtocol.power`; None where it is zero or its spread is unknown.
        detectable: the smallest difference that the scenes at hand show with that chance.
    """

    metric: str
    baseline: float | None
    candidate: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    scenes_needed: int | None = None
    detectable: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Does the candidate drive better than the baseline, on the same scenes and seeds?

    Attributes:
        baseline, candidate: policy names.
        num_scenes: scenes with at least one rollout that both finished.
        num_pairs: rollouts that both finished.
        num_left_out: rollouts that only one of them finished; they enter no difference.
        differences: by metric.
        is_significant: whether the difference in incidents per km can be claimed: enough scenes, an interval without
            zero, and a p-value below 1 minus the confidence.
    """

    baseline: str
    candidate: str
    num_scenes: int
    num_pairs: int
    num_left_out: int
    differences: Mapping[str, Difference]
    is_significant: bool

    @property
    def headline(self) -> Difference:
        """The difference in incidents per km, the inverse of the driving score: finite wherever the car moved."""
        return self.differences["incidents_per_km"]

    @property
    def has_enough_scenes(self) -> bool:
        """Whether there are enough scenes to claim a difference at all, see `MIN_SCENES_FOR_CLAIM`."""
        return self.num_scenes >= MIN_SCENES_FOR_CLAIM


@dataclass(frozen=True)
class Summary:
    """The aggregated evaluation.

    Attributes:
        protocol: the rules it was made by.
        scene_ids: scenes, sorted.
        rollouts_per_scene: number of rollout indices.
        policies: statistics by policy and metric name; policies in the order given.
        rollouts: every finished rollout after the cuts.
        comparisons: of each later policy with the first.
        baselines: those of the policies that are no checkpoint.
        failures: rollouts that did not finish.
        conditions: plain JSON values under which it was made.
    """

    protocol: EvaluationProtocol
    scene_ids: tuple[str, ...]
    rollouts_per_scene: int
    policies: Mapping[str, Mapping[str, Statistic]]
    rollouts: tuple[ReducedRollout, ...]
    comparisons: tuple[Comparison, ...]
    baselines: tuple[str, ...] = ()
    failures: tuple[RolloutFailure, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The policies that are no baseline; all of them when every one is."""
        return tuple(name for name in self.policies if name not in self.baselines) or tuple(self.policies)
