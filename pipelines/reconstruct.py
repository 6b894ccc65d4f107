"""Stage `reconstruct`: clips become scenes."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from neural_sim.clips.check import require_duration
from neural_sim.clips.storage import read_clip
from neural_sim.errors import InputError
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.reconstruct import reconstruct as reconstruct_clip
from neural_sim.scenes.storage import write_scene
from pipelines.config import config_to_mapping
from pipelines.device import banner
from pipelines.processes import default_workers, exclusive
from pipelines.provenance import begin_artifact, nothing_left_on_failure

logger = logging.getLogger("roadloop")


def reconstruct(
    clips: Sequence[Path],
    *,
    out: Path,
    config: ReconstructionConfig,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
) -> list[Path]:
    """Reconstruct every clip as a scene `out/<clip name>.usdz`.

    One clip is optimised at a time, on all cores or on the device. An interrupted clip continues from its last
    checkpoint in `out`.

    Returns:
        Scene files, in the order of the clips.

    Raises:
        InputError: a clip is unsound or too short to drive in, or a scene was made with other settings.
    """
    refuse_equal_names(clips)
    for folder in clips:
        require_duration(read_clip(folder))
    resolved = banner("reconstruct", device, seed, default_workers())
    with exclusive(out):
        return [_reconstruct_one(folder, out, config, seed, resolved, resume) for folder in clips]


def _reconstruct_one(
    folder: Path, out: Path, config: ReconstructionConfig, seed: int, device: str, resume: bool
) -> Path:
    scene_path = out / f"{folder.name}.usdz"
    settings = {"clip": folder.name, "seed": seed, "reconstruct": config_to_mapping(config)}
    if begin_artifact(scene_path, "reconstruct", settings, resume=resume):
        return scene_path
    work_dir = out / f".{folder.name}.work"
    with nothing_left_on_failure(scene_path):
        scene = reconstruct_clip(read_clip(folder), config, seed=seed, device=device, work_dir=work_dir)
        write_scene(scene, scene_path)
    shutil.rmtree(work_dir, ignore_errors=True)
    held_out = scene.metadata["quality"]["held_out"]
    logger.info(
        "reconstruct: %s, held-out %.2f dB, SSIM %.3f -> %s",
        scene.scene_id, held_out["psnr_db"], held_out["ssim"], scene_path,
    )  # fmt: skip
    return scene_path


def refuse_equal_names(clips: Sequence[Path]) -> None:
    """Raise `InputError` when two clips share a name."""
    names = [folder.name for folder in clips]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two clips are named {name!r}; scenes take the name of their clip, so rename one folder")
