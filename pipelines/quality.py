"""Which windows of a rollout are worth learning from, and how much they count.

The limit on the distance to the log is the paper's (supplement B.1). Instant crashes, duration weighting and diversity
over ways to fail are those of "Beyond Behavior Cloning" (quality filtering). Nothing is dropped silently: every window
that is left out is counted under its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from neural_sim.errors import InputError
from pipelines.outcome import FAR_FROM_LOG, Outcome

FarFromLog = Literal["cut", "discard"]
COPY_OF_A_FAILURE = "copy of a failure that is kept already"


@dataclass(frozen=True)
class QualityConfig:
    """Filters on rollouts before they become training data."""

    far_from_log: FarFromLog = "cut"
    """What a rollout loses that gets farther from the recorded path than `max_distance_to_log_m`: `cut`, its windows
    from that step on; `discard`, all of them."""

    instant_crash_s: float = 0.5
    """A rollout with an incident (off-road or collision) this soon after the hand-over is dropped, s; 0 keeps it."""

    drop_after_incident: bool = False
    """Whether windows that begin after the first incident are dropped."""

    full_weight_s: float = 0.0
    """Examples of a rollout that failed after t seconds get weight t / `full_weight_s` in training, at most 1; rollouts
    that did not fail keep weight 1; 0 gives all the same weight."""

    copies_of_failure: int = 0
    """How many rollouts of one scene that fail alike (same incident, nearly the same place) are kept; 0 keeps all."""

    same_failure_m: float = 10.0
    """Failures of one kind within this distance of each other are alike, m."""

    def __post_init__(self) -> None:
        if self.far_from_log not in get_args(FarFromLog):
            raise InputError(f"rollout.quality.far_from_log is {self.far_from_log!r}, expected cut or discard")
        for name in ("instant_crash_s", "full_weight_s", "copies_of_failure", "same_failure_m"):
            if getattr(self, name) < 0:
                raise InputError(f"rollout.quality.{name} is {getattr(self, name)}, expected zero or more")


def reason_to_drop(t_us: int, outcome: Outcome, config: QualityConfig, max_distance_m: float) -> str | None:
    """Why the window that begins at `t_us` is left out, one line for the summary; None to keep it."""
    if outcome.failure not in ("", FAR_FROM_LOG):
        if outcome.driven_s <= config.instant_crash_s and config.instant_crash_s > 0:
            return f"{outcome.failure} within {config.instant_crash_s:g} s of the hand-over"
        if config.drop_after_incident and outcome.failed_us is not None and t_us > outcome.failed_us:
            return "after the first incident"
    if outcome.too_far_us is not None:
        if config.far_from_log == "discard":
            return f"rollout that got more than {max_distance_m:g} m from the log"
        if t_us >= outcome.too_far_us:
            return f"more than {max_distance_m:g} m from the log"
    return None


def rollout_weight(outcome: Outcome, config: QualityConfig) -> float:
    """Weight in training of every example of a rollout, 0 to 1: a long drive before a failure tells more."""
    if not outcome.failure or not config.full_weight_s:
        return 1.0
    return min(1.0, outcome.driven_s / config.full_weight_s)


@dataclass(frozen=True)
class Failure:
    """How and where one rollout of a scene failed.

    Attributes:
        rollout_index: which rollout.
        kind: name of the incident, or "far from log"; empty when it did not fail.
        at_m: (x, y), world frame, m; None when it did not fail.
    """

    rollout_index: int
    kind: str
    at_m: tuple[float, float] | None


def copies_of_failures(failures: Sequence[Failure], config: QualityConfig) -> set[int]:
    """Indices of the rollouts of one scene that fail like `copies_of_failure` others with lower indices do."""
    if not config.copies_of_failure:
        return set()
    alike: list[list[Failure]] = []
    copies: set[int] = set()
    for failure in sorted(failures, key=lambda failure: failure.rollout_index):
        if failure.at_m is None:
            continue
        group = next((group for group in alike if _is_alike(failure, group[0], config.same_failure_m)), None)
        if group is None:
            alike.append([failure])
        elif len(group) < config.copies_of_failure:
            group.append(failure)
        else:
            copies.add(failure.rollout_index)
    return copies


def _is_alike(one: Failure, other: Failure, within_m: float) -> bool:
    if one.kind != other.kind or one.at_m is None or other.at_m is None:
        return False
    return bool(np.hypot(*np.subtract(one.at_m, other.at_m)) <= within_m)
