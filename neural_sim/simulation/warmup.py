"""The warm-up: the log is replayed while the controller follows it in shadow."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from controllers.interface import ControlCommand, Controller, VehicleState
from controllers.plan_delay import PlanDelay
from controllers.vehicle_parameters import VehicleParameters
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.expert import ExpertPath
from neural_sim.simulation.vehicle import state_on_path, step_vehicle


def replay_log(
    expert: ExpertPath,
    controller: Controller,
    vehicle: VehicleParameters,
    config: SimulationConfig,
    start_us: int,
) -> Iterator[tuple[VehicleState, PlanDelay, ControlCommand]]:
    """State of one vehicle, plans in the queue and last command at each step from `start_us` to the hand-over.

    Pose and speed are those of the log; steering, acceleration, yaw rate and slip are those of a shadow car that tracks
    the log freely, so that at the hand-over the car is in a state that its own dynamics lead to. The log passes the
    plan delay like any plan.
    """
    delay = PlanDelay(config.plan_delay_us)
    speed_mps, yaw_rate_radps = expert.rates_at(start_us)
    shadow = state_on_path(
        expert.planar_at(np.array([start_us])), np.array([speed_mps]), np.array([yaw_rate_radps]), vehicle
    )
    command = ControlCommand(shadow.steering_rad, shadow.acceleration_mps2)
    yield shadow, delay, command
    for step in range(config.warmup_steps):
        t_us = start_us + step * config.control_step_us
        delay = delay.push(t_us, expert.plan_from(t_us))
        command = controller.command(shadow, delay.at(t_us), t_us, command)
        shadow = step_vehicle(shadow, command, config.control_step_us * 1e-6, vehicle, config.limits)
        yield _on_log(shadow, expert, t_us + config.control_step_us), delay, command


def _on_log(shadow: VehicleState, expert: ExpertPath, t_us: int) -> VehicleState:
    """The shadow's state with pose and speed of the log."""
    x_m, y_m, yaw_rad = expert.planar_at(np.array([t_us])).T.copy()
    speed_mps, _ = expert.rates_at(t_us)
    return replace(shadow, x_m=x_m, y_m=y_m, yaw_rad=yaw_rad, vx_mps=np.array([speed_mps]))
