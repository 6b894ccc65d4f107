"""The other cars of the street: a lead car, oncoming cars and parked cars, as tracks with meshes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from neural_sim.errors import InputError
from neural_sim.frames import pose_from_planar
from neural_sim.road_users import Track
from neural_sim.town.cars import PAINTS, car_mesh
from neural_sim.town.config import TownConfig
from neural_sim.town.longitudinal import STEP_S, Leader, drive
from neural_sim.town.materials import BAY_LENGTH_M
from neural_sim.town.mesh import Mesh
from neural_sim.town.road import EGO_START_S_M, Road
from neural_sim.trajectory import Trajectory

PARKED_PERIOD_US = 100_000
ONCOMING_SPACING_M = 45.0


@dataclass(frozen=True)
class Car:
    """One road user of the town.

    Attributes:
        track: its exact box over the whole drive.
        mesh: its look, in the frame of the box.
    """

    track: Track
    mesh: Mesh


@dataclass(frozen=True)
class LaneDrive:
    """A simulated drive along a lane.

    Attributes:
        car: the road user.
        s_m, speed_mps: float64 [T] at every simulation step, of the box centre.
    """

    car: Car
    s_m: Float[np.ndarray, "t"]
    speed_mps: Float[np.ndarray, "t"]


def street_length_m(config: TownConfig) -> float:
    """A street long enough for the drive, the oncoming cars' starts and a view beyond, m."""
    beyond_m = max(170.0, 80.0 + ONCOMING_SPACING_M * config.oncoming_cars)
    return EGO_START_S_M + config.speed_limit_mps * config.duration_s + beyond_m


def make_lead_car(rng: np.random.Generator, road: Road, config: TownConfig, t_us: Int[np.ndarray, "n"]) -> LaneDrive:
    """A car ahead of the ego that changes its speed and once slows down to about 3 m/s."""
    limit = _wandering_speed(rng, config, len(_steps(config)))
    dip_s = config.duration_s * rng.uniform(0.35, 0.65)
    dip = np.exp(-(((_steps(config) - dip_s) / 2.2) ** 2))
    limit = limit + (3.0 - limit) * dip
    start_s = EGO_START_S_M + float(rng.uniform(17.0, 22.0))
    return _drive_lane(rng, "lead", road, -1.0, start_s, limit, t_us, None)


def make_oncoming_cars(
    rng: np.random.Generator, road: Road, config: TownConfig, t_us: Int[np.ndarray, "n"]
) -> list[LaneDrive]:
    """Cars on the other lane, one behind the other; they meet the ego about halfway through the drive."""
    cars: list[LaneDrive] = []
    start_s = 30.0 + config.speed_limit_mps * config.duration_s
    for i in range(config.oncoming_cars):
        leader = None
        if cars:
            ahead = cars[-1]
            overhang_m = ahead.car.track.size_m[0] / 2 + 2.5
            leader = Leader(-ahead.s_m - overhang_m, ahead.speed_mps)
        limit = _wandering_speed(rng, config, len(_steps(config)))
        cars.append(_drive_lane(rng, f"oncoming_{i}", road, 1.0, start_s, limit, t_us, leader))
        start_s += ONCOMING_SPACING_M * float(rng.uniform(0.7, 1.0))
    return cars


def make_parked_cars(rng: np.random.Generator, road: Road, config: TownConfig, end_us: int) -> list[Car]:
    """Cars in bays of the parking strips on both sides, along the stretch the ego can reach and sees."""
    last_s = EGO_START_S_M + config.speed_limit_mps * config.duration_s + 40.0
    bays = np.arange(int(30.0 / BAY_LENGTH_M), int(last_s / BAY_LENGTH_M))
    if config.parked_cars > 2 * len(bays):
        raise InputError(
            f"town setting parked_cars is {config.parked_cars}, but a street for {config.duration_s} s has "
            f"{2 * len(bays)} bays; park fewer cars or lengthen the drive"
        )
    chosen = rng.choice(2 * len(bays), config.parked_cars, replace=False)
    t_us = np.append(np.arange(0, end_us, PARKED_PERIOD_US), end_us)
    cars = []
    for i, bay in enumerate(chosen):
        side = 1.0 if bay % 2 else -1.0
        size, paint = _car_type(rng)
        s_m = (bays[bay // 2] + 0.5) * BAY_LENGTH_M + rng.uniform(-0.35, 0.35)
        d_m = side * (road.section.lane_width_m + 1.15 + rng.uniform(-0.08, 0.08))
        planar = road.to_world(s_m, d_m)
        planar[2] += rng.normal(0.0, 0.015) + (np.pi if side > 0 else 0.0)
        poses = np.repeat(pose_from_planar(planar, size[2] / 2)[None], len(t_us), axis=0)
        track = Track(f"parked_{i}", "vehicle", size, Trajectory(t_us, poses))
        cars.append(Car(track, car_mesh(size, paint)))
    return cars


def _steps(config: TownConfig) -> Float[np.ndarray, "t"]:
    """Times of the simulation steps, s; they reach the end of the drive."""
    return np.arange(round(config.duration_s / STEP_S) + 1) * STEP_S


def _wandering_speed(rng: np.random.Generator, config: TownConfig, steps: int) -> Float[np.ndarray, "t"]:
    """A wish for 75 to 95 % of the limit that drifts over about 10 s."""
    t_s = np.arange(steps) * STEP_S
    share = 0.85 + 0.1 * np.sin(2 * np.pi * (t_s / rng.uniform(8.0, 14.0) + rng.random()))
    return config.speed_limit_mps * share


def _car_type(rng: np.random.Generator) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    length, width, height = rng.uniform(3.9, 4.8), rng.uniform(1.7, 1.85), rng.uniform(1.42, 1.68)
    size = (round(float(length), 3), round(float(width), 3), round(float(height), 3))
    return size, PAINTS[rng.integers(len(PAINTS))]


def _drive_lane(
    rng: np.random.Generator,
    name: str,
    road: Road,
    side: float,
    start_s_m: float,
    limit_mps: Float[np.ndarray, "t"],
    t_us: Int[np.ndarray, "n"],
    leader: Leader | None,
) -> LaneDrive:
    size, paint = _car_type(rng)
    lane_d, direction = side * road.section.lane_width_m / 2, -side
    s_m, speed = drive(road, lane_d, direction, start_s_m, limit_mps, leader)
    wave_m, phase = rng.uniform(40.0, 70.0), rng.uniform(0.0, 2 * np.pi)
    at_s = np.interp(t_us * 1e-6, np.arange(len(s_m)) * STEP_S, s_m)
    angle = 2 * np.pi * at_s / wave_m + phase
    planar = road.to_world(at_s, lane_d + 0.1 * np.sin(angle))
    planar[:, 2] += 0.1 * 2 * np.pi / wave_m * np.cos(angle) + (np.pi if direction < 0 else 0.0)
    poses = pose_from_planar(planar, size[2] / 2)
    track = Track(name, "vehicle", size, Trajectory(t_us, poses))
    return LaneDrive(Car(track, car_mesh(size, paint)), s_m, speed)
