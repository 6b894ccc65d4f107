"""The run configuration: one tree of frozen dataclasses, read from YAML, overridden by dotted flags."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from eval.protocol import EvaluationProtocol
from neural_sim.clips.options import IngestOptions
from neural_sim.errors import InputError
from neural_sim.nerf.config import NerfConfig
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.simulation.config import SimulationConfig
from pipelines.execution import ExecutionConfig
from pipelines.guidance import GuidanceConfig
from pipelines.quality import QualityConfig
from pipelines.rounds import Regenerate
from pipelines.training.config import TrainingConfig
from vla.config import PolicyConfig

T = TypeVar("T")

Device = Literal["auto", "cpu", "cuda"]
Baseline = Literal["expert", "constant_velocity"]
RendererKind = Literal["splat", "nerf", "town"]
ReconstructionMethod = Literal["splat", "nerf"]


@dataclass(frozen=True)
class ClipConfig:
    """One drive to ingest."""

    name: str
    """Name of the clip, of its scene, and of their files."""

    dataset: str
    """Reader to use: `kitti-odometry`, `town`."""

    options: IngestOptions = field(default_factory=IngestOptions)
    """Where the drive lies and which part of it to take."""


@dataclass(frozen=True)
class PretrainConfig:
    """Behaviour cloning: the base policy."""

    window_stride_s: float = 0.1
    """Time between the starts of consecutive training windows of a clip, s."""

    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(mode="all", fit_action_statistics=True))
    """Optimisation. By default everything is trained and action statistics are fitted, for a policy from nothing."""


@dataclass(frozen=True)
class RolloutConfig:
    """Guided closed-loop rollouts as training data (RoaD section 4, Algorithm 1)."""

    rollouts_per_scene: int = 3
    """Rollouts of each scene; each has its own seed."""

    batch_size: int = 2
    """Rollouts of one scene that are stepped together. Part of what a seed means: keep it to reproduce a result."""

    window_stride_s: float = 6.4
    """Time between consecutive training windows of a rollout, s; 6.4 makes them non-overlapping, as in the paper."""

    max_distance_to_log_m: float = 4.0
    """Windows from the first step farther than this from the recorded path on are dropped, m (supplement B.1)."""

    target: Literal["plan", "realised"] = "plan"
    """What the policy learns: the chosen (blended) plan of Algorithm 1, or the path the car then really took."""

    shard_mb: float = 256.0
    """Size at which a tar is closed and the next begun, MB. A unit of work (`batch_size` rollouts) never shares one."""

    quality: QualityConfig = field(default_factory=QualityConfig)
    """Which windows are left out, and how much the others count."""

    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """How plans are chosen."""

    def __post_init__(self) -> None:
        for name in ("rollouts_per_scene", "batch_size"):
            _require_at_least(f"rollout.{name}", getattr(self, name), 1)
        for name, unit in (("window_stride_s", "s"), ("max_distance_to_log_m", "m"), ("shard_mb", "MB")):
            if not getattr(self, name) > 0:
                raise InputError(f"rollout.{name} is {getattr(self, name)} {unit}, expected more than zero")


@dataclass(frozen=True)
class EvaluationConfig:
    """Closed-loop evaluation of one or more checkpoints."""

    rollouts_per_scene: int = 3
    """Rollouts of each scene and policy; the same seeds for every policy."""

    batch_size: int = 2
    """Rollouts of one scene that are stepped together."""

    temperature: float = 0.8
    """Scale of the initial noise of the one plan drawn per step."""

    renderer: RendererKind = "splat"
    """What the policies see: `splat`, the reconstruction; `nerf`, the same clip as a NeRF, which `reconstruct --method
    nerf` put beside the scene; `town`, the true world behind a scene made from a clip of the synthetic town."""

    baselines: tuple[Baseline, ...] = ("expert", "constant_velocity")
    """Drivers without a network that every report shows for scale: the replayed recording, and keeping the speed and
    heading. They see no pictures, so they cost next to nothing."""

    videos: bool = True
    """Whether to write a video of each rollout of a checkpoint, and of the seconds before it fails."""

    baseline_videos: bool = False
    """Whether the baselines get videos too, which means rendering for them."""

    clip_before_s: float = 4.0
    """Length of the video before an incident or before the car gets too far from the log, s."""

    clip_candidates: int = 8
    """Further plans drawn at each step of such a video, to show what the policy considered; 0 for none."""

    open_loop: bool = True
    """Whether to judge plans along the recorded drive too: displacement from what the expert did next."""

    open_loop_samples: int = 6
    """K, plans drawn at each window of the open-loop metrics."""

    open_loop_stride_s: float = 0.5
    """Time between these windows, s; a multiple of the control step."""

    protocol: EvaluationProtocol = field(default_factory=EvaluationProtocol)
    """Which incidents count and where a rollout is cut."""

    def __post_init__(self) -> None:
        for name, minimum in (("rollouts_per_scene", 1), ("batch_size", 1), ("open_loop_samples", 1)):
            _require_at_least(f"evaluate.{name}", getattr(self, name), minimum)
        for name in ("temperature", "clip_before_s", "clip_candidates"):
            _require_at_least(f"evaluate.{name}", getattr(self, name), 0)
        if not self.open_loop_stride_s > 0:
            raise InputError(f"evaluate.open_loop_stride_s is {self.open_loop_stride_s}, expected a time above zero")


@dataclass(frozen=True)
class CheckpointEvaluation:
    """How the checkpoints of a training run are evaluated."""

    scenes: tuple[Path, ...]
    """Scene files, as a rule those that the demonstrations came from."""

    held_out: tuple[Path, ...] = ()
    """Scene files that no demonstration came from: they show overfitting to the others, and decide which is best."""

    every: int = 0
    """Steps between evaluations, a multiple of `save_every`; 0 for the result alone."""

    best_by: str = "driving_score"
    """Metric that says which checkpoint is the best."""

    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Rollouts and protocol."""

    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    """The closed loop."""

    seed: int = 0
    """Seed of the rollouts; the same for every checkpoint."""

    workers: int = 0
    """Processes that drive, 0 for one per processor; the processes that train wait meanwhile."""


@dataclass(frozen=True)
class RunConfig:
    """A complete run: clips, scenes, base policy, rounds of rollouts and fine-tuning, evaluation."""

    name: str = "run"
    """Name of the run; results go to `runs/NAME` unless `--out` is given."""

    seed: int = 0
    """Seed of everything random."""

    rounds: int = 1
    """Rounds of rollouts and fine-tuning, each starting from the policy before it."""

    regenerate: Regenerate = "each_round"
    """When new rollouts are driven: `each_round` by the policy before it; `once`, by the base policy, for all rounds;
    `every_steps`, whenever the policy has been trained for `regenerate_every_steps` since."""

    regenerate_every_steps: int = 0
    """Optimiser steps between two generations of rollouts; a multiple of `finetune.steps` skips rounds, a divisor of it
    splits each round into that many."""

    keep_rounds: int = 1
    """Generations of rollouts that a round learns from: so many of the newest; 0 for all. Older ones can count less by
    `finetune.weighting`."""

    clips: tuple[ClipConfig, ...] = ()
    """Drives to ingest. The demonstrations come from all of them."""

    reconstruct: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """Clip to scene."""

    nerf: NerfConfig = field(default_factory=NerfConfig)
    """Clip to NeRF, done only when `evaluate.renderer` is `nerf`."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Architecture of the policy."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Behaviour cloning of the base policy."""

    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    """The closed loop."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Guided rollouts."""

    finetune: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation on the rollouts."""

    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Closed-loop evaluation."""

    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    """Where the rollouts are driven. The results do not depend on it."""


def _require_at_least(name: str, found: float, minimum: float) -> None:
    if found < minimum:
        raise InputError(f"{name} is {found}, expected {minimum} or more")


def load_config(path: Path) -> RunConfig:
    """Read a run configuration from YAML. Raises `InputError` on an unknown field or a value of the wrong type."""
    return config_from_file(RunConfig, path, f"shipped ones: {', '.join(shipped_configs())}")


def load_shipped_config(name: str) -> RunConfig:
    """Read `configs/NAME.yaml` of the installed package."""
    with resources.as_file(resources.files("configs") / f"{name}.yaml") as path:
        return load_config(path)


def shipped_configs() -> list[str]:
    """Names of the configurations in `configs/`."""
    return sorted(item.name for item in resources.files("configs").iterdir() if item.name.endswith(".yaml"))


def config_from_file(kind: type[T], path: Path, hint: str) -> T:
    """Read a configuration dataclass from YAML.

    Raises `InputError` when there is no such file (`hint` says where to find one), on an unknown field and on a value
    of the wrong type.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file; {hint}")
    try:
        mapping = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    return config_from_mapping(kind, mapping, str(path))


def config_from_mapping(kind: type[T], mapping: Any, where: str) -> T:
    """Build a configuration dataclass from nested mappings; `where` names the source in errors."""
    _refuse_unknown_fields(kind, mapping, where, "")
    try:
        return TypeAdapter(kind).validate_python(mapping)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {place} is {first['input']!r}; {first['msg'].lower()}") from error


def config_to_mapping(config: Any) -> Any:
    """Nested plain JSON values of a configuration; inverse of `config_from_mapping`."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted fields whose values differ between two nested mappings, as `field: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]


def _refuse_unknown_fields(kind: Any, value: Any, where: str, prefix: str) -> None:
    """Walk `value` along the type `kind` and raise on the first field that `kind` does not have."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where}: {prefix or 'the file'} holds {value!r}, expected fields of {kind.__name__}")
        hints = typing.get_type_hints(kind)
        for key, inner in value.items():
            place = f"{prefix}.{key}" if prefix else str(key)
            if key not in hints:
                close = difflib.get_close_matches(str(key), hints, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"fields here: {', '.join(hints)}"
                raise InputError(f"{where}: unknown field {place!r}; {hint}")
            _refuse_unknown_fields(hints[key], inner, where, place)
    elif typing.get_origin(kind) is tuple and isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_unknown_fields(typing.get_args(kind)[0], inner, where, f"{prefix}[{index}]")
    elif typing.get_origin(kind) in (typing.Union, types.UnionType) and value is not None:
        options = [option for option in typing.get_args(kind) if dataclasses.is_dataclass(option)]
        if len(options) == 1 and isinstance(value, dict):
            _refuse_unknown_fields(options[0], value, where, prefix)
