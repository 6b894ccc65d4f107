"""Many small images in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from neural_sim.drawing.top_view import Color, caption_font

_COLOR_SHEET: Color = (24, 27, 31)
_COLOR_TEXT: Color = (225, 226, 224)
_CAPTION_PX, _TITLE_PX, _GAP_PX = 18, 24, 4


@dataclass(frozen=True)
class SheetRow:
    """One row of a contact sheet.

    Attributes:
        title: written above the row.
        images: uint8 [H, W, 3] each, any sizes.
        captions: one line under each image.
    """

    title: str
    images: Sequence[UInt8[np.ndarray, "h w 3"]]
    captions: Sequence[str]


def draw_contact_sheet(rows: Sequence[SheetRow], image_width_px: int = 300) -> UInt8[np.ndarray, "h w 3"]:
    """All rows under each other, every image `image_width_px` wide in its own aspect."""
    strips = [_strip(row, image_width_px) for row in rows]
    width_px = max((strip.width for strip in strips), default=image_width_px)
    sheet = Image.new("RGB", (width_px, max(1, sum(strip.height for strip in strips))), _COLOR_SHEET)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return np.asarray(sheet)


def _strip(row: SheetRow, image_width_px: int) -> Image.Image:
    small = [_fit(image, image_width_px) for image in row.images]
    height_px = max((image.height for image in small), default=0)
    size = (_GAP_PX + (image_width_px + _GAP_PX) * max(1, len(small)), _TITLE_PX + height_px + _CAPTION_PX + _GAP_PX)
    strip = Image.new("RGB", size, _COLOR_SHEET)
    draw = ImageDraw.Draw(strip)
    draw.text((_GAP_PX, 4), row.title, _COLOR_TEXT, caption_font(13, bold=True))
    for index, (image, caption) in enumerate(zip(small, row.captions, strict=True)):
        left = _GAP_PX + index * (image_width_px + _GAP_PX)
        strip.paste(image, (left, _TITLE_PX))
        draw.text((left, _TITLE_PX + height_px + 2), caption, _COLOR_TEXT, caption_font(11))
    return strip


def _fit(image: UInt8[np.ndarray, "h w 3"], width_px: int) -> Image.Image:
    height_px = max(1, round(image.shape[0] * width_px / image.shape[1]))
    return Image.fromarray(image).resize((width_px, height_px), Image.Resampling.LANCZOS)
