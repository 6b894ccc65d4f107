"""Settings of the synthetic town."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neural_sim.errors import InputError

WIDE_CAMERA = "camera_front_wide_120fov"
TELE_CAMERA = "camera_front_tele_30fov"
FIELD_OF_VIEW_DEG = {WIDE_CAMERA: 120.0, TELE_CAMERA: 30.0}

# Curves tighter than this fold the pavement behind the kerb onto itself.
TIGHTEST_CURVATURE_PER_M = 0.03


@dataclass(frozen=True)
class TownConfig:
    """One street of the town and the drive along it. The same settings give the same pixels."""

    seed: int = 7
    """Seed of the street, the traffic, the driver and the sensor noise, >= 0."""

    duration_s: float = 20.0
    """Length of the drive, s."""

    rate_hz: float = 10.0
    """Camera frames per second, Hz."""

    image_width_px: int = 320
    """Width of every image, pixels."""

    image_height_px: int = 192
    """Height of every image, pixels."""

    cameras: tuple[str, ...] = (WIDE_CAMERA,)
    """Cameras on the rig: camera_front_wide_120fov, camera_front_tele_30fov."""

    speed_limit_mps: float = 9.0
    """Highest speed of ego and traffic, m/s."""

    max_curvature_per_m: float = 0.026
    """Bound on the absolute curvature of the road's centreline, 1/m, at most 0.03."""

    parked_cars: int = 14
    """Cars parked at the kerbs along the street."""

    lead_car: bool = True
    """Whether a car drives ahead of the ego in its lane, slowing down and speeding up."""

    oncoming_cars: int = 2
    """Cars that come the other way."""

    sensor_noise: float = 0.006
    """Standard deviation of the pixel noise, as a fraction of full scale, 0 for none."""

    def __post_init__(self) -> None:
        self._check("seed", self.seed >= 0, "an integer >= 0")
        self._check("duration_s", 1.0 <= self.duration_s <= 600.0, "1 to 600 s")
        self._check("rate_hz", 0.5 <= self.rate_hz <= 50.0, "0.5 to 50 Hz")
        self._check("image_width_px", 16 <= self.image_width_px <= 4096, "16 to 4096 pixels")
        self._check("image_height_px", 16 <= self.image_height_px <= 4096, "16 to 4096 pixels")
        self._check("speed_limit_mps", 3.0 <= self.speed_limit_mps <= 20.0, "3 to 20 m/s")
        in_bounds = 0.002 <= self.max_curvature_per_m <= TIGHTEST_CURVATURE_PER_M
        self._check("max_curvature_per_m", in_bounds, f"0.002 to {TIGHTEST_CURVATURE_PER_M} 1/m")
        self._check("parked_cars", 0 <= self.parked_cars <= 200, "0 to 200")
        self._check("oncoming_cars", 0 <= self.oncoming_cars <= 20, "0 to 20")
        self._check("sensor_noise", 0.0 <= self.sensor_noise <= 0.2, "0 to 0.2")
        known = bool(self.cameras) and set(self.cameras) <= set(FIELD_OF_VIEW_DEG)
        unique = len(set(self.cameras)) == len(self.cameras)
        self._check("cameras", known and unique, f"one or more of {', '.join(FIELD_OF_VIEW_DEG)}, each once")

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
        if "cameras" in fields:
            fields["cameras"] = tuple(fields["cameras"])
        try:
            return TownConfig(**fields)
        except TypeError as error:
            raise InputError(f"town settings have a value of the wrong type ({error}); ingest again") from error
