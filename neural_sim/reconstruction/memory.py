"""How much memory a reconstruction will take, from the sizes alone, before any work."""

import logging
from pathlib import Path

from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.errors import InputError
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.views import reduced_size

logger = logging.getLogger("roadloop")

# Interpreter, libraries and compiled kernels.
_BASE_BYTES = 650e6
# Per feature observation while poses are refined and points triangulated: poses, Jacobians and normal equations.
_BYTES_PER_OBSERVATION = 1000
# Values per Gaussian beside its spherical harmonics, and how many copies of all of them live at once: leaf, gradient,
# two moments, the same again for a moment while the set grows, and what the rasterizer keeps for its backward pass.
_PLAIN_VALUES, _COPIES, _RASTERIZER_BYTES = 11, 8, 400
# Float images of one view alive in a step: drawing, target, loss windows and their gradients.
_STEP_IMAGES = 40


def predicted_peak_bytes(clip: Clip, config: ReconstructionConfig) -> float:
    """Upper estimate of the peak memory of `reconstruct` on the CPU, bytes."""
    cameras = clip.cameras.values()
    gaussian = 4 * _COPIES * (_PLAIN_VALUES + 3 * (config.sh_degree + 1) ** 2) + _RASTERIZER_BYTES
    observations = sum(len(frames.t_us) * config.track_corners for frames in cameras)
    return (
        _BASE_BYTES
        + sum(_image_bytes(frames, config) for frames in cameras)
        + max(_gray_bytes(frames, config) for frames in cameras)
        + observations * _BYTES_PER_OBSERVATION
        + config.max_gaussians * gaussian
    )


def check_memory(clip: Clip, config: ReconstructionConfig) -> None:
    """Log the predicted peak; raise `InputError` when it is above `config.memory_budget_gb`.

    Without a budget, more than the machine has free is only warned about.
    """
    predicted_gb = predicted_peak_bytes(clip, config) / 1e9
    logger.info("reconstruct %s: at most %.1f GB of memory predicted", clip.clip_id, predicted_gb)
    if 0 < config.memory_budget_gb < predicted_gb:
        raise InputError(
            f"clip {clip.clip_id}: reconstruction would take up to {predicted_gb:.1f} GB, more than the memory budget "
            f"of {config.memory_budget_gb:g} GB; lower image_width_px, track_corners or max_gaussians, or take a "
            "shorter clip"
        )
    available_gb = _available_gb()
    if available_gb is not None and predicted_gb > available_gb:
        logger.warning(
            "reconstruct %s: %.1f GB predicted, but the machine has %.1f GB free",
            clip.clip_id, predicted_gb, available_gb,
        )  # fmt: skip


def _image_bytes(frames: CameraFrames, config: ReconstructionConfig) -> float:
    """All views with their two training sizes, and the float images of one step."""
    width, height = reduced_size(frames.camera, config.image_width_px)
    # Three colours and a mask of the sky: the view, and its two sizes as targets.
    return width * height * (len(frames.t_us) * 2.25 * 4 + 3 * 4 * _STEP_IMAGES)


def _gray_bytes(frames: CameraFrames, config: ReconstructionConfig) -> float:
    """What tracking features in one camera holds."""
    width, height = reduced_size(frames.camera, config.track_width_px)
    return width * height * len(frames.t_us) + 3 * frames.camera.width_px * frames.camera.height_px


def _available_gb() -> float | None:
    """Memory that can be had without swapping, GB, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return float(found[0]) * 1024 / 1e9 if found else None
