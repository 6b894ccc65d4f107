"""Speed of the synthetic town on one core: `python benchmarks/town.py --json town.json`."""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from neural_sim.town.config import TELE_CAMERA, WIDE_CAMERA, TownConfig
from neural_sim.town.town import Town, build_town

# One street of each kind.
SEEDS = (7, 14, 18, 26)


def measure(frames: int) -> dict[str, float]:
    """Seconds to build a town, and frames and lidar sweeps per second at 320x192 (wall and processor time).

    Each figure is the mean over streets of all kinds; `frames` pictures of each camera are drawn of each street.
    """
    started_s = time.process_time()
    towns = [build_town(TownConfig(seed=seed)) for seed in SEEDS]
    for town in towns:
        _draw(town, WIDE_CAMERA, 1)  # compiles, or loads what was compiled before, and builds the ray caster
    figures = {"town_build_processor_s": (time.process_time() - started_s) / len(towns)}
    for name, camera in (("town", WIDE_CAMERA), ("town_tele", TELE_CAMERA)):
        wall_s, processor_s = time.perf_counter(), time.process_time()
        for town in towns:
            _draw(town, camera, frames)
        count = frames * len(towns)
        figures[f"{name}_frames_per_s"] = count / (time.perf_counter() - wall_s)
        figures[f"{name}_frames_per_processor_s"] = count / (time.process_time() - processor_s)
    processor_s = time.process_time()
    for town in towns:
        for t_us in _times_us(town, frames // 4 + 1):
            town.scan(t_us)
    sweeps = (frames // 4 + 1) * len(towns)
    return figures | {"town_sweeps_per_processor_s": sweeps / (time.process_time() - processor_s)}


def _draw(town: Town, camera: str, frames: int) -> None:
    town.renderer.render([town.request(town.cameras[camera], t_us) for t_us in _times_us(town, frames)])


def _times_us(town: Town, count: int) -> list[int]:
    return np.linspace(0, town.expert.end_us, count).astype(int).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--frames", type=int, default=40, help="frames of each camera to render of each street")
    arguments = parser.parse_args()
    figures = measure(arguments.frames)
    print(json.dumps(figures, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
