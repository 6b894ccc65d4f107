"""Where the buildings, trees and lamps of the street stand."""

from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.town.road import Road

STOREY_M = 3.0
LAMP_SPACING_M = 27.0


@dataclass(frozen=True)
class Building:
    """A rectangular house.

    Attributes:
        footprint_m: float64 [4, 2], corners counter-clockwise, world frame, m; the first edge faces the street.
        storeys: number of storeys of 3 m.
        gable: whether it has a pitched roof.
        wall, roof: colours, linear RGB.
    """

    footprint_m: Float[np.ndarray, "4 2"]
    storeys: int
    gable: bool
    wall: tuple[float, float, float]
    roof: tuple[float, float, float]


@dataclass(frozen=True)
class Tree:
    """A tree.

    Attributes:
        xy_m: float64 [2], world frame, m.
        height_m: top of the crown, m.
        crown_m: radius of the crown, m.
        colour: of the leaves, linear RGB.
        shape_seed: seed of the form of the crown.
    """

    xy_m: Float[np.ndarray, "2"]
    height_m: float
    crown_m: float
    colour: tuple[float, float, float]
    shape_seed: int


@dataclass(frozen=True)
class Layout:
    """Everything that stands beside the street.

    Attributes:
        buildings, trees: in the order they were drawn.
        lamps: float64 [L, 3], (x, y, yaw) of each lamp post, its arm along yaw, m and rad.
    """

    buildings: tuple[Building, ...]
    trees: tuple[Tree, ...]
    lamps: Float[np.ndarray, "l 3"]


WALLS = ((0.52, 0.42, 0.28), (0.42, 0.2, 0.13), (0.58, 0.55, 0.48), (0.3, 0.35, 0.4), (0.55, 0.34, 0.24))
WALLS += ((0.36, 0.4, 0.3), (0.62, 0.5, 0.2), (0.33, 0.17, 0.15), (0.48, 0.48, 0.52), (0.6, 0.44, 0.38))
ROOFS = ((0.28, 0.1, 0.06), (0.13, 0.13, 0.14), (0.2, 0.12, 0.09))


def make_layout(rng: np.random.Generator, road: Road) -> Layout:
    """Draw rows of houses on both sides, street trees, trees in the yards, and lamps; nothing reaches the road."""
    keep_clear = road.line.buffer(road.section.building_line_m - 0.3)
    buildings: list[Building] = []
    for side in (1.0, -1.0):
        buildings += _building_row(rng, road, side, [b.footprint_m for b in buildings], keep_clear)
    blocked = shapely.union_all([shapely.Polygon(building.footprint_m) for building in buildings])
    trees = _street_trees(rng, road, blocked) + _yard_trees(rng, road, blocked, keep_clear)
    return Layout(tuple(buildings), tuple(trees), _lamps(road))


def _building_row(
    rng: np.random.Generator, road: Road, side: float, taken: list[np.ndarray], keep_clear: shapely.Geometry
) -> list[Building]:
    row: list[Building] = []
    s_m = float(rng.uniform(0.0, 4.0))
    while s_m < road.length_m - 10.0:
        length_m, depth_m = float(rng.uniform(9.0, 20.0)), float(rng.uniform(8.0, 12.0))
        setback_m = road.section.building_line_m + float(rng.uniform(0.0, 2.0))
        footprint = _footprint(road, s_m, side, length_m, depth_m, setback_m)
        building = _dressed(rng, footprint)
        s_m += length_m + float(rng.uniform(0.3, 7.0))
        polygon = shapely.Polygon(footprint).buffer(0.2)
        others = [*taken, *(other.footprint_m for other in row)]
        is_free = not any(polygon.intersects(shapely.Polygon(other)) for other in others)
        if is_free and not polygon.intersects(keep_clear):
            row.append(building)
    return row


def _footprint(
    road: Road, s_m: float, side: float, length_m: float, depth_m: float, setback_m: float
) -> Float[np.ndarray, "4 2"]:
    """Corners of a house parallel to the road at its middle, counter-clockwise, street side first."""
    x, y, yaw = road.to_world(s_m + length_m / 2, side * setback_m)
    along = np.array([np.cos(yaw), np.sin(yaw)])
    away = side * np.array([-along[1], along[0]])
    first, second = np.array([x, y]) - along * length_m / 2, np.array([x, y]) + along * length_m / 2
    if side < 0:
        first, second = second, first
    return np.stack([first, second, second + away * depth_m, first + away * depth_m])


def _dressed(rng: np.random.Generator, footprint_m: Float[np.ndarray, "4 2"]) -> Building:
    tint = rng.uniform(0.85, 1.15, 3)
    wall = np.clip(np.asarray(WALLS[rng.integers(len(WALLS))]) * tint, 0.05, 0.8)
    roof = ROOFS[rng.integers(len(ROOFS))]
    return Building(footprint_m, int(rng.integers(2, 6)), bool(rng.random() < 0.6), tuple(wall.tolist()), roof)


def _tree(rng: np.random.Generator, xy_m: np.ndarray, height_m: float, crown_m: float) -> Tree:
    green = (float(rng.uniform(0.06, 0.16)), float(rng.uniform(0.15, 0.26)), float(rng.uniform(0.03, 0.07)))
    return Tree(np.asarray(xy_m, float), height_m, crown_m, green, int(rng.integers(1 << 30)))


def _street_trees(rng: np.random.Generator, road: Road, blocked: shapely.Geometry) -> list[Tree]:
    trees = []
    for side in (1.0, -1.0):
        s_m = float(rng.uniform(2.0, 12.0))
        while s_m < road.length_m:
            xy = road.to_world(s_m, side * (road.section.pavement_end_m + rng.uniform(0.7, 1.1)))[:2]
            tree = _tree(rng, xy, float(rng.uniform(4.6, 6.8)), float(rng.uniform(1.2, 1.7)))
            s_m += float(rng.uniform(9.0, 22.0))
            if shapely.Point(xy).distance(blocked) > 0.8:
                trees.append(tree)
    return trees


def _yard_trees(
    rng: np.random.Generator, road: Road, blocked: shapely.Geometry, keep_clear: shapely.Geometry
) -> list[Tree]:
    trees = []
    for _ in range(int(road.length_m / 6.0)):
        xy = road.to_world(rng.uniform(0.0, road.length_m), rng.choice([-1.0, 1.0]) * rng.uniform(14.0, 45.0))[:2]
        tree = _tree(rng, xy, float(rng.uniform(6.0, 12.0)), float(rng.uniform(1.8, 3.2)))
        point = shapely.Point(xy)
        if point.distance(blocked) > 2.0 and point.distance(keep_clear) > tree.crown_m:
            trees.append(tree)
    return trees


def _lamps(road: Road) -> Float[np.ndarray, "l 3"]:
    """Posts on alternate sides, just behind the kerb, the arm reaching over the road."""
    s_m = np.arange(10.0, road.length_m - 5.0, LAMP_SPACING_M)
    side = np.where(np.arange(len(s_m)) % 2 == 0, 1.0, -1.0)
    lamps = road.to_world(s_m, side * (road.section.pavement_start_m + 0.4))
    lamps[:, 2] -= side * np.pi / 2
    return lamps
