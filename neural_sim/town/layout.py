"""Where the buildings, trees and lamps of the street stand."""

from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.town.network import Network
from neural_sim.town.road import Road

STOREY_M = 3.0
LAMP_SPACING_M = 27.0
RED_RIM, YELLOW_RIM, BLUE_RIM = (0.6, 0.02, 0.02), (0.7, 0.5, 0.02), (0.02, 0.1, 0.5)


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
class Sign:
    """A traffic sign on a post.

    Attributes:
        xy_m: float64 [2], world frame, m.
        yaw_rad: direction it faces.
        colour: of the rim, linear RGB.
        corners: 3, 4 or more for a round one.
    """

    xy_m: Float[np.ndarray, "2"]
    yaw_rad: float
    colour: tuple[float, float, float]
    corners: int


@dataclass(frozen=True)
class Hedge:
    """A hedge, fence or garden wall.

    Attributes:
        ends_m: float64 [2, 2], both ends, world frame, m.
        height_m: m.
        leafy: a hedge, else a wall.
        colour: linear RGB.
    """

    ends_m: Float[np.ndarray, "2 2"]
    height_m: float
    leafy: bool
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Layout:
    """Everything that stands beside the street.

    Attributes:
        buildings, trees: in the order they were drawn.
        lamps: float64 [L, 3], (x, y, yaw) of each lamp post, its arm along yaw, m and rad.
        signs: along the streets and at junctions.
        hedges: between street and gardens.
    """

    buildings: tuple[Building, ...]
    trees: tuple[Tree, ...]
    lamps: Float[np.ndarray, "l 3"]
    signs: tuple[Sign, ...]
    hedges: tuple[Hedge, ...]


WALLS = ((0.52, 0.42, 0.28), (0.42, 0.2, 0.13), (0.58, 0.55, 0.48), (0.3, 0.35, 0.4), (0.55, 0.34, 0.24))
WALLS += ((0.36, 0.4, 0.3), (0.62, 0.5, 0.2), (0.33, 0.17, 0.15), (0.48, 0.48, 0.52), (0.6, 0.44, 0.38))
ROOFS = ((0.28, 0.1, 0.06), (0.13, 0.13, 0.14), (0.2, 0.12, 0.09))


def make_layout(rng: np.random.Generator, network: Network) -> Layout:
    """Draw rows of houses along all streets, trees, hedges, lamps and signs; nothing reaches a carriageway."""
    section = network.main.section
    keep_clear = network.carriageway.buffer(section.building_line_m - 0.3)
    shapely.prepare(keep_clear)
    density = float(rng.uniform(0.55, 1.0))
    buildings: list[Building] = []
    polygons: list[shapely.Polygon] = []
    for road in network.roads:
        for side in (1.0, -1.0):
            _add_building_row(rng, road, side, density, keep_clear, buildings, polygons)
    blocked = shapely.union_all(polygons) if polygons else shapely.Polygon()
    pavement = network.carriageway.buffer(section.pavement_end_m + 0.3)
    trees = _street_trees(rng, network, blocked, pavement) + _yard_trees(rng, network.main, blocked, keep_clear)
    hedges = _hedges(rng, network, blocked, pavement)
    return Layout(tuple(buildings), tuple(trees), _lamps(network), _signs(rng, network), tuple(hedges))


def _add_building_row(
    rng: np.random.Generator,
    road: Road,
    side: float,
    density: float,
    keep_clear: shapely.Geometry,
    buildings: list[Building],
    polygons: list[shapely.Polygon],
) -> None:
    """Houses along one side of a street, where there is room."""
    s_m = float(rng.uniform(0.0, 4.0))
    while s_m < road.length_m - 10.0:
        length_m, depth_m = float(rng.uniform(9.0, 20.0)), float(rng.uniform(8.0, 12.0))
        setback_m = float(road.kerb_at(s_m + length_m / 2, side)) + road.section.building_line_m
        footprint = _footprint(road, s_m, side, length_m, depth_m, setback_m + float(rng.uniform(0.0, 3.0)))
        building = _dressed(rng, footprint)
        s_m += length_m + float(rng.uniform(0.3, 7.0)) / density
        polygon = shapely.Polygon(footprint).buffer(0.2)
        if not shapely.intersects(keep_clear, polygon) and not shapely.intersects(polygons, polygon).any():
            buildings.append(building)
            polygons.append(polygon)


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


def _street_trees(
    rng: np.random.Generator, network: Network, blocked: shapely.Geometry, pavement: shapely.Geometry
) -> list[Tree]:
    trees = []
    spacing = float(rng.uniform(8.0, 26.0))
    for road in network.roads:
        for side in (1.0, -1.0):
            s_m = float(rng.uniform(2.0, 12.0))
            while s_m < road.length_m:
                away = float(road.kerb_at(s_m, side)) + road.section.pavement_end_m + rng.uniform(0.7, 1.1)
                xy = road.to_world(s_m, side * away)[:2]
                tree = _tree(rng, xy, float(rng.uniform(4.6, 6.8)), float(rng.uniform(1.2, 1.7)))
                s_m += spacing * float(rng.uniform(0.6, 1.5))
                point = shapely.Point(xy)
                if point.distance(blocked) > 0.8 and not shapely.contains(pavement, point):
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


def _hedges(
    rng: np.random.Generator, network: Network, blocked: shapely.Geometry, pavement: shapely.Geometry
) -> list[Hedge]:
    """Pieces along the gardens of the main street."""
    hedges, road = [], network.main
    share = float(rng.uniform(0.0, 0.8))
    for side in (1.0, -1.0):
        for s_m in np.arange(0.0, road.length_m - 8.0, 8.0):
            leafy, height, drawn = bool(rng.random() < 0.6), float(rng.uniform(0.7, 1.5)), rng.random()
            away = float(road.kerb_at(s_m + 3.0, side)) + road.section.pavement_end_m + 1.6
            ends = road.to_world(np.array([s_m, s_m + 6.6]), side * away)[:, :2]
            line = shapely.LineString(ends)
            if drawn < share and line.distance(blocked) > 0.3 and not shapely.intersects(pavement, line):
                tint = float(rng.uniform(0.8, 1.2))
                colour = (0.07 * tint, 0.15 * tint, 0.04 * tint) if leafy else (0.4 * tint, 0.33 * tint, 0.27 * tint)
                hedges.append(Hedge(ends, height, leafy, colour))
    return hedges


def _lamps(network: Network) -> Float[np.ndarray, "l 3"]:
    """Posts on alternate sides, just behind the kerb, the arm reaching over the road; none in a junction."""
    road = network.main
    s_m = np.arange(10.0, road.length_m - 5.0, LAMP_SPACING_M)
    s_m = s_m[[not network.is_near_junction(s, 3.0) for s in s_m.tolist()]]
    side = np.where(np.arange(len(s_m)) % 2 == 0, 1.0, -1.0)
    kerb = np.where(side > 0, road.kerb_at(s_m, 1.0), road.kerb_at(s_m, -1.0))
    lamps = road.to_world(s_m, side * (kerb + 0.55))
    lamps[:, 2] -= side * np.pi / 2
    return lamps


def _signs(rng: np.random.Generator, network: Network) -> tuple[Sign, ...]:
    """Priority signs before junctions, give-way signs in side streets, speed and bend signs in between."""
    signs, road = [], network.main
    for junction in network.junctions:
        signs.append(_sign_beside(road, junction.place.start_m - 2.0, YELLOW_RIM, 4))
        for side in junction.sides:
            pose = side.road.to_world(side.mouth_m + 0.5, float(side.road.kerb_at(side.mouth_m, 1.0)) + 0.5)
            signs.append(Sign(pose[:2], float(pose[2]), RED_RIM, 3))
    for zebra in network.zebras_m:
        signs.append(_sign_beside(road, zebra - 2.2, BLUE_RIM, 4))
    for s_m in np.arange(30.0, road.length_m - 10.0, 45.0) + rng.uniform(-12.0, 12.0):
        if not network.is_near_junction(float(s_m), 6.0):
            signs.append(_sign_beside(road, float(s_m), RED_RIM, int(rng.choice([3, 12]))))
    return tuple(signs)


def _sign_beside(road: Road, s_m: float, colour: tuple[float, float, float], corners: int) -> Sign:
    pose = road.to_world(s_m, -(float(road.kerb_at(s_m, -1.0)) + 0.6))
    return Sign(pose[:2], float(pose[2]) + np.pi, colour, corners)
