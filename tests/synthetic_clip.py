"""A small clip on disk for tests: two cameras with generated images, a straight drive, tracks, map, lidar."""

from pathlib import Path

import numpy as np
import shapely
from PIL import Image

from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip, NavigationStep
from neural_sim.frames import R_RIG_FORWARD_CAMERA, pose_from_planar
from neural_sim.road_map import Lane, RoadMap
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.trajectory import Trajectory

STEP_US = 100_000


def write_image(path: Path, seed: int, size: tuple[int, int] = (32, 20), gray: bool = False) -> None:
    """Write random pixels of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if gray else (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_camera(name: str, size: tuple[int, int] = (32, 20)) -> Camera:
    """A level camera looking ahead."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R_RIG_FORWARD_CAMERA, (1.5, 0.1, 1.4)
    return Camera(name, *size, 30.0, 31.0, 16.5, 10.25, pose, 1234)


def straight_trajectory(steps: int = 100, speed_mps: float = 7.0, start_us: int = 1_000) -> Trajectory:
    """Along +x at 10 Hz with a slow turn, so that rotations are not trivial."""
    t_us = start_us + np.arange(steps) * STEP_US
    x = speed_mps * (t_us - start_us) * 1e-6
    return Trajectory(t_us, pose_from_planar(np.stack([x, 0.01 * x, 0.002 * x], axis=-1), 0.01 * x))


def make_map() -> RoadMap:
    """Two joined lanes and a drivable area with a hole."""
    first = Lane("a", np.array([[0.0, 0.0, 0.0], [30.0, 0.0, 0.1]]), 3.5, ("b",))
    second = Lane("b", np.array([[30.0, 0.0, 0.1], [60.0, 1.0, 0.2]]), 3.25)
    area = shapely.Polygon([(-5, -5), (70, -5), (70, 5), (-5, 5)], [[(10, 2), (12, 2), (12, 3)]])
    return RoadMap((first, second), (np.array([[0.0, 5.0], [60.0, 5.0]]),), (area,), "recorded")


def make_clip(folder: Path, steps: int = 100) -> Clip:
    """A sound clip of `steps` poses whose images and sweep lie below `folder`; every tenth pose has a frame."""
    ego = straight_trajectory(steps)
    cameras = {}
    for number, (name, extension) in enumerate((("camera_front", "png"), ("camera_tele", "jpg"))):
        t_us = ego.t_us[::10]
        paths = tuple(folder / name / f"source{i}.{extension}" for i in range(len(t_us)))
        for i, path in enumerate(paths):
            write_image(path, seed=100 * number + i)
        cameras[name] = CameraFrames(make_camera(name), t_us, paths)
    sweep = folder / "sweep.npy"
    np.save(sweep, np.arange(20, dtype=np.float32).reshape(5, 4))
    car = Track("car/1", "vehicle", (4.5, 1.9, 1.6), straight_trajectory(30, 5.0, 11_000))
    walker = Track("7", "pedestrian", (0.6, 0.5, 1.7), straight_trajectory(1, 0.0, 31_000))
    return Clip(
        clip_id="synthetic-1",
        source={"dataset": "synthetic", "seed": 3},
        cameras=cameras,
        ego=ego,
        ego_vehicle=EgoVehicle(4.0, 1.7, 1.5, 0.9, 2.6),
        tracks=(car, walker),
        road_map=make_map(),
        navigation=(NavigationStep(1_000, "go straight"), NavigationStep(2_001_000, "turn left")),
        lidar_paths={1_000: sweep},
    )
