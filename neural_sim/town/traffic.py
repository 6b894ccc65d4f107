"""The other cars: lead, oncoming, cutting in, waiting in side streets, parked; as tracks with meshes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from neural_sim.errors import InputError
from neural_sim.frames import pose_from_planar
from neural_sim.road_users import Track
from neural_sim.town.cars import PAINTS, car_mesh
from neural_sim.town.config import TownConfig
from neural_sim.town.lateral import CarBody, LateralPlan, Obstacle, plan_path, with_drift
from neural_sim.town.longitudinal import STEP_S, Leader, drive
from neural_sim.town.materials import BAY_LENGTH_M
from neural_sim.town.mesh import Mesh
from neural_sim.town.network import PARKING_M, Network, main_lane_d_m
from neural_sim.town.street_plan import EGO_START_S_M, ONCOMING_SPACING_M
from neural_sim.town.town_map import ending_lane_d_m
from neural_sim.trajectory import Trajectory

RESTING_PERIOD_US = 100_000
KERB_GAP_M = 0.14
ZEBRA_CLEAR_M = 7.0
PASSING_CLEARANCE_M = 0.45
FULL_BAY_M = 1.7

CarSize = tuple[float, float, float]


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
class ParkedCar:
    """A car at the kerb of the main street.

    Attributes:
        size_m, paint: see `car_mesh`.
        s_m, d_m: road coordinates of its centre, m.
        yaw_rad: against the direction of the street.
    """

    size_m: CarSize
    paint: tuple[float, float, float]
    s_m: float
    d_m: float
    yaw_rad: float

    @property
    def obstacle(self) -> Obstacle:
        """What of it reaches into the street."""
        half = self.size_m[0] / 2
        inner_m = self.d_m - np.sign(self.d_m) * self.size_m[1] / 2
        return Obstacle(self.s_m - half, self.s_m + half, float(inner_m))


@dataclass(frozen=True)
class LaneDrive:
    """A simulated drive along the main street.

    Attributes:
        car: the road user.
        s_m, speed_mps: float64 [T] at every simulation step, of the box centre.
    """

    car: Car
    s_m: Float[np.ndarray, "t"]
    speed_mps: Float[np.ndarray, "t"]

    def leader(self, front_m: float, direction: float = 1.0) -> Leader:
        """The car as one behind it sees it, whose front bumper is `front_m` ahead of its reference point."""
        overhang_m = self.car.track.size_m[0] / 2 + front_m
        return Leader(direction * self.s_m - overhang_m, self.speed_mps)


@dataclass(frozen=True)
class Stage:
    """What all drivers know.

    Attributes:
        network, config: the streets and the settings.
        t_us: times of all tracks, us.
        obstacles: what stands at the sides of the main street.
    """

    network: Network
    config: TownConfig
    t_us: Int[np.ndarray, "n"]
    obstacles: tuple[Obstacle, ...]

    @property
    def steps_s(self) -> Float[np.ndarray, "t"]:
        """Times of the simulation steps, s; they reach the end of the drive."""
        return np.arange(round(self.config.duration_s / STEP_S) + 1) * STEP_S


def draw_parked(rng: np.random.Generator, network: Network, config: TownConfig) -> list[ParkedCar]:
    """Cars in bays along the stretch the ego can reach and sees.

    Raises `InputError` when more are asked for than there are bays.
    """
    last_m = min(network.plan.reach_m(config.duration_s) + 40.0, network.main.length_m - 5.0)
    places = [(s, side) for s in np.arange(33.0, last_m, BAY_LENGTH_M).tolist() for side in (1.0, -1.0)]
    bays = [(s, side) for s, side in places if _is_bay(network, s, side)]
    wanted = network.plan.parked_cars
    if wanted is not None and wanted > len(bays):
        raise InputError(
            f"town setting parked_cars is {wanted}, but this street of kind {network.plan.kind!r} for a drive of "
            f"{config.duration_s} s has {len(bays)} bays; park fewer cars, lengthen the drive or choose another street"
        )
    count = round(network.plan.parked_share * len(bays)) if wanted is None else wanted
    cars = []
    for bay in sorted(rng.choice(len(bays), count, replace=False).tolist()) if bays else []:
        s_m, side = bays[bay]
        size, paint = _car_type(rng)
        place = float(s_m + rng.uniform(-0.35, 0.35))
        d_m = side * (float(network.main.kerb_at(place, side)) - KERB_GAP_M - rng.uniform(0.0, 0.15) - size[1] / 2)
        cars.append(ParkedCar(size, paint, place, d_m, float(rng.normal(0.0, 0.015)) + (np.pi if side > 0 else 0.0)))
    return cars


def _is_bay(network: Network, s_m: float, side: float) -> bool:
    """Whether a car may park there: a strip at its whole length, and no zebra crossing near."""
    ends = np.array([s_m - 3.0, s_m, s_m + 3.0])
    widths = network.main.kerb_at(ends, side) - network.main.section.lane_width_m
    plan = network.plan
    full = plan.right_strip_m if side < 0 else plan.left_strip_m
    has_strip = full >= PARKING_M and bool((widths > full - 0.05).all()) and bool((widths < full + 0.05).all())
    return has_strip and all(abs(s_m - zebra) > ZEBRA_CLEAR_M for zebra in network.zebras_m)


def parked_cars(parked: Sequence[ParkedCar], network: Network, end_us: int) -> list[Car]:
    """Tracks and meshes of parked cars."""
    cars = []
    for i, item in enumerate(parked):
        planar = network.main.to_world(item.s_m, item.d_m)
        planar[2] += item.yaw_rad
        cars.append(resting_car(f"parked_{i}", item.size_m, item.paint, planar, end_us))
    return cars


def waiting_cars(rng: np.random.Generator, network: Network, end_us: int) -> list[Car]:
    """Cars that wait at the mouths of some side streets."""
    cars = []
    for i, side in enumerate(network.sides):
        size, paint = _car_type(rng)
        if rng.random() < 0.45:
            s_m = side.mouth_m + size[0] / 2 + float(rng.uniform(0.5, 2.0))
            planar = side.road.to_world(s_m, side.road.section.lane_width_m / 2)
            planar[2] += np.pi
            cars.append(resting_car(f"waiting_{i}", size, paint, planar, end_us))
    return cars


def resting_car(
    name: str, size: CarSize, paint: tuple[float, float, float], planar: Float[np.ndarray, "3"], end_us: int
) -> Car:
    """A car that stands still for the whole drive."""
    t_us = np.append(np.arange(0, end_us, RESTING_PERIOD_US), end_us)
    poses = np.repeat(pose_from_planar(planar, size[2] / 2)[None], len(t_us), axis=0)
    return Car(Track(name, "vehicle", size, Trajectory(t_us, poses)), car_mesh(size, paint))


def make_lead_car(rng: np.random.Generator, stage: Stage) -> LaneDrive:
    """A car ahead of the ego that changes its speed, slows down and often stops for a while."""
    plan = stage.network.plan
    limit = _wandering_speed(rng, stage)
    for _ in range(int(rng.integers(1, 3))):
        at_s = stage.config.duration_s * float(rng.uniform(0.2, 0.85))
        hold_s = float(rng.uniform(0.5, 3.0))
        low = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.25, 0.5)) * plan.speed_limit_mps
        distance = np.maximum(np.abs(stage.steps_s - at_s) - hold_s / 2, 0.0)
        limit = np.minimum(limit, low + (limit - low) * np.clip(distance / 2.0, 0.0, 1.0))
    start_s = EGO_START_S_M + float(rng.uniform(14.0, 16.0)) + 0.9 * plan.speed_limit_mps
    return _drive_lane(rng, "lead", stage, -1.0, start_s, limit)


def make_oncoming_cars(rng: np.random.Generator, stage: Stage, stop_for: Sequence[Leader] = ()) -> list[LaneDrive]:
    """Cars on the other lane, one behind the other; they meet the ego during the drive."""
    cars: list[LaneDrive] = []
    plan, duration_s = stage.network.plan, stage.config.duration_s
    start_s = EGO_START_S_M + 0.6 * plan.speed_limit_mps * duration_s * float(rng.uniform(0.5, 1.3)) + 20.0
    for i in range(plan.oncoming_cars):
        ahead = [cars[-1].leader(2.5, -1.0)] if cars else []
        limit = _wandering_speed(rng, stage)
        cars.append(_drive_lane(rng, f"oncoming_{i}", stage, 1.0, start_s, limit, [*ahead, *stop_for]))
        start_s += ONCOMING_SPACING_M * float(rng.uniform(0.5, 1.6))
        if start_s > stage.network.main.length_m - 10.0:
            break
    return cars


def make_cut_in(
    rng: np.random.Generator, stage: Stage, ego_s_m: Float[np.ndarray, "t"]
) -> tuple[LaneDrive, float] | None:
    """A car that comes into the ego's lane ahead of it, and from when on the ego may know, s; None without room.

    It pulls out of a parking bay, or out of the lane that ends. `ego_s_m`: how the ego would drive without it, m.
    """
    network = stage.network
    limit = _wandering_speed(rng, stage)
    if network.merge_m is not None:
        if network.plan.ego_in_ending_lane:
            return None
        start_s = EGO_START_S_M + float(rng.uniform(12.0, 18.0))
        path = LateralPlan(ending_lane_d_m(network, network.main.s_m))
        driven = _drive_path(rng, "cut_in", stage, path, -1.0, start_s, limit)
        near = np.flatnonzero(driven.s_m > network.merge_m[0] - 15.0)
        return driven, float(near[0]) * STEP_S if len(near) else stage.config.duration_s
    for begin_s in rng.permutation(np.arange(3.0, max(3.5, stage.config.duration_s - 6.0), 0.5)):
        step = int(begin_s / STEP_S)
        speed = (ego_s_m[step] - ego_s_m[step - 100]) / 1.0
        s_m = float(ego_s_m[step] + 2.4 * speed + 13.0)
        kerb_m = float(network.main.kerb_at(s_m, -1.0))
        has_bay = kerb_m - network.main.section.lane_width_m > FULL_BAY_M
        if has_bay and not network.is_near_junction(s_m + 12.0, 22.0) and speed > 3.0:
            return _pull_out(rng, stage, s_m, kerb_m, float(begin_s), limit), float(begin_s) - 0.5
    return None


def _pull_out(
    rng: np.random.Generator, stage: Stage, s_m: float, kerb_m: float, begin_s: float, limit: Float[np.ndarray, "t"]
) -> LaneDrive:
    bay_d, lane_d = -(kerb_m - KERB_GAP_M - 0.9), main_lane_d_m(stage.network.main, -1.0)
    share = np.clip((stage.network.main.s_m - s_m - 0.3) / 13.0, 0.0, 1.0)
    path = LateralPlan(bay_d + (lane_d - bay_d) * (0.5 - 0.5 * np.cos(np.pi * share)))
    limit = np.where(stage.steps_s < begin_s, 0.0, limit)
    return _drive_path(rng, "cut_in", stage, path, -1.0, s_m, limit, start_mps=0.0)


def _wandering_speed(rng: np.random.Generator, stage: Stage) -> Float[np.ndarray, "t"]:
    """A wish for 75 to 95 % of the limit that drifts over about 10 s."""
    share = 0.85 + 0.1 * np.sin(2 * np.pi * (stage.steps_s / rng.uniform(8.0, 14.0) + rng.random()))
    return stage.network.plan.speed_limit_mps * share


def _car_type(rng: np.random.Generator) -> tuple[CarSize, tuple[float, float, float]]:
    length, width, height = rng.uniform(3.9, 4.9), rng.uniform(1.7, 1.88), rng.uniform(1.42, 1.75)
    size = (round(float(length), 3), round(float(width), 3), round(float(height), 3))
    return size, PAINTS[rng.integers(len(PAINTS))]


def _drive_lane(
    rng: np.random.Generator,
    name: str,
    stage: Stage,
    side: float,
    start_s_m: float,
    limit_mps: Float[np.ndarray, "t"],
    leaders: Sequence[Leader] = (),
) -> LaneDrive:
    """Drive along a lane and around what stands in it."""
    aside_m = stage.network.plan.oncoming_aside_m if side > 0 else 0.0
    base = np.full(len(stage.network.main.s_m), main_lane_d_m(stage.network.main, side) + aside_m)
    own_side = [obstacle for obstacle in stage.obstacles if obstacle.inner_m * side > 0 or side < 0]
    body = CarBody(2.4, 2.4, 0.92)
    path = plan_path(base, own_side, body, PASSING_CLEARANCE_M, 2.2 * stage.network.plan.speed_limit_mps, -side)
    return _drive_path(rng, name, stage, with_drift(path, rng, 0.7), side, start_s_m, limit_mps, leaders)


def _drive_path(
    rng: np.random.Generator,
    name: str,
    stage: Stage,
    path: LateralPlan,
    side: float,
    start_s_m: float,
    limit_mps: Float[np.ndarray, "t"],
    leaders: Sequence[Leader] = (),
    start_mps: float | None = None,
) -> LaneDrive:
    size, paint = _car_type(rng)
    direction, road = -side, stage.network.main
    s_m, speed = drive(road, path, direction, start_s_m, limit_mps, leaders, start_mps=start_mps)
    at_s = np.interp(stage.t_us * 1e-6, stage.steps_s, s_m)
    d_m, slope = (np.interp(at_s, road.s_m, values) for values in (path.d_m, path.slope))
    planar = road.to_world(at_s, d_m)
    planar[:, 2] += np.arctan2(slope, 1.0 - road.curvature_at(at_s) * d_m) + (np.pi if direction < 0 else 0.0)
    # What leaves the street at its end is no longer there.
    here = (at_s > 1.0) & (at_s < road.length_m - 1.0)
    last = int(np.argmin(here)) if not here.all() else len(here)
    last = max(last, 2)
    track = Track(name, "vehicle", size, Trajectory(stage.t_us[:last], pose_from_planar(planar, size[2] / 2)[:last]))
    return LaneDrive(Car(track, car_mesh(size, paint)), s_m, speed)
