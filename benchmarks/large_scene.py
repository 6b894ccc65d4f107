"""A scene of many Gaussians: time to read it, time to draw a large image, and the peak memory of both.

python benchmarks/large_scene.py --gaussians 1000000 --json FILE

Writing the scene and reading it happen in processes of their own, so that the peak is that of reading and drawing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from neural_sim.artifacts import write_json
from neural_sim.cameras import Camera
from neural_sim.frames import R_RIG_FORWARD_CAMERA, pose_from_planar
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.ground import ground_from_path
from neural_sim.rendering.splat_renderer import SplatRenderer
from neural_sim.road_map import corridor_map
from neural_sim.road_users import EgoVehicle
from neural_sim.scenes.recorded_views import recorded_request
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.storage import read_scene, write_scene
from neural_sim.trajectory import Trajectory

LENGTH_M = 150.0


def main() -> None:
    arguments = _arguments()
    if arguments.scene is not None:
        print(json.dumps(read_and_draw(arguments.scene, arguments.width, arguments.height)))
        return
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "street.usdz"
        write_scene(street(arguments.gaussians, arguments.seed), scene)
        size = ["--width", str(arguments.width), "--height", str(arguments.height)]
        command = [sys.executable, __file__, "--scene", str(scene), *size]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        figures["file_mb"] = scene.stat().st_size / 1e6
    for name, value in figures.items():
        print(f"{name:28s} {value:.4g}")
    if arguments.json is not None:
        write_json(arguments.json, figures)


def read_and_draw(scene_path: Path, width_px: int, height_px: int) -> dict[str, float]:
    """Read the scene, draw its first view, and say how long both took, s, and the peak memory, GiB."""
    base_gib = _peak_gib()
    started_s = time.perf_counter()
    scene = read_scene(scene_path)
    read_s = time.perf_counter() - started_s
    read_gib = _peak_gib()
    renderer = SplatRenderer(scene)
    camera = scene.cameras["front"].resized(width_px, height_px)
    request = recorded_request(scene, camera, scene.expert.start_us)
    (image,) = renderer.render([request])  # compiles kernels, or loads them
    times_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        renderer.render([request])
        times_s.append(time.perf_counter() - started_s)
    return {
        "gaussians": float(len(scene.background)),
        "read_s": read_s,
        "draw_s": min(times_s),
        "covered_share": float((image.opacity > 0.5).mean()),
        "imported_gib": base_gib,
        "peak_after_reading_gib": read_gib,
        "peak_gib": _peak_gib(),
    }


def street(count: int, seed: int) -> Scene:
    """A road with two house fronts made of `count` small Gaussians, and a drive along it."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, LENGTH_M, count)
    kind = rng.integers(0, 3, count)
    across = np.where(kind == 0, rng.uniform(-8, 8, count), np.where(kind == 1, -8.0, 8.0))
    up = np.where(kind == 0, 0.0, rng.uniform(0, 8, count))
    means = torch.from_numpy(np.stack([x, across, up], axis=-1).astype(np.float32))
    generator = torch.Generator().manual_seed(seed)
    gaussians = Gaussians(
        means,
        torch.randn(count, 4, generator=generator),
        torch.full((count, 3), float(np.log(0.06))),
        torch.full((count,), 1.0),
        0.3 * torch.randn(count, 4, 3, generator=generator),
    )
    t_us = 100_000 * np.arange(100)
    ego = Trajectory(t_us, pose_from_planar(np.stack([1.0 * np.arange(100), np.zeros(100), np.zeros(100)], axis=-1)))
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3], T_rig_camera[:3, 3] = R_RIG_FORWARD_CAMERA, (1.5, 0.0, 1.5)
    camera = Camera("front", 1920, 1080, 1000.0, 1000.0, 960.0, 540.0, T_rig_camera)
    return Scene(
        scene_id="street",
        background=gaussians,
        road=Gaussians.empty(1),
        actors={},
        sky=torch.full((6, 16, 16, 3), 0.7),
        expert=ego,
        tracks=(),
        road_map=corridor_map(ego, 4.0),
        ground=ground_from_path(ego, 8.0).mesh(),
        cameras={"front": camera},
        camera_times_us={"front": t_us},
        ego_vehicle=EgoVehicle(),
        navigation=(),
        metadata={"source": {"dataset": "benchmark"}},
    )


def _peak_gib() -> float:
    """Peak resident memory of this program so far; unlike `getrusage` it does not begin with that of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak_kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak_kib) / 2**20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=1920, help="image width, px")
    parser.add_argument("--height", type=int, default=1080, help="image height, px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scene", type=Path, default=None, help="only read and draw this scene, and print JSON")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
