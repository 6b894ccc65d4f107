"""Settings of the controllers."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from controllers.errors import ControlError, require_positive

ControllerKind = Literal["tracking", "mpc", "pure_pursuit"]


@dataclass(frozen=True)
class MpcConfig:
    """The quadratic program of the model-predictive controller. Its weights and limits are those of `ControllerConfig`.

    Only the penalty on the commands differs: it is on the increment from one command to the next."""

    horizon_s: float = 2.5
    """Predicted time, s."""
    max_speed_mps: float = 45.0
    """Speed above which the prediction pays, m/s. Soft: exceeding it never makes the program infeasible."""
    speed_slack_weight: float = 100.0
    """Cost of one (m/s)^2 of predicted speed above the bound or below zero."""
    tolerance: float = 1e-4
    """Absolute and relative tolerance of the solver."""
    max_iterations: int = 1000
    """Solver iterations after which the step counts as failed and the tracking controller's command is used."""

    def __post_init__(self) -> None:
        require_positive("ControllerConfig.mpc", **vars(self))


@dataclass(frozen=True)
class PurePursuitConfig:
    """The plain baseline: steering towards a point ahead, and a PID loop on position and speed."""

    lookahead_s: float = 0.8
    """Distance to the aimed point over speed, s."""
    min_lookahead_m: float = 3.0
    """Least distance to the aimed point, m."""
    position_gain: float = 0.5
    """Speed correction per metre of lag along the path, (m/s)/m."""
    speed_gain: float = 1.5
    """Acceleration per speed error (P), (m/s^2)/(m/s)."""
    speed_integral_gain: float = 0.2
    """Acceleration per summed speed error (I), (m/s^2)/m."""
    speed_derivative_gain: float = 0.2
    """Acceleration per difference of planned and present acceleration (D)."""
    max_integral_m: float = 5.0
    """Bound of the summed speed error, m, against wind-up."""

    def __post_init__(self) -> None:
        require_positive("ControllerConfig.pure_pursuit", **vars(self))


@dataclass(frozen=True)
class ControllerConfig:
    """Which controller follows the plans, and how hard it tries.

    The default, `tracking`, has separate preview regulators for steering and for acceleration. Both penalise the change
    of the actuator, not its value, so a steady turn or a steady braking leaves no error."""

    kind: ControllerKind = "tracking"
    """`tracking` (preview regulators), `mpc` (linear model-predictive control), `pure_pursuit` (with PID)."""
    preview_s: float = 3.0
    """How far ahead the plan is read, s. The path is taken to go straight on after that: 2 s leave 8 cm of error in a
    tight turn at walking pace, 3 s leave 3 cm."""
    lateral_weight: float = 1.0
    """Cost of one square metre of cross-track error."""
    course_weight: float = 2.0
    """Cost of one square radian between the direction of motion and the path."""
    steering_change_weight: float = 20.0
    """Cost of one square radian of steering command away from the present steering angle."""
    position_weight: float = 1.0
    """Cost of one square metre of lead or lag along the path."""
    speed_weight: float = 1.0
    """Cost of one (m/s)^2 of speed error."""
    acceleration_change_weight: float = 0.5
    """Cost of one (m/s^2)^2 of acceleration command away from the present acceleration."""
    speed_window_s: float = 0.4
    """Window over which the planned speed is averaged, s; evens out jitter between the points of a plan."""
    max_steering_rad: float = 0.6
    """Largest commanded front-wheel angle, rad."""
    max_lateral_acceleration_mps2: float = 6.0
    """Steering is cut where a steady turn would exceed this, m/s^2."""
    max_acceleration_mps2: float = 5.0
    """Largest commanded acceleration, m/s^2."""
    max_deceleration_mps2: float = 8.0
    """Largest commanded braking, m/s^2."""
    standing_mps: float = 0.5
    """Below this speed, m/s, steering changes fade to none, so a standing car does not turn its wheels."""

    mpc: MpcConfig = field(default_factory=MpcConfig)
    """Used when `kind` is `mpc`."""
    pure_pursuit: PurePursuitConfig = field(default_factory=PurePursuitConfig)
    """Used when `kind` is `pure_pursuit`."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ControllerKind):
            raise ControlError(
                f"ControllerConfig.kind is {self.kind!r}, expected one of {', '.join(get_args(ControllerKind))}"
            )
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, (int, float))}
        require_positive("ControllerConfig", **numbers)
