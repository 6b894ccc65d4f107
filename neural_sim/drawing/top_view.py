"""A canvas seen from above, in metres."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from neural_sim.frames import planar_to_local
from neural_sim.road_map import RoadMap
from neural_sim.road_users import box_corners

Color = tuple[int, int, int]

COLOR_GROUND: Color = (233, 234, 230)
COLOR_ROAD: Color = (205, 208, 210)
COLOR_LANE: Color = (250, 250, 248)

_SUPERSAMPLING = 2


class TopView:
    """A supersampled canvas around a pose that looks up the picture.

    `center_planar` is (x, y, yaw), m and rad, world frame; it lies `below_top` of the height under the upper border.
    """

    def __init__(
        self,
        center_planar: Float[np.ndarray, "3"],
        width_px: int,
        height_px: int,
        m_per_px: float,
        below_top: float = 0.5,
    ) -> None:
        self.center_planar = np.asarray(center_planar, float)
        self.size = (width_px, height_px)
        self.px_per_m = _SUPERSAMPLING / m_per_px
        self.below_top = below_top
        self.image = Image.new("RGB", (width_px * _SUPERSAMPLING, height_px * _SUPERSAMPLING), COLOR_GROUND)
        self.draw = ImageDraw.Draw(self.image)
        ahead_m, behind_m = height_px * m_per_px * np.array([below_top, 1 - below_top])
        self.reach_m = float(np.hypot(max(ahead_m, behind_m), width_px * m_per_px / 2)) + 5.0

    def pixels(self, xy: Float[np.ndarray, "n 2"]) -> list[tuple[float, float]]:
        """World points (m) to canvas coordinates."""
        planar = np.column_stack([xy, np.zeros(len(xy))])
        local = planar_to_local(planar, self.center_planar)
        x = self.image.width / 2 - local[:, 1] * self.px_per_m
        y = self.image.height * self.below_top - local[:, 0] * self.px_per_m
        return list(zip(x.tolist(), y.tolist(), strict=True))

    def line(self, xy: Float[np.ndarray, "n 2"], color: Color, width_m: float) -> None:
        """Draw a polyline of world points with a width in m."""
        if len(xy) >= 2:
            width_px = max(2, round(width_m * self.px_per_m))
            self.draw.line(self.pixels(xy), fill=color, width=width_px, joint="curve")

    def polygon(self, xy: Float[np.ndarray, "n 2"], color: Color) -> None:
        """Fill a polygon of world points."""
        if len(xy) >= 3:
            self.draw.polygon(self.pixels(xy), fill=color)

    def box(
        self,
        planar: Float[np.ndarray, "3"],
        size_m: Sequence[float] | np.ndarray,
        fill: Color | None = None,
        outline: Color = COLOR_LANE,
    ) -> None:
        """Draw a box at (x, y, yaw) with a mark at its front."""
        corners = box_corners(np.asarray(planar, float), float(size_m[0]), float(size_m[1]))
        self.draw.polygon(self.pixels(corners), fill=fill, outline=outline, width=2 * _SUPERSAMPLING)
        front = (corners[0] + corners[3]) / 2
        center = np.asarray(planar[:2], float)
        self.line(np.stack([center + 0.4 * (front - center), front]), outline, 0.2)

    def road(self, road_map: RoadMap) -> None:
        """Draw the drivable area and the lane centres that lie in view."""
        x, y = self.center_planar[:2]
        window = (x - self.reach_m, y - self.reach_m, x + self.reach_m, y + self.reach_m)
        visible = shapely.clip_by_rect(road_map.drivable, *window)
        areas = [area for area in shapely.get_parts(visible) if isinstance(area, shapely.Polygon)]
        for area in sorted(areas, key=lambda area: -area.area):
            self.polygon(shapely.get_coordinates(area.exterior), COLOR_ROAD)
            for hole in area.interiors:
                self.polygon(shapely.get_coordinates(hole), COLOR_GROUND)
        for lane in road_map.lanes:
            if len(lane.centerline_m) < 2:
                continue
            line = shapely.clip_by_rect(shapely.LineString(lane.centerline_m[:, :2]), *window)
            for part in shapely.get_parts(line):
                self.line(shapely.get_coordinates(part), COLOR_LANE, 0.12)

    def finish(self) -> UInt8[np.ndarray, "h w 3"]:
        """The canvas at its final size."""
        return np.asarray(self.image.resize(self.size, Image.Resampling.BOX))


@cache
def caption_font(size_px: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as shipped with matplotlib: the same letters on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size_px)
