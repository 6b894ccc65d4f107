"""A small geometric scene for tests: the expert drives a straight or circular road at constant speed."""

from collections.abc import Sequence

import numpy as np
import torch

from neural_sim.cameras import Camera
from neural_sim.clips.clip import NavigationStep
from neural_sim.frames import R_RIG_FORWARD_CAMERA, pose_from_planar
from neural_sim.gaussians import Gaussians
from neural_sim.road_map import corridor_map
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.scenes.scene import GroundMesh, Scene
from neural_sim.trajectory import Trajectory

START_US = 5_000_000
STEP_US = 100_000
CAMERAS = ("camera_front_wide_120fov", "camera_front_tele_30fov")


def arc_planar(distance_m: np.ndarray, curvature: float) -> np.ndarray:
    """(x, y, yaw) [*n, 3] `distance_m` along a path of constant curvature (1/m, left positive) from the origin."""
    distance_m = np.asarray(distance_m, float)
    yaw = curvature * distance_m
    if abs(curvature) < 1e-9:
        return np.stack([distance_m, np.zeros_like(distance_m), yaw], axis=-1)
    return np.stack([np.sin(yaw) / curvature, (1 - np.cos(yaw)) / curvature, yaw], axis=-1)


def sloped_poses(planar: np.ndarray, slope: float) -> np.ndarray:
    """Rig poses [n, 4, 4] on the plane z = slope * x, tilted with it, heading as in `planar`."""
    pose = pose_from_planar(planar, slope * planar[:, 0])
    normal = np.array([-slope, 0.0, 1.0]) / np.hypot(slope, 1.0)
    forward = pose[:, :3, 0] + np.outer(slope * pose[:, 0, 0], [0.0, 0.0, 1.0])
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2] = forward, np.cross(normal, forward), normal
    return pose


def make_track(
    track_id: str,
    planar: Sequence[float],
    speed_mps: float = 0.0,
    start_s: float = 0.0,
    duration_s: float = 20.0,
    category: str = "vehicle",
    size_m: tuple[float, float, float] = (4.5, 1.9, 1.6),
) -> Track:
    """A road user that starts at (x, y, yaw) `start_s` after the scene starts and drives straight on."""
    steps = round(duration_s * 1e6 / STEP_US)
    t_us = START_US + round(start_s * 1e6) + np.arange(steps + 1) * STEP_US
    distance_m = speed_mps * (t_us - t_us[0]) * 1e-6
    x, y, yaw = planar
    path = np.stack([x + distance_m * np.cos(yaw), y + distance_m * np.sin(yaw), np.full(len(t_us), yaw)], axis=-1)
    return Track(track_id, category, size_m, Trajectory(t_us, pose_from_planar(path, size_m[2] / 2)))


def front_camera(name: str, fov_rad: float, width_px: int = 64, height_px: int = 40) -> Camera:
    """A level, forward-looking camera 1.5 m ahead of and above the rig origin."""
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3] = R_RIG_FORWARD_CAMERA
    T_rig_camera[:3, 3] = (1.5, 0.0, 1.5)
    focal_px = width_px / 2 / np.tan(fov_rad / 2)
    return Camera(name, width_px, height_px, focal_px, focal_px, width_px / 2, height_px / 2, T_rig_camera, 30_000)


def make_scene(
    curvature: float = 0.0,
    speed_mps: float = 8.0,
    duration_s: float = 20.0,
    tracks: Sequence[Track] = (),
    slope: float = 0.0,
    half_width_m: float = 4.0,
    navigation: Sequence[NavigationStep] = (),
) -> Scene:
    """A scene without Gaussians whose expert drives with `curvature` (1/m, left positive) at constant speed.

    The expert starts at the world origin heading +x at `START_US`, sampled at 10 Hz; the map is the corridor of
    `half_width_m` around its path; the ground is the plane z = slope * x.
    """
    steps = round(duration_s * 1e6 / STEP_US)
    t_us = START_US + np.arange(steps + 1) * STEP_US
    planar = arc_planar(speed_mps * (t_us - START_US) * 1e-6, curvature)
    expert = Trajectory(t_us, sloped_poses(planar, slope))
    cameras = [front_camera(CAMERAS[0], np.deg2rad(120.0))]
    cameras.append(front_camera(CAMERAS[1], np.deg2rad(30.0)))
    return Scene(
        scene_id=f"synthetic-c{curvature:g}-v{speed_mps:g}",
        background=Gaussians.empty(),
        road=Gaussians.empty(),
        actors={},
        sky=torch.full((6, 4, 4, 3), 0.5),
        expert=expert,
        tracks=tuple(tracks),
        road_map=corridor_map(expert, half_width_m),
        ground=_ground_plane(planar, slope),
        cameras={camera.name: camera for camera in cameras},
        camera_times_us={camera.name: t_us for camera in cameras},
        ego_vehicle=EgoVehicle(),
        navigation=tuple(navigation),
        metadata={},
    )


def _ground_plane(planar: np.ndarray, slope: float) -> GroundMesh:
    low, high = planar[:, :2].min(axis=0) - 50.0, planar[:, :2].max(axis=0) + 50.0
    xy = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    vertices = np.column_stack([xy, slope * xy[:, 0]]).astype(np.float32)
    return GroundMesh(vertices, np.array([[0, 1, 2], [0, 2, 3]], np.int32))
