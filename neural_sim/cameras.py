"""Camera calibration and projection."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from neural_sim.distortion import Distortion, FTheta, distortion_from_json, distortion_to_json
from neural_sim.ego_mask import EgoMask
from neural_sim.errors import InputError

SHUTTER_DIRECTIONS = ("top-to-bottom", "bottom-to-top", "left-to-right", "right-to-left")


@dataclass(frozen=True)
class Camera:
    """One calibrated camera on the rig: a pinhole, or another lens where `distortion` is given.

    Image coordinates start at the corner of the first pixel, so pixel centres lie at +0.5.

    Attributes:
        name: logical name, for example `camera_front_wide_120fov`.
        width_px, height_px: image size.
        fx_px, fy_px, cx_px, cy_px: intrinsics, pixels. Of an f-theta lens the focal lengths are those on the axis.
        T_rig_camera: float64 [4, 4], camera (x right, y down, z forward) to rig, m.
        shutter_us: time from the first to the last image row, us; 0 for a global shutter.
        distortion: lens of a camera that is not a pinhole.
        shutter_direction: in which order a rolling shutter reads rows or columns, one of `SHUTTER_DIRECTIONS`.
        ego_mask: where the image shows the recording car itself; None where it does not, or nobody has said.
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
    distortion: Distortion | None = None
    shutter_direction: str = "top-to-bottom"
    ego_mask: EgoMask | None = None

    def __post_init__(self) -> None:
        if self.width_px <= 0 or self.height_px <= 0 or self.fx_px <= 0 or self.fy_px <= 0:
            raise InputError(
                f"camera {self.name}: size {self.width_px}x{self.height_px} and focal lengths {self.fx_px}, "
                f"{self.fy_px} px must be positive; mend the calibration"
            )
        if self.shutter_direction not in SHUTTER_DIRECTIONS:
            raise InputError(
                f"camera {self.name}: shutter_direction is {self.shutter_direction!r}, expected one of "
                f"{', '.join(SHUTTER_DIRECTIONS)}"
            )

    @property
    def model(self) -> str:
        """Name of the projection: "pinhole", "opencv", "fisheye" or "ftheta"."""
        return "pinhole" if self.distortion is None else self.distortion.model

    @property
    def K(self) -> Float[np.ndarray, "3 3"]:
        """Intrinsic matrix, pixels."""
        return np.array([[self.fx_px, 0.0, self.cx_px], [0.0, self.fy_px, self.cy_px], [0.0, 0.0, 1.0]])

    def resized(self, width_px: int, height_px: int) -> "Camera":
        """The same camera at another image size; the field of view is unchanged."""
        scale_x, scale_y = width_px / self.width_px, height_px / self.height_px
        lens = self.distortion
        return replace(
            self,
            width_px=width_px,
            height_px=height_px,
            fx_px=self.fx_px * scale_x,
            cx_px=self.cx_px * scale_x,
            fy_px=self.fy_px * scale_y,
            cy_px=self.cy_px * scale_y,
            distortion=lens.resized(scale_x, scale_y) if isinstance(lens, FTheta) else lens,
            ego_mask=None if self.ego_mask is None else self.ego_mask.resized(scale_x, scale_y),
        )

    def ego_pixels(self) -> Bool[np.ndarray, "h w"]:
        """Which pixels show the recording car itself. Read-only."""
        if self.ego_mask is None:
            return np.zeros((self.height_px, self.width_px), bool)
        return self.ego_mask.pixels(self.width_px, self.height_px)

    def project(self, points_m: Float[np.ndarray, "*n 3"]) -> tuple[Float[np.ndarray, "*n 2"], Bool[np.ndarray, "*n"]]:
        """Pixels (x, y) of points in the camera frame, and which of them the lens sees; the image may be smaller."""
        points_m = np.asarray(points_m, float)
        if self.distortion is None:
            visible = points_m[..., 2] > 0
            plane = points_m[..., :2] / np.where(visible, points_m[..., 2], 1.0)[..., None]
        else:
            plane, visible = self.distortion.project(points_m)
        return plane * self._pixels_per_unit + [self.cx_px, self.cy_px], visible

    def unproject(self, pixels: Float[np.ndarray, "*n 2"]) -> tuple[Float[np.ndarray, "*n 3"], Bool[np.ndarray, "*n"]]:
        """Unit directions in the camera frame of pixels (x, y), and which of them the lens reaches."""
        plane = (np.asarray(pixels, float) - [self.cx_px, self.cy_px]) / self._pixels_per_unit
        if self.distortion is None:
            rays, reached = np.concatenate([plane, np.ones_like(plane[..., :1])], axis=-1), np.ones(plane.shape[:-1])
        else:
            rays, reached = self.distortion.unproject(plane)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True), reached.astype(bool)

    @property
    def _pixels_per_unit(self) -> Float[np.ndarray, "2"]:
        """What one unit of the lens model's image plane is in pixels."""
        return np.ones(2) if isinstance(self.distortion, FTheta) else np.array([self.fx_px, self.fy_px])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_json`."""
        value: dict[str, Any] = {
            "name": self.name,
            "model": self.model,
            "width_px": self.width_px,
            "height_px": self.height_px,
            "fx_px": self.fx_px,
            "fy_px": self.fy_px,
            "cx_px": self.cx_px,
            "cy_px": self.cy_px,
            "T_rig_camera": self.T_rig_camera.tolist(),
            "shutter_us": self.shutter_us,
        }
        if self.distortion is not None:
            value["distortion"] = distortion_to_json(self.distortion)
        if self.shutter_direction != SHUTTER_DIRECTIONS[0]:
            value["shutter_direction"] = self.shutter_direction
        if self.ego_mask is not None:
            value["ego_mask"] = self.ego_mask.to_json()
        return value

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Camera":
        """Read what `to_json` wrote. Raises `InputError` on another camera model or a missing key."""
        fields = dict(value)
        model = fields.pop("model", None)
        if model != "pinhole":
            try:
                fields["distortion"] = distortion_from_json(str(model), fields.get("distortion"))
            except InputError as error:
                raise InputError(f"camera {value.get('name')}: {error}") from error
        try:
            if fields.get("ego_mask") is not None:
                fields["ego_mask"] = EgoMask.from_json(fields["ego_mask"])
            fields["T_rig_camera"] = np.asarray(fields["T_rig_camera"], float)
            return Camera(**fields)
        except (KeyError, TypeError) as error:
            raise InputError(f"camera {value.get('name')}: incomplete calibration ({error})") from error


def require_pinhole(camera: Camera, user: str) -> None:
    """Raise `InputError` naming the lens model when `camera` is not a pinhole, for a `user` that draws only those."""
    if camera.distortion is not None:
        raise InputError(
            f"camera {camera.name}: {user} draws pinhole cameras only, and this lens is {camera.model!r}; "
            "undistort the images first or choose another camera"
        )
