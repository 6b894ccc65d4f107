"""Guided rollouts: time per step and where it goes, batches against single ones, memory, and what guidance moves.

    python benchmarks/rollout.py --scene kitti_00.usdz --policy checkpoints/base --json rollout.json
    python benchmarks/rollout.py --parts step batch --json rollout.json

Without `--scene` and `--policy` it ingests KITTI odometry 00 from `--root`, reconstructs it and takes an untrained tiny
policy (one camera 320x96, two frames), all kept in `--work`. Everything is measured in worker processes that compute on
one thread, as the rollout stage runs them, at 10 Hz with K = 64. Writes flat {"figure": number}:

- step: `step_ms` of one process and its split into `render_ms`, `policy_ms`, `guidance_ms`, `simulation_ms` (means
  after the first `--skip` steps) and `writing_ms` (record, scores and shards with a window every 0.2 s, spread over the
  steps); `step_cpu_ms`, processor time of a step without writing, which other load on the machine hardly changes;
  `two_process_step_ms`, wall time per step of two processes side by side, which share the work, and
  `real_time_factor` from it (100 ms of driving a step);
- batch: `batch_8_step_ms` per rollout and step, `batch_8_gain` against single rollouts;
- memory: peak and present resident memory (`rss_mb_first`, `rss_mb_last`, `peak_rss_mb`) and growth over `--rollouts`;
- guidance: mean distance (m) to where the expert is, for `expert`, `road` and `none`, same scene and seeds;
- `load` of the machine when it started.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neural_sim.clips.options import IngestOptions
from neural_sim.rendering.splat_renderer import SplatRenderer
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.record import write_record
from neural_sim.simulation.simulator import Simulator
from pipelines.config import RolloutConfig, load_shipped_config
from pipelines.drive import Drive, DriveStep, drive, rollout_seed
from pipelines.examples import ExampleOrigin, rollout_examples, window_times
from pipelines.guidance import GuidanceConfig
from pipelines.outcome import rollout_outcome
from pipelines.processes import run_units
from pipelines.rollout_units import RolloutUnit, drive_unit
from pipelines.shards.writer import ShardWriter
from pipelines.strategies import make_strategy
from pipelines.units import read_scene_ids
from pipelines.worlds import cached_policy, cached_scene, image_format

STEP_MS = 100.0
PARTS = ("step", "batch", "memory", "guidance")


@dataclass(frozen=True)
class Job:
    """One measurement in a process of its own.

    `steps`: decisions to make at most; `skip`: how many of them are not counted.
    """

    part: str
    scene: Path
    policy: Path
    config: RolloutConfig
    steps: int = 0
    skip: int = 0
    batch: int = 1
    rollouts: int = 0
    seconds: float = 20.0
    seed: int = 0


class Stopwatch:
    """Seconds by name, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def next_step(self) -> None:
        """What is timed from here on belongs to another step."""
        self.steps.append(defaultdict(float))

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its time counted under `name`."""

        def measured(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                if self.steps:
                    self.steps[-1][name] += time.perf_counter() - started

        return measured

    def means_ms(self, skip: int) -> dict[str, float]:
        """Mean milliseconds per step by name, after the first `skip` steps."""
        counted = self.steps[skip:]
        names = {name for step in counted for name in step}
        return {name: 1e3 * statistics.fmean(step[name] for step in counted) for name in names}


def measure(job: Job) -> dict[str, float]:
    """Runs in a worker process."""
    return {"step": measure_steps, "memory": measure_memory, "guidance": measure_guidance}[job.part](job)


def measure_steps(job: Job) -> dict[str, float]:
    """Time per step of one batch of rollouts by where it goes."""
    watch, scene = Stopwatch(), cached_scene(job.scene)
    policy, renderer = cached_policy(job.policy, "cpu"), SplatRenderer(scene, "cpu")
    renderer.render = watch.timed("render", renderer.render)
    simulator = Simulator(scene, renderer, SimulationConfig(), image_format(policy.config))
    seeds = [rollout_seed(job.seed, scene.scene_id, index) for index in range(job.batch)]
    policy.sample = watch.timed("policy", policy.sample)
    strategy = make_strategy(job.config.guidance, policy, scene.ego_vehicle, seeds)
    decide, step = watch.timed("decide", strategy.decide), watch.timed("step", simulator.step)
    observation, steps = simulator.reset(seeds), list[DriveStep]()
    cpu_s = time.process_time()
    while not simulator.is_done and len(steps) < job.steps:
        if len(steps) == job.skip:
            cpu_s = time.process_time()
        watch.next_step()
        guided = decide(simulator, observation)
        steps.append(DriveStep(observation, guided))
        observation, _ = step(guided.plans)
    cpu_s = time.process_time() - cpu_s
    times = watch.means_ms(job.skip)
    writing_ms = 1e3 * seconds_to_write(Drive(simulator.records(), steps), scene, job.config) / len(steps)
    return {
        "render_ms": times["render"],
        "policy_ms": times["policy"],
        "guidance_ms": times["decide"] - times["policy"],
        "simulation_ms": times["step"] - times["render"],
        "writing_ms": writing_ms,
        "step_ms": times["decide"] + times["step"] + writing_ms,
        "step_cpu_ms": 1e3 * cpu_s / max(len(steps) - job.skip, 1),
    }


def seconds_to_write(driven: Drive, scene: Scene, config: RolloutConfig) -> float:
    """Time to score rollouts and to write their records and shards."""
    times_us = driven.decision_times_us()
    windows_us = window_times(int(times_us[0]), len(times_us), int(times_us[1] - times_us[0]), config.window_stride_s)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ShardWriter(Path(folder), "benchmark") as writer:
        for place, record in enumerate(driven.records):
            write_record(record, Path(folder) / f"{place}.npz")
            outcome = rollout_outcome(record, scene, config.max_distance_to_log_m)
            origin = ExampleOrigin(0, 1, "benchmark")
            for example in rollout_examples(
                driven, place, windows_us, outcome, scene.expert.end_us, config, origin, Counter()
            ):
                writer.write(example)
    return time.perf_counter() - started


def measure_memory(job: Job) -> dict[str, float]:
    """Resident memory while rollouts of 7.3 s are driven and written, batch by batch."""
    sizes_mb = list[float]()
    (scene_id,) = read_scene_ids([job.scene])
    simulation = SimulationConfig(duration_us=9_000_000)
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, job.rollouts, job.batch):
            indices = tuple(range(first, min(first + job.batch, job.rollouts)))
            origin = ExampleOrigin(job.seed, 1, "benchmark")
            unit = RolloutUnit(
                job.policy, job.scene, scene_id, indices, Path(folder), job.config, simulation, origin, "cpu"
            )  # fmt: skip
            failure = drive_unit(unit)
            if failure is not None:
                raise RuntimeError(failure.reason)
            sizes_mb.append(resident_mb())
    settled = sizes_mb[len(sizes_mb) // 5 :]
    growth_mb = float(np.polyfit(np.arange(len(settled)) * job.batch, settled, 1)[0]) if len(settled) > 1 else 0.0
    return {
        "rss_mb_first": sizes_mb[0],
        "rss_mb_last": sizes_mb[-1],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rss_growth_mb_per_rollout": growth_mb,
    }


def resident_mb() -> float:
    """Memory of this process now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure_guidance(job: Job) -> dict[str, float]:
    """Mean distance between the car and where the expert is at the same time, over all rollouts and steps, m."""
    scene, policy = cached_scene(job.scene), cached_policy(job.policy, "cpu")
    simulation = SimulationConfig(duration_us=round(job.seconds * 1e6))
    simulator = Simulator(scene, SplatRenderer(scene, "cpu"), simulation, image_format(policy.config))
    driven = drive(
        simulator, policy, range(job.batch), job.seed, job.config.guidance, scene.ego_vehicle, lambda t_us: False
    )
    distances = [
        np.linalg.norm(record.T_world_rig[:, :2, 3] - scene.expert.planar_at(record.t_us)[:, :2], axis=1)[
            ~record.is_warmup
        ]
        for record in driven.records
    ]
    name = job.config.guidance.strategy
    return {
        f"distance_{name}_m": float(np.mean(distances)),
        f"recovered_{name}": float(np.mean([driven.recovered(place).mean() for place in range(job.batch)])),
    }


def run_all(jobs: list[Job], workers: int, title: str) -> list[dict[str, float]]:
    """Results in the order of the jobs."""
    found = dict(run_units(measure, jobs, workers, title))
    return [found[job] for job in jobs]


def measure_part(part: str, job: Job, arguments: argparse.Namespace) -> dict[str, float]:
    """Figures of one part."""
    single = replace(job, part="step", steps=arguments.steps, skip=arguments.skip)
    if part == "step":
        (alone,) = run_all([single], 1, "one process")
        pair = run_all([replace(single, seed=seed) for seed in (1, 2)], 2, "two processes")
        both_ms = statistics.fmean(each["step_ms"] for each in pair) / 2
        return {**alone, "two_process_step_ms": both_ms, "real_time_factor": STEP_MS / both_ms}
    if part == "batch":
        # Alternately, so that a load that comes and goes meets both.
        jobs = [replace(single, batch=batch, seed=seed) for seed in range(3) for batch in (1, 8)]
        times = [each["step_ms"] for each in run_all(jobs, 1, "batch of 8")]
        one_ms, eight_ms = statistics.median(times[::2]), statistics.median(times[1::2]) / 8
        return {"batch_1_step_ms": one_ms, "batch_8_step_ms": eight_ms, "batch_8_gain": one_ms / eight_ms}
    if part == "memory":
        return run_all([replace(job, part="memory", rollouts=arguments.rollouts, batch=4)], 1, "memory")[0]
    strategies = ("expert", "road", "none")
    drives = replace(job, part="guidance", batch=3, seconds=arguments.guidance_s)
    jobs = [replace(drives, config=with_strategy(job.config, name)) for name in strategies]
    return {name: value for each in run_all(jobs, 2, "guidance") for name, value in each.items()}


def with_strategy(config: RolloutConfig, name: Any) -> RolloutConfig:
    return replace(config, guidance=replace(config.guidance, strategy=name))


def kitti_scene(work: Path, root: Path) -> Path:
    """KITTI odometry 00, frames 0 to 199, reconstructed as `configs/kitti_cpu.yaml` has it."""
    from pipelines.ingest import ingest
    from pipelines.reconstruct import reconstruct

    config = load_shipped_config("kitti_cpu")
    options: IngestOptions = replace(config.clips[0].options, root=root)
    clip = ingest("kitti-odometry", out=work / "clips" / "kitti_00", options=options, resume=True)
    (scene,) = reconstruct([clip], out=work / "scenes", config=config.reconstruct, seed=0, device="cpu", resume=True)
    return scene


def tiny_policy(work: Path) -> Path:
    """An untrained policy of the size in `configs/kitti_cpu.yaml`."""
    from vla.checkpoint import save_pretrained
    from vla.model import build_policy

    if not (work / "policy").exists():
        save_pretrained(build_policy(load_shipped_config("kitti_cpu").policy, seed=0), work / "policy")
    return work / "policy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/kitti_odometry"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_rollout"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--skip", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--guidance-s", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {"load": os.getloadavg()[0]}
    scene = arguments.scene or kitti_scene(arguments.work, arguments.root)
    policy = arguments.policy or tiny_policy(arguments.work)
    config = RolloutConfig(window_stride_s=0.2, guidance=GuidanceConfig(num_samples=arguments.samples))
    for part in arguments.parts:
        figures |= measure_part(part, Job(part, scene, policy, config), arguments)
    for name, value in figures.items():
        print(f"{name:26} {value:10.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
