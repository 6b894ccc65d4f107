"""The state of a simulation as immutable values, so that saving it is keeping it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from controllers.interface import ControlCommand, VehicleState
from controllers.plan_delay import PlanDelay
from neural_sim.simulation.camera_rig import Frame
from neural_sim.simulation.record import SimulationEvent
from neural_sim.simulation.traffic import TrafficStep


@dataclass(frozen=True)
class StepEntry:
    """What is remembered of B rollouts at one time. Arrays are read-only.

    Attributes:
        t_us: time, us.
        is_warmup: whether the log was replayed up to here.
        planar: float64 [B, 3], true rig pose (x, y, yaw not wrapped), world frame, m and rad.
        estimated: float64 [B, 3], the noisy pose, likewise.
        T_world_rig: float64 [B, 4, 4], true rig pose on the ground, m.
        velocity: float64 [B, 3], rig-frame vx, vy (m/s) and yaw rate (rad/s).
        acceleration_mps2: float64 [B, 2], rig-frame longitudinal and lateral.
        steering_rad: float64 [B].
        traffic: the other road users.
    """

    t_us: int
    is_warmup: bool
    planar: Float[np.ndarray, "b 3"]
    estimated: Float[np.ndarray, "b 3"]
    T_world_rig: Float[np.ndarray, "b 4 4"]
    velocity: Float[np.ndarray, "b 3"]
    acceleration_mps2: Float[np.ndarray, "b 2"]
    steering_rad: Float[np.ndarray, "b"]
    traffic: TrafficStep

    def __post_init__(self) -> None:
        _freeze(vars(self).values())


@dataclass(frozen=True)
class SimulatorState:
    """Everything that a simulation of B rollouts needs to go on.

    Attributes:
        scene_id: the scene it belongs to.
        seeds: one per rollout.
        pose_errors: float64 [B, T, 3], error of the estimated pose at every step of the simulation.
        vehicle: state of the vehicles now.
        delay: plans handed over and not yet out of use.
        command: the controller's last answer, which holds what it remembers.
        entries: the past, the present last.
        plans: float32 [B, 64, 3] handed over at each entry but the last; None during the warm-up.
        frames: the newest frames, oldest first.
        events: (rollout, event) in order of time.
    """

    scene_id: str
    seeds: tuple[int, ...]
    pose_errors: Float[np.ndarray, "b t 3"]
    vehicle: VehicleState
    delay: PlanDelay
    command: ControlCommand
    entries: tuple[StepEntry, ...]
    plans: tuple[Float[np.ndarray, "b 64 3"] | None, ...]
    frames: tuple[Frame, ...]
    events: tuple[tuple[int, SimulationEvent], ...]

    def __post_init__(self) -> None:
        _freeze([self.pose_errors, *vars(self.vehicle).values(), *vars(self.command).values()])

    @property
    def now(self) -> StepEntry:
        """The present."""
        return self.entries[-1]


@dataclass(frozen=True)
class StepInfo:
    """What one step did, besides the next observation.

    Attributes:
        t_us: time after the step, us.
        events: what was out of the ordinary in this step, one tuple per rollout.
        ego_planar: float64 [B, 3], true rig poses (x, y, yaw wrapped) after the step, world frame, m and rad.
        plan_accepted: bool [B], false where the plan was rejected and the rollout keeps its previous one.
        cross_track_m: float64 [B], offset from the path of the plan in execution, m, left positive.
        along_track_m: float64 [B], how far ahead of the plan in execution along its path, m.
    """

    t_us: int
    events: tuple[tuple[SimulationEvent, ...], ...]
    ego_planar: Float[np.ndarray, "b 3"]
    plan_accepted: Bool[np.ndarray, "b"]
    cross_track_m: Float[np.ndarray, "b"]
    along_track_m: Float[np.ndarray, "b"]


def _freeze(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
