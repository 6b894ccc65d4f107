"""Reconstruction quality against wall time on a KITTI odometry drive.

python benchmarks/reconstruct.py --data DIR --frames 0 100 --width 620 --iterations 3000 --json FILE
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from neural_sim.artifacts import write_json
from neural_sim.clips.clip import Clip
from neural_sim.clips.kitti_odometry import ingest_kitti_odometry
from neural_sim.clips.options import IngestOptions
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.reconstruct import reconstruct


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = ReconstructionConfig(
        image_width_px=arguments.width, iterations=arguments.iterations, max_gaussians=arguments.max_gaussians
    )
    with tempfile.TemporaryDirectory() as folder:
        clip = _clip(arguments.data, tuple(arguments.frames), Path(folder) / "clip")
        started_s = time.perf_counter()
        scene = reconstruct(clip, config, seed=arguments.seed, device=arguments.device)
        wall_s = time.perf_counter() - started_s
    figures = _figures(scene.metadata["quality"], wall_s)
    for name, value in figures.items():
        print(f"{name:28s} {value:.4g}")
    if arguments.json is not None:
        write_json(arguments.json, figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="KITTI odometry folder with sequences/ and poses/")
    parser.add_argument("--frames", type=int, nargs=2, default=(0, 100), help="first frame and the one after the last")
    parser.add_argument("--width", type=int, default=620, help="image width, px")
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--max-gaussians", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    return parser.parse_args()


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
    return figures


if __name__ == "__main__":
    main()
