"""What every dataset reader is told."""

from dataclasses import dataclass
from pathlib import Path

from neural_sim.errors import InputError


@dataclass(frozen=True)
class IngestOptions:
    """Which part of a dataset becomes a clip, and at what size and rate."""

    root: Path | None = None
    """Folder of the dataset in its published layout. None for datasets that are generated."""
    sequence: str = ""
    """Name of the drive inside the dataset, for example 00 (KITTI odometry), or the kind of street (town). Empty: the
    reader's first or only one."""
    cameras: tuple[str, ...] = ()
    """Cameras to keep, by the dataset's own names. Empty: the reader's default."""
    start_s: float = 0.0
    """Start of the clip after the first frame of the drive, s."""
    duration_s: float | None = None
    """Length of the clip, s; frames at both ends are kept. None: to the end of the drive."""
    rate_hz: float | None = None
    """Camera frames per second, Hz; the frames nearest to that grid are kept. None: the rate of the dataset."""
    scale: float = 1.0
    """Image size relative to the dataset's, in (0, 1]. 1 copies the image files unchanged."""
    map: Path | None = None
    """OpenDRIVE file (`.xodr`) in the coordinates of the dataset's world; it replaces the dataset's own map."""
    smooth_ego_s: float | None = None
    """Smooth the ego poses over this window, s; how far they moved is logged and kept. None: poses as recorded."""
    seed: int = 0
    """Seed of generated datasets; recorded ones do not use it."""

    def __post_init__(self) -> None:
        if not self.start_s >= 0:
            raise InputError(f"start_s is {self.start_s}, expected 0 or more seconds after the first frame")
        if self.duration_s is not None and not self.duration_s > 0:
            raise InputError(f"duration_s is {self.duration_s}, expected a positive number of seconds or none")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise InputError(f"rate_hz is {self.rate_hz}, expected a positive number of frames per second or none")
        if self.smooth_ego_s is not None and not self.smooth_ego_s > 0:
            raise InputError(f"smooth_ego_s is {self.smooth_ego_s}, expected a positive number of seconds or none")
        if not 0 < self.scale <= 1:
            raise InputError(f"scale is {self.scale}, expected a factor in (0, 1]")
