"""A small world with known geometry, ray cast into the images of a clip: road, two walls, sky, and a moving box."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

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


def ray_cast(camera: Camera, T_world_camera: np.ndarray, T_world_box: np.ndarray | None, size_m: tuple) -> np.ndarray:
    """uint8 [H, W, 3] image of the world; four rays a pixel."""
    fine = camera.resized(2 * camera.width_px, 2 * camera.height_px)
    x = (np.arange(fine.width_px) + 0.5 - fine.cx_px) / fine.fx_px
    y = (np.arange(fine.height_px) + 0.5 - fine.cy_px) / fine.fy_px
    rays = np.stack([*np.meshgrid(x, y), np.ones((fine.height_px, fine.width_px))], axis=-1)
    rays = rays @ T_world_camera[:3, :3].T
    origin = T_world_camera[:3, 3]
    color = np.broadcast_to(SKY, rays.shape).copy()
    nearest = np.full(rays.shape[:2], np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = -origin[2] / rays[..., 2]
        _paint(color, nearest, reach, reach > 0, lambda p: lookup(texture(1), p[..., 0], p[..., 1]), origin, rays)
        for number, wall_y in enumerate((-WALL_Y_M, WALL_Y_M)):
            reach = (wall_y - origin[1]) / rays[..., 1]
            height = origin[2] + reach * rays[..., 2]
            hit = (reach > 0) & (height > 0) & (height < WALL_HEIGHT_M)
            wall = texture(2 + number)
            _paint(color, nearest, reach, hit, lambda p, w=wall: lookup(w, p[..., 0], p[..., 2]), origin, rays)
        if T_world_box is not None:
            _paint_box(color, nearest, origin, rays, T_world_box, size_m)
    pixels = color.reshape(camera.height_px, 2, camera.width_px, 2, 3).mean(axis=(1, 3))
    return np.round(255 * pixels).astype(np.uint8)


def _paint(color, nearest, reach, hit, surface, origin, rays) -> None:
    hit = hit & (reach < nearest)
    points = origin + np.where(hit, reach, 0.0)[..., None] * rays
    color[hit] = surface(points)[hit]
    nearest[hit] = reach[hit]


def _paint_box(color, nearest, origin, rays, T_world_box, size_m) -> None:
    T = invert_pose(T_world_box)
    start, direction = T[:3, :3] @ origin + T[:3, 3], rays @ T[:3, :3].T
    half = 0.5 * np.asarray(size_m)
    low, high = (-half - start) / direction, (half - start) / direction
    enter, leave = np.minimum(low, high).max(axis=-1), np.maximum(low, high).min(axis=-1)
    hit = (enter > 0) & (enter < leave) & (enter < nearest)
    points = start + np.where(hit, enter, 0.0)[..., None] * direction
    painted = 0.5 * lookup(texture(7), points[..., 1] + points[..., 0], points[..., 2]) + np.array([0.5, 0.0, 0.0])
    color[hit] = painted[hit]
    nearest[hit] = enter[hit]


def make_clip(folder: Path, frames: int = 24, width_px: int = 128, moving_box: bool = False) -> Clip:
    """A straight drive of 0.5 m a frame between two walls, rendered to PNG files in `folder`."""
    height_px = width_px // 2
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3], T_rig_camera[:3, 3] = R_RIG_FORWARD_CAMERA, (1.0, 0.0, 1.5)
    focal = 0.6 * width_px
    camera = Camera("front", width_px, height_px, focal, focal, width_px / 2, 0.45 * height_px, T_rig_camera)
    t_us = 1_000_000 + STEP_US * np.arange(frames, dtype=np.int64)
    planar = np.stack([0.5 * np.arange(frames), 0.3 * np.sin(0.2 * np.arange(frames)), np.zeros(frames)], axis=-1)
    ego = Trajectory(t_us, pose_from_planar(planar))
    size_m = (2.0, 1.6, 1.4)
    ahead = np.stack([7.0 + 0.45 * np.arange(frames), 0.05 * np.arange(frames), np.zeros(frames)], axis=-1)
    track = Track("lead", "vehicle", size_m, Trajectory(t_us, pose_from_planar(ahead, z_m=0.7)))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(frames):
        T_world_camera = ego.T_world_rig[index] @ T_rig_camera
        box = track.trajectory.T_world_rig[index] if moving_box else None
        paths.append(folder / f"{index:03d}.png")
        Image.fromarray(ray_cast(camera, T_world_camera, box, size_m)).save(paths[-1])
    cameras = {"front": CameraFrames(camera, t_us, tuple(paths))}
    clip = Clip("corridor", {"dataset": "ray cast"}, cameras, ego, EgoVehicle())
    return replace(clip, tracks=(track,)) if moving_box else clip
