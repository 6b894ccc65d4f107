"""Settings of the closed loop."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from controllers.config import ControllerConfig
from controllers.vehicle_parameters import VehicleParameters
from neural_sim.errors import InputError
from neural_sim.road_users import EgoVehicle
from neural_sim.simulation.ego_noise import EgoNoiseConfig
from neural_sim.simulation.idm import IdmConfig
from neural_sim.simulation.observation import HISTORY_STEP_US, HISTORY_STEPS, ImageFormat
from neural_sim.simulation.route import RouteConfig
from neural_sim.simulation.vehicle import VehicleLimits

TrafficKind = Literal["replay", "idm"]


@dataclass(frozen=True)
class SimulationConfig:
    """Clock, delay, noise and vehicle of a closed-loop simulation. Defaults follow RoaD and AlpaSim."""

    control_step_us: int = 100_000
    """Time between two plans, two commands and two renderings, us."""
    warmup_us: int = 1_700_000
    """Time for which the log is replayed before the policy takes over, us; must cover history and frames."""
    duration_us: int = 20_000_000
    """Longest simulated time, warm-up included, us; the end of the expert's log may come first."""
    plan_delay_us: int = 200_000
    """Age of a plan when it takes effect, us."""
    min_traffic_duration_s: float = 3.0
    """Road users recorded for less than this are left out, s; obstacles are always kept."""
    max_plan_step_m: float = 10.0
    """A plan that moves farther than this within 0.1 s is rejected, m."""
    max_speed_mps: float = 40.0
    """Exceeding this speed is noted as an event, m/s."""
    ego_noise: EgoNoiseConfig = field(default_factory=EgoNoiseConfig)
    """Noise on the ego poses the policy sees."""
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    """The controller that follows the plans."""
    vehicle: VehicleParameters = field(default_factory=VehicleParameters)
    """Parameters of the vehicle model."""
    vehicle_from_scene: bool = False
    """Take the wheelbase from the scene's ego car; the axles keep their shares of it, the rest is as in `vehicle`."""
    limits: VehicleLimits = field(default_factory=VehicleLimits)
    """Limits of the actuators."""
    traffic: TrafficKind = "replay"
    """`replay`: others drive as logged; `idm`: moving vehicles follow their logged paths and keep their distance."""
    idm: IdmConfig = field(default_factory=IdmConfig)
    """The reactive vehicles of `traffic: idm`."""
    navigation_from_route: bool = False
    """Whether a scene without recorded instructions gets them from its route ("turn left", ...). The policy must have
    been trained with such texts."""
    route: RouteConfig = field(default_factory=RouteConfig)
    """The route ahead and the commands made from it."""

    def __post_init__(self) -> None:
        self._check_positive()
        if self.traffic not in get_args(TrafficKind):
            raise InputError(f"simulation.traffic is {self.traffic!r}, expected replay or idm")
        if self.plan_delay_us < 0 or self.min_traffic_duration_s < 0:
            raise InputError(
                f"simulation.plan_delay_us is {self.plan_delay_us} and simulation.min_traffic_duration_s is "
                f"{self.min_traffic_duration_s}, expected zero or more"
            )
        if self.warmup_us % self.control_step_us:
            raise InputError(
                f"simulation.warmup_us is {self.warmup_us} us, expected a multiple of the control step of "
                f"{self.control_step_us} us"
            )
        history_us = (HISTORY_STEPS - 1) * HISTORY_STEP_US
        if self.warmup_us < history_us:
            raise InputError(
                f"simulation.warmup_us is {self.warmup_us} us, expected at least {history_us} us "
                "to fill the ego history"
            )
        if self.duration_us < self.warmup_us + self.control_step_us:
            raise InputError(
                f"simulation.duration_us is {self.duration_us} us, expected at least one control step more than the "
                f"warm-up of {self.warmup_us} us"
            )

    def _check_positive(self) -> None:
        for name in ("control_step_us", "warmup_us", "duration_us", "max_plan_step_m", "max_speed_mps"):
            if not getattr(self, name) > 0:
                raise InputError(f"simulation.{name} is {getattr(self, name)}, expected a positive number")

    @property
    def warmup_steps(self) -> int:
        """Control steps of the warm-up."""
        return self.warmup_us // self.control_step_us

    def vehicle_of(self, ego: EgoVehicle) -> VehicleParameters:
        """Parameters for a scene with this ego car; `vehicle` unless `vehicle_from_scene`."""
        if not self.vehicle_from_scene:
            return self.vehicle
        share = ego.wheelbase_m / self.vehicle.wheelbase_m
        return replace(
            self.vehicle,
            wheelbase_m=ego.wheelbase_m,
            rear_axle_to_cg_m=share * self.vehicle.rear_axle_to_cg_m,
            front_axle_to_cg_m=share * self.vehicle.front_axle_to_cg_m,
        )

    def frame_stride(self, images: ImageFormat) -> int:
        """Control steps between two frames of an observation.

        Raises `InputError` when these frames do not fall on control steps or do not fit into the warm-up.
        """
        if images.frame_interval_us % self.control_step_us:
            raise InputError(
                f"the frame interval of the policy is {images.frame_interval_us} us, expected a multiple of "
                f"simulation.control_step_us, {self.control_step_us} us"
            )
        if self.warmup_us < images.span_us:
            raise InputError(
                f"simulation.warmup_us is {self.warmup_us} us, expected at least {images.span_us} us to fill "
                f"{images.num_frames} frames"
            )
        return images.frame_interval_us // self.control_step_us
