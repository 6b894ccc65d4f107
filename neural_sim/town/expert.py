"""The driver of the ego: keeps its lane, slows for curves, follows the lead car, never jerks."""

import numpy as np
from jaxtyping import Float, Int

from neural_sim.frames import pose_from_planar, wrap_angle
from neural_sim.road_users import EgoVehicle
from neural_sim.town.config import TownConfig
from neural_sim.town.longitudinal import STEP_S, Leader, drive
from neural_sim.town.road import EGO_START_S_M, Road
from neural_sim.town.traffic import LaneDrive
from neural_sim.trajectory import Trajectory

EGO_VEHICLE = EgoVehicle(length_m=4.6, width_m=1.85, height_m=1.5, rear_axle_to_rear_bumper_m=0.9, wheelbase_m=2.8)
SAMPLE_STEPS = 2
STEERING_LAG_S = 0.2
# Tracking of the wanted path over distance: natural wave number and damping of the lateral error.
TRACKING_PER_M = 0.14
TRACKING_DAMPING = 0.9
DRIFT_WAVES_M = (31.0, 53.0, 90.0)
DRIFT_M = (0.03, 0.06, 0.08)


class LaneWish:
    """The path the driver has in mind: the lane centre plus a slow drift of a few centimetres."""

    def __init__(self, rng: np.random.Generator, lane_d_m: float) -> None:
        self._lane_d_m = lane_d_m
        self._wave_number = 2 * np.pi / (np.asarray(DRIFT_WAVES_M) * rng.uniform(0.85, 1.15, 3))
        self._phase = rng.uniform(0.0, 2 * np.pi, 3)
        self._amplitude_m = np.asarray(DRIFT_M) * rng.uniform(0.6, 1.2, 3)

    def at(self, s_m: float) -> tuple[float, float, float]:
        """Wanted offset d (m) and its first (1) and second (1/m) derivative along s."""
        angle = self._wave_number * s_m + self._phase
        offset = self._lane_d_m + float(self._amplitude_m @ np.sin(angle))
        slope = float((self._amplitude_m * self._wave_number) @ np.cos(angle))
        return offset, slope, -float((self._amplitude_m * self._wave_number**2) @ np.sin(angle))


def drive_expert(rng: np.random.Generator, road: Road, config: TownConfig, lead: LaneDrive | None) -> Trajectory:
    """Simulate the ego for the whole drive; poses of the rig every 20 ms from 0 us on."""
    steps = round(config.duration_s / STEP_S) + 1
    lane_d = -road.section.lane_width_m / 2
    speed = _ego_speed(rng, road, config, lead, lane_d, steps)
    planar = _steer(road, LaneWish(rng, lane_d), speed)
    keep = np.arange(0, steps, SAMPLE_STEPS)
    t_us = np.round(keep * STEP_S * 1e6).astype(np.int64)
    return Trajectory(t_us, pose_from_planar(planar[keep]))


def _ego_speed(
    rng: np.random.Generator, road: Road, config: TownConfig, lead: LaneDrive | None, lane_d: float, steps: int
) -> Float[np.ndarray, "t"]:
    t_s = np.arange(steps) * STEP_S
    share = 0.96 + 0.03 * np.sin(2 * np.pi * (t_s / rng.uniform(6.0, 11.0) + rng.random()))
    leader = None
    if lead is not None:
        front_m = EGO_VEHICLE.length_m - EGO_VEHICLE.rear_axle_to_rear_bumper_m
        leader = Leader(lead.s_m - lead.car.track.size_m[0] / 2 - front_m, lead.speed_mps)
    return drive(road, lane_d, 1.0, EGO_START_S_M, config.speed_limit_mps * share, leader)[1]


def _steer(road: Road, wish: LaneWish, speed_mps: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t 3"]:
    """Integrate the kinematic bicycle at the rear axle; the path curvature follows the wanted one with a short lag."""
    s_m = EGO_START_S_M
    offset, slope, bend = wish.at(s_m)
    x, y, heading = road.to_world(s_m, offset)
    yaw = heading + np.arctan(slope)
    curvature = float(road.curvature_at(s_m)) + bend
    planar = np.empty((len(speed_mps), 3))
    for step, speed in enumerate(speed_mps):
        planar[step] = x, y, yaw
        s_m, d_m = _track_foot(road, s_m, x, y)
        wanted = _wanted_curvature(road, wish, s_m, d_m, yaw, float(speed))
        curvature += (wanted - curvature) * STEP_S / STEERING_LAG_S
        middle = yaw + curvature * speed * STEP_S / 2
        x, y = x + speed * STEP_S * np.cos(middle), y + speed * STEP_S * np.sin(middle)
        yaw += curvature * speed * STEP_S
        s_m += speed * STEP_S
    return planar


def _wanted_curvature(road: Road, wish: LaneWish, s_m: float, d_m: float, yaw_rad: float, speed_mps: float) -> float:
    """Curvature of the wanted path a steering lag ahead, corrected for the lateral and heading error here, 1/m."""
    preview_m = s_m + speed_mps * STEERING_LAG_S
    offset_ahead, _, bend_ahead = wish.at(preview_m)
    road_ahead = float(road.curvature_at(preview_m))
    feed_forward = road_ahead / (1.0 - road_ahead * offset_ahead) + bend_ahead
    offset, slope, _ = wish.at(s_m)
    heading_error = float(wrap_angle(yaw_rad - road.heading_at(s_m) - np.arctan(slope)))
    correction = 2 * TRACKING_DAMPING * TRACKING_PER_M * heading_error + TRACKING_PER_M**2 * (d_m - offset)
    return feed_forward - correction


def _track_foot(road: Road, s_m: float, x: float, y: float) -> tuple[float, float]:
    """Road coordinates of a point whose s is known within a few centimetres: two Newton steps on the centreline."""
    for _ in range(2):
        foot_x, foot_y, heading = road.to_world(s_m, 0.0)
        s_m += (x - foot_x) * np.cos(heading) + (y - foot_y) * np.sin(heading)
    foot_x, foot_y, heading = road.to_world(s_m, 0.0)
    return s_m, float(-(x - foot_x) * np.sin(heading) + (y - foot_y) * np.cos(heading))


def sample_times_us(config: TownConfig) -> Int[np.ndarray, "n"]:
    """Times of the ego poses and of moving cars, us: every 20 ms and the very end."""
    steps = round(config.duration_s / STEP_S)
    return np.round(np.arange(0, steps + 1, SAMPLE_STEPS) * STEP_S * 1e6).astype(np.int64)
