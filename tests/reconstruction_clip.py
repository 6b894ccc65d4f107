"""A small world with known geometry, ray cast into the images of a clip: road, two walls, sky, and a moving box."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose, pose_from_planar
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.trajectory import Trajectory

WALL_Y_M = 5.0
WALL_HEIGHT_M = 4.0
SKY = np.array([0.6, 0.75, 0.95])
STEP_US = 100_000


@lru_cache
def texture(seed: int, size: int = 256) -> np.ndarray:
    """A tileable RGB texture [S, S, 3] of soft blobs, 0..1."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.random((size // 16, size // 16, 3)), np.ones((16, 16, 1)))
    fine = np.kron(rng.random((size // 4, size // 4, 3)), np.ones((4, 4, 1)))
    blurred = cv2.GaussianBlur(np.tile(0.7 * coarse + 0.25 * fine, (3, 3, 1)), (0, 0), 1.5)
    return blurred[size : 2 * size, size : 2 * size]


def lookup(image: np.ndarray, u_m: np.ndarray, v_m: np.ndarray) -> np.ndarray:
    """Texture colours at metric coordinates, 10 texels to the metre."""
    size = len(image)
    return image[(v_m * 10).astype(int) % size, (u_m * 10).astype(int) % size]


def pixel_rays(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Camera-frame rays [H, W, 3] of the pixel centres, and which of them the lens reaches."""
    x, y = np.arange(camera.width_px) + 0.5, np.arange(camera.height_px) + 0.5
    if camera.distortion is not None:
        return camera.unproject(np.stack(np.meshgrid(x, y), axis=-1))
    x, y = (x - camera.cx_px) / camera.fx_px, (y - camera.cy_px) / camera.fy_px
    shape = (camera.height_px, camera.width_px)
    return np.stack([*np.meshgrid(x, y), np.ones(shape)], axis=-1), np.ones(shape, bool)


def ray_cast(camera: Camera, T_world_camera: np.ndarray, T_world_box: np.ndarray | None, size_m: tuple) -> np.ndarray:
    """uint8 [H, W, 3] image of the world; four rays a pixel. The pose may be one for each row, [H, 4, 4]."""
    fine = camera.resized(2 * camera.width_px, 2 * camera.height_px)
    rays, reached = pixel_rays(fine)
    poses = np.broadcast_to(T_world_camera, (camera.height_px, 4, 4)).repeat(2, axis=0)
    rays = rays @ np.swapaxes(poses[:, :3, :3], 1, 2)
    origin = poses[:, None, :3, 3]
    color = np.broadcast_to(SKY, rays.shape).copy()
    nearest = np.full(rays.shape[:2], np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = -origin[..., 2] / rays[..., 2]
        _paint(color, nearest, reach, reach > 0, lambda p: lookup(texture(1), p[..., 0], p[..., 1]), origin, rays)
        for number, wall_y in enumerate((-WALL_Y_M, WALL_Y_M)):
            reach = (wall_y - origin[..., 1]) / rays[..., 1]
            height = origin[..., 2] + reach * rays[..., 2]
            hit = (reach > 0) & (height > 0) & (height < WALL_HEIGHT_M)
            wall = texture(2 + number)
            _paint(color, nearest, reach, hit, lambda p, w=wall: lookup(w, p[..., 0], p[..., 2]), origin, rays)
        if T_world_box is not None:
            _paint_box(color, nearest, origin, rays, T_world_box, size_m)
    color[~reached] = 0.0
    pixels = color.reshape(camera.height_px, 2, camera.width_px, 2, 3).mean(axis=(1, 3))
    return np.round(255 * pixels).astype(np.uint8)


def _paint(color, nearest, reach, hit, surface, origin, rays) -> None:
    hit = hit & (reach < nearest)
    points = origin + np.where(hit, reach, 0.0)[..., None] * rays
    color[hit] = surface(points)[hit]
    nearest[hit] = reach[hit]


def _paint_box(color, nearest, origin, rays, T_world_box, size_m) -> None:
    T = invert_pose(T_world_box)
    start, direction = origin @ T[:3, :3].T + T[:3, 3], rays @ T[:3, :3].T
    half = 0.5 * np.asarray(size_m)
    low, high = (-half - start) / direction, (half - start) / direction
    enter, leave = np.minimum(low, high).max(axis=-1), np.maximum(low, high).min(axis=-1)
    hit = (enter > 0) & (enter < leave) & (enter < nearest)
    points = start + np.where(hit, enter, 0.0)[..., None] * direction
    painted = 0.5 * lookup(texture(7), points[..., 1] + points[..., 0], points[..., 2]) + np.array([0.5, 0.0, 0.0])
    color[hit] = painted[hit]
    nearest[hit] = enter[hit]


def swaying(t_us: np.ndarray) -> Trajectory:
    """5 m/s ahead, turning to and fro with up to 1.5 rad/s, poses at 50 Hz."""
    often_us = np.arange(t_us[0] - STEP_US, t_us[-1] + STEP_US + 1, STEP_US // 5)
    s = (often_us - t_us[0]) * 1e-6
    planar = np.stack([5.0 * s, 0.3 * np.sin(2.0 * s), 0.25 * np.sin(6.0 * s)], axis=-1)
    return Trajectory(often_us, pose_from_planar(planar))


def make_clip(folder: Path, frames: int = 24, width_px: int = 128, moving_box: bool = False, **lens: Any) -> Clip:
    """A straight drive of 0.5 m a frame between two walls, rendered to PNG files in `folder`.

    `lens` changes the camera. With a `shutter_us` it reads its rows from the top, and the car sways.
    """
    height_px = width_px // 2
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3], T_rig_camera[:3, 3] = R_RIG_FORWARD_CAMERA, (1.0, 0.0, 1.5)
    focal = 0.6 * width_px
    camera = Camera("front", width_px, height_px, focal, focal, width_px / 2, 0.45 * height_px, T_rig_camera)
    camera = replace(camera, **lens)
    t_us = 1_000_000 + STEP_US * np.arange(frames, dtype=np.int64)
    planar = np.stack([0.5 * np.arange(frames), 0.3 * np.sin(0.2 * np.arange(frames)), np.zeros(frames)], axis=-1)
    ego = Trajectory(t_us, pose_from_planar(planar))
    if camera.shutter_us:
        ego = swaying(t_us)
    size_m = (2.0, 1.6, 1.4)
    ahead = np.stack([7.0 + 0.45 * np.arange(frames), 0.05 * np.arange(frames), np.zeros(frames)], axis=-1)
    track = Track("lead", "vehicle", size_m, Trajectory(t_us, pose_from_planar(ahead, z_m=0.7)))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(frames):
        read_us = t_us[index] + camera.shutter_us * np.linspace(-0.5, 0.5, height_px)
        T_world_camera = ego.poses_at(np.round(read_us).astype(np.int64)) @ T_rig_camera
        box = track.trajectory.T_world_rig[index] if moving_box else None
        paths.append(folder / f"{index:03d}.png")
        Image.fromarray(ray_cast(camera, T_world_camera, box, size_m)).save(paths[-1])
    cameras = {"front": CameraFrames(camera, t_us, tuple(paths))}
    clip = Clip("corridor", {"dataset": "ray cast"}, cameras, ego, EgoVehicle())
    return replace(clip, tracks=(track,)) if moving_box else clip
