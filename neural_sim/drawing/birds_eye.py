"""A whole drive seen from above."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from neural_sim.drawing.overlay import CATEGORY_COLORS
from neural_sim.drawing.top_view import Color, TopView, caption_font
from neural_sim.frames import planar_from_pose
from neural_sim.road_map import RoadMap
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.trajectory import Trajectory

COLOR_EGO: Color = (38, 98, 168)
COLOR_EDGE: Color = (120, 112, 104)
_COLOR_TEXT: Color = (40, 44, 50)
_LONG_SIDE_PX, _SHORT_SIDE_PX = 1200, 420
_MARGIN_M = 25.0
_EGO_EVERY_S = 2.0
_SCALE_BARS_M = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


def draw_drive(
    ego: Trajectory, ego_vehicle: EgoVehicle, tracks: Sequence[Track], road_map: RoadMap | None
) -> UInt8[np.ndarray, "h w 3"]:
    """The map, the ego's path and those of all road users, x to the right, y up, with a scale bar.

    The ego's box is drawn every 2 s, standing road users once, moving ones with their path and their box in the middle
    of it. The picture shows the driven area and 25 m around it.
    """
    center, width_px, height_px, m_per_px = _frame(ego)
    # Heading +y, so that the picture has x to the right.
    view = TopView(np.array([*center, np.pi / 2]), width_px, height_px, m_per_px)
    if road_map is not None:
        view.road(road_map)
        for edge in road_map.road_edges_m:
            view.line(edge, COLOR_EDGE, 0.3)
    for track in tracks:
        _draw_track(view, track)
    view.line(ego.planar[:, :2], COLOR_EGO, 0.6)
    times_us = np.arange(ego.start_us, ego.end_us + 1, round(_EGO_EVERY_S * 1e6))
    for x, y, yaw in ego.planar_at(times_us):
        shift = ego_vehicle.center_x_m * np.array([np.cos(yaw), np.sin(yaw)])
        size_m = (ego_vehicle.length_m, ego_vehicle.width_m)
        view.box(np.array([x + shift[0], y + shift[1], yaw]), size_m, outline=COLOR_EGO)
    picture = Image.fromarray(view.finish())
    _draw_legend(ImageDraw.Draw(picture), picture.height, m_per_px)
    return np.asarray(picture)


def _frame(ego: Trajectory) -> tuple[Float[np.ndarray, "2"], int, int, float]:
    """Centre (m), width and height (px) and m per px of a picture of the driven area."""
    low, high = ego.planar[:, :2].min(axis=0) - _MARGIN_M, ego.planar[:, :2].max(axis=0) + _MARGIN_M
    size_m = high - low
    m_per_px = float(size_m.max()) / _LONG_SIDE_PX
    width_px, height_px = (max(_SHORT_SIDE_PX, round(side / m_per_px)) for side in size_m)
    return (low + high) / 2, width_px, height_px, m_per_px


def _draw_track(view: TopView, track: Track) -> None:
    color = CATEGORY_COLORS[track.category]
    path = track.trajectory.planar
    if track.is_moving():
        view.line(path[:, :2], color, 0.25)
    middle = planar_from_pose(track.trajectory.T_world_rig[len(path) // 2])
    view.box(middle, track.size_m[:2], fill=color, outline=color)


def _draw_legend(draw: ImageDraw.ImageDraw, height_px: int, m_per_px: float) -> None:
    font = caption_font(13)
    x = 12.0
    for text, color in (("ego", COLOR_EGO), *CATEGORY_COLORS.items()):
        draw.rectangle((x, 14, x + 14, 22), fill=color)
        draw.text((x + 19, 10), text, _COLOR_TEXT, font)
        x += font.getlength(text) + 36
    bar_m = max((bar for bar in _SCALE_BARS_M if bar / m_per_px <= 200), default=_SCALE_BARS_M[0])
    draw.rectangle((12, height_px - 18, 12 + bar_m / m_per_px, height_px - 14), fill=_COLOR_TEXT)
    draw.text((12, height_px - 38), f"{bar_m} m", _COLOR_TEXT, font)
