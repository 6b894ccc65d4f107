"""Other road users as tracked boxes, and the ego vehicle's own box."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_sim.trajectory import Trajectory

CATEGORIES = ("vehicle", "pedestrian", "cyclist", "obstacle")


@dataclass(frozen=True)
class Track:
    """One road user over time.

    Attributes:
        track_id: unique within a clip.
        category: one of `CATEGORIES`.
        size_m: (length, width, height), m.
        trajectory: poses of the box centre; x forward, y left, z up.
    """

    track_id: str
    category: str
    size_m: tuple[float, float, float]
    trajectory: Trajectory

    def is_present(self, t_us: int) -> bool:
        """Whether the recorded span of the track contains `t_us`."""
        return self.trajectory.start_us <= t_us <= self.trajectory.end_us

    def is_moving(self, threshold_m: float = 1.0) -> bool:
        """Whether the box centre ever gets farther than `threshold_m` from its first place."""
        xy = self.trajectory.planar[:, :2]
        return bool(np.linalg.norm(xy - xy[0], axis=1).max() > threshold_m)


@dataclass(frozen=True)
class EgoVehicle:
    """Geometry of the ego car. Defaults are those of AlpaSim's ego box.

    Attributes:
        length_m, width_m, height_m: outer box, m.
        rear_axle_to_rear_bumper_m: distance from the rig origin back to the bumper, m, > 0.
        wheelbase_m: rear to front axle, m.
    """

    length_m: float = 5.393
    width_m: float = 2.109
    height_m: float = 1.503
    rear_axle_to_rear_bumper_m: float = 1.3
    wheelbase_m: float = 2.85

    @property
    def center_x_m(self) -> float:
        """Distance from the rig origin forward to the box centre, m."""
        return self.length_m / 2 - self.rear_axle_to_rear_bumper_m


def box_corners(
    planar: Float[np.ndarray, "*n 3"], length_m: float, width_m: float, center_x_m: float = 0.0
) -> Float[np.ndarray, "*n 4 2"]:
    """Ground-plane corners (front-left, rear-left, rear-right, front-right) of boxes at planar poses (x, y, yaw).

    `center_x_m` shifts the box centre along the heading: pass `EgoVehicle.center_x_m` for poses of the rig.
    """
    half_l, half_w = length_m / 2, width_m / 2
    local = np.array([[half_l, half_w], [-half_l, half_w], [-half_l, -half_w], [half_l, -half_w]])
    local = local + np.array([center_x_m, 0.0])
    cosine, sine = np.cos(planar[..., 2, None]), np.sin(planar[..., 2, None])
    x = planar[..., 0, None] + cosine * local[:, 0] - sine * local[:, 1]
    y = planar[..., 1, None] + sine * local[:, 0] + cosine * local[:, 1]
    return np.stack([x, y], axis=-1)
