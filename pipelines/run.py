"""Stage `run`: every stage in turn, for a number of rounds, resumable."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError
from pipelines.config import RunConfig, config_to_mapping, differences
from pipelines.evaluate import evaluate
from pipelines.finetune import finetune
from pipelines.ingest import ingest
from pipelines.pretrain import pretrain
from pipelines.processes import exclusive
from pipelines.reconstruct import reconstruct
from pipelines.reconstruct_nerf import reconstruct_nerf
from pipelines.rollout import rollout
from pipelines.rounds import Round, plan_rounds

logger = logging.getLogger("roadloop")


def run(config: RunConfig, *, out: Path, device: str = "auto", workers: int = 0, resume: bool = True) -> Path:
    """Ingest, reconstruct, pretrain, then rounds of rollout and finetune, then evaluate every checkpoint.

    A run that was killed continues where it stopped and ends with the results of an unbroken one.

    Args:
        config: the complete run.
        out: folder of the run; gets `clips/ scenes/ rollouts/ checkpoints/ reports/ config.yaml run.log`.
        device: `auto`, `cpu` or `cuda`.
        workers: processes for rollouts and evaluation; 0 for one per processor.
        resume: continue what is there; otherwise every stage starts anew.

    Returns:
        The report's `report.html`.

    Raises:
        InputError: the configuration has no clips, or `out` holds a run with another configuration.
    """
    if not config.clips:
        raise InputError(f"configuration {config.name!r} has no clips; add at least one under `clips:`")
    with exclusive(out), log_file(out / "run.log"):
        _rounds(config)
        _save_config(config, out / "config.yaml", resume)
        clips = [
            ingest(clip.dataset, out=out / "clips" / clip.name, options=clip.options, resume=resume)
            for clip in config.clips
        ]
        scenes = reconstruct(
            clips, out=out / "scenes", config=config.reconstruct, seed=config.seed, device=device, resume=resume
        )
        if config.evaluate.renderer == "nerf":
            reconstruct_nerf(
                clips, out=out / "scenes", config=config.nerf, seed=config.seed, device=device, resume=resume
            )
        checkpoints = _train(config, clips, scenes, out, device, workers, resume)
        report = evaluate(
            checkpoints,
            scenes,
            out=out / "reports" / "final",
            config=config.evaluate,
            simulation=config.simulation,
            seed=config.seed,
            device=device,
            workers=workers,
            resume=resume,
        )
    return report / "report.html"


def _train(
    config: RunConfig, clips: list[Path], scenes: list[Path], out: Path, device: str, workers: int, resume: bool
) -> list[Path]:
    """Base policy, then each round's rollouts and fine-tuned policy. Returns all checkpoints, oldest first."""
    rounds = _rounds(config)
    checkpoints = [
        pretrain(
            clips,
            out=out / "checkpoints" / "base",
            policy=config.policy,
            config=config.pretrain,
            seed=config.seed,
            device=device,
            resume=resume,
        )
    ]
    for each in rounds:
        tuned = out / "checkpoints" / f"round_{each.index}"
        if each.drives:
            rollout(
                checkpoints[-1],
                scenes,
                out=_rollouts(out, each.index),
                config=config.rollout,
                simulation=config.simulation,
                round_index=each.index,
                seed=config.seed + each.index,
                device=device,
                workers=workers,
                resume=resume,
                execution=config.execution,
                # What was learned from is not touched any more.
                retry_failed=not tuned.exists(),
            )
        checkpoints.append(
            finetune(
                checkpoints[-1],
                [_rollouts(out, generation) for generation in each.generations],
                out=tuned,
                config=replace(config.finetune, steps=each.steps),
                seed=config.seed + each.index,
                device=device,
                resume=resume,
            )
        )
    return checkpoints


def _rollouts(out: Path, generation: int) -> Path:
    """Where the rollouts of a round lie."""
    return out / "rollouts" / f"round_{generation}"


def _rounds(config: RunConfig) -> tuple[Round, ...]:
    """The rounds of the run. Raises `InputError` when its settings do not fit each other."""
    every_steps, keep = config.regenerate_every_steps, config.keep_rounds
    return plan_rounds(config.rounds, config.finetune.steps, config.regenerate, every_steps, keep)


def _save_config(config: RunConfig, path: Path, resume: bool) -> None:
    """Save the resolved configuration, or compare it with the one of the run that is there."""
    mapping = config_to_mapping(config)
    if resume and path.is_file():
        old = yaml.safe_load(path.read_text())
        changed = differences({**old, "execution": None}, {**mapping, "execution": None})
        if changed:
            raise InputError(
                f"{path.parent}: holds a run with another configuration ({'; '.join(changed[:5])}); "
                "choose another --out, or --no-resume to start it anew"
            )
    with atomic_file(path) as partial:
        partial.write_text(yaml.safe_dump(mapping, sort_keys=False))


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append everything logged inside the block to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
