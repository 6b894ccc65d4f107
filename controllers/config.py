"""Settings of the tracking controller."""

from dataclasses import dataclass

from controllers.errors import require_positive


@dataclass(frozen=True)
class ControllerConfig:
    """Preview regulators for steering and for acceleration. Both penalise the change of the actuator, not its value,
    so a steady turn or a steady braking leaves no error."""

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

    def __post_init__(self) -> None:
        require_positive("ControllerConfig", **vars(self))
