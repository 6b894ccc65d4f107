"""Time the CPU rasterizer on a road-like scene: forward alone, and forward with backward.

    python benchmarks/rasterize.py --json rasterize.json

Writes flat {"figure": number}: for each scene size and image size the best of `--repeats` calls, in ms, after one call
that compiles. Figures are named `forward_ms/100k_320x192`, `forward_backward_ms/100k_320x192`, and so on; `threads`
is the number of threads. `--threads 2` limits them.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch

from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose
from neural_sim.gaussians import Gaussians
from neural_sim.rendering.rasterize import RasterizedViews, rasterize

CASES = ((20_000, 320, 192), (100_000, 320, 192), (100_000, 960, 544), (300_000, 320, 192), (300_000, 960, 544))


def road_scene(count: int, sh_degree: int = 0, seed: int = 0) -> Gaussians:
    """Half flat discs on a road of 100 m, half blobs of 5 to 40 cm in the facades beside it; world frame, z up."""
    random = np.random.default_rng(seed)
    on_road = count // 2
    beside = count - on_road
    road = np.stack([random.uniform(2, 100, on_road), random.uniform(-20, 20, on_road), np.zeros(on_road)], axis=1)
    offset_m = random.choice([-1, 1], beside) * (8 + np.abs(random.normal(0, 6, beside)))
    facade = np.stack([random.uniform(2, 120, beside), offset_m, random.uniform(0, 10, beside)], axis=1)
    disc = np.concatenate([random.uniform(0.1, 0.4, (on_road, 2)), np.full((on_road, 1), 0.01)], axis=1)
    scales = np.concatenate([disc, random.uniform(0.05, 0.4, (beside, 3))])
    quaternions = random.normal(size=(count, 4))
    quaternions[:on_road] = [0, 0, 0, 1]
    tensors = (
        np.concatenate([road, facade]),
        quaternions,
        np.log(scales),
        random.normal(1, 1.5, count),
        random.normal(0, 0.3, (count, (sh_degree + 1) ** 2, 3)),
    )
    return Gaussians(*(torch.tensor(tensor, dtype=torch.float32) for tensor in tensors))


def forward_camera(width_px: int, height_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A camera 1.5 m above the road that looks along it with 90 degrees: T_camera_world [1, 4, 4] and K [1, 3, 3]."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R_RIG_FORWARD_CAMERA, [0.0, 0.0, 1.5]
    K = np.array([[width_px / 2, 0, width_px / 2], [0, width_px / 2, height_px / 2], [0, 0, 1]])
    return torch.from_numpy(invert_pose(pose))[None].float(), torch.from_numpy(K)[None].float()


def best_ms(call: Callable[[], object], repeats: int) -> float:
    """Shortest duration of `repeats` calls after one that compiles and warms caches, ms."""
    call()
    durations = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return 1e3 * min(durations)


def time_case(count: int, width_px: int, height_px: int, repeats: int) -> tuple[float, float]:
    """Forward, and forward with backward, ms."""
    scene, (pose, K) = road_scene(count), forward_camera(width_px, height_px)
    leaves = Gaussians(**{name: tensor.clone().requires_grad_() for name, tensor in scene.tensors().items()})

    def draw(gaussians: Gaussians) -> RasterizedViews:
        return rasterize(gaussians, pose, K, width_px, height_px, backend="cpu")

    def draw_and_differentiate() -> None:
        for tensor in leaves.tensors().values():
            tensor.grad = None
        views = draw(leaves)
        (views.rgb.sum() + views.opacity.sum()).backward()

    with torch.no_grad():
        forward_ms = best_ms(lambda: draw(scene), repeats)
    return forward_ms, best_ms(draw_and_differentiate, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls per case")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="threads to use")
    arguments = parser.parse_args()
    numba.set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    figures: dict[str, float] = {"threads": arguments.threads}
    for count, width_px, height_px in CASES:
        case = f"{count // 1000}k_{width_px}x{height_px}"
        forward_ms, both_ms = time_case(count, width_px, height_px, arguments.repeats)
        figures[f"forward_ms/{case}"], figures[f"forward_backward_ms/{case}"] = forward_ms, both_ms
        print(f"{case}: forward {forward_ms:.2f} ms, forward and backward {both_ms:.2f} ms", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
