"""Recorded images at the size a policy sees."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def resize_image(
    pixels: UInt8[np.ndarray, "h w 3"], width_px: int, height_px: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize an RGB image: bicubic, widened to the source area when it shrinks, so that nothing aliases.

    The field of view is unchanged, as for `neural_sim.cameras.Camera.resized`.
    """
    if pixels.shape[:2] == (height_px, width_px):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width_px, height_px), Image.Resampling.BICUBIC))
