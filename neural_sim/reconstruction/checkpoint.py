"""Resumable state of an optimisation: one safetensors file."""

import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from neural_sim.artifacts import atomic_file
from neural_sim.reconstruction.model import SceneModel

logger = logging.getLogger("roadloop")

FILE_NAME = "reconstruction.safetensors"
FORMAT_VERSION = "2"


def save_checkpoint(work_dir: Path, model: SceneModel, fingerprint: str, iteration: int, spent_s: float) -> None:
    """Write the state after `iteration` steps and `spent_s` seconds, atomically, over the previous one."""
    state = {name: tensor.cpu() for name, tensor in model.state().items()}
    metadata = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "iteration": str(iteration),
        "spent_s": f"{spent_s:.3f}",
    }
    with atomic_file(work_dir / FILE_NAME) as partial:
        save_file(state, partial, metadata)


def load_checkpoint(work_dir: Path | None, model: SceneModel, fingerprint: str) -> tuple[int, float]:
    """Restore `model` from `work_dir`; returns iterations done and time they took, s; zeros when there is none.

    A checkpoint of other settings, another clip, seed or version, or one that does not read, is ignored with a
    warning.
    """
    path = None if work_dir is None else work_dir / FILE_NAME
    if path is None or not path.is_file():
        return 0, 0.0
    try:
        with safe_open(path, "pt", device=str(model.device)) as stored:
            metadata = stored.metadata() or {}
            wanted = (FORMAT_VERSION, fingerprint)
            if (metadata.get("format_version"), metadata.get("fingerprint")) != wanted:
                logger.warning("%s belongs to other settings, images or another seed; starting over", path)
                return 0, 0.0
            model.load({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118 - not a dict
            iteration, spent_s = int(metadata["iteration"]), float(metadata["spent_s"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        logger.warning("%s does not read (%s); starting over", path, error)
        return 0, 0.0
    logger.info("%s: continuing after iteration %d", path, iteration)
    return iteration, spent_s
