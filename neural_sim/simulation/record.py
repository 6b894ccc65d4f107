"""What happened in one closed-loop rollout: the input of scorers, shards and videos."""

import io
import json
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError

RECORD_FORMAT_VERSION = 1


@dataclass(frozen=True)
class SimulationEvent:
    """Something out of the ordinary: a rejected plan, a solver that failed, a speed out of bounds.

    Attributes:
        t_us: when.
        kind: short name, for example "plan_rejected".
        detail: one line for a person.
    """

    t_us: int
    kind: str
    detail: str


@dataclass(frozen=True)
class RolloutRecord:
    """One rollout of T steps, warm-up included; entry i is the state at `t_us[i]`.

    Attributes:
        scene_id, rollout_index, seed: which rollout.
        t_us: int64 [T], us.
        is_warmup: bool [T], true while the log is replayed before the policy takes over.
        T_world_rig: float64 [T, 4, 4], true pose of the ego rig on the ground, m.
        velocity: float64 [T, 3], rig-frame velocity of the rear axle (vx, vy) and yaw rate, m/s and rad/s.
        acceleration_mps2: float64 [T, 2], rig-frame longitudinal and lateral acceleration, m/s^2.
        steering_rad: float64 [T], front-wheel angle.
        estimated_planar: float64 [T, 3], the noisy pose (x, y, yaw) the policy was told, world frame, m and rad.
        plans: float32 [T, 64, 3], the plan handed over at each step, rig frame at that step; NaN where there was none.
        actor_ids: N track ids.
        actor_planar: float64 [T, N, 3], box centres (x, y, yaw), world frame, m and rad; NaN while absent.
        events: in order of time.
    """

    scene_id: str
    rollout_index: int
    seed: int
    t_us: Int[np.ndarray, "t"]
    is_warmup: Bool[np.ndarray, "t"]
    T_world_rig: Float[np.ndarray, "t 4 4"]
    velocity: Float[np.ndarray, "t 3"]
    acceleration_mps2: Float[np.ndarray, "t 2"]
    steering_rad: Float[np.ndarray, "t"]
    estimated_planar: Float[np.ndarray, "t 3"]
    plans: Float[np.ndarray, "t 64 3"]
    actor_ids: tuple[str, ...]
    actor_planar: Float[np.ndarray, "t n 3"]
    events: tuple[SimulationEvent, ...]


_ARRAYS = tuple(
    item.name
    for item in fields(RolloutRecord)
    if item.name not in {"scene_id", "rollout_index", "seed", "actor_ids", "events"}
)


def write_record(record: RolloutRecord, path: Path) -> None:
    """Write a record as an `.npz` without pickle, atomically."""
    header = {
        "format_version": RECORD_FORMAT_VERSION,
        "scene_id": record.scene_id,
        "rollout_index": record.rollout_index,
        "seed": record.seed,
        "actor_ids": list(record.actor_ids),
        "events": [[event.t_us, event.kind, event.detail] for event in record.events],
    }
    buffer = io.BytesIO()
    arrays = {name: getattr(record, name) for name in _ARRAYS}
    np.savez_compressed(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    with atomic_file(path) as partial:
        partial.write_bytes(buffer.getvalue())


def read_record(path: Path) -> RolloutRecord:
    """Read what `write_record` wrote. Raises `InputError` when the file is not a whole record."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            arrays = {name: archive[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a rollout record ({error}); delete it and run the rollout again") from error
    if header["format_version"] != RECORD_FORMAT_VERSION:
        raise InputError(
            f"{path}: rollout record of format {header['format_version']}, expected {RECORD_FORMAT_VERSION}"
        )
    return RolloutRecord(
        scene_id=header["scene_id"],
        rollout_index=header["rollout_index"],
        seed=header["seed"],
        actor_ids=tuple(header["actor_ids"]),
        events=tuple(SimulationEvent(*event) for event in header["events"]),
        **arrays,
    )
