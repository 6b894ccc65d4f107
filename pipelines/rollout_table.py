"""The table at the end of `rollout`: per scene how far, how guided, what went wrong, and what was left out why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RolloutSummary:
    """How one rollout went.

    Attributes:
        scene_id, rollout_index: which rollout.
        driven_m, driven_s: distance (m) and time (s) to its end, its first incident or where it got too far away.
        steps: decisions.
        recovered_share: share of executed plans that were blended towards the expert.
        chosen_distance_m: mean d^g of the chosen candidates, m; None where none were sampled.
        incident: what ended it early: name of the incident, "far from log", or empty.
        incident_at_m: (x, y) of the rig then, world frame, m; None without incident.
        windows: training windows that begin in it; examples and dropped windows add up to them.
        examples: windows that were kept.
        weight: of its examples in training.
        dropped: windows left out, by reason.
    """

    scene_id: str
    rollout_index: int
    driven_m: float
    driven_s: float
    steps: int
    recovered_share: float
    chosen_distance_m: float | None
    incident: str
    incident_at_m: tuple[float, float] | None
    windows: int
    examples: int
    weight: float
    dropped: dict[str, int]


@dataclass(frozen=True)
class RolloutFailure:
    """Rollouts of a scene that were not driven to their end.

    Attributes:
        scene_id: which scene; the name of its file where that is not readable.
        rollout_indices: which rollouts of it.
        reason: one line for a person.
    """

    scene_id: str
    rollout_indices: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class JobSummary:
    """What a job of rollouts did; `summary` of the index of its shards."""

    rollouts: tuple[RolloutSummary, ...]
    failures: tuple[RolloutFailure, ...] = ()

    @property
    def num_weighted(self) -> int:
        """Examples that count less than others."""
        return sum(row.examples for row in self.rollouts if row.weight < 1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "rollouts": [vars(row) for row in self.rollouts],
            "failures": [vars(failure) for failure in self.failures],
            "weighted_examples": self.num_weighted,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "JobSummary":
        """Inverse of `to_json`. Raises `KeyError` or `TypeError` for what is no summary of rollouts."""
        failures = [{**each, "rollout_indices": tuple(each["rollout_indices"])} for each in value["failures"]]
        return JobSummary(
            tuple(RolloutSummary(**row) for row in value["rollouts"]),
            tuple(RolloutFailure(**failure) for failure in failures),
        )

    def table(self) -> str:
        """Text with a line for each scene, one for all, and lines below them for what was left out or failed."""
        scenes: dict[str, list[RolloutSummary]] = {}
        for row in self.rollouts:
            scenes.setdefault(row.scene_id, []).append(row)
        width = max([len("all scenes"), *(len(name) for name in scenes)])
        lines = [
            f"{'scene':<{width}} {'rollouts':>8} {'driven':>10} {'recovered':>9} {'mean d^g':>9} {'examples':>8}  "
            "incidents"
        ]
        for name, rows in scenes.items():
            lines += _scene_lines(name, rows, width)
        if len(scenes) > 1:
            lines += _scene_lines("all scenes", self.rollouts, width)
        lines += [
            f"{failure.scene_id:<{width}} FAILED, rollouts {_numbers(failure.rollout_indices)}: {failure.reason}"
            for failure in self.failures
        ]
        return "\n".join(lines)


def _scene_lines(name: str, rows: Sequence[RolloutSummary], width: int) -> list[str]:
    steps = sum(row.steps for row in rows)
    recovered = sum(row.recovered_share * row.steps for row in rows) / max(steps, 1)
    guided = [row for row in rows if row.chosen_distance_m is not None]
    guided_steps = sum(row.steps for row in guided)
    distance = "-"
    if guided_steps:
        distance = f"{sum((row.chosen_distance_m or 0.0) * row.steps for row in guided) / guided_steps:.2f} m"
    incidents = Counter(row.incident for row in rows if row.incident)
    dropped: Counter[str] = Counter()
    for row in rows:
        dropped.update(row.dropped)
    lines = [
        f"{name:<{width}} {len(rows):>8} {sum(row.driven_m for row in rows):>8.1f} m {recovered:>9.0%} {distance:>9} "
        f"{sum(row.examples for row in rows):>8}  {_counts(incidents) or '-'}"
    ]
    lines += [f"{'':<{width}} dropped {count} windows: {reason}" for reason, count in sorted(dropped.items())]
    lighter = [row for row in rows if row.weight < 1 and row.examples]
    if lighter:
        count = sum(row.examples for row in lighter)
        weights = f"{min(row.weight for row in lighter):.2f} to {max(row.weight for row in lighter):.2f}"
        lines.append(f"{'':<{width}} {count} examples count less, {weights}: their rollout failed early")
    return lines


def _counts(incidents: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(incidents.items()))


def _numbers(indices: Sequence[int]) -> str:
    return ", ".join(str(index) for index in indices)
