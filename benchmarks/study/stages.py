"""The stages of an arm, from streets to reports; each is finished once and never repeated."""

from dataclasses import dataclass, replace
from pathlib import Path

from neural_sim.clips.options import IngestOptions
from neural_sim.reconstruction.config import ReconstructionConfig
from pipelines.evaluate import evaluate
from pipelines.finetune import finetune
from pipelines.ingest import ingest
from pipelines.pretrain import pretrain, write_clip_shards
from pipelines.processes import exclusive, run_units
from pipelines.provenance import begin_artifact
from pipelines.reconstruct import reconstruct
from pipelines.reconstruct_nerf import reconstruct_nerf
from pipelines.rollout import rollout
from pipelines.shards.index import INDEX_NAME

from .arms import ARMS, BASE, CLIPS, Arm, find_arm
from .config import StudyConfig, World
from .timings import Timings


@dataclass(frozen=True)
class StreetUnit:
    """One street: ingested, and where `scenes` is given reconstructed there, by one worker."""

    clip: Path
    scenes: Path | None
    options: IngestOptions
    config: ReconstructionConfig
    seed: int
    device: str


def make_street(unit: StreetUnit) -> None:
    """Make the clip and the scene of one street. Runs in a worker process."""
    ingest("town", out=unit.clip, options=unit.options)
    if unit.scenes is not None:
        reconstruct([unit.clip], out=unit.scenes, config=unit.config, seed=unit.seed, device=unit.device)


@dataclass(frozen=True)
class Study:
    """A study in its folder.

    Attributes:
        config: what every arm shares.
        out: folder; gets `data/ checkpoints/ reports/WORLD/ARM`, `timings.jsonl` and the results.
        streets: folder of `clips/` and `scenes/`, which several studies may share.
        device: `auto`, `cpu` or `cuda`.
        jobs: worker processes.
    """

    config: StudyConfig
    out: Path
    streets: Path
    device: str = "auto"
    jobs: int = 2

    @property
    def timings(self) -> Timings:
        """How long everything took."""
        return Timings(self.out / "timings.jsonl")

    def clip(self, seed: int) -> Path:
        """Clip of a street."""
        return self.streets / "clips" / f"town_{seed}"

    def scene(self, seed: int) -> Path:
        """Scene of a street."""
        return self.streets / "scenes" / f"town_{seed}" / f"town_{seed}.usdz"

    def checkpoint(self, arm: str) -> Path:
        """Policy of an arm."""
        return self.out / "checkpoints" / arm

    def data(self, arm: Arm) -> Path:
        """Training examples of an arm."""
        name = arm.data if arm.data == CLIPS else f"{arm.data}_by_{arm.driver}"
        return self.out / "data" / name

    def report(self, arm: str, world: World) -> Path:
        """Report of an arm in a world."""
        return self.out / "reports" / world / arm

    def make_streets(self) -> None:
        """Ingest and reconstruct every street, as many at a time as there are jobs."""
        reconstructed = (*self.config.training.seeds, *self.config.held_out.seeds)
        units = [
            StreetUnit(
                self.clip(seed), self.scene(seed).parent if seed in reconstructed else None, self.config.street(seed),
                self.config.reconstruct, self.config.seed, self.device,
            )
            for seed in (*self.config.recordings.seeds, *reconstructed)
            if not (self.clip(seed).exists() and (seed not in reconstructed or self.scene(seed).exists()))
        ]  # fmt: skip
        with self.timings.measure("streets"):
            for _ in run_units(make_street, units, self.jobs, "streets"):
                pass

    def make_nerfs(self) -> None:
        """Make the NeRFs of the streets that are evaluated as such, if any are."""
        if "nerf" in self.config.worlds:
            with self.timings.measure("nerfs"):
                for seed in self.config.driven("nerf"):
                    reconstruct_nerf(
                        [self.clip(seed)], out=self.scene(seed).parent, config=self.config.nerf, seed=self.config.seed,
                        device=self.device,
                    )  # fmt: skip

    def make_policy(self, arm: Arm) -> Path:
        """Train the policy of an arm, with all that it needs except the streets and the arm it starts from."""
        if arm.name == BASE:
            return self._make_base()
        shards, config = self._make_data(arm), self.config.finetune
        config = replace(config, steps=max(round(config.steps * arm.steps_scale), 1))
        with self.timings.measure(f"finetune {arm.name}"):
            return finetune(
                self.checkpoint(arm.driver), [shards], out=self.checkpoint(arm.name), config=config,
                seed=self.config.seed + 1, device=self.device,
            )  # fmt: skip

    def evaluate_arm(self, arm: Arm, world: World) -> Path:
        """Let the policy of an arm drive in the held-out streets of a world."""
        config = replace(self.config.evaluate, renderer=world)
        if arm.name != BASE:
            config = replace(config, baselines=())
        with self.timings.measure(f"evaluate {arm.name} {world}"):
            return evaluate(
                [self.checkpoint(arm.name)], [self.scene(seed) for seed in self.config.driven(world)],
                out=self.report(arm.name, world), config=config, simulation=self.config.simulation,
                seed=self.config.seed, device=self.device, workers=self.jobs,
            )  # fmt: skip

    def seconds(self, arm: Arm, world: World) -> float:
        """Time that the arm itself took in all, data, training and evaluation in `world`, without what it starts from.

        Data that several arms share counts for each of them.
        """
        wanted = {f"data {self.data(arm).name}", f"finetune {arm.name}", f"evaluate {arm.name} {world}"}
        return self.timings.seconds(wanted)

    def _make_base(self) -> Path:
        shards = self._make_data(find_arm("continued_bc"))
        with self.timings.measure(f"finetune {BASE}"):
            return pretrain(
                shards=[shards], out=self.checkpoint(BASE), policy=self.config.policy, config=self.config.pretrain,
                seed=self.config.seed, device=self.device,
            )  # fmt: skip

    def _make_data(self, arm: Arm) -> Path:
        out = self.data(arm)
        with self.timings.measure(f"data {out.name}"):
            if arm.data == CLIPS:
                return self._make_clip_shards(out)
            config = self.config.changed({f"rollout.{name}": value for name, value in arm.rollout_changes.items()})
            return rollout(
                self.checkpoint(arm.driver), [self.scene(seed) for seed in self.config.training.seeds], out=out,
                config=config.rollout, simulation=self.config.simulation,
                round_index=1 if arm.driver == BASE else 2, seed=self.config.seed + 1, device=self.device,
                workers=self.jobs, retry_failed=not self._is_learned(out),
            )  # fmt: skip

    def _is_learned(self, data: Path) -> bool:
        """Whether some arm has learned from this data, which then must not change any more."""
        return any(self.checkpoint(arm.name).exists() for arm in ARMS if arm.data and self.data(arm) == data)

    def _make_clip_shards(self, out: Path) -> Path:
        clips = [self.clip(seed) for seed in (*self.config.training.seeds, *self.config.recordings.seeds)]
        stride_s = self.config.pretrain.window_stride_s
        settings = {"clips": [clip.name for clip in clips], "policy": self.config.policy.to_json(), "stride": stride_s}
        with exclusive(out):
            if not begin_artifact(out, "clip shards", settings, resume=True, complete=out / INDEX_NAME):
                write_clip_shards(clips, self.config.policy, self.config.pretrain, out)
        return out
