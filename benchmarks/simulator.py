"""Time the closed loop without rendering: 64 rollouts of 20 s, a policy that replays the expert, every scorer.

    OMP_NUM_THREADS=1 python benchmarks/simulator.py --json simulator.json
    OMP_NUM_THREADS=1 python benchmarks/simulator.py --profile

The scene is generated: a curved road of 160 m with two lanes, and 40 road users around the expert. Writes flat
{"figure": number}: `simulate_s` and `score_s` (medians of `--repeats` runs after one that compiles), `total_s`,
`real_time_factor` (simulated over elapsed time), and `load` of the machine when it started. One process, one thread.
"""

import argparse
import cProfile
import json
import os
import pstats
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.scorers import score_rollout
from neural_sim.clips.clip import Clip
from neural_sim.frames import planar_to_local, planar_to_world, pose_from_planar
from neural_sim.road_map import Lane, RoadMap, corridor_map
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.blank import BLANK_IMAGES, BlankRenderer, blank_scene
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.record import RolloutRecord
from neural_sim.simulation.simulator import Simulator
from neural_sim.trajectory import Trajectory

STEP_US = 100_000


def arc(distance_m: np.ndarray, curvature: float = 0.005) -> np.ndarray:
    """(x, y, yaw) along a circle from the origin, m and rad."""
    yaw_rad = curvature * distance_m
    return np.stack([np.sin(yaw_rad) / curvature, (1 - np.cos(yaw_rad)) / curvature, yaw_rad], axis=-1)


def traffic(t_us: np.ndarray, count: int) -> tuple[Track, ...]:
    """Road users beside the expert's lane: parked ones, ones that drive along, oncoming ones."""
    tracks = []
    for i in range(count):
        speed_mps = (0.0, 7.0, -8.0)[i % 3]
        along_m = 12.0 + 6.0 * i + speed_mps * (t_us - t_us[0]) * 1e-6
        offset = np.tile([0.0, (-5.5, 3.8, 7.4)[i % 3], np.pi if speed_mps < 0 else 0.0], (len(t_us), 1))
        poses = pose_from_planar(planar_to_world(offset, arc(along_m)), 0.8)
        tracks.append(Track(f"car{i}", "vehicle", (4.5, 1.9, 1.6), Trajectory(t_us, poses)))
    return tuple(tracks)


def benchmark_scene(road_users: int) -> Scene:
    """A curved road without Gaussians, with a recorded map of two lanes."""
    t_us = np.arange(201) * STEP_US
    expert = Trajectory(t_us, pose_from_planar(arc(8.0 * t_us * 1e-6)))
    lanes = []
    for name, left_m in (("own", 0.0), ("left", 3.7)):
        centre = planar_to_world(np.array([0.0, left_m, 0.0]), arc(np.arange(-20.0, 200.0, 2.0)))
        lanes.append(Lane(name, np.column_stack([centre[:, :2], np.zeros(len(centre))]), 3.7, speed_limit_mps=13.9))
    road = RoadMap(tuple(lanes), (), corridor_map(expert, 6.0).drivable_areas, "recorded")
    return blank_scene(Clip("benchmark", {}, {}, expert, EgoVehicle(), traffic(t_us, road_users), road))


def simulate(scene: Scene, config: SimulationConfig, rollouts: int) -> list[RolloutRecord]:
    """All rollouts of the scene in one batch, with the expert's drive as every plan."""
    simulator = Simulator(scene, BlankRenderer(), config, BLANK_IMAGES)
    simulator.reset(range(rollouts))
    while not simulator.is_done:
        future, _ = simulator.expert_future()
        simulator.step(planar_to_local(future[None], simulator.ego_planar[:, None]))
    return simulator.records()


def time_once(scene: Scene, config: SimulationConfig, rollouts: int) -> tuple[float, float]:
    """Seconds to simulate and to score."""
    started = time.perf_counter()
    records = simulate(scene, config, rollouts)
    simulated = time.perf_counter()
    for record in records:
        score_rollout(record, scene, policy="expert")
    return simulated - started, time.perf_counter() - simulated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--road-users", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--traffic", choices=("replay", "idm"), default="replay")
    parser.add_argument("--profile", action="store_true", help="print where one run spends its time instead")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    scene = benchmark_scene(arguments.road_users)
    config = replace(SimulationConfig(), traffic=arguments.traffic)
    load = os.getloadavg()[0]
    time_once(scene, config, 2)
    if arguments.profile:
        profiler = cProfile.Profile()
        profiler.runcall(time_once, scene, config, arguments.rollouts)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        return
    times = [time_once(scene, config, arguments.rollouts) for _ in range(arguments.repeats)]
    simulate_s, score_s = (statistics.median(column) for column in zip(*times, strict=True))
    simulated_s = arguments.rollouts * config.duration_us * 1e-6
    figures = {
        "simulate_s": simulate_s,
        "score_s": score_s,
        "total_s": simulate_s + score_s,
        "real_time_factor": simulated_s / (simulate_s + score_s),
        "load": load,
    }
    for name, value in figures.items():
        print(f"{name:18} {value:10.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
