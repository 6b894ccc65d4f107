"""Stage `inspect`: what is this file or folder, and is it sound?"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval.describe import describe_report
from neural_sim.clips.describe import describe_clip
from neural_sim.errors import InputError
from neural_sim.nerf.describe import describe_nerf
from neural_sim.nerf.storage import SUFFIX as NERF_SUFFIX
from neural_sim.scenes.describe import describe_scene
from pipelines.shards.describe import describe_shards
from vla.checkpoint import describe_checkpoint

Describe = Callable[[Path], tuple[list[str], list[str]]]


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        kind: "clip", "scene", "NeRF", "shards", "checkpoint", "report" or "run".
        facts: lines for a person.
        problems: what is unsound; empty when all is well.
    """

    kind: str
    facts: list[str]
    problems: list[str]


_MARKERS: tuple[tuple[str, str, Describe], ...] = (
    ("clip", "clip.json", describe_clip),
    ("shards", "index.json", describe_shards),
    ("checkpoint", "roadloop_policy.json", describe_checkpoint),
    ("report", "summary.json", describe_report),
)

_NEXT_STAGES = {
    "shards": "finetune and pretrain",
    "checkpoint": "rollout, finetune and evaluate, in scenes with these cameras",
    "report": "compare with another report of the same scenes",
}


def inspect(path: Path) -> Inspection:
    """Name and check an artefact. Raises `InputError` when `path` is none of ours."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file() and path.suffix == ".usdz":
        return Inspection("scene", *describe_scene(path))
    if path.is_file() and path.name.endswith(NERF_SUFFIX):
        return Inspection("NeRF", *describe_nerf(path))
    for kind, marker, describe in _MARKERS:
        if (path / marker).is_file():
            facts, problems = describe(path)
            return Inspection(kind, [*facts, *_stage_facts(kind, problems)], problems)
    if (path / "config.yaml").is_file() and (path / "run.log").is_file():
        return _inspect_run(path)
    raise InputError(
        f"{path}: not a roadloop artefact; expected a scene (.usdz), a NeRF ({NERF_SUFFIX}) or a folder with one of "
        f"{', '.join(marker for _, marker, _ in _MARKERS)}"
    )


def _stage_facts(kind: str, problems: list[str]) -> list[str]:
    """What can be done next with a folder of this kind; clips and scenes say so themselves."""
    if kind not in _NEXT_STAGES:
        return []
    return [f"for {_NEXT_STAGES[kind]}: {'mend the problems first' if problems else 'ready'}"]


def _inspect_run(path: Path) -> Inspection:
    """Inspect every artefact of a run."""
    artifacts = [
        *sorted((path / "clips").glob("*/")),
        *sorted((path / "scenes").glob("*.usdz")),
        *sorted((path / "scenes").glob(f"*{NERF_SUFFIX}")),
        *sorted((path / "rollouts").glob("*/")),
        *sorted(marker.parent for marker in (path / "checkpoints").rglob("roadloop_policy.json")),
        *sorted((path / "reports").glob("*/")),
    ]
    facts: list[str] = []
    problems: list[str] = []
    for artifact in (each for each in artifacts if not each.name.startswith(".")):
        name = artifact.relative_to(path)
        try:
            found = inspect(artifact)
        except (InputError, json.JSONDecodeError) as error:
            problems.append(f"{name}: {error}")
            continue
        facts.append(f"{name}: {found.kind}, {'sound' if not found.problems else 'unsound'}; {found.facts[0]}")
        problems.extend(f"{name}: {problem}" for problem in found.problems)
    return Inspection("run", facts or ["empty"], problems)
