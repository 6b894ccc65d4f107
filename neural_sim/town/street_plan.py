"""What is drawn for a seed before anything is built: kind of street, widths, speed, who is about."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from neural_sim.town.config import STREET_KINDS, StreetKind, TownConfig
from neural_sim.town.road import STEP_M, bend

T = TypeVar("T")

EGO_START_S_M = 40.0
VIEW_BEYOND_M = 150.0
ONCOMING_SPACING_M = 38.0
# Half of a crossing street with its rounded corners: markings end this far from the crossing's centre.
CROSSING_REACH_M = 9.5
MAX_WINDING_RAD = np.deg2rad(62.0)


@dataclass(frozen=True)
class StreetPlan:
    """Choices for one seed.

    Attributes:
        kind: which street.
        speed_limit_mps: m/s.
        lane_width_m: m.
        left_strip_m, right_strip_m: carriageway beyond the lanes, for parking, m; less than 0.8 is a mere margin.
        max_curvature_per_m: bound of bends, 1/m.
        lane_ends: whether a second lane to the right of the ego's way ends on the way.
        ego_in_ending_lane: whether the ego starts in that lane.
        lead_car, cut_in: see `TownConfig`.
        oncoming_cars, crossing_pedestrians: numbers.
        parked_cars: number, or None for as many as `parked_share` of the bays.
        parked_share: share of bays taken, 0..1.
    """

    kind: StreetKind
    speed_limit_mps: float
    lane_width_m: float
    left_strip_m: float
    right_strip_m: float
    max_curvature_per_m: float
    lane_ends: bool
    ego_in_ending_lane: bool
    lead_car: bool
    cut_in: bool
    oncoming_cars: int
    crossing_pedestrians: int
    parked_cars: int | None
    parked_share: float

    @property
    def both_sides_narrow(self) -> bool:
        """Whether parked cars reach into the lanes from both sides, so that nobody can come the other way."""
        return self.kind == "narrow" and self.left_strip_m > 0.8

    @property
    def oncoming_aside_m(self) -> float:
        """How far oncoming cars keep to their side of the lane's middle, m."""
        return 0.3 if self.kind == "narrow" else 0.0

    def reach_m(self, duration_s: float) -> float:
        """How far along the street the ego can get, m."""
        return EGO_START_S_M + self.speed_limit_mps * duration_s

    def length_m(self, duration_s: float) -> float:
        """A street long enough for the drive, the oncoming cars' starts and a view beyond, m."""
        return self.reach_m(duration_s) + max(VIEW_BEYOND_M, 60.0 + ONCOMING_SPACING_M * self.oncoming_cars)


@dataclass(frozen=True)
class JunctionPlace:
    """A stretch of the street that is a junction, without lane markings.

    Attributes:
        start_m, end_m: along the street, m.
        turn: +1 where the drive turns left, -1 right, 0 straight on.
    """

    start_m: float
    end_m: float
    turn: int


def draw_plan(rng: np.random.Generator, config: TownConfig) -> StreetPlan:
    """Draw what `config` leaves open."""
    kind = config.street or STREET_KINDS[rng.choice(len(STREET_KINDS), p=(0.3, 0.35, 0.22, 0.13))]
    speed = {"bends": (8.0, 11.0), "junctions": (7.5, 10.0), "narrow": (6.5, 8.5), "avenue": (10.5, 13.0)}[kind]
    lane = {"bends": (2.9, 3.5), "junctions": (3.0, 3.5), "narrow": (2.85, 3.15), "avenue": (3.2, 3.6)}[kind]
    curvature = {"bends": 0.04, "junctions": 0.02, "narrow": 0.02, "avenue": 0.011}[kind]
    lead, cut_in = _car_ahead(rng, config, kind)
    left, right = _strips(rng, kind, cut_in or bool(config.parked_cars))
    both_narrow = kind == "narrow" and left > 0.8
    oncoming = 0 if both_narrow else int(rng.integers(1, 5))
    pedestrians = int(rng.random() < (0.15 if kind == "avenue" else 0.4))
    ends = kind == "avenue" and bool(rng.random() < 0.75)
    ego_ends = ends and bool(rng.random() < 0.65)
    return StreetPlan(
        kind=kind,
        speed_limit_mps=_given(config.speed_limit_mps, float(rng.uniform(*speed))),
        lane_width_m=float(rng.uniform(*lane)),
        left_strip_m=left,
        right_strip_m=right,
        max_curvature_per_m=_given(config.max_curvature_per_m, curvature * float(rng.uniform(0.75, 1.0))),
        lane_ends=ends,
        ego_in_ending_lane=ego_ends,
        lead_car=lead,
        cut_in=cut_in,
        oncoming_cars=_given(config.oncoming_cars, oncoming),
        crossing_pedestrians=_given(config.crossing_pedestrians, pedestrians),
        parked_cars=config.parked_cars,
        parked_share=float(rng.uniform(0.3, 0.6) if kind == "narrow" else rng.uniform(0.1, 0.65)),
    )


def _given(value: T | None, drawn: T) -> T:
    return drawn if value is None else value


def _strips(rng: np.random.Generator, kind: StreetKind, needs_bays: bool) -> tuple[float, float]:
    """Widths left and right of the lanes, m; where bays are needed, there are some on the right."""
    margin = float(rng.uniform(0.2, 0.45))
    if kind == "avenue":
        return margin, margin
    if kind == "narrow":
        if rng.random() < 0.45:
            return float(rng.uniform(0.95, 1.35)), float(rng.uniform(0.95, 1.35))
        return margin, float(rng.uniform(1.2, 1.55))
    full = (float(rng.uniform(1.75, 2.3)), float(rng.uniform(1.75, 2.3)))
    shown = rng.choice(4, p=(0.4, 0.25, 0.15, 0.2)) if not needs_bays else int(rng.integers(2))
    return (full[0] if shown in (0, 2) else margin), (full[1] if shown in (0, 1) else margin)


def _car_ahead(rng: np.random.Generator, config: TownConfig, kind: StreetKind) -> tuple[bool, bool]:
    """Whether there is a lead car, and whether a car cuts in; never both."""
    draw = rng.random()
    lead = draw < (0.65 if kind == "avenue" else 0.5)
    cut_in = not lead and draw < 0.75
    if config.lead_car is not None:
        lead, cut_in = config.lead_car, cut_in and not config.lead_car
    if config.cut_in is not None:
        lead, cut_in = lead and not config.cut_in, config.cut_in
    return lead, cut_in


def draw_centreline(
    rng: np.random.Generator, plan: StreetPlan, duration_s: float
) -> tuple[Float[np.ndarray, "n"], tuple[JunctionPlace, ...]]:
    """Curvature every `STEP_M` (1/m), and where the junctions lie."""
    pieces, places = [np.zeros(round((EGO_START_S_M + rng.uniform(22.0, 34.0)) / STEP_M))], []
    heading = base = 0.0
    drawn_m, reach_m = len(pieces[0]) * STEP_M, plan.reach_m(duration_s) - 25.0
    while drawn_m < plan.length_m(duration_s):
        feature = _feature(rng, plan, drawn_m < reach_m)
        if feature == "turn":
            side = _side(rng, base, np.pi / 2, np.deg2rad(100.0))
            piece = bend(side / rng.uniform(8.5, 12.0), np.deg2rad(rng.uniform(82.0, 98.0)), 5.0)
            places.append(JunctionPlace(drawn_m, drawn_m + len(piece) * STEP_M, int(side)))
            base += side * np.pi / 2
        elif feature == "crossing":
            piece = np.zeros(round(2 * CROSSING_REACH_M / STEP_M))
            places.append(JunctionPlace(drawn_m, drawn_m + len(piece) * STEP_M, 0))
        else:
            piece = _winding(rng, plan, heading - base)
        straight = np.zeros(round(rng.uniform(*_straights(plan, feature)) / STEP_M))
        pieces += [piece, straight]
        heading += float(piece.sum()) * STEP_M
        drawn_m += (len(piece) + len(straight)) * STEP_M
    return np.concatenate(pieces), tuple(places)


def _feature(rng: np.random.Generator, plan: StreetPlan, in_reach: bool) -> str:
    draw = rng.random()
    if plan.kind == "junctions" and in_reach:
        return "turn" if draw < 0.65 else "crossing" if draw < 0.87 else "bend"
    return "crossing" if draw < 0.14 else "bend"


def _straights(plan: StreetPlan, feature: str) -> tuple[float, float]:
    """Range of the straight stretch after a feature, m."""
    if feature != "bend":
        return 28.0, 48.0
    return {"bends": (6.0, 28.0), "junctions": (20.0, 35.0), "narrow": (20.0, 45.0), "avenue": (25.0, 60.0)}[plan.kind]


def _winding(rng: np.random.Generator, plan: StreetPlan, winding_rad: float) -> Float[np.ndarray, "n"]:
    widest = {"bends": 60.0, "junctions": 25.0, "narrow": 30.0, "avenue": 30.0}[plan.kind]
    turn_rad = np.deg2rad(rng.uniform(0.35 * widest, widest))
    side = _side(rng, winding_rad, turn_rad, MAX_WINDING_RAD)
    turn_rad = min(turn_rad, MAX_WINDING_RAD - side * winding_rad)
    peak = plan.max_curvature_per_m * rng.uniform(0.55, 1.0)
    return bend(side * peak, turn_rad, rng.uniform(9.0, 18.0) * (2.0 if plan.kind == "avenue" else 1.0))


def _side(rng: np.random.Generator, from_rad: float, turn_rad: float, bound_rad: float) -> float:
    """A side to turn to, +1 left or -1 right, that keeps the direction within the bound."""
    side = float(rng.choice([-1.0, 1.0]))
    return side if abs(from_rad + side * turn_rad) <= bound_rad else -float(np.sign(from_rad))
