"""Other road users replayed from the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.frames import planar_from_pose
from neural_sim.road_users import Track


@dataclass(frozen=True)
class ReplayedTraffic:
    """Poses of N road users at T times.

    Attributes:
        track_ids: N names.
        t_us: int64 [T], us.
        T_world_actor: float64 [T, N, 4, 4], box centre, m; the first or last recorded pose while absent.
        present: bool [T, N], whether the recorded span of the track contains the time.
    """

    track_ids: tuple[str, ...]
    t_us: Int[np.ndarray, "t"]
    T_world_actor: Float[np.ndarray, "t n 4 4"]
    present: Bool[np.ndarray, "t n"]

    @property
    def planar(self) -> Float[np.ndarray, "t n 3"]:
        """(x, y, yaw) of each box centre, world frame, m and rad; NaN while absent."""
        return np.where(self.present[..., None], planar_from_pose(self.T_world_actor), np.nan)

    def actors_at(self, index: int) -> Mapping[str, Float[np.ndarray, "4 4"]]:
        """Box poses of the road users present at `t_us[index]`, by track id."""
        shown = np.flatnonzero(self.present[index])
        return {self.track_ids[n]: self.T_world_actor[index, n] for n in shown}


def replay_traffic(tracks: Sequence[Track], t_us: Int[np.ndarray, "t"], min_duration_s: float) -> ReplayedTraffic:
    """Interpolate `tracks` at `t_us` (us).

    Road users seen for less than `min_duration_s` are left out: their boxes are mostly glimpses with bad geometry that
    appear out of nowhere. Obstacles are kept whatever their duration, as they do not move.
    """
    kept = [track for track in tracks if track.category == "obstacle" or _duration_s(track) >= min_duration_s]
    poses = np.zeros((len(t_us), len(kept), 4, 4))
    present = np.zeros((len(t_us), len(kept)), bool)
    for n, track in enumerate(kept):
        poses[:, n] = track.trajectory.poses_at(t_us)
        present[:, n] = (t_us >= track.trajectory.start_us) & (t_us <= track.trajectory.end_us)
    return ReplayedTraffic(tuple(track.track_id for track in kept), np.asarray(t_us), poses, present)


def _duration_s(track: Track) -> float:
    return (track.trajectory.end_us - track.trajectory.start_us) * 1e-6
