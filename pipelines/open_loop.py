"""Open-loop metrics: plans drawn along the recorded drive, compared with what the expert did next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from neural_sim.frames import planar_to_local
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.expert import ExpertPath
from neural_sim.simulation.observation import Observation
from neural_sim.simulation.record import RolloutRecord
from neural_sim.simulation.simulator import Simulator
from neural_sim.trajectory import Trajectory
from pipelines.drive import rollout_seed
from pipelines.guidance import corner_distance_m
from vla.model import DrivingPolicy
from vla.open_loop import open_loop_errors
from vla.policy import Policy, TrainingBatch

# Windows that a policy sees at once; the metrics do not depend on it beyond float rounding.
_BATCH = 8


def one_rollout(observation: Observation, place: int) -> Observation:
    """The observation of one rollout of a batch, as a batch of one."""
    keep = slice(place, place + 1)
    return replace(
        observation,
        t_us=observation.t_us[keep],
        images={name: images[keep] for name, images in observation.images.items()},
        image_times_us={name: times[keep] for name, times in observation.image_times_us.items()},
        ego_history=observation.ego_history[keep],
        navigation=observation.navigation[keep],
        route=None if observation.route is None else observation.route[keep],
    )


def replayed_windows(simulator: Simulator, seed: int, stride_s: float) -> list[TrainingBatch]:
    """What a policy sees along the recorded drive every `stride_s`, with the expert's next 6.4 s; one window each.

    The recording is replayed by the simulator, so that pictures, ego noise and history are those of the closed loop;
    windows whose 6.4 s are not all recorded are left out.
    """
    observation = simulator.reset([rollout_seed(seed, simulator.scene.scene_id, 0)])
    stride_us, next_us = round(stride_s * 1e6), simulator.t_us
    windows: list[TrainingBatch] = []
    while not simulator.is_done:
        world, recorded = simulator.expert_future()
        target = planar_to_local(world[None], simulator.ego_planar[:, None])
        if not recorded.all():
            break
        if simulator.t_us >= next_us:
            next_us += stride_us
            windows.append(_window(observation, target))
        observation, _ = simulator.step(target)
    return windows


def open_loop_metrics(
    policy: Policy, windows: Sequence[TrainingBatch], scene_id: str, seed: int, num_samples: int, temperature: float
) -> dict[str, float]:
    """Mean open-loop metrics of a policy over the windows; each window has its own random stream."""
    sums: dict[str, float] = {}
    for start, batch in _batches(windows):
        size = len(batch.t_us)
        streams = [rollout_seed(seed, scene_id, start + place) for place in range(size)]
        generators = [torch.Generator().manual_seed(stream) for stream in streams]
        if isinstance(policy, DrivingPolicy):
            values = policy.open_loop_metrics(batch, generators, num_samples, temperature)
        else:
            samples = policy.sample(batch, num_samples, temperature, generators)
            values = open_loop_errors(samples.poses, torch.from_numpy(np.asarray(batch.target)).float())
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + size * value
    return {name: total / len(windows) for name, total in sums.items()}


def executed_distances_m(record: RolloutRecord, scene: Scene, num_steps: int = 20) -> Float[np.ndarray, "t"]:
    """d^g (RoaD equation 6) of the plan handed over at each step, m; NaN where there was none."""
    expert = ExpertPath(scene.expert)
    futures = [expert.future(int(t_us)) for t_us in record.t_us]
    rig = Trajectory(record.t_us, record.T_world_rig).planar
    ahead = planar_to_local(np.stack([planar for planar, _ in futures]), rig[:, None])
    recorded = np.stack([valid for _, valid in futures])
    plans = record.plans[:, None].astype(float)
    distances = corner_distance_m(plans, ahead, recorded, scene.ego_vehicle, num_steps)[:, 0]
    return np.where(recorded[:, :num_steps].any(axis=1), distances, np.nan)


def _window(observation: Observation, target: Float[np.ndarray, "1 64 3"]) -> TrainingBatch:
    return TrainingBatch(
        t_us=observation.t_us,
        images=observation.images,
        image_times_us=observation.image_times_us,
        ego_history=observation.ego_history,
        navigation=observation.navigation,
        target=target.astype(np.float32),
        weight=np.ones(1, np.float32),
        route=observation.route,
    )


def _batches(windows: Sequence[TrainingBatch]) -> Iterator[tuple[int, TrainingBatch]]:
    """Windows in groups, with the number of the first of each."""
    for start in range(0, len(windows), _BATCH):
        group = windows[start : start + _BATCH]
        yield (
            start,
            TrainingBatch(
                t_us=np.concatenate([item.t_us for item in group]),
                images=_joined([item.images for item in group]),
                image_times_us=_joined([item.image_times_us for item in group]),
                ego_history=np.concatenate([item.ego_history for item in group]),
                navigation=tuple(text for item in group for text in item.navigation),
                target=np.concatenate([item.target for item in group]),
                weight=np.concatenate([item.weight for item in group]),
                route=_joined_routes([item.route for item in group]),
            ),
        )


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _joined_routes(routes: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [route for route in routes if route is not None]
    return np.concatenate(known) if len(known) == len(routes) else None
