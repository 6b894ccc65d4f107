"""The arms of the study: what each policy was fine-tuned on (RoaD tables 3 and 4, and beyond)."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neural_sim.errors import InputError

BASE = "base"
CLIPS = "clips"


@dataclass(frozen=True)
class Arm:
    """One policy of the study.

    Attributes:
        name: of its checkpoint, its reports and its row.
        label: as the tables say it.
        group: table it belongs to.
        data: name of what it is fine-tuned on: "clips" for the recorded drives, otherwise of rollouts, which arms with
            the same name and the same driver share; empty for the base policy.
        driver: the arm whose policy drives in the rollouts and is fine-tuned.
        rollout_changes: fields of `rollout` that make this data, dotted.
        steps_scale: length of the fine-tuning relative to the study's.
    """

    name: str
    label: str
    group: str
    data: str = ""
    driver: str = BASE
    rollout_changes: Mapping[str, Any] = field(default_factory=dict)
    steps_scale: float = 1.0


MAIN, ABLATION, ALTERNATIVE = "main", "ablation", "alternative"

ARMS: tuple[Arm, ...] = (
    Arm(BASE, "Base policy (behaviour cloning)", MAIN),
    Arm("continued_bc", "Continued behaviour cloning", MAIN, CLIPS),
    Arm("expert", "Re-rendered expert", MAIN, "expert", rollout_changes={"guidance.strategy": "expert"}),
    Arm("road", "RoaD", MAIN, "road"),
    Arm("no_guidance", "RoaD (no expert guidance)", ABLATION, "none", rollout_changes={"guidance.strategy": "none"}),
    Arm(
        "no_recovery", "RoaD (no recovery)", ABLATION, "no_recovery",
        rollout_changes={"guidance.strategy": "road_no_recovery"},
    ),
    Arm("rollouts_1", "RoaD (1 rollout)", ABLATION, "rollouts_1", rollout_changes={"rollouts_per_scene": 1}),
    Arm("rollouts_9", "RoaD (9 rollouts)", ABLATION, "rollouts_9", rollout_changes={"rollouts_per_scene": 9}),
    Arm("k_16", "RoaD (K = 16)", ABLATION, "k_16", rollout_changes={"guidance.num_samples": 16}),
    Arm("k_32", "RoaD (K = 32)", ABLATION, "k_32", rollout_changes={"guidance.num_samples": 32}),
    Arm("k_128", "RoaD (K = 128)", ABLATION, "k_128", rollout_changes={"guidance.num_samples": 128}),
    Arm("twice", "RoaD (fine-tuned twice)", ABLATION, "road", driver="road"),
    Arm("short", "RoaD (a quarter of the steps)", ABLATION, "road", steps_scale=0.25),
    Arm("long", "RoaD (2.4 times the steps)", ABLATION, "road", steps_scale=2.4),
    Arm("realised", "RoaD, learning the realised future", ALTERNATIVE, "realised",
        rollout_changes={"target": "realised"}),
    Arm("dagger", "DAgger with a privileged planner", ALTERNATIVE, "dagger",
        rollout_changes={"guidance.strategy": "dagger"}),
    Arm("perturb", "Perturbed expert", ALTERNATIVE, "perturb", rollout_changes={"guidance.strategy": "perturb"}),
)  # fmt: skip

MAIN_ARMS = tuple(arm.name for arm in ARMS if arm.group == MAIN)


def find_arm(name: str) -> Arm:
    """The arm of this name. Raises `InputError` when there is none."""
    for arm in ARMS:
        if arm.name == name:
            return arm
    names = [arm.name for arm in ARMS]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"
    raise InputError(f"no arm {name!r} in the study; {hint}")


def with_drivers(names: Sequence[str]) -> list[Arm]:
    """These arms and those whose policies they start from, each once, in an order in which they can be made."""
    ordered: list[Arm] = []
    for name in names:
        for arm in _line_of(find_arm(name)):
            if arm not in ordered:
                ordered.append(arm)
    return ordered


def _line_of(arm: Arm) -> list[Arm]:
    """The arm and the arms before it, first the base."""
    return [arm] if arm.name == BASE else [*_line_of(find_arm(arm.driver)), arm]
