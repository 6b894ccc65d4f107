"""Stage `run`: every stage in turn, for a number of rounds, resumable."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
from pipelines.rollout import rollout

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
    with exclusive(out), _log_file(out / "run.log"):
        _save_config(config, out / "config.yaml", resume)
        clips = [
            ingest(clip.dataset, out=out / "clips" / clip.name, options=clip.options, resume=resume)
            for clip in config.clips
        ]
        scenes = reconstruct(
            clips, out=out / "scenes", config=config.reconstruct, seed=config.seed, device=device, resume=resume
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
    for index in range(1, config.rounds + 1):
        shards = rollout(
            checkpoints[-1],
            scenes,
            out=out / "rollouts" / f"round_{index}",
            config=config.rollout,
            simulation=config.simulation,
            round_index=index,
            seed=config.seed + index,
            device=device,
            workers=workers,
            resume=resume,
        )
        checkpoints.append(
            finetune(
                checkpoints[-1],
                [shards],
                out=out / "checkpoints" / f"round_{index}",
                config=config.finetune,
                seed=config.seed + index,
                device=device,
                resume=resume,
            )
        )
    return checkpoints


def _save_config(config: RunConfig, path: Path, resume: bool) -> None:
    """Save the resolved configuration, or compare it with the one of the run that is there."""
    mapping = config_to_mapping(config)
    if resume and path.is_file():
        changed = differences(yaml.safe_load(path.read_text()), mapping)
        if changed:
            raise InputError(
                f"{path.parent}: holds a run with another configuration ({'; '.join(changed[:5])}); "
                "choose another --out, or --no-resume to start it anew"
            )
    with atomic_file(path) as partial:
        partial.write_text(yaml.safe_dump(mapping, sort_keys=False))


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
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
