"""A privileged planner that answers from any state: how would one get back to the expert from here?"""

import numpy as np
from jaxtyping import Float

from controllers.interface import Controller, VehicleState
from controllers.reference import WorldPlan, world_plan
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.expert import ExpertPath
from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS
from neural_sim.simulation.vehicle import planar_pose, step_vehicle

# The controller looks ahead, so what it follows must reach beyond the planned horizon.
_REFERENCE_STEPS = 2 * PLAN_STEPS


def expert_query_plans(
    vehicle: VehicleState, expert: ExpertPath, controller: Controller, config: SimulationConfig, t_us: int
) -> Float[np.ndarray, "b 64 3"]:
    """Plans that return to the recorded drive, (x, y, yaw) 0.1 s to 6.4 s after `t_us`, world frame, m and rad.

    The vehicle model is driven from `vehicle` by the controller after the recording, without plan delay, so the plans
    keep to the vehicle's limits. Yaw is not wrapped. This is the expert that DAgger queries; the recording is all it
    knows, other road users are not avoided.
    """
    reference = _recorded(expert, t_us, len(vehicle.x_m))
    plans = np.empty((len(vehicle.x_m), PLAN_STEPS, 3))
    command = None
    for step in range(PLAN_STEPS):
        command = controller.command(vehicle, reference, t_us + step * PLAN_STEP_US, command)
        vehicle = step_vehicle(vehicle, command, PLAN_STEP_US * 1e-6, config.vehicle, config.limits)
        plans[:, step] = planar_pose(vehicle)
    return plans


def _recorded(expert: ExpertPath, t_us: int, batch_size: int) -> WorldPlan:
    """The recording from `t_us` on as one plan per rollout."""
    planar = expert.planar_at(t_us + PLAN_STEP_US * np.arange(_REFERENCE_STEPS + 1))
    columns = (np.tile(planar[:, axis], (batch_size, 1)) for axis in range(3))
    return world_plan(np.full(batch_size, t_us), PLAN_STEP_US, *columns)
