"""What a study is made of: streets, world, policy and training, the same for every arm."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from neural_sim.artifacts import atomic_file
from neural_sim.clips.options import IngestOptions
from neural_sim.errors import InputError
from neural_sim.nerf.config import NerfConfig
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.simulation.config import SimulationConfig
from pipelines.config import (
    EvaluationConfig,
    PretrainConfig,
    RendererKind,
    RolloutConfig,
    config_from_file,
    config_from_mapping,
    config_to_mapping,
    differences,
)
from pipelines.training.config import TrainingConfig
from vla.config import PolicyConfig

World = RendererKind


@dataclass(frozen=True)
class StreetsConfig:
    """Some streets of the town, one clip each."""

    first_seed: int = 100
    """Seed of the first street; the others follow."""

    count: int = 24
    """Number of streets."""

    def __post_init__(self) -> None:
        if self.count < 0 or self.first_seed < 0:
            raise InputError(
                f"streets: {self.count} from seed {self.first_seed}, expected no negative number and no negative seed"
            )

    @property
    def seeds(self) -> range:
        """Seeds of the streets."""
        return range(self.first_seed, self.first_seed + self.count)


@dataclass(frozen=True)
class StudyConfig:
    """One study: what every arm shares, and the settings that arms change."""

    name: str = "main"
    """Name of the study; it lies in `runs/study_NAME` unless `--out` is given."""

    seed: int = 0
    """Seed of everything random but the streets."""

    training: StreetsConfig = field(default_factory=StreetsConfig)
    """Streets to reconstruct and drive in for fine-tuning."""

    recordings: StreetsConfig = field(default_factory=lambda: StreetsConfig(first_seed=1000, count=48))
    """Streets with drives that the base policy learns from beside those of `training`; they are never reconstructed."""

    recordings_clip: IngestOptions = field(default_factory=lambda: IngestOptions(duration_s=40.0, scale=0.6))
    """Length, size and cameras of these drives."""

    held_out: StreetsConfig = field(default_factory=lambda: StreetsConfig(first_seed=200))
    """Streets to drive in; no policy ever sees them before."""

    clip: IngestOptions = field(default_factory=lambda: IngestOptions(duration_s=20.0))
    """Length, size and cameras of the clips of `training` and `held_out`; the seed is the street's."""

    reconstruct: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """Clip to scene."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Architecture of every arm's policy."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Behaviour cloning of the base policy."""

    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    """The closed loop."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Guided rollouts; arms change single fields."""

    finetune: TrainingConfig = field(default_factory=TrainingConfig)
    """Fine-tuning; arms change single fields."""

    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Closed-loop evaluation of every arm."""

    nerf: NerfConfig = field(default_factory=NerfConfig)
    """Clip to NeRF, done only where `worlds` has `nerf`."""

    nerf_streets: int = 6
    """Number of streets of `held_out`, from the first, that become NeRFs."""

    worlds: tuple[World, ...] = ("splat", "town")
    """Where the arms are evaluated: `splat`, the reconstruction; `nerf`, some streets as NeRFs; `town`, the true
    world behind them."""

    def __post_init__(self) -> None:
        learned = {*self.training.seeds, *self.recordings.seeds}
        if len(learned) < self.training.count + self.recordings.count or learned & set(self.held_out.seeds):
            raise InputError(
                f"study {self.name!r}: training, recordings and held_out are streets {self.training.seeds}, "
                f"{self.recordings.seeds} and {self.held_out.seeds}, expected no street in two of them"
            )
        if not 1 <= self.nerf_streets <= max(self.held_out.count, 1) and "nerf" in self.worlds:
            raise InputError(
                f"study {self.name!r}: nerf_streets is {self.nerf_streets}, expected 1 to {self.held_out.count}, the "
                "number of streets in held_out"
            )
        if not (self.worlds and self.training.count and self.held_out.count):
            raise InputError(
                f"study {self.name!r}: {self.training.count} streets in training, {self.held_out.count} in held_out; "
                f"expected one or more in each; worlds is {list(self.worlds)}, expected some of {get_args(World)}"
            )

    def driven(self, world: World) -> list[int]:
        """Seeds of the held-out streets that are driven in a world."""
        return list(self.held_out.seeds)[: self.nerf_streets if world == "nerf" else None]

    def changed(self, changes: dict[str, Any]) -> "StudyConfig":
        """This study with some dotted fields replaced, for example `{"rollout.guidance.num_samples": 16}`."""
        mapping = config_to_mapping(self)
        for dotted, value in changes.items():
            *sections, name = dotted.split(".")
            inner = mapping
            for section in sections:
                inner = inner[section]
            inner[name] = value
        return config_from_mapping(StudyConfig, mapping, ", ".join(changes) or "study")

    def street(self, seed: int) -> IngestOptions:
        """How the clip of one street is made."""
        return replace(self.recordings_clip if seed in self.recordings.seeds else self.clip, seed=seed)


def load_study(path: Path) -> StudyConfig:
    """Read a study from YAML. Raises `InputError` on an unknown field or a value of the wrong type."""
    return config_from_file(StudyConfig, path, "those of studies lie in configs/study/")


def claim_folder(config: StudyConfig, out: Path) -> None:
    """Save the resolved study in its folder, or compare it with the one that is there.

    Raises `InputError` naming the fields that differ; in which worlds it is evaluated may differ.
    """
    path, mapping = out / "study.yaml", config_to_mapping(config)
    if path.is_file():
        old = {**yaml.safe_load(path.read_text()), "worlds": mapping["worlds"]}
        changed = differences(old, mapping)
        if changed:
            raise InputError(
                f"{out}: holds a study with another configuration ({'; '.join(changed[:5])}); choose another --out"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: not empty and no study (no {path.name} in it); choose another --out")
    with atomic_file(path) as partial:
        partial.write_text(yaml.safe_dump(mapping, sort_keys=False))
