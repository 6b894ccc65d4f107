"""Settings of the synthetic town."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from neural_sim.errors import InputError

WIDE_CAMERA = "camera_front_wide_120fov"
TELE_CAMERA = "camera_front_tele_30fov"
FIELD_OF_VIEW_DEG = {WIDE_CAMERA: 120.0, TELE_CAMERA: 30.0}

StreetKind = Literal["bends", "junctions", "narrow", "avenue"]
STREET_KINDS: tuple[StreetKind, ...] = get_args(StreetKind)

# Curves tighter than this are turns at junctions, not bends.
TIGHTEST_CURVATURE_PER_M = 0.045


@dataclass(frozen=True)
class TownConfig:
    """One street of the town and the drive along it. The same settings give the same pixels.

    A field that is None is drawn from the seed, so that seeds differ in kind and not only in detail.
    """

    seed: int = 7
    """Seed of the streets, the traffic, the driver, the weather and the sensor noise, >= 0."""

    duration_s: float = 20.0
    """Length of the drive, s."""

    rate_hz: float = 10.0
    """Camera frames per second, Hz."""

    image_width_px: int = 320
    """Width of every image, pixels."""

    image_height_px: int = 192
    """Height of every image, pixels."""

    cameras: tuple[str, ...] = (WIDE_CAMERA, TELE_CAMERA)
    """Cameras on the rig: camera_front_wide_120fov, camera_front_tele_30fov."""

    lidar_rate_hz: float = 2.0
    """Lidar sweeps per second, Hz; 0 for no lidar."""

    street: StreetKind | None = None
    """`bends`: a winding street; `junctions`: turns and crossings by navigation command; `narrow`: parked cars reach
    into the lane; `avenue`: faster, with a lane that ends."""

    speed_limit_mps: float | None = None
    """Highest speed of ego and traffic, m/s."""

    max_curvature_per_m: float | None = None
    """Bound on the absolute curvature of bends, 1/m, at most 0.045; turns at junctions are tighter."""

    parked_cars: int | None = None
    """Cars parked at the kerbs along the street."""

    lead_car: bool | None = None
    """Whether a car drives ahead of the ego in its lane, slowing down, stopping and going on."""

    oncoming_cars: int | None = None
    """Cars that come the other way."""

    cut_in: bool | None = None
    """Whether a car pulls out of its bay, or out of the lane that ends, in front of the ego."""

    crossing_pedestrians: int | None = None
    """People who cross the street in front of the ego."""

    sensor_noise: float = 0.006
    """Standard deviation of the pixel noise, as a fraction of full scale, 0 for none."""

    def __post_init__(self) -> None:
        self._check("seed", 0 <= self.seed < 2**53, "an integer >= 0")
        self._check("duration_s", 1.0 <= self.duration_s <= 600.0, "1 to 600 s")
        self._check("rate_hz", 0.5 <= self.rate_hz <= 50.0, "0.5 to 50 Hz")
        self._check("image_width_px", 16 <= self.image_width_px <= 4096, "16 to 4096 pixels")
        self._check("image_height_px", 16 <= self.image_height_px <= 4096, "16 to 4096 pixels")
        self._check("lidar_rate_hz", 0.0 <= self.lidar_rate_hz <= 20.0, "0 to 20 Hz")
        self._check("sensor_noise", 0.0 <= self.sensor_noise <= 0.2, "0 to 0.2")
        self._check("street", self.street is None or self.street in STREET_KINDS, f"one of {', '.join(STREET_KINDS)}")
        self._check_drawn("speed_limit_mps", 3.0, 20.0, "m/s")
        self._check_drawn("max_curvature_per_m", 0.002, TIGHTEST_CURVATURE_PER_M, "1/m")
        self._check_drawn("parked_cars", 0, 200, "cars")
        self._check_drawn("oncoming_cars", 0, 20, "cars")
        self._check_drawn("crossing_pedestrians", 0, 4, "people")
        known = bool(self.cameras) and set(self.cameras) <= set(FIELD_OF_VIEW_DEG)
        unique = len(set(self.cameras)) == len(self.cameras)
        self._check("cameras", known and unique, f"one or more of {', '.join(FIELD_OF_VIEW_DEG)}, each once")
        alone = not (self.lead_car and self.cut_in)
        self._check("cut_in", alone, "no car that cuts in where there is a lead car: leave one of them out")

    def _check_drawn(self, name: str, low: float, high: float, unit: str) -> None:
        value = getattr(self, name)
        self._check(name, value is None or low <= value <= high, f"{low:g} to {high:g} {unit}")

    def _check(self, name: str, sound: bool, expected: str) -> None:
        if not sound:
            raise InputError(f"town setting {name} is {getattr(self, name)!r}; expected {expected}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_json`."""
        values = dataclasses.asdict(self)
        values["cameras"] = list(self.cameras)
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "TownConfig":
        """Read what `to_json` wrote. Raises `InputError` on a field that is unknown or of the wrong type."""
        known = {field.name for field in dataclasses.fields(TownConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"town settings have unknown fields {unknown}; expected some of {sorted(known)}")
        fields = dict(values)
        try:
            if "cameras" in fields:
                fields["cameras"] = tuple(fields["cameras"])
            return TownConfig(**fields)
        except TypeError as error:
            raise InputError(f"town settings have a value of the wrong type ({error}); ingest again") from error
