"""A NeRF of a clip beside its splats: training, quality, drawing, one closed-loop rollout.

roadloop ingest kitti-odometry --root DIR --sequence 00 --duration-s 10.31 --out CLIP    # frames 0 to 99
python benchmarks/nerf.py --clip CLIP --work WORK --json FILE             # everything
python benchmarks/nerf.py --clip CLIP --work WORK --parts train           # one part; later ones find its files

Needs nerfstudio (extra `nerf`). Figures of parts that are not run are kept in FILE.
"""

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from neural_sim.artifacts import write_json
from neural_sim.clips.clip import Clip
from neural_sim.clips.storage import read_clip
from neural_sim.nerf.config import NerfConfig
from neural_sim.nerf.drawing import draw
from neural_sim.nerf.model import Nerfacto
from neural_sim.nerf.renderer import NerfRenderer
from neural_sim.nerf.storage import nerf_path, read_nerf, write_nerf
from neural_sim.nerf.training import train_nerf
from neural_sim.nerf.world import NerfWorld
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.reconstruct import reconstruct
from neural_sim.rendering.renderer import Renderer, RenderRequest
from neural_sim.rendering.splat_renderer import SplatRenderer
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.storage import read_scene, write_scene
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.simulator import Simulator
from pipelines.drive import drive
from pipelines.guidance import GuidanceConfig

PARTS = ("splat", "train", "draw", "ladder", "rollout")
Figures = dict[str, float]

# nerfacto as nerfstudio ships it, but for the image size and the length of the training.
STOCK = NerfConfig(
    hash_levels=16, log2_hash_size=19, finest_cells=2048, hidden_width=64, appearance_size=32,
    proposal_samples=(256, 96), nerf_samples=48, chunk_rays=4096,
)  # fmt: skip


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = NerfConfig(iterations=arguments.iterations, image_width_px=arguments.width)
    clip = read_clip(arguments.clip)
    scene = arguments.work / "scene.usdz"
    figures: Figures = {}
    if "splat" in arguments.parts:
        figures |= splat(clip, arguments.width, scene)
    if "train" in arguments.parts:
        figures |= train(clip, config, nerf_path(scene))
    if "draw" in arguments.parts:
        figures |= drawing(clip, read_nerf(nerf_path(scene)), read_scene(scene))
    if "ladder" in arguments.parts:
        figures |= ladder(clip, config)
    if "rollout" in arguments.parts:
        figures |= rollout(read_nerf(nerf_path(scene)), read_scene(scene))
    for name, value in figures.items():
        print(f"{name:36s} {value:.4g}")
    if arguments.json is not None:
        before = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        write_json(arguments.json, before | figures)


def splat(clip: Clip, width_px: int, path: Path) -> Figures:
    """Reconstruct the clip as splats at the NeRF's resolution."""
    started_s = time.perf_counter()
    scene = reconstruct(clip, ReconstructionConfig(image_width_px=width_px), seed=0)
    write_scene(scene, path)
    held_out = scene.metadata["quality"]["held_out"]
    wall_s = time.perf_counter() - started_s
    return {"splat_wall_s": wall_s, "splat_psnr_db": held_out["psnr_db"], "splat_ssim": held_out["ssim"]}


def train(clip: Clip, config: NerfConfig, path: Path) -> Figures:
    """Train the NeRF and write it."""
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    world = train_nerf(clip, config, seed=0)
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    write_nerf(world, path)
    held_out = world.metadata["quality"]["held_out"]
    return {
        "nerf_iterations": float(config.iterations),
        "nerf_wall_s": wall_s,
        "nerf_cpu_s": cpu_s,
        "nerf_psnr_db": held_out["psnr_db"],
        "nerf_ssim": held_out["ssim"],
        "nerf_file_mb": path.stat().st_size / 1e6,
    }


def drawing(clip: Clip, world: NerfWorld, scene: Scene) -> Figures:
    """Median time of an image of the training size, from poses along the drive, by NeRF and by splats."""
    requests = _requests(clip, world)
    figures: Figures = {}
    for renderer in (NerfRenderer(scene, world), SplatRenderer(scene)):
        figures[f"{renderer.name}_frame_s"] = _seconds_a_frame(renderer, requests)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    figures["nerf_frame_one_torch_thread_s"] = _seconds_a_frame(NerfRenderer(scene, world), requests)
    torch.set_num_threads(threads)
    return figures


def ladder(clip: Clip, ours: NerfConfig) -> Figures:
    """Time of one image with nerfacto as shipped, and with one change after the other up to ours; untrained weights."""
    samples = replace(STOCK, proposal_samples=ours.proposal_samples, nerf_samples=ours.nerf_samples)
    networks = replace(
        samples, hidden_width=ours.hidden_width, appearance_size=ours.appearance_size, hash_levels=ours.hash_levels,
        log2_hash_size=ours.log2_hash_size, finest_cells=ours.finest_cells,
    )  # fmt: skip
    rungs = {"stock": STOCK, "fewer_samples": samples, "smaller_networks": networks, "larger_chunks": ours}
    figures = {f"ladder_{name}_s": _untrained_s(clip, config, is_fast=False) for name, config in rungs.items()}
    return figures | {"ladder_fast_hash_grid_s": _untrained_s(clip, ours, is_fast=True)}


def rollout(world: NerfWorld, scene: Scene) -> Figures:
    """One closed-loop rollout through the whole drive, following the recorded path, all images drawn by the NeRF."""
    camera = next(iter(scene.cameras.values()))
    width_px, height_px = world.metadata["quality"]["image_size_px"]
    images = ImageFormat((camera.name,), 1, 100_000, width_px, height_px)
    simulator = Simulator(scene, NerfRenderer(scene, world), SimulationConfig(), images)
    started_s = time.perf_counter()
    driven = drive(simulator, None, (0,), 0, GuidanceConfig(strategy="expert"), scene.ego_vehicle)
    record = driven.records[0]
    return {
        "rollout_simulated_s": float(record.t_us[-1] - record.t_us[0]) * 1e-6,
        "rollout_images": float(len(driven.steps)),
        "rollout_wall_s": time.perf_counter() - started_s,
    }


def _requests(clip: Clip, world: NerfWorld) -> list[RenderRequest]:
    """Five views between recorded frames."""
    frames = next(iter(clip.cameras.values()))
    camera = frames.camera.resized(*world.metadata["quality"]["image_size_px"])
    times_us = np.linspace(frames.t_us[5], frames.t_us[-5], 5).astype(np.int64)
    poses = clip.ego.poses_at(times_us) @ camera.T_rig_camera
    return [RenderRequest(camera, pose, pose, {}, int(t)) for pose, t in zip(poses, times_us, strict=True)]


def _seconds_a_frame(renderer: Renderer, requests: list[RenderRequest]) -> float:
    renderer.render(requests[:1])
    seconds = []
    for request in requests:
        started_s = time.perf_counter()
        renderer.render([request])
        seconds.append(time.perf_counter() - started_s)
    return float(np.median(seconds))


def _untrained_s(clip: Clip, config: NerfConfig, *, is_fast: bool) -> float:
    """Time of the second image of a NeRF that knows nothing; `is_fast`: with the hash grid of roadloop."""
    model = Nerfacto(config, num_images=1).eval()
    if not is_fast:
        for module in model.modules():
            vars(module).pop("pytorch_fwd", None)
    frames = next(iter(clip.cameras.values()))
    height_px = round(frames.camera.height_px * config.image_width_px / frames.camera.width_px)
    camera = frames.camera.resized(config.image_width_px, height_px)
    pose = clip.ego.poses_at(frames.t_us[:1])[0] @ camera.T_rig_camera
    world = NerfWorld(clip.clip_id, config, 1, pose[:3, 3], 50.0, {}, {})
    draw(model, world, camera, pose)
    started_s = time.perf_counter()
    draw(model, world, camera, pose)
    return time.perf_counter() - started_s


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, required=True, help="clip folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for scene and NeRF")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--width", type=int, default=310, help="image width, px")
    parser.add_argument("--iterations", type=int, default=NerfConfig().iterations)
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
