"""What the scorers of one rollout share."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from eval.boxes import RoundedBox
from eval.protocol import EvaluationProtocol
from eval.results import Reducer, Series
from neural_sim.errors import InputError
from neural_sim.road_users import Track
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.record import RolloutRecord
from neural_sim.trajectory import Trajectory


def box_center_planar(planar_rig: Float[np.ndarray, "t 3"], center_x_m: float) -> Float[np.ndarray, "t 3"]:
    """Move rig poses (x, y, yaw) forward by `center_x_m` to the centre of the ego box; m and rad."""
    yaw_rad = planar_rig[:, 2]
    offset = center_x_m * np.stack([np.cos(yaw_rad), np.sin(yaw_rad), np.zeros_like(yaw_rad)], axis=-1)
    return planar_rig + offset


@dataclass(frozen=True)
class ScoringContext:
    """One rollout in its scene, with the geometry that several scorers need. T steps, N actors."""

    record: RolloutRecord
    scene: Scene
    protocol: EvaluationProtocol

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
        driven = Trajectory(self.record.t_us, self.record.T_world_rig)
        return box_center_planar(driven.planar, self.scene.ego_vehicle.center_x_m)

    @cached_property
    def expert_planar(self) -> Float[np.ndarray, "t 3"]:
        """Recorded centre of the ego box at the times of the rollout, world frame, m and rad."""
        return box_center_planar(self.scene.expert.planar_at(self.t_us), self.scene.ego_vehicle.center_x_m)

    @cached_property
    def expert_path_m(self) -> Float[np.ndarray, "m 2"]:
        """The whole recorded path of the box centre, world frame, m."""
        return box_center_planar(self.scene.expert.planar, self.scene.ego_vehicle.center_x_m)[:, :2]

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
