"""Pictures of a rollout: the bird's-eye view and the video frame around it."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from neural_sim.drawing.top_view import TopView, caption_font
from neural_sim.road_map import RoadMap

_TEXT_COLUMN_PX = 360
_EGO_HEIGHT_SHARE = 0.72  # the ego sits low in the view: what lies ahead matters more

COLOR_EXPERT = (38, 98, 168)
COLOR_DRIVEN = (214, 110, 20)
COLOR_PLAN = (22, 140, 96)
COLOR_CANDIDATE = (120, 182, 156)
COLOR_EGO = (214, 110, 20)
COLOR_ACTOR = (96, 104, 116)
COLOR_CONTACT = (190, 30, 45)
COLOR_PANEL = (24, 27, 31)
COLOR_TEXT = (240, 240, 238)
COLOR_MUTED = (158, 164, 172)


@dataclass(frozen=True)
class BirdsEyeContent:
    """What a bird's-eye view shows at one step. All coordinates are in the world frame, m and rad.

    Attributes:
        ego_planar: (x, y, yaw) of the ego box centre; the view is centred there, heading up.
        ego_size_m: (length, width) of the ego box.
        expert_xy: float64 [M, 2], recorded path of the box centre.
        driven_xy: float64 [I, 2], driven path up to now.
        plan_xy: float64 [P, 2], current plan, or None.
        candidates_xy: float64 [K, P, 2], other sampled plans, or None.
        expert_planar: (x, y, yaw) of the expert now, drawn as an outline.
        actor_planar: float64 [N, 3]; rows with NaN are absent.
        actor_sizes_m: float64 [N, 2], length and width.
        in_contact: whether the ego box is drawn as colliding or off the road.
    """

    ego_planar: Float[np.ndarray, "3"]
    ego_size_m: tuple[float, float]
    expert_xy: Float[np.ndarray, "m 2"]
    driven_xy: Float[np.ndarray, "i 2"]
    plan_xy: Float[np.ndarray, "p 2"] | None = None
    candidates_xy: Float[np.ndarray, "k p 2"] | None = None
    expert_planar: Float[np.ndarray, "3"] | None = None
    actor_planar: Float[np.ndarray, "n 3"] = field(default_factory=lambda: np.zeros((0, 3)))
    actor_sizes_m: Float[np.ndarray, "n 2"] = field(default_factory=lambda: np.zeros((0, 2)))
    in_contact: bool = False


@dataclass(frozen=True)
class Caption:
    """Text of a video frame.

    Attributes:
        title: first line, for example policy and scene.
        lines: pairs of label and value, for example ("speed", "8.1 m/s").
        flags: warnings drawn on red, for example "OFF-ROAD".
        notes: states drawn on gray, for example "warm-up".
    """

    title: str
    lines: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def draw_birds_eye(
    content: BirdsEyeContent,
    road_map: RoadMap | None,
    width_px: int = 320,
    height_px: int = 360,
    m_per_px: float = 0.16,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the surroundings of the ego from above, heading up; uint8 [height_px, width_px, 3]."""
    view = TopView(content.ego_planar, width_px, height_px, m_per_px, _EGO_HEIGHT_SHARE)
    if road_map is not None:
        view.road(road_map)
    view.line(content.expert_xy, COLOR_EXPERT, 0.35)
    view.line(content.driven_xy, COLOR_DRIVEN, 0.35)
    for candidate in content.candidates_xy if content.candidates_xy is not None else ():
        view.line(candidate, COLOR_CANDIDATE, 0.2)
    for planar, size_m in zip(content.actor_planar, content.actor_sizes_m, strict=True):
        if np.isfinite(planar).all():
            view.box(planar, size_m, fill=COLOR_ACTOR)
    if content.expert_planar is not None:
        view.box(content.expert_planar, content.ego_size_m, outline=COLOR_EXPERT)
    view.box(content.ego_planar, content.ego_size_m, fill=COLOR_CONTACT if content.in_contact else COLOR_EGO)
    if content.plan_xy is not None:
        view.line(content.plan_xy, COLOR_PLAN, 0.5)
    return view.finish()


def compose_frame(
    camera_image: UInt8[np.ndarray, "h w 3"] | None,
    birds_eye: UInt8[np.ndarray, "b v 3"],
    caption: Caption,
    camera_width_px: int = 640,
) -> UInt8[np.ndarray, "b f 3"]:
    """Put the camera image with the caption below it to the left of the bird's-eye view; uint8 [B, F, 3].

    Without a camera image the caption fills a narrow left column.
    """
    height_px = birds_eye.shape[0]
    left_px = camera_width_px if camera_image is not None else _TEXT_COLUMN_PX
    frame = Image.new("RGB", (left_px + birds_eye.shape[1], height_px), COLOR_PANEL)
    text_top_px = 0
    if camera_image is not None:
        fitted = _fit(camera_image, left_px, height_px - 108)
        frame.paste(fitted, ((left_px - fitted.width) // 2, 0))
        text_top_px = fitted.height
    frame.paste(Image.fromarray(birds_eye), (left_px, 0))
    _draw_caption(ImageDraw.Draw(frame), caption, left_px, text_top_px, height_px)
    return np.asarray(frame)


def _fit(image: UInt8[np.ndarray, "h w 3"], width_px: int, height_px: int) -> Image.Image:
    scale = min(width_px / image.shape[1], height_px / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)


_LEGEND = (("expert", COLOR_EXPERT), ("driven", COLOR_DRIVEN), ("plan", COLOR_PLAN))


def _draw_caption(draw: ImageDraw.ImageDraw, caption: Caption, width_px: int, top_px: int, bottom_px: int) -> None:
    left, top = 14, top_px + 10
    draw.text((left, top), _shorten(caption.title, width_px - 2 * left), COLOR_MUTED, caption_font(13))
    x, top = float(left), top + 24
    for label, value in caption.lines:
        shown_px = max(caption_font(19, bold=True).getlength(value), caption_font(11).getlength(label))
        if x > left and x + shown_px > width_px - left:
            x, top = float(left), top + 44
        draw.text((x, top), value, COLOR_TEXT, caption_font(19, bold=True))
        draw.text((x, top + 24), label, COLOR_MUTED, caption_font(11))
        x += shown_px + 26
    _draw_pills(draw, caption, left, bottom_px - 28)
    is_narrow = width_px < 480
    _draw_legend(draw, width_px - left, bottom_px - (54 if is_narrow else 25))


def _draw_pills(draw: ImageDraw.ImageDraw, caption: Caption, left: float, top: float) -> None:
    pills = [(text, COLOR_CONTACT) for text in caption.flags] + [(text, (74, 80, 88)) for text in caption.notes]
    for text, color in pills:
        text_px = caption_font(12, bold=True).getlength(text)
        draw.rounded_rectangle((left, top, left + text_px + 14, top + 20), 4, fill=color)
        draw.text((left + 7, top + 3), text, COLOR_TEXT, caption_font(12, bold=True))
        left += text_px + 20


def _draw_legend(draw: ImageDraw.ImageDraw, right: float, top: float) -> None:
    for text, color in reversed(_LEGEND):
        right -= caption_font(11).getlength(text)
        draw.text((right, top), text, COLOR_MUTED, caption_font(11))
        right -= 16
        draw.rectangle((right, top + 5, right + 11, top + 8), fill=color)
        right -= 10


def _shorten(text: str, width_px: float) -> str:
    while text and caption_font(13).getlength(text) > width_px:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
