"""From finished rollouts to training examples (RoaD section 4.1)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_sim.frames import planar_from_pose, planar_to_local
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS
from neural_sim.simulation.record import RolloutRecord
from pipelines.config import RolloutConfig
from pipelines.drive import Drive
from pipelines.shards.example import ShardExample, safe_name


@dataclass(frozen=True)
class ExampleOrigin:
    """What made the examples: seed and round of the rollouts, hash of the policy that drove."""

    seed: int
    round_index: int
    policy_hash: str


def rollout_examples(
    drive: Drive, rollout: int, scene: Scene, config: RolloutConfig, origin: ExampleOrigin, dropped: Counter[str]
) -> Iterator[ShardExample]:
    """Yield the training windows of one rollout; windows left out are counted in `dropped` by reason.

    A window needs its whole 6.4 s horizon inside the recording, so that its plan was chosen with the expert in sight,
    and must begin before the car first got too far from the recorded path.
    """
    record = drive.records[rollout]
    end_us = min(scene.expert.end_us, int(record.t_us[-1]))
    too_far_us = first_time_too_far_us(record, scene, config.max_distance_to_log_m)
    next_us = int(drive.steps[0].observation.t_us[0])
    for index, step in enumerate(drive.steps):
        t_us = int(step.observation.t_us[rollout])
        if t_us < next_us:
            continue
        next_us += round(config.window_stride_s * 1e6)
        if t_us + PLAN_STEPS * PLAN_STEP_US > end_us:
            dropped["horizon beyond the recording"] += 1
        elif t_us >= too_far_us:
            dropped[f"more than {config.max_distance_to_log_m:g} m from the log"] += 1
        else:
            yield _example(drive, rollout, index, config, origin)


def first_time_too_far_us(record: RolloutRecord, scene: Scene, max_distance_m: float) -> int:
    """First time at which the rig is farther than `max_distance_m` from the log; the int64 maximum if never."""
    path = scene.expert.planar[:, :2]
    rig = record.T_world_rig[:, :2, 3]
    distance = np.array([np.linalg.norm(path - point, axis=1).min() for point in rig])
    beyond = np.flatnonzero(distance > max_distance_m)
    return int(record.t_us[beyond[0]]) if beyond.size else np.iinfo(np.int64).max


def realised_future(record: RolloutRecord, t_us: int) -> Float[np.ndarray, "64 3"]:
    """The path the car really took in the 6.4 s after `t_us`, (x, y, yaw) in the rig frame at `t_us`, m and rad."""
    start = int(np.searchsorted(record.t_us, t_us))
    wanted_us = t_us + PLAN_STEP_US * np.arange(1, PLAN_STEPS + 1)
    planar = planar_from_pose(record.T_world_rig)
    planar[:, 2] = np.unwrap(planar[:, 2])
    future = np.stack([np.interp(wanted_us, record.t_us, planar[:, axis]) for axis in range(3)], axis=-1)
    return planar_to_local(future, planar[start])


def _example(drive: Drive, rollout: int, index: int, config: RolloutConfig, origin: ExampleOrigin) -> ShardExample:
    """The example of one decision."""
    record, step = drive.records[rollout], drive.steps[index]
    observation, guided = step.observation, step.guided
    t_us = int(observation.t_us[rollout])
    plan = guided.plans[rollout].astype(np.float32)
    learned = guided.targets[rollout] if config.target == "plan" else realised_future(record, t_us)
    return ShardExample(
        key=f"{safe_name(record.scene_id)}-r{record.rollout_index:03d}-s{index:04d}",
        t_us=t_us,
        images={name: frames[rollout] for name, frames in observation.images.items()},
        image_times_us={name: times[rollout] for name, times in observation.image_times_us.items()},
        ego_history=observation.ego_history[rollout],
        navigation=observation.navigation[rollout],
        target=learned.astype(np.float32),
        plan=plan,
        candidate_distances=guided.distances_m[rollout].astype(np.float32),
        recovered=bool(guided.recovered[rollout]),
        meta={
            "source": "rollout",
            "scene_id": record.scene_id,
            "rollout_index": record.rollout_index,
            "step": index,
            "seed": origin.seed,
            "round": origin.round_index,
            "policy_hash": origin.policy_hash,
            "target": config.target,
        },
    )
