"""Stage `reconstruct --method nerf`: clips become NeRFs beside their scenes."""

import logging
from collections.abc import Sequence
from pathlib import Path

from neural_sim.clips.storage import read_clip
from neural_sim.nerf.config import NerfConfig
from neural_sim.nerf.installation import require_nerfstudio
from neural_sim.nerf.storage import nerf_path, write_nerf
from pipelines.config import config_to_mapping
from pipelines.device import banner
from pipelines.processes import default_workers, exclusive
from pipelines.provenance import begin_artifact, nothing_left_on_failure
from pipelines.reconstruct import refuse_equal_names

logger = logging.getLogger("roadloop")


def reconstruct_nerf(
    clips: Sequence[Path],
    *,
    out: Path,
    config: NerfConfig,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
) -> list[Path]:
    """Reconstruct every clip as a NeRF `out/<clip name>.nerf.safetensors`, beside the scene that `reconstruct` makes.

    One clip is trained at a time, on all cores or on the device. What was finished before is kept; an interrupted
    training leaves nothing and starts again.

    Returns:
        The files, in the order of the clips.

    Raises:
        InputError: nerfstudio is not installed, a clip is unsound, or a NeRF was made with other settings.
    """
    require_nerfstudio()
    refuse_equal_names(clips)
    resolved = banner("reconstruct --method nerf", device, seed, default_workers())
    with exclusive(out):
        return [_reconstruct_one(folder, out, config, seed, resolved, resume) for folder in clips]


def _reconstruct_one(folder: Path, out: Path, config: NerfConfig, seed: int, device: str, resume: bool) -> Path:
    from neural_sim.nerf.training import train_nerf

    path = nerf_path(out / f"{folder.name}.usdz")
    settings = {"clip": folder.name, "seed": seed, "nerf": config_to_mapping(config)}
    if begin_artifact(path, "reconstruct --method nerf", settings, resume=resume):
        return path
    with nothing_left_on_failure(path):
        world = train_nerf(read_clip(folder), config, seed=seed, device=device)
        write_nerf(world, path)
    held_out = world.metadata["quality"]["held_out"]
    logger.info(
        "reconstruct: NeRF of %s, held-out %.2f dB, SSIM %.3f -> %s",
        world.clip_id, held_out["psnr_db"], held_out["ssim"], path,
    )  # fmt: skip
    return path
