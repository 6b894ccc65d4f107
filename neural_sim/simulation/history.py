"""From the remembered past to what a policy sees and what a record keeps."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from neural_sim.frames import wrap_angle
from neural_sim.simulation.observation import HISTORY_STEP_US, HISTORY_STEPS, PLAN_STEPS, ImageFormat, Observation
from neural_sim.simulation.record import RolloutRecord, SimulationEvent
from neural_sim.simulation.state import SimulatorState, StepEntry


def observe(
    state: SimulatorState,
    images: ImageFormat,
    control_step_us: int,
    navigation: tuple[str, ...],
    route: Float[np.ndarray, "b 20 2"],
) -> Observation:
    """The observation of all rollouts at the present of `state`, with their instructions and `route` ahead, m."""
    batch_size, stride = len(state.seeds), images.frame_interval_us // control_step_us
    shown = state.frames[::-1][::stride][: images.num_frames][::-1]
    ages_us = np.arange(images.num_frames - 1, -1, -1) * images.frame_interval_us
    times_us = np.tile(state.now.t_us - ages_us, (batch_size, 1))
    names = tuple(shown[-1])
    return Observation(
        t_us=np.full(batch_size, state.now.t_us, np.int64),
        images={name: np.stack([frame[name] for frame in shown], axis=1) for name in names},
        image_times_us={name: times_us.copy() for name in names},
        ego_history=ego_history(state.entries, control_step_us),
        navigation=navigation,
        route=route.astype(np.float32),
    )


def ego_history(entries: Sequence[StepEntry], control_step_us: int) -> Float[np.ndarray, "b 16 4"]:
    """float32 (x, y, yaw, speed) every 0.1 s up to the last entry, in the estimated rig frame of that time.

    Poses are the noisy estimates, linear between control steps; speed is the true forward speed, as wheel odometry
    measures it well.
    """
    steps_back = np.arange(HISTORY_STEPS - 1, -1, -1) * HISTORY_STEP_US / control_step_us
    index = len(entries) - 1 - steps_back
    low = np.floor(index).astype(int)
    high = np.minimum(low + 1, len(entries) - 1)
    first = int(low[0])
    past = entries[first:]
    values = np.stack([np.concatenate([e.estimated, e.velocity[:, :1]], axis=1) for e in past], axis=1)
    fraction = (index - low)[:, None]
    values = values[:, low - first] + fraction * (values[:, high - first] - values[:, low - first])
    return _relative_to_last(values).astype(np.float32)


def _relative_to_last(values: Float[np.ndarray, "b h 4"]) -> Float[np.ndarray, "b h 4"]:
    """Poses (x, y, yaw) in the frame of the last pose of each row; further columns unchanged."""
    origin = values[:, -1:]
    yaw_rad = np.ascontiguousarray(origin[..., 2])
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    delta = values - origin
    result = values.copy()
    result[..., 0] = cosine * delta[..., 0] + sine * delta[..., 1]
    result[..., 1] = cosine * delta[..., 1] - sine * delta[..., 0]
    result[..., 2] = wrap_angle(delta[..., 2])
    return result


def rollout_records(
    state: SimulatorState, actor_ids: tuple[str, ...], rollout_indices: Sequence[int]
) -> list[RolloutRecord]:
    """The past of `state` as one record per rollout, numbered by `rollout_indices`."""
    entries = state.entries
    no_plan = np.full((len(state.seeds), PLAN_STEPS, 3), np.nan, np.float32)
    plans = np.stack([no_plan if plan is None else plan for plan in (*state.plans, None)], axis=1)
    estimated = np.stack([entry.estimated for entry in entries], axis=1)
    estimated[..., 2] = wrap_angle(estimated[..., 2])
    poses = np.stack([entry.T_world_rig for entry in entries], axis=1)
    velocity = np.stack([entry.velocity for entry in entries], axis=1)
    acceleration = np.stack([entry.acceleration_mps2 for entry in entries], axis=1)
    steering = np.stack([entry.steering_rad for entry in entries], axis=1)
    actor_planar = _actor_planar(entries, len(state.seeds))
    return [
        RolloutRecord(
            scene_id=state.scene_id,
            rollout_index=rollout_index,
            seed=state.seeds[b],
            t_us=np.array([entry.t_us for entry in entries], np.int64),
            is_warmup=np.array([entry.is_warmup for entry in entries]),
            T_world_rig=poses[b].copy(),
            velocity=velocity[b].copy(),
            acceleration_mps2=acceleration[b].copy(),
            steering_rad=steering[b].copy(),
            estimated_planar=estimated[b].copy(),
            plans=plans[b].copy(),
            actor_ids=actor_ids,
            actor_planar=actor_planar[b],
            events=events_of(state.events, b),
        )
        for b, rollout_index in enumerate(rollout_indices)
    ]


def _actor_planar(entries: Sequence[StepEntry], batch_size: int) -> Sequence[Float[np.ndarray, "t n 3"]]:
    """(x, y, yaw) of the road users at every step, for each rollout; one array for all where traffic is shared."""
    steps = [entry.traffic.planar for entry in entries]
    if all(len(step) == 1 for step in steps):
        return [np.concatenate(steps)] * batch_size
    rows = [step if len(step) == batch_size else np.repeat(step, batch_size, axis=0) for step in steps]
    return list(np.stack(rows, axis=1))


def events_of(events: Sequence[tuple[int, SimulationEvent]], rollout: int) -> tuple[SimulationEvent, ...]:
    """The events of one rollout, in order."""
    return tuple(event for b, event in events if b == rollout)
