"""Speed of the synthetic town on one core: `python benchmarks/town.py --json town.json`."""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from neural_sim.town.config import WIDE_CAMERA, TownConfig
from neural_sim.town.town import build_town


def measure(frames: int) -> dict[str, float]:
    """Seconds to build one town, and frames per second of its wide camera at 320x192 (wall and processor time)."""
    started_s = time.perf_counter()
    town = build_town(TownConfig())
    camera, renderer = town.cameras[WIDE_CAMERA], town.renderer
    built_s = time.perf_counter() - started_s
    times_us = np.linspace(0, town.expert.end_us, frames).astype(int)
    renderer.render([town.request(camera, 0)])  # compiles, or loads what was compiled before
    wall_s, processor_s = time.perf_counter(), time.process_time()
    renderer.render([town.request(camera, int(t_us)) for t_us in times_us])
    return {
        "town_build_s": built_s,
        "town_frames_per_s": frames / (time.perf_counter() - wall_s),
        "town_frames_per_processor_s": frames / (time.process_time() - processor_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--frames", type=int, default=100, help="frames to render")
    arguments = parser.parse_args()
    figures = measure(arguments.frames)
    print(json.dumps(figures, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
