"""From finished rollouts to training examples (RoaD section 4.1)."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_sim.frames import planar_from_pose, planar_to_local
from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS
from neural_sim.simulation.record import RolloutRecord
from pipelines.config import RolloutConfig
from pipelines.drive import Drive
from pipelines.outcome import Outcome
from pipelines.quality import reason_to_drop, rollout_weight
from pipelines.shards.example import ShardExample, safe_name


@dataclass(frozen=True)
class ExampleOrigin:
    """What made the examples: seed and round of the rollouts, hash of the policy that drove."""

    seed: int
    round_index: int
    policy_hash: str


def window_times(handover_us: int, num_steps: int, step_us: int, stride_s: float) -> list[int]:
    """Times (us) of the decisions at which training windows begin: the first one, then `stride_s` apart or just after.

    `num_steps` decisions are made, `step_us` apart from `handover_us` on.
    """
    stride_us, chosen, next_us = round(stride_s * 1e6), list[int](), handover_us
    for t_us in range(handover_us, handover_us + num_steps * step_us, step_us):
        if t_us >= next_us:
            chosen.append(t_us)
            next_us += stride_us
    return chosen


def rollout_examples(
    drive: Drive,
    rollout: int,
    times_us: Collection[int],
    outcome: Outcome,
    horizon_end_us: int,
    config: RolloutConfig,
    origin: ExampleOrigin,
    dropped: Counter[str],
) -> Iterator[ShardExample]:
    """Yield the training windows of one rollout; windows left out are counted in `dropped` by reason.

    A window needs its whole 6.4 s horizon inside the recording, so that its plan was chosen with the expert in sight.

    Args:
        drive: the rollouts of one batch.
        rollout: which of them.
        times_us: when windows begin, us; the images of these decisions must have been kept.
        outcome: how the rollout went.
        horizon_end_us: end of the recording and of the rollout, whichever is earlier, us.
        config: target and filters.
        origin: what made the examples.
        dropped: counts by reason, added to.
    """
    weight = rollout_weight(outcome, config.quality)
    for index, step in enumerate(drive.steps):
        t_us = int(step.observation.t_us[rollout])
        if t_us not in times_us:
            continue
        if t_us + PLAN_STEPS * PLAN_STEP_US > horizon_end_us:
            dropped["horizon beyond the recording"] += 1
            continue
        reason = reason_to_drop(t_us, outcome, config.quality, config.max_distance_to_log_m)
        if reason is not None:
            dropped[reason] += 1
            continue
        yield _example(drive, rollout, index, weight, config, origin)


def realised_future(record: RolloutRecord, t_us: int) -> Float[np.ndarray, "64 3"]:
    """The path the car really took in the 6.4 s after `t_us`, (x, y, yaw) in the rig frame at `t_us`, m and rad."""
    start = int(np.searchsorted(record.t_us, t_us))
    wanted_us = t_us + PLAN_STEP_US * np.arange(1, PLAN_STEPS + 1)
    planar = planar_from_pose(record.T_world_rig)
    planar[:, 2] = np.unwrap(planar[:, 2])
    future = np.stack([np.interp(wanted_us, record.t_us, planar[:, axis]) for axis in range(3)], axis=-1)
    return planar_to_local(future, planar[start])


def _example(
    drive: Drive, rollout: int, index: int, weight: float, config: RolloutConfig, origin: ExampleOrigin
) -> ShardExample:
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
            "weight": weight,
        },
        route=None if observation.route is None else observation.route[rollout],
    )
