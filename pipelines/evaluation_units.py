"""The work of an evaluation, cut into units: closed-loop rollouts of one driver in one scene, with their videos."""

import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8

from eval.aggregate import reduce_rollout
from eval.results import RolloutFailure
from eval.scorers import score_rollout
from eval.video import render_rollout_video
from neural_sim.artifacts import atomic_file, atomic_folder, write_json
from neural_sim.errors import InputError
from neural_sim.rendering.renderer import Renderer
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.record import write_record
from neural_sim.simulation.simulator import Simulator
from pipelines.config import Baseline, EvaluationConfig
from pipelines.drive import Drive, drive, rollout_seed
from pipelines.failures import failure_reason
from pipelines.guidance import GuidanceConfig
from pipelines.open_loop import one_rollout, open_loop_metrics, replayed_windows
from pipelines.shards.example import safe_name
from pipelines.worlds import cached_policy, cached_scene, image_format, make_renderer
from vla.baselines import ConstantVelocityPolicy
from vla.checkpoint import read_policy_config
from vla.policy import Policy, TrainingBatch

FAILURES_NAME = "failures.json"
_CLIP_AFTER_US = 500_000


@dataclass(frozen=True)
class Driver:
    """Who drives: a checkpoint or a baseline.

    Attributes:
        name: in the report and in file names.
        seen_by: checkpoint folder whose cameras the simulation shows.
        baseline: which baseline, or None for the policy in `seen_by` itself. A baseline gets a checkpoint's cameras
            because the time at which a rollout begins depends on them.
    """

    name: str
    seen_by: Path
    baseline: Baseline | None = None


@dataclass(frozen=True)
class EvaluationUnit:
    """Some rollouts of one driver in one scene, driven together: what one worker does at a time."""

    driver: Driver
    scene: Path
    scene_id: str
    rollout_indices: tuple[int, ...]
    out: Path
    config: EvaluationConfig
    simulation: SimulationConfig
    seed: int
    device: str

    @property
    def folder(self) -> Path:
        """Where the unit's records and videos lie; it exists once the unit is finished."""
        name = f"{safe_name(self.driver.name)}-{safe_name(self.scene_id)}-r{self.rollout_indices[0]:03d}"
        return self.out / "rollouts" / name

    @property
    def has_videos(self) -> bool:
        """Whether its rollouts are filmed."""
        return self.config.videos and (self.driver.baseline is None or self.config.baseline_videos)

    def record_path(self, index: int) -> Path:
        """Record of one rollout."""
        return self.folder / f"{index:03d}.npz"

    def video_path(self, index: int) -> Path:
        """Video of one rollout."""
        return self.folder / f"{index:03d}.mp4"

    def clip_path(self, index: int) -> Path:
        """Video of the seconds before one rollout failed."""
        return self.folder / f"{index:03d}.clip.mp4"


@dataclass(frozen=True)
class OpenLoopUnit:
    """The open-loop metrics of some drivers in one scene; they share the pictures along the recorded drive."""

    drivers: tuple[Driver, ...]
    scene: Path
    scene_id: str
    out: Path
    config: EvaluationConfig
    simulation: SimulationConfig
    seed: int
    device: str

    def path(self, driver: Driver) -> Path:
        """Where the metrics of one driver lie."""
        return self.out / "open_loop" / f"{safe_name(driver.name)}-{safe_name(self.scene_id)}.json"


def drivers_of(policies: Sequence[Path], baselines: Sequence[Baseline]) -> list[Driver]:
    """A driver for each checkpoint folder, named as the folder, then the baselines.

    Raises `InputError` when there is no checkpoint or two drivers share a name.
    """
    if not policies:
        raise InputError("no policies given; pass at least one checkpoint folder after --policies")
    drivers = [Driver(safe_name(folder.resolve().name), folder) for folder in policies]
    drivers += [Driver(name, policies[0], name) for name in dict.fromkeys(baselines)]
    names = [driver.name for driver in drivers]
    for name in names:
        if names.count(name) > 1:
            taken = " (the name of a baseline)" if name in get_args(Baseline) else ""
            raise InputError(f"two policies are named {name!r}{taken}; rename one of the checkpoint folders")
    return drivers


def evaluate_unit(unit: EvaluationUnit) -> list[RolloutFailure]:
    """Drive the rollouts of one unit and write their records and videos. Runs in a worker process.

    Whatever goes wrong in a rollout makes that rollout a failure and nothing else: where a batch fails, its rollouts
    are driven one by one. Returns the failures, which lie in `failures.json` too.
    """
    with atomic_folder(unit.folder) as folder:
        failures = _attempt(unit, unit.rollout_indices, folder)
        if failures:
            write_json(folder / FAILURES_NAME, [asdict(failure) for failure in failures])
    return failures


def open_loop_unit(unit: OpenLoopUnit) -> None:
    """Write `{"num_windows", "metrics"}` of each driver, or `{"error"}`. Runs in a worker process."""
    windows: dict[ImageFormat, list[TrainingBatch]] = {}
    for driver in unit.drivers:
        try:
            images = image_format(read_policy_config(driver.seen_by))
            if images not in windows:
                windows[images] = _replayed(unit, images)
            found = _open_loop(unit, driver, windows[images])
        except Exception as error:  # a policy may fail in any way
            found = {"error": failure_reason(error)}
        write_json(unit.path(driver), found)


def _attempt(unit: EvaluationUnit, indices: tuple[int, ...], folder: Path) -> list[RolloutFailure]:
    index = indices[0]
    try:
        _drive(unit, indices, folder)
    except Exception as error:  # a policy may fail in any way
        if len(indices) > 1:
            return [failure for each in indices for failure in _attempt(unit, (each,), folder)]
        with atomic_file(folder / f"{index:03d}.error.txt") as partial:
            partial.write_text(traceback.format_exc())
        return [RolloutFailure(unit.driver.name, unit.scene_id, index, failure_reason(error))]
    return []


def _drive(unit: EvaluationUnit, indices: tuple[int, ...], folder: Path) -> None:
    scene, policy = cached_scene(unit.scene), policy_of(unit.driver, unit.device)
    images = image_format(read_policy_config(unit.driver.seen_by))
    simulator = Simulator(scene, _renderer_of(unit, scene), unit.simulation, images)
    strategy = "expert" if policy is None else "none"
    alone = GuidanceConfig(strategy=strategy, temperature=unit.config.temperature)
    driven = drive(simulator, policy, indices, unit.seed, alone, scene.ego_vehicle)
    for place, record in enumerate(driven.records):
        write_record(record, folder / unit.record_path(record.rollout_index).name)
        if unit.has_videos:
            _write_videos(unit, policy, driven, place, folder)


def _replayed(unit: OpenLoopUnit, images: ImageFormat) -> list[TrainingBatch]:
    scene = cached_scene(unit.scene)
    renderer = make_renderer(unit.config.renderer, unit.scene, unit.device)
    simulator = Simulator(scene, renderer, unit.simulation, images)
    return replayed_windows(simulator, unit.seed, unit.config.open_loop_stride_s)


def _open_loop(unit: OpenLoopUnit, driver: Driver, windows: list[TrainingBatch]) -> dict[str, Any]:
    policy = policy_of(driver, unit.device)
    if not windows or policy is None:
        raise InputError("no window: the recording is shorter than warm-up and a plan of 6.4 s together")
    config = unit.config
    metrics = open_loop_metrics(policy, windows, unit.scene_id, unit.seed, config.open_loop_samples, config.temperature)
    return {"num_windows": len(windows), "metrics": metrics}


def policy_of(driver: Driver, device: str) -> Policy | None:
    """The policy that is asked; None for the replayed recording, which asks nobody."""
    if driver.baseline is None:
        return cached_policy(driver.seen_by, device)
    return ConstantVelocityPolicy() if driver.baseline == "constant_velocity" else None


def _renderer_of(unit: EvaluationUnit, scene: Scene) -> Renderer:
    """Pictures where somebody looks: a checkpoint, or a video."""
    if unit.driver.baseline is None or unit.has_videos:
        return make_renderer(unit.config.renderer, unit.scene, unit.device)
    return BlankRenderer()


def _write_videos(unit: EvaluationUnit, policy: Policy | None, driven: Drive, place: int, folder: Path) -> None:
    """The video of one rollout, and if it failed that of the seconds before, with what else the policy considered."""
    record, scene, protocol = driven.records[place], cached_scene(unit.scene), unit.config.protocol
    frames = _frame_per_step(driven, place)
    score = score_rollout(record, scene, protocol, policy=unit.driver.name)
    path = folder / unit.video_path(record.rollout_index).name
    render_rollout_video(record, scene, frames, path, score=score, protocol=protocol)
    reduced = reduce_rollout(score, protocol)
    if reduced.ended != "end":
        window_us = (reduced.cut_us - round(unit.config.clip_before_s * 1e6), reduced.cut_us + _CLIP_AFTER_US)
        render_rollout_video(
            record, scene, frames, folder / unit.clip_path(record.rollout_index).name, score=score, protocol=protocol,
            candidates=_candidates(unit, policy, driven, place, window_us), window_us=window_us,
        )  # fmt: skip


def _frame_per_step(driven: Drive, place: int) -> UInt8[np.ndarray, "t h w 3"]:
    """The newest image at each step of the record; steps without a decision repeat the nearest one."""
    times_us = driven.records[place].t_us
    camera = next(iter(driven.steps[0].observation.images))
    nearest = np.abs(times_us[:, None] - driven.decision_times_us()[None]).argmin(axis=1)
    return driven.frames(place, camera)[nearest]


def _candidates(
    unit: EvaluationUnit, policy: Policy | None, driven: Drive, place: int, window_us: tuple[int, int]
) -> Float[np.ndarray, "t k 64 3"] | None:
    """Plans drawn anew from what the policy saw at each step of the window; NaN at the other steps."""
    steps = [step for step in driven.steps if window_us[0] <= step.observation.t_us[place] <= window_us[1]]
    count = unit.config.clip_candidates
    if not count or not steps or policy is None or unit.driver.baseline is not None:
        return None
    record = driven.records[place]
    generator = torch.Generator().manual_seed(rollout_seed(unit.seed, unit.scene_id, record.rollout_index))
    candidates = np.full((len(record.t_us), count, 64, 3), np.nan)
    for step in steps:
        observation = one_rollout(step.observation, place)
        samples = policy.sample(observation, count, unit.config.temperature, [generator])
        candidates[np.searchsorted(record.t_us, observation.t_us[0])] = samples.poses[0].double().numpy()
    return candidates
