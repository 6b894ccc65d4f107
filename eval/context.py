"""What the scorers of one rollout share."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int

from eval.boxes import RoundedBox
from eval.polyline import project_on_path
from eval.protocol import EvaluationProtocol
from eval.results import Reducer, Series
from eval.shared import SharedGeometry, box_center_planar
from neural_sim.errors import InputError
from neural_sim.frames import planar_from_pose, planar_to_world
from neural_sim.road_users import Track
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.record import RolloutRecord


@dataclass(frozen=True)
class ScoringContext:
    """One rollout in its scene, with the geometry that several scorers need. T steps, N actors."""

    record: RolloutRecord
    scene: Scene
    protocol: EvaluationProtocol
    shared: SharedGeometry

    @cached_property
    def t_us(self) -> Int[np.ndarray, "t"]:
        """Times of the steps, us."""
        return self.record.t_us

    @cached_property
    def evaluated(self) -> Bool[np.ndarray, "t"]:
        """Steps after warm-up."""
        return ~self.record.is_warmup

    @cached_property
    def ego_planar(self) -> Float[np.ndarray, "t 3"]:
        """Driven centre of the ego box (x, y, yaw), world frame, m and rad."""
        return box_center_planar(self.rig_planar, self.scene.ego_vehicle.center_x_m)

    @cached_property
    def rig_planar(self) -> Float[np.ndarray, "t 3"]:
        """Driven rig poses (x, y, yaw), world frame, m and rad."""
        return planar_from_pose(self.record.T_world_rig)

    @cached_property
    def outlines(self) -> np.ndarray:
        """Rounded outlines of the ego box, one polygon a step."""
        return self.ego_box.outlines(self.ego_planar)

    @property
    def expert_planar(self) -> Float[np.ndarray, "t 3"]:
        """Recorded centre of the ego box at the times of the rollout, world frame, m and rad."""
        return self.shared.expert_center_planar(self.t_us)

    @cached_property
    def expert_path_m(self) -> Float[np.ndarray, "m 2"]:
        """The whole recorded path of the box centre, world frame, m."""
        return box_center_planar(self.scene.expert.planar, self.scene.ego_vehicle.center_x_m)[:, :2]

    @cached_property
    def on_expert_path(self) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
        """Distance of the driven box centre to the whole recorded path and arc length of the nearest place on it, m."""
        return project_on_path(self.ego_planar[:, :2], self.expert_path_m)

    @cached_property
    def world_velocity_mps(self) -> Float[np.ndarray, "t 2"]:
        """Velocity of the rig, world frame, m/s."""
        cosine, sine = np.cos(self.rig_planar[:, 2]), np.sin(self.rig_planar[:, 2])
        forward, left = self.record.velocity[:, 0], self.record.velocity[:, 1]
        return np.stack([cosine * forward - sine * left, sine * forward + cosine * left], axis=-1)

    @cached_property
    def actor_velocity_mps(self) -> Float[np.ndarray, "t n 2"]:
        """Velocity of each actor from its places one step before and after, where it has them; else 0; m/s."""
        places = self.record.actor_planar[..., :2]
        moved = np.diff(places, axis=0) / (np.diff(self.t_us) * 1e-6)[:, None, None]
        gap = np.full((1, *moved.shape[1:]), np.nan)
        sides = np.stack([np.concatenate([gap, moved]), np.concatenate([moved, gap])])
        known = np.isfinite(sides)
        return np.where(known, sides, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)

    @property
    def ego_half_m(self) -> Float[np.ndarray, "2"]:
        """Half length and half width of the shrunk ego box, m."""
        return np.array([self.ego_box.length_m, self.ego_box.width_m]) / 2

    @cached_property
    def actor_half_m(self) -> Float[np.ndarray, "n 2"]:
        """Half length and half width of each shrunk actor box, m."""
        return np.array([(box.length_m, box.width_m) for box in self.actor_boxes]).reshape(-1, 2) / 2

    @property
    def contact_in_log(self) -> Bool[np.ndarray, "t n"]:
        """Where the expert's box touches the same actor's recorded box at the same time."""
        return self.shared.contact_in_log(self.t_us, self.record.actor_ids, self.protocol)

    @cached_property
    def lanes_at(self) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
        """Pairs of step and lane where the lane holds the centre of the ego box; none on a derived map."""
        if not self.shared.has_lanes:
            return np.zeros(0, int), np.zeros(0, int)
        steps, lanes = self.shared.lane_tree.query(shapely.points(self.ego_planar[:, :2]), predicate="within")
        return steps, lanes

    @cached_property
    def in_junction(self) -> Bool[np.ndarray, "t"]:
        """Whether a lane that runs across a junction holds the centre of the ego box."""
        steps, lanes = self.lanes_at
        inside = np.zeros(len(self.t_us), bool)
        if len(steps):
            inside[steps[self.shared.lane_is_junction[lanes]]] = True
        return inside

    @cached_property
    def has_plan(self) -> Bool[np.ndarray, "t"]:
        """Steps with a plan of finite numbers."""
        return np.asarray(np.isfinite(self.record.plans).all(axis=(1, 2)))

    @cached_property
    def planned_rig_planar(self) -> Float[np.ndarray, "t p 3"]:
        """Rig poses (x, y, yaw) of the plans, world frame, m and rad; NaN without a plan."""
        return planar_to_world(self.record.plans.astype(float), self.rig_planar[:, None])

    @cached_property
    def planned_center_planar(self) -> Float[np.ndarray, "t p 3"]:
        """The same for the centre of the ego box."""
        return box_center_planar(self.planned_rig_planar, self.scene.ego_vehicle.center_x_m)

    @cached_property
    def is_within_log(self) -> Bool[np.ndarray, "t"]:
        """Steps at which the expert was recorded."""
        return (self.t_us >= self.scene.expert.start_us) & (self.t_us <= self.scene.expert.end_us)

    @cached_property
    def speed_mps(self) -> Float[np.ndarray, "t"]:
        """Ground speed of the rig, m/s."""
        return np.linalg.norm(self.record.velocity[:, :2], axis=1)

    @cached_property
    def ego_box(self) -> RoundedBox:
        """Contact outline of the ego car."""
        vehicle = self.scene.ego_vehicle
        return RoundedBox.from_size(vehicle.length_m, vehicle.width_m, self.protocol)

    @cached_property
    def actor_tracks(self) -> tuple[Track, ...]:
        """Recorded tracks of the actors in the record, in its order.

        Raises `InputError` when the scene has no track of that id.
        """
        tracks = {track.track_id: track for track in self.scene.tracks}
        unknown = [actor_id for actor_id in self.record.actor_ids if actor_id not in tracks]
        if unknown:
            raise InputError(
                f"rollout {self.record.rollout_index} of scene {self.scene.scene_id}: actor {unknown[0]!r} is no track "
                "of the scene; score the rollout with the scene it was driven in"
            )
        return tuple(tracks[actor_id] for actor_id in self.record.actor_ids)

    @cached_property
    def actor_boxes(self) -> tuple[RoundedBox, ...]:
        """Contact outline of each actor."""
        return tuple(
            RoundedBox.from_size(track.size_m[0], track.size_m[1], self.protocol) for track in self.actor_tracks
        )

    def series(
        self,
        values: Float[np.ndarray, "t"] | Bool[np.ndarray, "t"],
        reducer: Reducer,
        valid: Bool[np.ndarray, "t"] | None = None,
    ) -> Series:
        """A series on the times of the rollout; valid everywhere unless told otherwise. Invalid values become NaN."""
        valid = np.ones(len(self.t_us), bool) if valid is None else np.asarray(valid, bool)
        return Series(self.t_us, np.where(valid, np.asarray(values, float), np.nan), valid, reducer)
