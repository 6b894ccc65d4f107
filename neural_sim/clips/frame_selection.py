"""Which recorded frames a clip keeps, and resizing them on the way in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from neural_sim.clips.clip import CameraFrames
from neural_sim.clips.frame_work import over_frames
from neural_sim.clips.options import IngestOptions
from neural_sim.errors import InputError


def select_frames(
    t_us: Int[np.ndarray, "n"], options: IngestOptions, where: str, drive_start_us: int | None = None
) -> Int[np.ndarray, "m"]:
    """Indices of the frames that `options.start_s`, `duration_s` and `rate_hz` keep.

    The range counts from `drive_start_us` (of several cameras the first frame of all), or from the first frame when it
    is None, and includes both ends, to the microsecond. For a rate, each instant of its
    grid takes the nearest frame once. Raises `InputError` naming `where` when nothing is left or the rate is higher
    than recorded.
    """
    if len(t_us) == 0:
        raise InputError(f"{where}: no frames; restore the dataset")
    since_s = (t_us - (t_us[0] if drive_start_us is None else drive_start_us)) * 1e-6
    end_s = np.inf if options.duration_s is None else options.start_s + options.duration_s
    kept = np.flatnonzero((since_s >= options.start_s - 1e-6) & (since_s <= end_s + 1e-6))
    if kept.size < 2:
        raise InputError(
            f"{where}: {kept.size} frames between {options.start_s} and {end_s} s, expected at least 2; the drive is "
            f"{since_s[-1]:.2f} s long, choose start_s and duration_s inside it"
        )
    return kept if options.rate_hz is None else kept[_nearest_on_grid(since_s[kept], options.rate_hz, where)]


def _nearest_on_grid(since_s: np.ndarray, rate_hz: float, where: str) -> Int[np.ndarray, "m"]:
    recorded_hz = (len(since_s) - 1) / (since_s[-1] - since_s[0])
    if rate_hz > recorded_hz * 1.05:
        raise InputError(f"{where}: rate_hz is {rate_hz}, but the drive has {recorded_hz:.2f} frames/s; ask for less")
    grid_s = np.arange(since_s[0], since_s[-1] + 0.5 / rate_hz, 1.0 / rate_hz)
    return np.unique(np.abs(since_s[None, :] - grid_s[:, None]).argmin(axis=1))


def choose_cameras(
    available: Sequence[str], default: Sequence[str], options: IngestOptions, where: str
) -> tuple[str, ...]:
    """The cameras `options.cameras` asks for, or the first of `default` that is there.

    Raises `InputError` naming `where` when one is not in `available`, or when there is none at all.
    """
    wanted = options.cameras or tuple(name for name in default if name in available)[:1]
    for name in wanted:
        if name not in available:
            raise InputError(
                f"{where}: no images of camera {name!r}; available: {', '.join(sorted(available)) or 'none'}"
            )
    if not wanted:
        raise InputError(f"{where}: none of the cameras {', '.join(default)} is there; choose one by --cameras")
    return wanted


def resize_frames(frames: CameraFrames, scale: float, folder: Path) -> CameraFrames:
    """Write every image at `scale` times its size into `folder`, in its own format, and point to the results.

    The calibration follows the rounded size. Area averaging avoids aliasing.
    """
    camera = frames.camera
    size = (max(1, round(camera.width_px * scale)), max(1, round(camera.height_px * scale)))
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / path.name for path in frames.paths)
    for _ in over_frames(lambda index: _resize_image(frames, index, size, paths[index]), len(paths)):
        pass
    return CameraFrames(camera.resized(*size), frames.t_us, paths)


def _resize_image(frames: CameraFrames, index: int, size: tuple[int, int], target: Path) -> None:
    pixels = Image.fromarray(frames.load(index))
    with Image.open(frames.paths[index]) as original:
        gray = original.mode == "L"
    resized = pixels.resize(size, Image.Resampling.BOX if size[0] * 2 <= pixels.width else Image.Resampling.LANCZOS)
    (resized.convert("L") if gray else resized).save(target, quality=95)
