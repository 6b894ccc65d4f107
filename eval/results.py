"""What scoring and aggregation produce, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from eval.protocol import EvaluationProtocol
from neural_sim.errors import InputError
from neural_sim.road_map import RoadMap

Reducer = Literal["max", "min", "mean", "last"]
RolloutKey = tuple[str, str, int]

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
class EvaluationResult:
    """Everything a report is made of.

    Attributes:
        protocol: rules of aggregation.
        scores: one per finished rollout; the order of the policies in the report is that of their first score.
        failures: rollouts that did not finish.
        road_maps: by scene id, for the top-down plots; scenes without one are drawn without road.
        videos: file by (policy, scene_id, rollout_index).
    """

    protocol: EvaluationProtocol
    scores: tuple[RolloutScore, ...]
    failures: tuple[RolloutFailure, ...] = ()
    road_maps: Mapping[str, RoadMap] = field(default_factory=dict)
    videos: Mapping[RolloutKey, Path] = field(default_factory=dict)


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
class Comparison:
    """Does the candidate have fewer incidents per km than the baseline, on the same scenes?

    Attributes:
        baseline, candidate: policy names.
        difference: incidents per km of the candidate minus those of the baseline, counted incidents pooled; 1/km.
        low, high: bootstrap interval of the difference over scenes drawn jointly; None below two scenes.
        num_scenes: scenes in which both policies finished a rollout.
    """

    baseline: str
    candidate: str
    difference: float
    low: float | None
    high: float | None
    num_scenes: int

    @property
    def has_enough_scenes(self) -> bool:
        """Whether there are enough scenes to claim a difference at all, see `MIN_SCENES_FOR_CLAIM`."""
        return self.num_scenes >= MIN_SCENES_FOR_CLAIM

    @property
    def is_significant(self) -> bool:
        """Whether there are enough scenes and the interval leaves out zero."""
        if not self.has_enough_scenes or self.low is None or self.high is None:
            return False
        return not self.low <= 0 <= self.high


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
    """

    protocol: EvaluationProtocol
    scene_ids: tuple[str, ...]
    rollouts_per_scene: int
    policies: Mapping[str, Mapping[str, Statistic]]
    rollouts: tuple[ReducedRollout, ...]
    comparisons: tuple[Comparison, ...]
