"""Lidar sweeps as initial points."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from neural_sim.clips.clip import Clip
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose
from neural_sim.reconstruction.actors import actor_poses, in_box, inside_any_box
from neural_sim.reconstruction.initial_points import thin_out
from neural_sim.road_users import Track

_MAX_RANGE_M = 120.0
# Returns from the recording car's own roof and bonnet.
_MIN_RANGE_M = 2.5


def lidar_points(
    clip: Clip, moving: Sequence[Track]
) -> tuple[Float[np.ndarray, "n 3"], list[Float[np.ndarray, "k 3"]]]:
    """All sweeps as static world points, and the points on each moving track in the frame of its box, m.

    Both are thinned out per sweep and once more over all sweeps. Raises `InputError` on an unreadable sweep.
    """
    static: list[np.ndarray] = []
    on_actor: list[list[np.ndarray]] = [[] for _ in moving]
    for t_us, path in sorted(clip.lidar_paths.items()):
        pose = clip.ego.poses_at(np.array([t_us]))[0]
        points = _load_sweep(path) @ pose[:3, :3].T + pose[:3, 3]
        for index, (track, T_world_box) in enumerate(zip(moving, actor_poses(moving, t_us), strict=True)):
            if T_world_box is not None:
                T = invert_pose(T_world_box)
                local = points @ T[:3, :3].T + T[:3, 3]
                on_actor[index].append(local[in_box(local, track.size_m)])
        static.append(thin_out(points[~inside_any_box(points, moving, t_us)]))
    return _join(static), [_join(parts) for parts in on_actor]


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return thin_out(np.concatenate(parts)) if parts else np.zeros((0, 3))


def _load_sweep(path: Path) -> np.ndarray:
    try:
        sweep = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"lidar sweep {path} does not load ({error}); restore the file") from error
    if sweep.ndim != 2 or sweep.shape[1] < 3:
        raise InputError(f"lidar sweep {path} has shape {sweep.shape}; expected [N, 4] (x, y, z, intensity)")
    points = sweep[:, :3].astype(np.float64)
    reach = np.linalg.norm(points, axis=1)
    return points[(reach > _MIN_RANGE_M) & (reach < _MAX_RANGE_M)]
