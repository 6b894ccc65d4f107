"""Frames of a recorded video as JPEG files."""

import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int

from neural_sim.errors import InputError

JPEG_QUALITY = 95


def extract_frames(
    video: Path | IO[bytes], indices: Int[np.ndarray, "m"], folder: Path, size: tuple[int, int], where: str
) -> tuple[Path, ...]:
    """Write frames `indices` (increasing, counted from 0) as `folder/<index>.jpg` and return their paths.

    Frames are decoded one after another, so memory does not grow with the video. Raises `InputError` naming `where`
    when the video is missing, does not decode, ends before the last index, or is not of `size` (width, height).
    """
    import av
    from av.error import FFmpegError

    if isinstance(video, Path) and not video.is_file():
        raise InputError(f"{where}: the video is missing; restore it")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {int(index): folder / f"{int(index):06d}.jpg" for index in indices}
    seen = 0
    try:
        with av.open(str(video) if isinstance(video, Path) else video, "r") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if seen in wanted:
                    _save(frame.to_image(), wanted[seen], size, f"{where}: frame {seen}")
                seen += 1
                if seen > max(wanted):
                    break
    except (FFmpegError, IndexError, OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{where}: the video does not decode after frame {seen} ({error}); restore it") from error
    if seen <= max(wanted):
        raise InputError(f"{where}: the video ends after {seen} frames, but frame {max(wanted)} is timed; restore it")
    return tuple(wanted.values())


def _save(image: object, path: Path, size: tuple[int, int], where: str) -> None:
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.size != size:
        raise InputError(
            f"{where}: {image.size[0]}x{image.size[1]}, but the calibration says {size[0]}x{size[1]}; use the "
            "calibration of this video"
        )
    image.save(path, quality=JPEG_QUALITY)
