"""Reconstruction quality against wall time on a KITTI odometry drive, and the peak memory.

python benchmarks/reconstruct.py --data DIR --frames 0 100 --time-budget 570 --json FILE

Held-out PSNR and SSIM are measured on the way at the times given with `--at`; measuring counts in the wall time.
"""

import argparse
import logging
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neural_sim.artifacts import write_json
from neural_sim.clips.clip import Clip
from neural_sim.clips.kitti_odometry import ingest_kitti_odometry
from neural_sim.clips.options import IngestOptions
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.memory import predicted_peak_bytes
from neural_sim.reconstruction.reconstruct import reconstruct
from neural_sim.scenes.storage import write_scene
from pipelines.config import config_from_mapping


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = _config(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clip = _clip(arguments.data, tuple(arguments.frames), Path(folder) / "clip")
        curve = _Curve(arguments.at)
        scene = reconstruct(clip, config, seed=arguments.seed, device=arguments.device, watch=curve.watch)
        wall_s = curve.elapsed_s
    figures = _figures(scene.metadata["quality"], wall_s) | curve.figures
    # Linux counts in KiB.
    figures["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures["predicted_memory_gib"] = predicted_peak_bytes(clip, config) / 2**30
    for name, value in figures.items():
        print(f"{name:28s} {value:.4g}")
    if arguments.scene is not None:
        write_scene(scene, arguments.scene)
    if arguments.json is not None:
        write_json(arguments.json, figures)


class _Curve:
    """Measures the held-out quality once at each of the given wall times."""

    def __init__(self, at_s: Sequence[float]) -> None:
        self._left_s = sorted(at_s)
        self._started_s = time.perf_counter()
        self.figures: dict[str, float] = {}

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started_s

    def watch(self, done: int, measure: Callable[[], dict[str, Any]]) -> None:
        if not self._left_s or self.elapsed_s < self._left_s[0]:
            return
        at_s = self._left_s.pop(0)
        quality = measure()
        for name in ("psnr_db", "ssim"):
            self.figures[f"held_out_{name}_at_{at_s:g}_s"] = quality[name]
        self.figures[f"iterations_at_{at_s:g}_s"] = float(done)
        logging.info("%.0f s: %.2f dB, SSIM %.3f", self.elapsed_s, quality["psnr_db"], quality["ssim"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="KITTI odometry folder with sequences/ and poses/")
    parser.add_argument("--frames", type=int, nargs=2, default=(0, 100), help="first frame and the one after the last")
    parser.add_argument("--width", type=int, default=620, help="image width, px")
    parser.add_argument("--iterations", type=int, default=None, help="default: 3000, or no limit with a time budget")
    parser.add_argument("--time-budget", type=float, default=0.0, help="end the optimisation after this time, s")
    parser.add_argument("--at", type=float, nargs="*", default=(), help="also measure at these wall times, s")
    parser.add_argument("--set", nargs="*", default=(), metavar="FIELD=VALUE", help="other reconstruction settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scene", type=Path, default=None, help="write the scene to this .usdz")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    return parser.parse_args()


def _config(arguments: argparse.Namespace) -> ReconstructionConfig:
    fields = dict(item.split("=", 1) for item in arguments.set)
    config = config_from_mapping(ReconstructionConfig, fields, "--set")
    iterations = arguments.iterations or (10**6 if arguments.time_budget else config.iterations)
    return replace(config, image_width_px=arguments.width, iterations=iterations, time_budget_s=arguments.time_budget)


def _clip(data: Path, frames: tuple[int, int], folder: Path) -> Clip:
    """Frames [first, after last) of sequence 00 as a clip in `folder`."""
    times_s = np.loadtxt(data / "sequences" / "00" / "times.txt")
    first, last = frames[0], frames[1] - 1
    half_step_s = 0.5 * float(np.median(np.diff(times_s)))
    start_s = max(0.0, float(times_s[first] - times_s[0]) - half_step_s)
    duration_s = float(times_s[last] - times_s[0]) + half_step_s - start_s
    return ingest_kitti_odometry(
        IngestOptions(root=data, sequence="00", start_s=start_s, duration_s=duration_s), folder
    )


def _figures(quality: dict[str, Any], wall_s: float) -> dict[str, float]:
    figures = {"wall_s": wall_s, "gaussians": float(quality["gaussians"]), "iterations": float(quality["iterations"])}
    for split in ("held_out", "train"):
        figures |= {f"{split}_{name}": quality[split][name] for name in ("psnr_db", "ssim")}
        figures[f"{split}_frames"] = float(len(quality[split]["frames"]))
    for shift_m, measured in quality["off_log"].items():
        figures |= {f"off_log_{name}_at_{shift_m}_m": value for name, value in measured.items()}
    return figures


if __name__ == "__main__":
    main()
