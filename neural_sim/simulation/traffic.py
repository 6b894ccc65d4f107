"""Other road users: replayed from the log, or driven by a model that starts from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.frames import planar_from_pose
from neural_sim.road_users import EgoVehicle, Track


@dataclass(frozen=True)
class TrafficStep:
    """N road users at one time. The leading size B is 1 when all rollouts share them. Arrays are read-only.

    Attributes:
        T_world_actor: float64 [B, N, 4, 4], box centre, m; anything while absent.
        present: bool [B, N].
        memory: float64 [B, M], what a traffic model needs to go on; empty for a replay.
    """

    T_world_actor: Float[np.ndarray, "b n 4 4"]
    present: Bool[np.ndarray, "b n"]
    memory: Float[np.ndarray, "b m"]

    def __post_init__(self) -> None:
        for values in vars(self).values():
            values.flags.writeable = False

    @cached_property
    def planar(self) -> Float[np.ndarray, "b n 3"]:
        """(x, y, yaw) of each box centre, world frame, m and rad; NaN while absent."""
        return np.where(self.present[..., None], planar_from_pose(self.T_world_actor), np.nan)

    def actors(self, track_ids: Sequence[str], batch_size: int) -> list[Mapping[str, Float[np.ndarray, "4 4"]]]:
        """Box poses of the road users present, by track id, for each of `batch_size` rollouts."""
        shown: list[Mapping[str, Float[np.ndarray, "4 4"]]] = [
            {track_ids[n]: poses[n] for n in np.flatnonzero(present).tolist()}
            for poses, present in zip(self.T_world_actor, self.present, strict=True)
        ]
        return shown if len(shown) == batch_size else shown * batch_size


class TrafficModel(Protocol):
    """Moves road users. All that it remembers is in its steps, so saving those saves the model.

    A learned model implements this and is given to the `Simulator` as a `TrafficModelFactory`.
    """

    def start(self, logged: TrafficStep, step: int, batch_size: int) -> TrafficStep:
        """The step at the hand-over, index `step` of the simulation, where traffic is as `logged`."""
        ...

    def advance(
        self, now: TrafficStep, step: int, ego_planar: Float[np.ndarray, "b 3"], ego_velocity: Float[np.ndarray, "b 3"]
    ) -> TrafficStep:
        """Traffic at index `step`, given traffic and ego rigs one control step before it.

        `ego_planar`: (x, y, yaw), world frame, m and rad; `ego_velocity`: rig-frame vx, vy (m/s) and yaw rate (rad/s).
        """
        ...


@dataclass(frozen=True)
class ReplayedTraffic:
    """Logged poses of N road users at T times; the traffic model that repeats them.

    Attributes:
        tracks: the N recorded tracks.
        t_us: int64 [T], us.
        T_world_actor: float64 [T, N, 4, 4], box centre, m; the first or last recorded pose while absent.
        present: bool [T, N], whether the recorded span of the track contains the time.
    """

    tracks: tuple[Track, ...]
    t_us: Int[np.ndarray, "t"]
    T_world_actor: Float[np.ndarray, "t n 4 4"]
    present: Bool[np.ndarray, "t n"]

    @property
    def track_ids(self) -> tuple[str, ...]:
        """Names of the road users."""
        return tuple(track.track_id for track in self.tracks)

    def at(self, step: int) -> TrafficStep:
        """The log at `t_us[step]`, shared by all rollouts."""
        return TrafficStep(self.T_world_actor[step : step + 1], self.present[step : step + 1], np.zeros((1, 0)))

    def start(self, logged: TrafficStep, step: int, batch_size: int) -> TrafficStep:
        """See `TrafficModel`."""
        return logged

    def advance(
        self, now: TrafficStep, step: int, ego_planar: Float[np.ndarray, "b 3"], ego_velocity: Float[np.ndarray, "b 3"]
    ) -> TrafficStep:
        """See `TrafficModel`; nobody reacts to the ego."""
        return self.at(step)


TrafficModelFactory = Callable[[ReplayedTraffic, EgoVehicle], TrafficModel]


def replay_traffic(tracks: Sequence[Track], t_us: Int[np.ndarray, "t"], min_duration_s: float) -> ReplayedTraffic:
    """Interpolate `tracks` at `t_us` (us).

    Road users seen for less than `min_duration_s` are left out: their boxes are mostly glimpses with bad geometry that
    appear out of nowhere. Obstacles are kept whatever their duration, as they do not move. Gaps inside a track are
    bridged by interpolation.
    """
    kept = [track for track in tracks if track.category == "obstacle" or _duration_s(track) >= min_duration_s]
    poses = np.zeros((len(t_us), len(kept), 4, 4))
    present = np.zeros((len(t_us), len(kept)), bool)
    for n, track in enumerate(kept):
        poses[:, n] = track.trajectory.poses_at(t_us)
        present[:, n] = (t_us >= track.trajectory.start_us) & (t_us <= track.trajectory.end_us)
    return ReplayedTraffic(tuple(kept), np.asarray(t_us), poses, present)


def _duration_s(track: Track) -> float:
    return (track.trajectory.end_us - track.trajectory.start_us) * 1e-6
