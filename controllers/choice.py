"""The controller that a configuration asks for."""

from controllers.config import ControllerConfig
from controllers.interface import Controller
from controllers.mpc import MpcController
from controllers.pure_pursuit import PurePursuitController
from controllers.tracking import TrackingController
from controllers.vehicle_parameters import VehicleParameters

CONTROLLERS = {"tracking": TrackingController, "mpc": MpcController, "pure_pursuit": PurePursuitController}


def make_controller(vehicle: VehicleParameters, config: ControllerConfig, step_us: int) -> Controller:
    """The controller `config.kind` for a vehicle that is given a command every `step_us`."""
    return CONTROLLERS[config.kind](vehicle, config, step_us)
