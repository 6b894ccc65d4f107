"""Smoothing of ego poses, only on request and with the change told."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from neural_sim.clips.clip import Clip
from neural_sim.errors import InputError
from neural_sim.trajectory import Trajectory


def smooth_ego(clip: Clip, window_s: float) -> tuple[Clip, str]:
    """Replace each ego pose by the local quadratic through the poses within `window_s` / 2, and say what changed.

    A constant acceleration and a constant turn rate pass unchanged. The change is told in the returned line and kept
    as `source.ego_smoothing`. Raises `InputError` when the window holds fewer than four poses.
    """
    ego = clip.ego
    smoothed = Trajectory(ego.t_us, _smooth_poses(ego.t_us * 1e-6, ego.T_world_rig, window_s, clip.clip_id))
    shift_m = np.linalg.norm(smoothed.T_world_rig[:, :3, 3] - ego.T_world_rig[:, :3, 3], axis=1)
    turn = Rotation.from_matrix(np.swapaxes(ego.T_world_rig[:, :3, :3], 1, 2) @ smoothed.T_world_rig[:, :3, :3])
    change = {
        "window_s": window_s,
        "largest_shift_m": round(float(shift_m.max()), 4),
        "mean_shift_m": round(float(shift_m.mean()), 4),
        "largest_turn_rad": round(float(turn.magnitude().max()), 5),
    }
    told = (
        f"ego poses smoothed over {window_s} s: moved by {change['mean_shift_m']} m on average, at most "
        f"{change['largest_shift_m']} m and {change['largest_turn_rad']} rad"
    )
    return replace(clip, ego=smoothed, source={**clip.source, "ego_smoothing": change}), told


def _smooth_poses(
    t_s: Float[np.ndarray, "n"], poses: Float[np.ndarray, "n 4 4"], window_s: float, where: str
) -> Float[np.ndarray, "n 4 4"]:
    smoothed = poses.copy()
    for i, now_s in enumerate(t_s):
        near = np.flatnonzero(np.abs(t_s - now_s) <= window_s / 2 + 1e-9)
        if near.size < 4:
            raise InputError(
                f"clip {where}: {near.size} ego poses within {window_s} s at pose {i}, expected at least 4; choose a "
                "longer smooth_ego_s"
            )
        smoothed[i] = _fitted_pose(t_s[near] - now_s, poses[near], int(np.searchsorted(near, i)))
    return smoothed


def _fitted_pose(
    since_s: Float[np.ndarray, "m"], poses: Float[np.ndarray, "m 4 4"], middle: int
) -> Float[np.ndarray, "4 4"]:
    """Value at time 0 of the least-squares quadratics through positions and through turns from pose `middle`."""
    turns = Rotation.from_matrix(poses[middle, :3, :3].T @ poses[:, :3, :3]).as_rotvec()
    basis = np.stack([np.ones_like(since_s), since_s, since_s**2], axis=-1)
    fitted = np.linalg.lstsq(basis, np.concatenate([poses[:, :3, 3], turns], axis=1), rcond=None)[0][0]
    pose = poses[middle].copy()
    pose[:3, 3] = fitted[:3]
    pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(fitted[3:]).as_matrix()
    return pose


def uneven_steps(t_us: Int[np.ndarray, "n"], position_m: Float[np.ndarray, "n 3"], limit: float = 0.15) -> int:
    """How many steps are longer by more than the share `limit` than the mean of their two neighbours."""
    speed = np.linalg.norm(np.diff(position_m, axis=0), axis=1) / (np.diff(t_us) * 1e-6)
    if len(speed) < 3:
        return 0
    expected = (speed[:-2] + speed[2:]) / 2
    return int(np.sum(speed[1:-1] > np.maximum(expected * (1 + limit), expected + 0.3)))
