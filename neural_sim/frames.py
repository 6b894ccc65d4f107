"""Coordinate conventions and rigid transforms: the one home of frame arithmetic.

`T_a_b` is a 4x4 matrix that maps points in frame b to frame a. The world is right-handed with z up. The rig frame
has its origin at the rear-axle centre on the ground, x forward, y left, z up. Cameras use OpenCV axes
(x right, y down, z forward). Quaternions are xyzw.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

# Columns are the camera axes seen from a rig whose camera looks straight ahead.
R_RIG_FORWARD_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def wrap_angle(angle_rad: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Wrap angles to [-pi, pi), rad."""
    return (np.asarray(angle_rad) + np.pi) % (2 * np.pi) - np.pi


def pose_from_translation_quaternion(
    translation_m: Float[np.ndarray, "*n 3"], quaternion_xyzw: Float[np.ndarray, "*n 4"]
) -> Float[np.ndarray, "*n 4 4"]:
    """Build transforms [*n, 4, 4] from translations (m) and unit quaternions (xyzw)."""
    translation_m, quaternion_xyzw = np.asarray(translation_m, float), np.asarray(quaternion_xyzw, float)
    pose = np.zeros((*translation_m.shape[:-1], 4, 4))
    rotation = Rotation.from_quat(quaternion_xyzw.reshape(-1, 4)).as_matrix()
    pose[..., :3, :3] = rotation.reshape(*translation_m.shape[:-1], 3, 3)
    pose[..., :3, 3] = translation_m
    pose[..., 3, 3] = 1.0
    return pose


def translation_quaternion_from_pose(
    pose: Float[np.ndarray, "*n 4 4"],
) -> tuple[Float[np.ndarray, "*n 3"], Float[np.ndarray, "*n 4"]]:
    """Split transforms into translations (m) and quaternions (xyzw, w >= 0)."""
    quaternion = Rotation.from_matrix(pose[..., :3, :3].reshape(-1, 3, 3)).as_quat(canonical=True)
    return pose[..., :3, 3].copy(), quaternion.reshape(*pose.shape[:-2], 4)


def pose_from_planar(
    planar: Float[np.ndarray, "*n 3"], z_m: float | Float[np.ndarray, "*n"] = 0.0
) -> Float[np.ndarray, "*n 4 4"]:
    """Build upright transforms from (x, y, yaw) in m and rad and a height z in m."""
    planar = np.asarray(planar, float)
    pose = np.zeros((*planar.shape[:-1], 4, 4))
    cosine, sine = np.cos(planar[..., 2]), np.sin(planar[..., 2])
    pose[..., 0, 0], pose[..., 0, 1], pose[..., 1, 0], pose[..., 1, 1] = cosine, -sine, sine, cosine
    pose[..., 2, 2] = pose[..., 3, 3] = 1.0
    pose[..., 0, 3], pose[..., 1, 3], pose[..., 2, 3] = planar[..., 0], planar[..., 1], z_m
    return pose


def planar_from_pose(pose: Float[np.ndarray, "*n 4 4"]) -> Float[np.ndarray, "*n 3"]:
    """Project transforms to (x, y, yaw) in m and rad, yaw in [-pi, pi]."""
    yaw_rad = np.arctan2(pose[..., 1, 0], pose[..., 0, 0])
    return np.stack([pose[..., 0, 3], pose[..., 1, 3], yaw_rad], axis=-1)


def planar_to_local(planar: Float[np.ndarray, "*n 3"], origin: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Express planar poses (x, y, yaw) in the frame of the planar pose `origin`; yaw wrapped to [-pi, pi)."""
    delta = np.asarray(planar) - np.asarray(origin)
    cosine, sine = np.cos(origin[..., 2]), np.sin(origin[..., 2])
    x = cosine * delta[..., 0] + sine * delta[..., 1]
    y = -sine * delta[..., 0] + cosine * delta[..., 1]
    return np.stack([x, y, wrap_angle(delta[..., 2])], axis=-1)


def planar_to_world(planar: Float[np.ndarray, "*n 3"], origin: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Inverse of `planar_to_local`; yaw wrapped to [-pi, pi)."""
    planar, origin = np.asarray(planar), np.asarray(origin)
    cosine, sine = np.cos(origin[..., 2]), np.sin(origin[..., 2])
    x = origin[..., 0] + cosine * planar[..., 0] - sine * planar[..., 1]
    y = origin[..., 1] + sine * planar[..., 0] + cosine * planar[..., 1]
    return np.stack([x, y, wrap_angle(planar[..., 2] + origin[..., 2])], axis=-1)


def invert_pose(pose: Float[np.ndarray, "*n 4 4"]) -> Float[np.ndarray, "*n 4 4"]:
    """Invert rigid transforms: `invert_pose(T_a_b)` is `T_b_a`."""
    inverse = np.zeros_like(pose)
    rotation_t = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation_t, pose[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def interpolate_poses(
    t_us: Int[np.ndarray, "n"], pose: Float[np.ndarray, "n 4 4"], query_us: Int[np.ndarray, "m"]
) -> Float[np.ndarray, "m 4 4"]:
    """Interpolate poses at `query_us` (us): translation linear, rotation by slerp. Queries are clamped to the ends."""
    query_us = np.clip(np.asarray(query_us), t_us[0], t_us[-1])
    if len(t_us) == 1:
        return np.repeat(pose, len(query_us), axis=0)
    before = np.clip(np.searchsorted(t_us, query_us, side="right") - 1, 0, len(t_us) - 2)
    share = (query_us - t_us[before]) / (t_us[before + 1] - t_us[before])
    first, last = pose[before], pose[before + 1]
    turn = Rotation.from_matrix(np.swapaxes(first[:, :3, :3], 1, 2) @ last[:, :3, :3]).as_rotvec()
    result = first + share[:, None, None] * (last - first)
    result[:, :3, :3] = first[:, :3, :3] @ Rotation.from_rotvec(share[:, None] * turn).as_matrix()
    return result
