"""People: some cross the street in front of the ego, others walk along it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_sim.frames import pose_from_planar
from neural_sim.road_users import Track
from neural_sim.town import materials
from neural_sim.town.longitudinal import STANDSTILL_GAP_M, Leader
from neural_sim.town.mesh import Colour, Mesh, cylinder, merge
from neural_sim.town.network import main_lane_d_m
from neural_sim.town.street_plan import EGO_START_S_M
from neural_sim.town.traffic import Car, Stage
from neural_sim.trajectory import Trajectory

PERSON_SIZE_M = (0.5, 0.56, 1.75)
SKIN: Colour = (0.55, 0.36, 0.26)
CLOTHES: tuple[Colour, ...] = (
    (0.5, 0.05, 0.05), (0.05, 0.12, 0.4), (0.5, 0.42, 0.08), (0.06, 0.06, 0.07), (0.45, 0.45, 0.45), (0.1, 0.3, 0.15),
)  # fmt: skip
# Cars stop this far before the path of somebody who crosses.
STOP_BEFORE_M = 2.5
KNOWN_BEFORE_S = 1.6
# Over this distance people step up to the pavement.
STEP_UP_M = 0.4


@dataclass(frozen=True)
class Crossing:
    """Somebody who crosses.

    Attributes:
        person: the road user.
        s_m: where along the street, m.
        closed: bool [T], steps during which cars in the ego's lane must not pass.
        closed_oncoming: the same for the other lane.
    """

    person: Car
    s_m: float
    closed: np.ndarray
    closed_oncoming: np.ndarray

    def stop_line(self, front_m: float, direction: float = 1.0) -> Leader:
        """The crossing as a driver sees it whose front bumper is `front_m` ahead of the reference point."""
        closed = self.closed if direction > 0 else self.closed_oncoming
        line_m = direction * self.s_m - STOP_BEFORE_M - front_m + STANDSTILL_GAP_M
        return Leader(np.where(closed, line_m, np.inf), np.zeros(len(closed)))


def make_crossing(
    rng: np.random.Generator, stage: Stage, number: int, ego_s_m: Float[np.ndarray, "t"]
) -> Crossing | None:
    """Somebody who would be in the way if the ego drove on as in `ego_s_m`; None where the ego gets nowhere.

    People prefer zebra crossings and never cross in a junction.
    """
    network, road = stage.network, stage.network.main
    last_m = float(ego_s_m[-1]) - 12.0
    zebras = [z for z in network.zebras_m if EGO_START_S_M + 35.0 < z < last_m]
    places = zebras or [float(s) for s in np.arange(EGO_START_S_M + 40.0, last_m, 5.0) if _may_cross(stage, float(s))]
    if not places:
        return None
    s_m, side = places[rng.integers(len(places))], float(rng.choice([-1.0, 1.0]))
    speed = float(rng.uniform(1.15, 1.6))
    from_d = side * (float(road.kerb_at(s_m, side)) + float(rng.uniform(0.8, 1.6)))
    to_d = -side * (float(road.kerb_at(s_m, -side)) + 1.2)
    lane_d = main_lane_d_m(network.main, -1.0)
    arrives_s = float(np.interp(s_m - 3.7, ego_s_m, stage.steps_s))
    walks_s = arrives_s + float(rng.uniform(-0.8, 0.8)) - abs(lane_d - from_d) / speed
    walked = np.clip((stage.steps_s - walks_s) * speed, 0.0, abs(to_d - from_d))
    d_m = from_d + np.sign(to_d - from_d) * walked
    begun = stage.steps_s > walks_s - KNOWN_BEFORE_S
    closed = begun & (side * (d_m - lane_d) > -2.0)
    closed_oncoming = begun & (side * (d_m + lane_d) > -2.0) & (walked < abs(to_d - from_d))
    person = _person(rng, stage, f"crossing_{number}", np.full(len(d_m), s_m), d_m, -side * np.pi / 2)
    return Crossing(person, s_m, closed, closed_oncoming)


def _may_cross(stage: Stage, s_m: float) -> bool:
    network = stage.network
    merge = network.merge_m or (-100.0, -100.0)
    hidden = any(o.start_m - 3.0 < s_m < o.end_m + 3.0 for o in stage.obstacles)
    return not network.is_near_junction(s_m, 4.0) and not merge[0] - 20.0 < s_m < merge[1] + 10.0 and not hidden


def make_walkers(rng: np.random.Generator, stage: Stage) -> list[Car]:
    """People who walk along the pavements, not over junctions."""
    people, network = [], stage.network
    for i in range(int(rng.integers(0, 6))):
        side, way = float(rng.choice([-1.0, 1.0])), float(rng.choice([-1.0, 1.0]))
        start, speed = float(rng.uniform(50.0, network.plan.reach_m(stage.config.duration_s))), rng.uniform(0.9, 1.5)
        s_m = start + way * speed * stage.steps_s
        inside = s_m.min() > 2.0 and s_m.max() < network.main.length_m - 2.0
        if inside and not any(network.is_near_junction(float(s), 6.0) for s in s_m[::100]):
            away = float(rng.uniform(0.9, 1.9))
            d_m = side * (network.main.kerb_at(s_m, side) + away)
            people.append(_person(rng, stage, f"walker_{i}", s_m, d_m, 0.0 if way > 0 else np.pi))
    return people


def _person(
    rng: np.random.Generator,
    stage: Stage,
    name: str,
    s_m: Float[np.ndarray, "t"],
    d_m: Float[np.ndarray, "t"],
    yaw_rad: float,
) -> Car:
    road = stage.network.main
    along_m, aside_m = (np.interp(stage.t_us * 1e-6, stage.steps_s, values) for values in (s_m, d_m))
    planar = road.to_world(along_m, aside_m)
    planar[:, 2] += yaw_rad
    kerb_m = np.where(aside_m > 0, road.kerb_at(along_m, 1.0), road.kerb_at(along_m, -1.0))
    step_up = np.clip((np.abs(aside_m) - kerb_m) / STEP_UP_M + 0.5, 0.0, 1.0)
    poses = pose_from_planar(planar, PERSON_SIZE_M[2] / 2 + road.section.kerb_height_m * step_up)
    top, bottom = (CLOTHES[i] for i in rng.integers(len(CLOTHES), size=2))
    return Car(Track(name, "pedestrian", PERSON_SIZE_M, Trajectory(stage.t_us, poses)), person_mesh(top, bottom))


def person_mesh(top: Colour, bottom: Colour) -> Mesh:
    """Somebody in mid-stride inside a box of `PERSON_SIZE_M`; origin at the box centre, x forward."""
    half = PERSON_SIZE_M[2] / 2

    def limb(x0: float, y0: float, z0: float, x1: float, y1: float, z1: float, radius: float, colour: Colour) -> Mesh:
        start, end = np.array([x0, y0, z0 - half]), np.array([x1, y1, z1 - half])
        return cylinder(start, end, radius, 7, materials.PLAIN, colour)

    return merge(
        [
            limb(0.14, 0.09, 0.0, 0.0, 0.09, 0.86, 0.075, bottom),
            limb(-0.14, -0.09, 0.0, 0.0, -0.09, 0.86, 0.075, bottom),
            limb(0.0, 0.0, 0.84, 0.0, 0.0, 1.46, 0.155, top),
            limb(0.1, 0.2, 0.85, 0.0, 0.2, 1.42, 0.05, top),
            limb(-0.1, -0.2, 0.85, 0.0, -0.2, 1.42, 0.05, top),
            limb(0.0, 0.0, 1.46, 0.0, 0.0, 1.75, 0.1, SKIN),
        ]
    )
