"""Stage `ingest`: a recorded drive becomes a clip."""

import logging
from pathlib import Path

from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest as ingest_dataset
from pipelines.config import config_to_mapping
from pipelines.processes import exclusive
from pipelines.provenance import begin_artifact, nothing_left_on_failure

logger = logging.getLogger("roadloop")


def ingest(dataset: str, *, out: Path, options: IngestOptions, resume: bool = True) -> Path:
    """Read a drive from `dataset` and write it as a clip folder.

    Args:
        dataset: name of a reader in `neural_sim.clips.registry`.
        out: folder of the clip; its name becomes the clip's.
        options: where the drive lies and which part of it to take.
        resume: keep a clip that is there already, made with the same settings.

    Returns:
        `out`.

    Raises:
        InputError: the data is missing or unsound, or `out` holds something else. Nothing is left at `out` then.
    """
    settings = {"dataset": dataset, "options": config_to_mapping(options)}
    with exclusive(out), nothing_left_on_failure(out):
        if begin_artifact(out, "ingest", settings, resume=resume):
            return out
        clip = ingest_dataset(dataset, options, out)
    logger.info(
        "ingest: %s, %.1f s, %.1f m, cameras %s -> %s",
        clip.clip_id, clip.duration_s, clip.ego.path_length_m, ", ".join(clip.cameras) or "none", out,
    )  # fmt: skip
    return out
