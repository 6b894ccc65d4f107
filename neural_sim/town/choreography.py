"""Everybody's drive through the town: who goes where, such that the expert has to react and nobody is hit."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import shapely

from neural_sim.errors import InputError
from neural_sim.road_users import Track, box_corners
from neural_sim.town.config import TownConfig
from neural_sim.town.expert import EGO_VEHICLE, FRONT_M, draw_manner, drive_expert, sample_times_us, wanted_path
from neural_sim.town.longitudinal import STEP_S, Leader
from neural_sim.town.network import Network
from neural_sim.town.pedestrians import make_crossing, make_walkers
from neural_sim.town.street_plan import StreetPlan
from neural_sim.town.traffic import (
    Car,
    ParkedCar,
    Stage,
    draw_parked,
    make_cut_in,
    make_lead_car,
    make_oncoming_cars,
    parked_cars,
    waiting_cars,
)
from neural_sim.trajectory import Trajectory

ATTEMPTS = 12
# From this attempt on, people and oncoming cars that were drawn and not asked for stay away.
CALM_ATTEMPT = 8
CHECK_EVERY = 5
SMALLEST_GAP_M = 0.3
KERB_MARGIN_M = 0.08
SLOWEST_MEAN_MPS = 1.6
# Room in front of a car that pulls out of its bay, and behind it, m.
PULL_OUT_ROOM_M = (5.5, 16.0)

NOWHERE = shapely.Point(1e6, 1e6)

Streams = Callable[[str, int], np.random.Generator]


@dataclass(frozen=True)
class Drives:
    """Who moved how.

    Attributes:
        expert: poses of the ego rig over the whole drive.
        cars: all other road users.
    """

    expert: Trajectory
    cars: tuple[Car, ...]


def make_drives(streams: Streams, network: Network, config: TownConfig) -> Drives:
    """Draw drives until nobody touches anybody and the expert stays on the road.

    `streams` gives the random numbers of one part ("parked", "lead", ...) at one attempt. Raises `InputError` when no
    attempt is sound, which impossible settings bring about.
    """
    problem = ""
    for attempt in range(ATTEMPTS):
        drives = _draw(streams, attempt, network, config)
        problem = find_problem(drives, network)
        if not problem:
            return drives
    raise InputError(
        f"town of seed {config.seed}: in {ATTEMPTS} attempts no drive is sound, in the last one {problem}; ask for "
        "fewer cars or people, or another seed"
    )


def _draw(streams: Streams, attempt: int, network: Network, config: TownConfig) -> Drives:
    if attempt >= CALM_ATTEMPT:
        network = replace(network, plan=_calm(network.plan, config))
    t_us = sample_times_us(config)
    parked = draw_parked(streams("parked", attempt), network, config)
    stage = Stage(network, config, t_us, tuple(car.obstacle for car in parked))
    manner = draw_manner(streams("manner", 0))
    leaders: list[Leader] = []
    cars: list[Car] = []
    if network.plan.lead_car:
        lead = make_lead_car(streams("lead", attempt), stage)
        leaders.append(lead.leader(FRONT_M))
        cars.append(lead.car)

    def ego() -> tuple[Trajectory, np.ndarray]:
        path = wanted_path(streams("path", 0), stage, manner)
        return drive_expert(streams("expert", 0), stage, manner, path, leaders)

    if network.plan.cut_in:
        found = make_cut_in(streams("cut_in", attempt), stage, ego()[1])
        if found is not None:
            driven, known_s = found
            parked = _without(parked, float(driven.s_m[0]))
            stage = replace(stage, obstacles=tuple(car.obstacle for car in parked))
            leaders.append(_known_from(driven.leader(FRONT_M), known_s))
            cars.append(driven.car)
    oncoming_stops: list[Leader] = []
    for number in range(network.plan.crossing_pedestrians):
        crossing = make_crossing(streams("crossing", 10 * attempt + number), stage, number, ego()[1])
        if crossing is not None:
            leaders.append(crossing.stop_line(FRONT_M))
            oncoming_stops.append(crossing.stop_line(2.4, -1.0))
            cars.append(crossing.person)
    cars += [driven.car for driven in make_oncoming_cars(streams("oncoming", attempt), stage, oncoming_stops)]
    end_us = int(t_us[-1])
    cars += parked_cars(parked, network, end_us) + waiting_cars(streams("waiting", attempt), network, end_us)
    cars += make_walkers(streams("walkers", attempt), stage)
    return Drives(ego()[0], tuple(cars))


def _calm(plan: StreetPlan, config: TownConfig) -> StreetPlan:
    """The plan without what makes a drive hard and is not asked for."""
    return replace(
        plan,
        oncoming_cars=config.oncoming_cars or 0,
        crossing_pedestrians=config.crossing_pedestrians or 0,
        cut_in=bool(config.cut_in),
    )


def _without(parked: list[ParkedCar], s_m: float) -> list[ParkedCar]:
    """Parked cars but those that are in the way of one that pulls out at `s_m`."""
    behind, ahead = PULL_OUT_ROOM_M
    return [car for car in parked if car.d_m > 0 or not s_m - behind < car.s_m < s_m + ahead]


def _known_from(leader: Leader, begin_s: float) -> Leader:
    """The leader, of no concern before `begin_s`."""
    steps_s = np.arange(len(leader.speed_mps)) * STEP_S
    return Leader(np.where(steps_s < begin_s, np.inf, leader.gap_origin_m), leader.speed_mps)


def find_problem(drives: Drives, network: Network) -> str:
    """What is wrong with the drives, empty if nothing: contacts, leaving the road, hardly any progress."""
    expert = drives.expert
    t_us = expert.t_us[::CHECK_EVERY]
    vehicle = EGO_VEHICLE
    ego = shapely.polygons(
        box_corners(expert.planar[::CHECK_EVERY], vehicle.length_m, vehicle.width_m, vehicle.center_x_m)
    )
    if not shapely.covers(network.carriageway.buffer(-KERB_MARGIN_M), ego).all():
        return "the ego leaves the road"
    if expert.path_length_m < SLOWEST_MEAN_MPS * (expert.end_us - expert.start_us) * 1e-6:
        return "the ego gets nowhere"
    boxes = {car.track.track_id: _boxes(car.track, t_us) for car in drives.cars}
    for name, others in boxes.items():
        if shapely.distance(ego, others).min() < SMALLEST_GAP_M:
            return f"the ego comes too near to {name}"
    people = {car.track.track_id for car in drives.cars if car.track.category == "pedestrian"}
    for name in (car.track.track_id for car in drives.cars if car.track.is_moving()):
        for other, others in boxes.items():
            if other != name and not {name, other} <= people and shapely.intersects(boxes[name], others).any():
                return f"{name} touches {other}"
    return ""


def _boxes(track: Track, t_us: np.ndarray) -> list[shapely.Geometry]:
    """Boxes [T] at `t_us`; a point far away while absent."""
    corners = box_corners(track.trajectory.planar_at(t_us), track.size_m[0], track.size_m[1])
    here = (t_us >= track.trajectory.start_us) & (t_us <= track.trajectory.end_us)
    return [shapely.Polygon(box) if present else NOWHERE for box, present in zip(corners, here, strict=True)]
