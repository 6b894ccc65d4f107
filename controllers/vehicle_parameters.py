"""Parameters of the dynamically extended bicycle, shared by the vehicle model and the controllers that invert it."""

from dataclasses import dataclass

from controllers.errors import require_positive


@dataclass(frozen=True)
class VehicleParameters:
    """Mass, geometry, tyres and actuators of the ego car. Defaults are those of AlpaSim's vehicle model."""

    mass_kg: float = 2014.4
    """Mass, kg."""
    yaw_inertia_kgm2: float = 3414.2
    """Moment of inertia about the vertical axis, kg m^2."""
    wheelbase_m: float = 2.85
    """Rear to front axle, m; used by the kinematic regime."""
    rear_axle_to_cg_m: float = 1.59
    """Rear axle to centre of gravity, m."""
    front_axle_to_cg_m: float = 1.26
    """Front axle to centre of gravity, m."""
    front_cornering_npr: float = 93534.5
    """Cornering stiffness of one front tyre, N/rad; the axle has two."""
    rear_cornering_npr: float = 176162.1
    """Cornering stiffness of one rear tyre, N/rad; the axle has two."""
    steering_lag_s: float = 0.1
    """Time constant of the first-order steering actuator, s."""
    acceleration_lag_s: float = 0.1
    """Time constant of the first-order drive and brake actuator, s."""
    kinematic_below_mps: float = 5.0
    """Speed below which the kinematic equations hold, m/s."""

    def __post_init__(self) -> None:
        require_positive("VehicleParameters", **vars(self))

    @property
    def understeer_rad_per_mps2(self) -> float:
        """Steering needed beyond wheelbase * curvature in a steady turn, per lateral acceleration, rad/(m/s^2)."""
        front = self.rear_axle_to_cg_m / (2 * self.front_cornering_npr)
        rear = self.front_axle_to_cg_m / (2 * self.rear_cornering_npr)
        return self.mass_kg / self.wheelbase_m * (front - rear)
