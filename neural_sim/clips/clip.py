"""The clip: one recorded drive, in memory."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from neural_sim.cameras import Camera
from neural_sim.clips.image_files import DamagedImageError, image_size
from neural_sim.errors import InputError
from neural_sim.road_map import RoadMap
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.trajectory import Trajectory


@dataclass(frozen=True)
class CameraFrames:
    """The images of one camera.

    Attributes:
        camera: calibration at the stored image size.
        t_us: int64 [N], strictly increasing; when the middle row of each image was exposed.
        paths: image file of each frame.
    """

    camera: Camera
    t_us: Int[np.ndarray, "n"]
    paths: Sequence[Path]

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode frame `index` to RGB; gray images are repeated over the channels.

        Raises `InputError` when the file is missing, truncated, or not of the calibrated size.
        """
        with self._opened(index) as image:
            return np.asarray(image.convert("RGB"))

    def read_file(self, index: int) -> bytes:
        """The file of frame `index` as it is, once its structure (`image_files.image_size`) was found whole.

        Raises `InputError` when the file is missing, damaged as far as that shows, or not of the calibrated size.
        """
        where = self._where(index)
        try:
            content = self.paths[index].read_bytes()
            size = image_size(content)
        except FileNotFoundError as error:
            raise InputError(f"{where}: the image file is missing; restore it or ingest a range without it") from error
        except (OSError, DamagedImageError) as error:
            raise InputError(f"{where}: the image does not decode ({error}); restore the file") from error
        self._require_size(size, where)
        return content

    def verify(self, index: int) -> None:
        """Decode frame `index` to its end, JPEGs at an eighth of their size, keeping nothing; raises as `read_file`."""
        with _decoding(self._where(index)), Image.open(io.BytesIO(self.read_file(index))) as image:
            image.draft("L", (1, 1))
            image.load()

    def check_header(self, index: int) -> None:
        """Compare the size in the file of frame `index` with the calibration without decoding it; raises as `load`."""
        with self._opened(index):
            pass

    def _where(self, index: int) -> str:
        return f"camera {self.camera.name}, frame {index} ({self.paths[index]})"

    def _require_size(self, size: tuple[int, int], where: str) -> None:
        if size != (self.camera.width_px, self.camera.height_px):
            raise InputError(
                f"{where}: image is {size[0]}x{size[1]} but the calibration says {self.camera.width_px}x"
                f"{self.camera.height_px}; use the calibration that belongs to these images"
            )

    @contextlib.contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        where = self._where(index)
        if not self.paths[index].is_file():
            raise InputError(f"{where}: the image file is missing; restore it or ingest a range without it")
        with _decoding(where), Image.open(self.paths[index]) as image:
            self._require_size(image.size, where)
            yield image


@contextlib.contextmanager
def _decoding(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: the image does not decode ({error}); restore the file") from error


@dataclass(frozen=True)
class NavigationStep:
    """A navigation instruction that holds from `start_us` on, for example "turn left at the junction"."""

    start_us: int
    text: str


@dataclass(frozen=True)
class Clip:
    """One recorded drive.

    Attributes:
        clip_id: unique name, also the name of the scene made from it.
        source: dataset, sequence and options it was ingested with.
        cameras: frames by camera name.
        ego: poses of the rig.
        ego_vehicle: outer box of the recording car.
        tracks: other road users.
        road_map: None where the dataset has none.
        navigation: instructions in order of time; empty where the dataset has none.
        lidar_paths: sweep files by timestamp (us), each a float32 [N, 4] `.npy` (x, y, z, intensity) in the rig frame.
    """

    clip_id: str
    source: Mapping[str, Any]
    cameras: Mapping[str, CameraFrames]
    ego: Trajectory
    ego_vehicle: EgoVehicle
    tracks: tuple[Track, ...] = ()
    road_map: RoadMap | None = None
    navigation: tuple[NavigationStep, ...] = ()
    lidar_paths: Mapping[int, Path] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """Span of the ego poses, s."""
        return (self.ego.end_us - self.ego.start_us) * 1e-6

    def navigation_at(self, t_us: int) -> str:
        """The instruction that holds at `t_us`, or an empty string."""
        return navigation_at(self.navigation, t_us)


def navigation_at(navigation: tuple[NavigationStep, ...], t_us: int) -> str:
    """The instruction that holds at `t_us`, or an empty string."""
    started = [step.text for step in navigation if step.start_us <= t_us]
    return started[-1] if started else ""
