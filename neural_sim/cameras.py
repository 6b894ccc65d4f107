"""Camera calibration and pinhole projection."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from neural_sim.errors import InputError


@dataclass(frozen=True)
class Camera:
    """One calibrated pinhole camera on the rig.

    Image coordinates start at the corner of the first pixel, so pixel centres lie at +0.5.

    Attributes:
        name: logical name, for example `camera_front_wide_120fov`.
        width_px, height_px: image size.
        fx_px, fy_px, cx_px, cy_px: intrinsics, pixels.
        T_rig_camera: float64 [4, 4], camera (x right, y down, z forward) to rig, m.
        shutter_us: time from the first to the last image row, us; 0 for a global shutter.
    """

    name: str
    width_px: int
    height_px: int
    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    T_rig_camera: Float[np.ndarray, "4 4"]
    shutter_us: int = 0

    def __post_init__(self) -> None:
        if self.width_px <= 0 or self.height_px <= 0 or self.fx_px <= 0 or self.fy_px <= 0:
            raise InputError(
                f"camera {self.name}: size {self.width_px}x{self.height_px} and focal lengths {self.fx_px}, "
                f"{self.fy_px} px must be positive; mend the calibration"
            )

    @property
    def K(self) -> Float[np.ndarray, "3 3"]:
        """Intrinsic matrix, pixels."""
        return np.array([[self.fx_px, 0.0, self.cx_px], [0.0, self.fy_px, self.cy_px], [0.0, 0.0, 1.0]])

    def resized(self, width_px: int, height_px: int) -> "Camera":
        """The same camera at another image size; the field of view is unchanged."""
        scale_x, scale_y = width_px / self.width_px, height_px / self.height_px
        return replace(
            self,
            width_px=width_px,
            height_px=height_px,
            fx_px=self.fx_px * scale_x,
            cx_px=self.cx_px * scale_x,
            fy_px=self.fy_px * scale_y,
            cy_px=self.cy_px * scale_y,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_json`."""
        return {
            "name": self.name,
            "model": "pinhole",
            "width_px": self.width_px,
            "height_px": self.height_px,
            "fx_px": self.fx_px,
            "fy_px": self.fy_px,
            "cx_px": self.cx_px,
            "cy_px": self.cy_px,
            "T_rig_camera": self.T_rig_camera.tolist(),
            "shutter_us": self.shutter_us,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Camera":
        """Read what `to_json` wrote. Raises `InputError` on another camera model or a missing key."""
        fields = dict(value)
        model = fields.pop("model", None)
        if model != "pinhole":
            raise InputError(f"camera {value.get('name')}: model {model!r} is not supported; expected 'pinhole'")
        try:
            fields["T_rig_camera"] = np.asarray(fields["T_rig_camera"], float)
            return Camera(**fields)
        except (KeyError, TypeError) as error:
            raise InputError(f"camera {value.get('name')}: incomplete calibration ({error})") from error
