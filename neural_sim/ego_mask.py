"""Which pixels of a camera show its own car: the bonnet, a mirror, a mount."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from neural_sim.errors import InputError

Outline = tuple[tuple[float, float], ...]
# Outlines are traced at twice the size, a quarter of a pixel inside the mask, and simplified by less than that.
_TRACING_SCALE, _TRACING_TOLERANCE = 2, 0.45
# Fractional bits of the coordinates that OpenCV fills polygons with.
_SHIFT = 8


@dataclass(frozen=True)
class EgoMask:
    """The image of the recording car in one camera. Reconstruction ignores these pixels.

    Attributes:
        outlines: polygons of image points (x, y), px from the corner of the first pixel.
        color: RGB 0..1 that the simulator paints there; None leaves what the scene has behind.
    """

    outlines: tuple[Outline, ...]
    color: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for outline in self.outlines:
            if len(outline) < 3 or not np.isfinite(outline).all():
                raise InputError(
                    f"ego mask: an outline has {len(outline)} points; expected 3 or more finite (x, y) pairs"
                )
        if self.color is not None and not all(0.0 <= value <= 1.0 for value in self.color):
            raise InputError(f"ego mask: color is {self.color}, expected three numbers from 0 to 1")

    def resized(self, scale_x: float, scale_y: float) -> "EgoMask":
        """The mask for an image scaled by these factors."""
        scaled = tuple(tuple((x * scale_x, y * scale_y) for x, y in outline) for outline in self.outlines)
        return EgoMask(scaled, self.color)

    def pixels(self, width_px: int, height_px: int) -> Bool[np.ndarray, "h w"]:
        """Which pixels of an image of this size have their centre inside an outline. Read-only."""
        return _filled(self.outlines, width_px, height_px)

    def paint(self, rgb: Float[np.ndarray, "h w 3"]) -> None:
        """Put the colour over an image, in place; nothing without a colour."""
        if self.color is not None:
            rgb[self.pixels(rgb.shape[1], rgb.shape[0])] = self.color

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_json`."""
        outlines = [[list(point) for point in outline] for outline in self.outlines]
        return {"outlines": outlines, "color": None if self.color is None else list(self.color)}

    @staticmethod
    def from_json(value: Any) -> "EgoMask":
        """Read what `to_json` wrote. Raises `InputError` on anything else."""
        try:
            outlines = tuple(tuple((float(x), float(y)) for x, y in outline) for outline in value["outlines"])
            color = value.get("color")
            if color is not None:
                red, green, blue = color
                color = (float(red), float(green), float(blue))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"ego mask: expected outlines of (x, y) pairs and a color ({error})") from error
        return EgoMask(outlines, color)


@functools.lru_cache(maxsize=64)
def _filled(outlines: tuple[Outline, ...], width_px: int, height_px: int) -> Bool[np.ndarray, "h w"]:
    canvas = np.zeros((height_px, width_px), np.uint8)
    # OpenCV counts from the centre of the first pixel.
    corners = [np.rint((np.array(outline) - 0.5) * (1 << _SHIFT)).astype(np.int32) for outline in outlines]
    for polygon in corners:
        cv2.fillPoly(canvas, [polygon], 1, shift=_SHIFT)
    mask = canvas.astype(bool)
    mask.flags.writeable = False
    return mask


def read_ego_mask(path: Path, width_px: int, height_px: int) -> EgoMask:
    """The mask in an image file: pixels that are not black show the own car.

    A colour image also gives the colour to paint, the mean of those pixels; a gray one gives none. Raises `InputError`
    when the file does not decode or is not of the camera's size.
    """
    try:
        with Image.open(path) as image:
            colored, pixels = image.mode not in ("1", "L", "I", "I;16"), np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: the ego mask does not decode ({error}); write it as PNG") from error
    if pixels.shape[:2] != (height_px, width_px):
        raise InputError(
            f"{path}: the ego mask is {pixels.shape[1]}x{pixels.shape[0]}, expected {width_px}x{height_px} like the "
            "images of its camera"
        )
    mask = pixels.any(axis=-1)
    color = tuple(float(value) for value in pixels[mask].mean(axis=0) / 255.0) if colored and mask.any() else None
    return EgoMask(_outlines(mask), color)  # pyright: ignore[reportArgumentType]


def _outlines(mask: Bool[np.ndarray, "h w"]) -> tuple[Outline, ...]:
    """Outer outlines of the connected parts; holes are filled."""
    fine = mask.astype(np.uint8).repeat(_TRACING_SCALE, axis=0).repeat(_TRACING_SCALE, axis=1)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
    for contour in contours:
        corners = (cv2.approxPolyDP(contour, _TRACING_TOLERANCE, True)[:, 0] + 0.5) / _TRACING_SCALE
        if len(corners) >= 3:
            found.append(tuple((float(x), float(y)) for x, y in corners))
    return tuple(found)
