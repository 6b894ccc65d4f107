"""Hand-made rollouts for the tests of `eval`: the ego drives along +x, and every number is known in advance."""

from collections.abc import Sequence

import numpy as np
from synthetic_scene import START_US, STEP_US

from neural_sim.frames import pose_from_planar
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.record import RolloutRecord, SimulationEvent


def make_record(
    scene: Scene,
    planar: np.ndarray,
    *,
    warmup_steps: int = 0,
    rollout_index: int = 0,
    actor_planar: dict[str, np.ndarray] | None = None,
    plans: np.ndarray | None = None,
    acceleration_mps2: np.ndarray | None = None,
    events: Sequence[SimulationEvent] = (),
) -> RolloutRecord:
    """A record of rig poses (x, y, yaw) [T, 3] at 10 Hz; actors as in the log unless given."""
    planar = np.asarray(planar, float)
    steps = len(planar)
    t_us = START_US + np.arange(steps) * STEP_US
    speed = np.zeros(steps)
    if steps > 1:
        speed[1:] = np.linalg.norm(np.diff(planar[:, :2], axis=0), axis=1) * 1e6 / STEP_US
        speed[0] = speed[1]
    velocity = np.stack([speed, np.zeros(steps), np.zeros(steps)], axis=-1)
    actors = {track.track_id: logged(scene, track.track_id, t_us) for track in scene.tracks} | (actor_planar or {})
    return RolloutRecord(
        scene_id=scene.scene_id,
        rollout_index=rollout_index,
        seed=7 + rollout_index,
        t_us=t_us,
        is_warmup=np.arange(steps) < warmup_steps,
        T_world_rig=pose_from_planar(planar),
        velocity=velocity,
        acceleration_mps2=np.zeros((steps, 2)) if acceleration_mps2 is None else acceleration_mps2,
        steering_rad=np.zeros(steps),
        estimated_planar=planar,
        plans=np.full((steps, 64, 3), np.nan, np.float32) if plans is None else plans,
        actor_ids=tuple(actors),
        actor_planar=np.stack(list(actors.values()), axis=1) if actors else np.zeros((steps, 0, 3)),
        events=tuple(events),
    )


def logged(scene: Scene, track_id: str, t_us: np.ndarray) -> np.ndarray:
    """Logged box centres of a track [T, 3], NaN while absent."""
    trajectory = next(track.trajectory for track in scene.tracks if track.track_id == track_id)
    present = (t_us >= trajectory.start_us) & (t_us <= trajectory.end_us)
    return np.where(present[:, None], trajectory.planar_at(t_us), np.nan)


def straight(steps: int, speed_mps: float = 8.0, y_m: float | np.ndarray = 0.0) -> np.ndarray:
    """Rig poses [T, 3] along +x at constant speed, displaced sideways by `y_m`."""
    x = speed_mps * np.arange(steps) * STEP_US * 1e-6
    return np.stack([x, np.broadcast_to(y_m, steps), np.zeros(steps)], axis=-1)


def standing(steps: int) -> np.ndarray:
    """Rig poses [T, 3] of a car that never moves from the origin."""
    return np.zeros((steps, 3))
