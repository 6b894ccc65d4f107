"""The route ahead: waypoints and the navigation command that follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.errors import InputError
from neural_sim.frames import planar_to_local, wrap_angle
from neural_sim.road_map import Lane, RoadMap
from neural_sim.trajectory import Trajectory

WAYPOINTS = 20
ROUTE_LENGTH_M = 80.0
WAYPOINT_SPACING_M = ROUTE_LENGTH_M / (WAYPOINTS - 1)
THIN_TO_M = 0.2
# A lane belongs to the route where it lies this near to the recorded path and points its way.
LANE_WITHIN_M = 4.0
LANE_WITHIN_RAD = np.deg2rad(60.0)
# A sharper turn between neighbouring points folds the route back; it is cut there.
FOLD_BACK_RAD = np.deg2rad(150.0)

RouteSource = Literal["map", "recorded"]
Command = Literal["LEFT", "RIGHT", "STRAIGHT", "UNKNOWN"]
COMMAND_TEXTS: Mapping[Command, str] = {
    "LEFT": "turn left", "RIGHT": "turn right", "STRAIGHT": "go straight on", "UNKNOWN": ""
}  # fmt: skip


@dataclass(frozen=True)
class RouteConfig:
    """Where the route comes from and how it becomes a command."""

    source: RouteSource = "map"
    """`map`: the recorded path drawn to lane centres and extended along them; `recorded`: the recorded path alone."""
    lookahead_m: float = 20.0
    """Distance to the waypoint that decides the command, m."""
    turn_offset_m: float = 3.0
    """A waypoint farther to the side than this is a turn, m."""

    def __post_init__(self) -> None:
        if self.source not in get_args(RouteSource):
            raise InputError(f"simulation.route.source is {self.source!r}, expected map or recorded")
        for name in ("lookahead_m", "turn_offset_m"):
            if not getattr(self, name) > 0:
                raise InputError(f"simulation.route.{name} is {getattr(self, name)}, expected a positive length in m")


@dataclass(frozen=True)
class Route:
    """The way to go.

    Attributes:
        points_m: float64 [M, 2], world frame, m, in driving direction; at least one.
        source: "map" or "recorded"; a map without a lane near the path gives "recorded".
    """

    points_m: Float[np.ndarray, "m 2"]
    source: RouteSource

    def waypoints(self, planar: Float[np.ndarray, "b 3"]) -> Float[np.ndarray, "b 20 2"]:
        """20 points over 80 m from the place nearest to each rig (x, y, yaw; world, m, rad), in its frame, m.

        NaN from where the route ends.
        """
        line, first_m = self._line, self._start_m(planar)
        at_m = first_m[:, None] + WAYPOINT_SPACING_M * np.arange(WAYPOINTS)
        known = at_m <= line[-1, 2] + 1e-6
        world = np.stack([np.interp(at_m, line[:, 2], line[:, axis]) for axis in (0, 1)], axis=-1)
        local = planar_to_local(np.concatenate([world, np.zeros((*at_m.shape, 1))], axis=-1), planar[:, None])
        return np.where(known[..., None], local[..., :2], np.nan)

    @property
    def _line(self) -> Float[np.ndarray, "m 3"]:
        steps_m = np.linalg.norm(np.diff(self.points_m, axis=0), axis=1)
        return np.column_stack([self.points_m, np.concatenate([[0.0], np.cumsum(steps_m)])])

    def _start_m(self, planar: Float[np.ndarray, "b 3"]) -> Float[np.ndarray, "b"]:
        if len(self.points_m) == 1:
            return np.zeros(len(planar))
        return np.asarray(shapely.line_locate_point(shapely.LineString(self.points_m), shapely.points(planar[:, :2])))


def make_route(expert: Trajectory, road_map: RoadMap, config: RouteConfig) -> Route:
    """The route of a scene. Derived maps hold no more than the recorded path, so they give a recorded route."""
    recorded_m = thinned(expert.planar[:, :2], THIN_TO_M)
    if config.source == "map" and road_map.source == "recorded":
        on_lanes = _drawn_to_lanes(thinned(expert.planar[:, :2], 2.0), road_map)
        if on_lanes is not None:
            return Route(_without_fold_back(on_lanes), "map")
    return Route(_without_fold_back(recorded_m), "recorded")


def command_of(waypoints: Float[np.ndarray, "b 20 2"], config: RouteConfig) -> tuple[Command, ...]:
    """LEFT or RIGHT when the first waypoint at `lookahead_m` or farther is more than `turn_offset_m` to the side, else
    STRAIGHT; UNKNOWN when the route does not reach that far."""
    commands: list[Command] = []
    for row in waypoints:
        far = np.flatnonzero(np.hypot(row[:, 0], row[:, 1]) >= config.lookahead_m)
        if not far.size:
            commands.append("UNKNOWN")
            continue
        left_m = row[far[0], 1]
        commands.append("STRAIGHT" if abs(left_m) <= config.turn_offset_m else "LEFT" if left_m > 0 else "RIGHT")
    return tuple(commands)


def thinned(points_m: Float[np.ndarray, "m 2"], spacing_m: float) -> Float[np.ndarray, "k 2"]:
    """Points at least `spacing_m` apart, the first always kept."""
    kept = [points_m[0]]
    for point in points_m[1:]:
        if np.hypot(*(point - kept[-1])) >= spacing_m:
            kept.append(point)
    return np.array(kept)


def _drawn_to_lanes(path_m: Float[np.ndarray, "m 2"], road_map: RoadMap) -> Float[np.ndarray, "k 2"] | None:
    """The path moved to the nearest fitting lane centres, where there are any, and extended; None without any."""
    if len(path_m) < 2:
        return None
    lanes = {lane.lane_id: lane for lane in road_map.lanes if len(lane.centerline_m) > 1}
    lines = {name: shapely.LineString(lane.centerline_m[:, :2]) for name, lane in lanes.items()}
    heading = np.arctan2(*np.diff(path_m, axis=0).T[::-1])
    heading = np.append(heading, heading[-1])
    points: list[np.ndarray] = []
    current: str | None = None
    for point, yaw_rad in zip(path_m, heading, strict=True):
        current = _lane_at(point, float(yaw_rad), current, lanes, lines)
        if current is None:
            points.append(point)
        else:
            line = lines[current]
            points.append(shapely.get_coordinates(line.interpolate(line.project(shapely.Point(point))))[0])
    if current is None:
        return None
    points += _continued(points[-1], current, lanes)
    return thinned(np.array(points), THIN_TO_M)


def _lane_at(
    point: Float[np.ndarray, "2"],
    yaw_rad: float,
    current: str | None,
    lanes: Mapping[str, Lane],
    lines: Mapping[str, shapely.LineString],
) -> str | None:
    """The lane of the route at a recorded point: stay on the present lane or its successors while they fit."""
    kept = [current, *lanes[current].successors] if current is not None else []
    for names in ([name for name in kept if name in lanes], lanes):
        fits = [(offset, name) for name in names if (offset := _offset(point, yaw_rad, lines[name])) is not None]
        if fits:
            return min(fits)[1]
    return None


def _offset(point: Float[np.ndarray, "2"], yaw_rad: float, line: shapely.LineString) -> float | None:
    """Distance to a lane centre, m; None when it is too far, points elsewhere, or the point is beyond its ends."""
    place = shapely.Point(point)
    distance_m = line.distance(place)
    if distance_m > LANE_WITHIN_M:
        return None
    at_m = line.project(place)
    if at_m <= 0.0 or at_m >= line.length:
        return None
    behind, ahead = (shapely.get_coordinates(line.interpolate(at_m + shift))[0] for shift in (-0.5, 0.5))
    turn = wrap_angle(np.arctan2(*(ahead - behind)[::-1]) - yaw_rad)
    return float(distance_m) if abs(turn) <= LANE_WITHIN_RAD else None


def _continued(last: Float[np.ndarray, "2"], lane_id: str, lanes: Mapping[str, Lane]) -> list[np.ndarray]:
    """Lane-centre points for `ROUTE_LENGTH_M` after `last`, at forks along the successor of the closest heading."""
    points, length_m, seen = [last], 0.0, {lane_id}
    center = lanes[lane_id].centerline_m[:, :2]
    center = center[int(np.linalg.norm(center - last, axis=1).argmin()) + 1 :]
    while length_m < ROUTE_LENGTH_M:
        for point in center:
            length_m += float(np.hypot(*(point - points[-1])))
            points.append(point)
        following = [name for name in lanes[lane_id].successors if name in lanes and name not in seen]
        if not following or len(points) < 2:
            break
        yaw_rad = np.arctan2(*(points[-1] - points[-2])[::-1])
        lane_id = min(following, key=lambda name: abs(wrap_angle(_first_heading(lanes[name]) - yaw_rad)))
        seen.add(lane_id)
        center = lanes[lane_id].centerline_m[:, :2]
    return points[1:]


def _first_heading(lane: Lane) -> float:
    step = lane.centerline_m[1, :2] - lane.centerline_m[0, :2]
    return float(np.arctan2(step[1], step[0]))


def _without_fold_back(points_m: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "k 2"]:
    """The points up to the first turn that folds back."""
    if len(points_m) < 3:
        return points_m
    heading = np.arctan2(*np.diff(points_m, axis=0).T[::-1])
    folds = np.flatnonzero(np.abs(wrap_angle(np.diff(heading))) > FOLD_BACK_RAD)
    return points_m[: folds[0] + 2] if folds.size else points_m
