"""The boxes of road users and the borders of lanes, drawn into a camera image."""

from collections.abc import Iterator, Sequence

import numpy as np
import shapely
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from neural_sim.cameras import Camera
from neural_sim.drawing.top_view import Color
from neural_sim.frames import invert_pose
from neural_sim.road_map import Lane, RoadMap
from neural_sim.road_users import Track

CATEGORY_COLORS: dict[str, Color] = {
    "vehicle": (255, 140, 26),
    "pedestrian": (230, 60, 120),
    "cyclist": (60, 190, 255),
    "obstacle": (170, 170, 170),
}
COLOR_LANE_BORDER: Color = (40, 220, 130)
LANE_REACH_M = 50.0
_LANE_STEP_M = 0.5
_EDGE_POINTS = 16
# Points nearer than this to the image plane of a wide lens project far outside the picture.
_NEAR_M = 0.2
_CORNERS = np.array([[x, y, z] for x in (0.5, -0.5) for y in (0.5, -0.5) for z in (0.5, -0.5)])
_EDGES = tuple((i, j) for i in range(8) for j in range(i + 1, 8) if np.count_nonzero(_CORNERS[i] - _CORNERS[j]) == 1)


def draw_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    camera: Camera,
    T_world_rig: Float[np.ndarray, "4 4"],
    t_us: int,
    tracks: Sequence[Track] = (),
    road_map: RoadMap | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """`image` with the lane borders near the car and the boxes of the tracks present at `t_us` (us) drawn in.

    `camera` is the calibration at the size of the image, `T_world_rig` the pose of the car when it was taken, m.
    Nothing is hidden by what stands in front of it.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    T_camera_world = invert_pose(T_world_rig @ camera.T_rig_camera)
    width_px = max(1, round(camera.width_px / 640))
    for border in lane_borders(road_map.lanes if road_map else (), T_world_rig[:3, 3]):
        _draw_line(draw, border, camera, T_camera_world, COLOR_LANE_BORDER, width_px)
    for track in tracks:
        if track.is_present(t_us):
            pose = track.trajectory.poses_at(np.array([t_us]))[0]
            for edge in box_edges(pose, track.size_m):
                _draw_line(draw, edge, camera, T_camera_world, CATEGORY_COLORS[track.category], width_px)
    return np.asarray(picture)


def box_edges(
    T_world_box: Float[np.ndarray, "4 4"], size_m: tuple[float, float, float]
) -> list[Float[np.ndarray, "p 3"]]:
    """The twelve edges of a box of `size_m` (length, width, height), each as points in the world frame, m."""
    corners = (_CORNERS * size_m) @ T_world_box[:3, :3].T + T_world_box[:3, 3]
    share = np.linspace(0.0, 1.0, _EDGE_POINTS)[:, None]
    return [corners[i] * (1 - share) + corners[j] * share for i, j in _EDGES]


def lane_borders(lanes: Sequence[Lane], position_m: Float[np.ndarray, "3"]) -> list[Float[np.ndarray, "p 3"]]:
    """Both borders of every lane within `LANE_REACH_M` of a place, half a lane width from its centre line, m."""
    window = shapely.Point(position_m[:2]).buffer(LANE_REACH_M)
    borders = []
    for lane in lanes:
        line = shapely.intersection(shapely.LineString(lane.centerline_m), window)
        for part in shapely.get_parts(line):
            if isinstance(part, shapely.LineString) and part.length > _LANE_STEP_M:
                center = shapely.get_coordinates(shapely.segmentize(part, _LANE_STEP_M), include_z=True)
                borders += [_beside(center, side * lane.width_m / 2) for side in (1.0, -1.0)]
    return borders


def _beside(center_m: Float[np.ndarray, "p 3"], offset_m: float) -> Float[np.ndarray, "p 3"]:
    """The line `offset_m` to the left of another."""
    along = np.gradient(center_m[:, :2], axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    left = np.column_stack([-along[:, 1], along[:, 0], np.zeros(len(along))])
    return np.nan_to_num(center_m) + offset_m * left


def _draw_line(
    draw: ImageDraw.ImageDraw,
    points_m: Float[np.ndarray, "p 3"],
    camera: Camera,
    T_camera_world: Float[np.ndarray, "4 4"],
    color: Color,
    width_px: int,
) -> None:
    local = points_m @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]
    pixels, seen = camera.project(local)
    size = np.array([camera.width_px, camera.height_px])
    near = (np.linalg.norm(local, axis=1) > _NEAR_M) & (np.abs(pixels - size / 2) < 2 * size).all(axis=1)
    for run in _runs(seen & near & ((local[:, 2] > _NEAR_M) | (camera.distortion is not None))):
        if len(run) > 1:
            draw.line([tuple(point) for point in pixels[run].tolist()], fill=color, width=width_px)


def _runs(mask: Bool[np.ndarray, "p"]) -> Iterator[np.ndarray]:
    """Indices of each unbroken stretch of true values."""
    index = np.flatnonzero(mask)
    if index.size:
        yield from np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)
