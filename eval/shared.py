"""What the rollouts of one scene share when they are scored: computed once, used for every rollout."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int

from eval.boxes import RoundedBox, gaps_m
from eval.protocol import EvaluationProtocol
from neural_sim.road_map import Lane
from neural_sim.scenes.scene import Scene

T = TypeVar("T")


def box_center_planar(planar_rig: Float[np.ndarray, "*t 3"], center_x_m: float) -> Float[np.ndarray, "*t 3"]:
    """Move rig poses (x, y, yaw) forward by `center_x_m` to the centre of the ego box; m and rad."""
    yaw_rad = planar_rig[..., 2]
    offset = center_x_m * np.stack([np.cos(yaw_rad), np.sin(yaw_rad), np.zeros_like(yaw_rad)], axis=-1)
    return planar_rig + offset


@dataclass(frozen=True)
class SharedGeometry:
    """Geometry of a scene that does not depend on how it was driven. What was looked up once is remembered."""

    scene: Scene
    _known: dict[tuple[str, bytes], np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def expert_center_planar(self, t_us: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m 3"]:
        """Recorded centre of the ego box (x, y, yaw) at `t_us`, world frame, m and rad."""
        center_x_m = self.scene.ego_vehicle.center_x_m
        return self._once("expert", t_us, lambda: box_center_planar(self.scene.expert.planar_at(t_us), center_x_m))

    def expert_speed_mps(self, t_us: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
        """Recorded speed of the ego at `t_us`, m/s."""
        return self._once("speed", t_us, lambda: self.scene.expert.speed_mps_at(t_us))

    def expert_xy(self, t_us: Int[np.ndarray, "s p"]) -> Float[np.ndarray, "s p 2"]:
        """Recorded rig origin at `t_us`, world frame, m."""
        expert = self.scene.expert
        xy = (np.interp(t_us, expert.t_us, expert.planar[:, axis]) for axis in (0, 1))
        return self._once("xy", t_us, lambda: np.stack(list(xy), axis=-1))

    def logged_actors(self, t_us: Int[np.ndarray, "m"], actor_ids: tuple[str, ...]) -> Float[np.ndarray, "m n 3"]:
        """Recorded box centres (x, y, yaw) of tracks at `t_us`, world frame, m and rad; NaN while absent."""
        return self._once("|".join(actor_ids), t_us, lambda: self._actors(t_us, actor_ids))

    def contact_in_log(
        self, t_us: Int[np.ndarray, "m"], actor_ids: tuple[str, ...], protocol: EvaluationProtocol
    ) -> Bool[np.ndarray, "m n"]:
        """Where the expert's box touches an actor's recorded box, both shrunk and rounded as `protocol` says."""
        name = f"{protocol.box_shrink} {protocol.corner_radius_share} {actor_ids}"
        return self._once(name, t_us, lambda: self._contact(t_us, actor_ids, protocol))

    @cached_property
    def has_lanes(self) -> bool:
        """Whether the map has recorded lanes; the lane of a derived map is the recorded path itself."""
        return self.scene.road_map.source == "recorded" and len(self._lanes) > 0

    @cached_property
    def lane_lines(self) -> np.ndarray:
        """Centre lines of the lanes."""
        return np.array([shapely.LineString(lane.centerline_m[:, :2]) for lane in self._lanes], dtype=object)

    @cached_property
    def lane_areas(self) -> np.ndarray:
        """Centre lines grown by half the width, with flat ends."""
        half_m = np.array([lane.width_m for lane in self._lanes]) / 2
        return shapely.buffer(self.lane_lines, half_m, cap_style="flat")

    @cached_property
    def lane_limits_mps(self) -> Float[np.ndarray, "l"]:
        """Speed limits of the lanes, m/s; NaN where there is none."""
        limits = [lane.speed_limit_mps for lane in self._lanes]
        return np.array([np.nan if limit is None else limit for limit in limits], float)

    @cached_property
    def lane_is_junction(self) -> Bool[np.ndarray, "l"]:
        """Which lanes run across a junction."""
        return np.array([lane.is_junction for lane in self._lanes], bool)

    @cached_property
    def lane_tree(self) -> shapely.STRtree:
        """Index of `lane_areas`."""
        return shapely.STRtree(self.lane_areas)

    @cached_property
    def lane_union(self) -> shapely.Geometry:
        """Union of the lanes, prepared for containment tests."""
        union = shapely.union_all(self.lane_areas)
        shapely.prepare(union)
        return union

    @cached_property
    def lane_boundary(self) -> shapely.STRtree:
        """Index of the straight pieces of the boundary of the union of the lanes."""
        pieces = []
        for line in shapely.get_parts(shapely.boundary(self.lane_union)):
            points = shapely.get_coordinates(line)
            pieces.append(shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1)))
        return shapely.STRtree(np.concatenate(pieces))

    @cached_property
    def _lanes(self) -> tuple[Lane, ...]:
        return tuple(lane for lane in self.scene.road_map.lanes if len(lane.centerline_m) > 1)

    def _actors(self, t_us: Int[np.ndarray, "m"], actor_ids: tuple[str, ...]) -> Float[np.ndarray, "m n 3"]:
        tracks = {track.track_id: track.trajectory for track in self.scene.tracks}
        planar = np.full((len(t_us), len(actor_ids), 3), np.nan)
        for n, actor_id in enumerate(actor_ids):
            track = tracks[actor_id]
            recorded = (t_us >= track.start_us) & (t_us <= track.end_us)
            planar[recorded, n] = track.planar_at(t_us[recorded])
        return planar

    def _contact(
        self, t_us: Int[np.ndarray, "m"], actor_ids: tuple[str, ...], protocol: EvaluationProtocol
    ) -> Bool[np.ndarray, "m n"]:
        ego, sizes = self.scene.ego_vehicle, {track.track_id: track.size_m for track in self.scene.tracks}
        ego_box = RoundedBox.from_size(ego.length_m, ego.width_m, protocol)
        boxes = [RoundedBox.from_size(*sizes[actor_id][:2], protocol) for actor_id in actor_ids]
        actors, expert = self.logged_actors(t_us, actor_ids), self.expert_center_planar(t_us)
        reach_m = ego_box.reach_m + np.array([box.reach_m for box in boxes])
        with np.errstate(invalid="ignore"):
            step, n = np.nonzero(np.linalg.norm(actors[..., :2] - expert[:, None, :2], axis=-1) <= reach_m)
        contact = np.zeros(actors.shape[:2], bool)
        within = (t_us[step] >= self.scene.expert.start_us) & (t_us[step] <= self.scene.expert.end_us)
        gap_m = gaps_m([ego_box] * len(n), expert[step], [boxes[i] for i in n], actors[step, n])
        contact[step, n] = (gap_m <= 0) & within
        return contact

    def _once(self, name: str, t_us: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
        key = (name, t_us.tobytes())
        if key not in self._known:
            self._known[key] = compute()
            self._known[key].flags.writeable = False
        return self._known[key]


def shared_geometry(scene: Scene) -> SharedGeometry:
    """The shared geometry of this very scene object; kept for the two scenes used last."""
    return _shared(_Identity(scene))


class _Identity:
    """A scene as a key: scenes hold arrays, so they are told apart by identity."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __hash__(self) -> int:
        return id(self.scene)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.scene is self.scene


@lru_cache(maxsize=2)
def _shared(key: _Identity) -> SharedGeometry:
    return SharedGeometry(key.scene)
