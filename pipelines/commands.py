"""The arguments of every `roadloop` command. Field docstrings are the `--help` text."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from neural_sim.clips.options import IngestOptions
from neural_sim.errors import InputError
from neural_sim.nerf.config import NerfConfig
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.simulation.config import SimulationConfig
from pipelines.config import (
    CheckpointEvaluation,
    Device,
    EvaluationConfig,
    PretrainConfig,
    ReconstructionMethod,
    RolloutConfig,
    RunConfig,
)
from pipelines.execution import ExecutionConfig
from pipelines.training.config import TrainingConfig
from vla.config import PolicyConfig


@dataclass(frozen=True)
class Common:
    """Options shared by the commands."""

    out: Path = tyro.MISSING
    """Where the result goes."""

    config: Path | None = None
    """YAML file with defaults for the dotted fields below; flags win over it."""

    seed: int = 0
    """Seed of everything random."""

    device: Device = "auto"
    """`auto` takes CUDA when there is any."""

    workers: int = 0
    """Processes on this machine; 0 for one per processor. Results do not depend on it."""

    resume: bool = True
    """Continue what an interrupted, equal command left in `--out`; `--no-resume` makes it anew."""


@dataclass(frozen=True)
class Ingest:
    """Turn a recorded drive into a clip."""

    dataset: Positional[str]
    """Dataset layout: `argoverse2`, `comma2k19`, `kitti-odometry`, `kitti-raw`, `nerfstudio`, `nuscenes`,
    `nuscenes-scene`, `physicalai-av`, `scenarionet`, `town`."""

    out: Path
    """Folder of the clip; its name becomes the clip's."""

    options: OmitArgPrefixes[IngestOptions] = field(default_factory=IngestOptions)
    """Where the drive lies and which part of it to take; `--start`, `--duration` and `--rate` are short for the options
    with a unit in their name."""

    resume: bool = True
    """Keep a clip that is there already; `--no-resume` makes it anew."""


SHORT_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "ingest": {"--start": "--start-s", "--duration": "--duration-s", "--rate": "--rate-hz"},
    "evaluate": {"--renderer": "--evaluate.renderer"},
}
"""Options of a command that may be given without their unit or group."""


@dataclass(frozen=True)
class Reconstruct(Common):
    """Reconstruct clips as Gaussian scenes, one `.usdz` each, or as NeRFs beside them."""

    clips: tuple[Path, ...] = tyro.MISSING
    """Clip folders."""

    method: ReconstructionMethod = "splat"
    """`splat` makes the scene; `nerf` makes a NeRF of the same clip, one `.nerf.safetensors` for `evaluate.renderer
    nerf`. Put it into the folder of the scene."""

    reconstruct: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """Clip to scene."""

    nerf: NerfConfig = field(default_factory=NerfConfig)
    """Clip to NeRF."""


@dataclass(frozen=True)
class Pretrain(Common):
    """Clone the behaviour recorded in clips or shards: the base policy."""

    clips: tuple[Path, ...] = ()
    """Clip folders."""

    shards: tuple[Path, ...] = ()
    """Shard folders, for example the expert re-rendered by `rollout`; with clips or instead of them."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Architecture."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Windows and optimisation."""


@dataclass(frozen=True)
class Rollout(Common):
    """Drive guided closed-loop rollouts and write them as training shards."""

    policy: Path = tyro.MISSING
    """Checkpoint folder."""

    scenes: tuple[Path, ...] = tyro.MISSING
    """Scene files."""

    round_index: int = 1
    """Round of rollouts and fine-tuning, recorded in every example."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Rollouts, guidance and windows."""

    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    """The closed loop."""

    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    """Processes of this machine, or workers of a Ray cluster."""


@dataclass(frozen=True)
class Finetune(Common):
    """Fine-tune a checkpoint on shards with DeepSpeed."""

    policy: Path = tyro.MISSING
    """Checkpoint folder to start from."""

    shards: tuple[Path, ...] = tyro.MISSING
    """Shard folders."""

    preflight: bool = False
    """Only check machines, versions, shards, memory and a collective, on every host of the run, and train nothing."""

    evaluate_every: int = 0
    """Steps between closed-loop evaluations of saved checkpoints, a multiple of `--finetune.save-every`; 0 evaluates
    the result alone, if there are `--scenes`. The report lies at `OUT.report/`."""

    scenes: tuple[Path, ...] = ()
    """Scene files to evaluate on, as a rule those of the shards; empty for no evaluation."""

    held_out: tuple[Path, ...] = ()
    """Scene files that no shard came from; they show overfitting, and decide which checkpoint is best."""

    best_by: str = "driving_score"
    """Metric of the report that says which checkpoint is the best; that one is kept."""

    finetune: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation."""

    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Rollouts and protocol of the evaluations."""

    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    """The closed loop of the evaluations."""

    @property
    def evaluation(self) -> CheckpointEvaluation | None:
        """How checkpoints are evaluated on the way. Raises `InputError` when there are no scenes to do it on."""
        if not self.scenes and not self.held_out:
            if self.evaluate_every:
                raise InputError("--evaluate-every needs scenes to drive in; pass --scenes, --held-out or both")
            return None
        return CheckpointEvaluation(
            self.scenes, self.held_out, self.evaluate_every, self.best_by, self.evaluate, self.simulation, self.seed,
            self.workers,
        )  # fmt: skip


@dataclass(frozen=True)
class Evaluate(Common):
    """Evaluate checkpoints in closed loop and write a report."""

    policies: tuple[Path, ...] = ()
    """Checkpoint folders; the others are compared with the first."""

    scenes: tuple[Path, ...] = tyro.MISSING
    """Scene files."""

    held_out: tuple[Path, ...] = ()
    """Further scene files, with `--watch`: none of the training run's demonstrations came from them. They show
    overfitting, and decide which checkpoint is best."""

    best_by: str = "driving_score"
    """Metric that says which checkpoint is the best, with `--watch`."""

    fail_if: tuple[str, ...] = ()
    """Conditions that make the exit code 1, such as 'driving_score < 0.5' for the last checkpoint, or
    'base.offroad > 0.1' for a named policy."""

    watch: Path | None = None
    """Folder in which checkpoints appear: each is evaluated as soon as it is whole, all in one report. Ctrl-C stops."""

    watch_until: int = 0
    """Stop watching once so many checkpoints were evaluated; 0 for never."""

    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Rollouts and protocol; `--renderer` is short for `--evaluate.renderer`."""

    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    """The closed loop."""


@dataclass(frozen=True)
class Run(RunConfig):
    """Run all stages of a configuration, resumable."""

    config: Path | None = None
    """YAML file of the run; flags win over it. `demo` has one built in."""

    out: Path | None = None
    """Folder of the run; default `runs/NAME`."""

    device: Device = "auto"
    """`auto` takes CUDA when there is any."""

    workers: int = 0
    """Processes on this machine; 0 for one per processor. Results do not depend on it."""

    resume: bool = True
    """Continue a killed run; `--no-resume` starts it anew."""

    @staticmethod
    def of(run: RunConfig) -> "Run":
        """The arguments of `run` with a configuration as their defaults."""
        return Run(**{item.name: getattr(run, item.name) for item in fields(RunConfig)})

    @property
    def run(self) -> RunConfig:
        """The configuration alone."""
        return RunConfig(**{item.name: getattr(self, item.name) for item in fields(RunConfig)})


@dataclass(frozen=True)
class Compare:
    """Compare two reports made at different times; refuses what is not comparable."""

    first: Positional[Path]
    """Report folder; its last checkpoint is compared with."""

    second: Positional[Path]
    """Report folder; every checkpoint in it is compared."""

    out: Path = Path("comparison")
    """Folder for `comparison.json` and `comparison.md`."""


@dataclass(frozen=True)
class Transfer:
    """Do policies keep their order in another renderer? Puts reports of the same evaluation side by side."""

    reports: Positional[tuple[Path, ...]]
    """Report folders, equal but for `evaluate.renderer`; the first is what the others are compared with."""

    out: Path = Path("transfer")
    """Folder for `transfer.json` and `transfer.md`."""


@dataclass(frozen=True)
class Import:
    """Make a scene from bare Gaussians and the clip of the same drive."""

    gaussians: Positional[Path]
    """`.nurec` (3dgrut), or `.ply` in the 3DGS convention with a `.sky.npz` beside it (Instant NuRec)."""

    clip: Path
    """Clip folder with rig, cameras, road users and map of the drive."""

    out: Path
    """Scene file, `.usdz`; its name becomes the scene's."""

    frame: Literal["world", "rig", "camera"] = "world"
    """Where the Gaussians' coordinates start: the clip's world, its first ego pose, or its first camera at the first
    frame."""


@dataclass(frozen=True)
class Export:
    """Write the static Gaussians of a scene for other tools."""

    scene: Positional[Path]
    """Scene file."""

    out: Path
    """`.ply` (3DGS convention) or `.usda` (OpenUSD ParticleField3DGaussianSplat)."""


@dataclass(frozen=True)
class Inspect:
    """Say what a file or folder is and whether it is sound (exit code 1 if not)."""

    path: Positional[Path]
    """A clip, scene, shards, checkpoint, report or run."""

    pictures: Path | None = None
    """Folder for the pictures of a clip or scene (contact sheet, drive from above) or of shards (contact sheet of
    examples); default inside the clip or the shards, beside the scene."""

    render: Path | None = None
    """Of a scene: write this .mp4, recorded frames beside renderings and views from 2 m beside the path, and a contact
    sheet .png of the same name; held-out frames are marked."""

    clip: Path | None = None
    """With `--render`: the clip the scene was made from; default `clips/NAME` beside the folder of the scene."""

    camera: str | None = None
    """With `--render`: camera to show; default the scene's first."""


def with_defaults(kind: type[Common], run: RunConfig) -> Common:
    """The arguments of a stage command, with every section that it shares with a run taken from `run`."""
    own, shared = kind.__dataclass_fields__, RunConfig.__dataclass_fields__
    sections = [name for name in own if name in shared and own[name].type == shared[name].type]
    return kind(**{name: getattr(run, name) for name in sections})
