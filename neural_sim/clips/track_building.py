"""Samples of one road user become tracks."""

import itertools

import numpy as np
from jaxtyping import Float, Int

from neural_sim.errors import InputError
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

# Road users that are lost for longer are no longer interpolated: the parts become tracks of their own.
LONGEST_GAP_US = 1_000_000


def build_tracks(
    track_id: str,
    category: str,
    size_m: tuple[float, float, float],
    t_us: Int[np.ndarray, "n"],
    T_world_box: Float[np.ndarray, "n 4 4"],
    where: str,
) -> list[Track]:
    """Tracks of the samples of one road user, in order of time; split where it is unseen for over a second.

    The first part keeps `track_id`, later ones are `track_id/2` and so on. Raises `InputError` led by `where` when a
    size is not positive, times repeat or poses are not finite.
    """
    if not all(np.isfinite(size_m)) or min(size_m) <= 0:
        raise InputError(f"{where}: track {track_id!r} has box size {size_m} m, expected positive lengths")
    order = np.argsort(t_us, kind="stable")
    t_us, T_world_box = np.asarray(t_us)[order], np.asarray(T_world_box)[order]
    starts = [0, *(np.flatnonzero(np.diff(t_us) > LONGEST_GAP_US) + 1), len(t_us)]
    tracks = []
    for part, (start, stop) in enumerate(itertools.pairwise(starts), start=1):
        name = track_id if part == 1 else f"{track_id}/{part}"
        try:
            trajectory = Trajectory(t_us[start:stop], T_world_box[start:stop])
        except InputError as error:
            raise InputError(f"{where}: track {track_id!r}: {error}") from error
        tracks.append(Track(name, category, size_m, trajectory))
    return tracks
