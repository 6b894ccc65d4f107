"""The driver of the ego: keeps its lane, passes parked cars, slows for curves and others, never jerks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from neural_sim.frames import pose_from_planar, wrap_angle
from neural_sim.road_users import EgoVehicle
from neural_sim.town.config import TownConfig
from neural_sim.town.lateral import CarBody, LateralPlan, plan_path, with_drift
from neural_sim.town.longitudinal import STEP_S, Leader, drive
from neural_sim.town.network import main_lane_d_m
from neural_sim.town.road import Road
from neural_sim.town.street_plan import EGO_START_S_M
from neural_sim.town.traffic import Stage
from neural_sim.trajectory import Trajectory

EGO_VEHICLE = EgoVehicle(length_m=4.6, width_m=1.85, height_m=1.5, rear_axle_to_rear_bumper_m=0.9, wheelbase_m=2.8)
FRONT_M = EGO_VEHICLE.length_m - EGO_VEHICLE.rear_axle_to_rear_bumper_m
SAMPLE_STEPS = 2
STEERING_LAG_S = 0.2
# Tracking of the wanted path over distance: natural wave number and damping of the lateral error.
TRACKING_PER_M = 0.14
TRACKING_DAMPING = 0.9
# A driver leaves a lane that ends this long before its taper, and is out of it before the taper ends.
MERGE_EARLY_M, MERGE_DONE_M = 30.0, 8.0
# Sideways moves take about this long.
SHIFT_S = 2.4


@dataclass(frozen=True)
class Manner:
    """How a person drives.

    Attributes:
        speed_share: of the speed limit.
        clearance_m: wanted distance to parked cars.
        drift: strength of the sideways drift, 1 for usual.
        headway_s: time gap to the car ahead.
    """

    speed_share: float
    clearance_m: float
    drift: float
    headway_s: float


def draw_manner(rng: np.random.Generator) -> Manner:
    """Somebody to drive."""
    return Manner(
        float(rng.uniform(0.86, 0.99)),
        float(rng.uniform(0.5, 0.8)),
        float(rng.uniform(0.5, 1.3)),
        float(rng.uniform(1.2, 1.8)),
    )


def wanted_path(rng: np.random.Generator, stage: Stage, manner: Manner) -> LateralPlan:
    """The path the driver has in mind, for the rear axle."""
    network = stage.network
    base = np.full(len(network.main.s_m), main_lane_d_m(network.main, -1.0))
    if network.merge_m is not None and network.plan.ego_in_ending_lane:
        first, last = network.merge_m[0] - MERGE_EARLY_M, network.merge_m[1] - MERGE_DONE_M
        share = np.clip((network.main.s_m - first) / (last - first), 0.0, 1.0)
        base = base - network.main.section.lane_width_m * (0.5 + 0.5 * np.cos(np.pi * share))
    body = CarBody(FRONT_M, EGO_VEHICLE.rear_axle_to_rear_bumper_m, EGO_VEHICLE.width_m / 2)
    blend_m = SHIFT_S * network.plan.speed_limit_mps
    return with_drift(plan_path(base, stage.obstacles, body, manner.clearance_m, blend_m), rng, manner.drift)


def drive_expert(
    rng: np.random.Generator, stage: Stage, manner: Manner, path: LateralPlan, leaders: Sequence[Leader]
) -> tuple[Trajectory, Float[np.ndarray, "t"]]:
    """Simulate the ego for the whole drive: poses of the rig every 20 ms from 0 us on, and s at every step, m."""
    t_s = stage.steps_s
    wave = 0.03 * np.sin(2 * np.pi * (t_s / rng.uniform(6.0, 11.0) + rng.random()))
    limit = stage.network.plan.speed_limit_mps * np.minimum(manner.speed_share + wave, 1.0)
    s_m, speed = drive(stage.network.main, path, 1.0, EGO_START_S_M, limit, leaders, manner.headway_s)
    keep = np.arange(0, len(t_s), SAMPLE_STEPS)
    planar = _steer(stage.network.main, path, speed)
    t_us = np.round(keep * STEP_S * 1e6).astype(np.int64)
    return Trajectory(t_us, pose_from_planar(planar[keep])), s_m


def _steer(road: Road, path: LateralPlan, speed_mps: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t 3"]:
    """Integrate the kinematic bicycle at the rear axle; the path curvature follows the wanted one with a short lag."""
    s_m = EGO_START_S_M
    offset, slope, bend = path.at(s_m)
    x, y, heading = road.to_world(s_m, offset)
    yaw = heading + np.arctan(slope)
    curvature = float(road.curvature_at(s_m)) + bend
    planar = np.empty((len(speed_mps), 3))
    for step, speed in enumerate(speed_mps):
        planar[step] = x, y, yaw
        s_m, d_m = _track_foot(road, s_m, x, y)
        wanted = _wanted_curvature(road, path, s_m, d_m, yaw, float(speed))
        curvature += (wanted - curvature) * STEP_S / STEERING_LAG_S
        middle = yaw + curvature * speed * STEP_S / 2
        x, y = x + speed * STEP_S * np.cos(middle), y + speed * STEP_S * np.sin(middle)
        yaw += curvature * speed * STEP_S
        s_m += speed * STEP_S
    return planar


def _wanted_curvature(road: Road, path: LateralPlan, s_m: float, d_m: float, yaw_rad: float, speed_mps: float) -> float:
    """Curvature of the wanted path a steering lag ahead, corrected for the lateral and heading error here, 1/m."""
    preview_m = s_m + speed_mps * STEERING_LAG_S
    offset_ahead, _, bend_ahead = path.at(preview_m)
    road_ahead = float(road.curvature_at(preview_m))
    feed_forward = road_ahead / (1.0 - road_ahead * offset_ahead) + bend_ahead
    offset, slope, _ = path.at(s_m)
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
