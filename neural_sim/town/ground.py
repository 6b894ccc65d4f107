"""The ground of the town: carriageway with markings, kerbs, pavements, lawn."""

import itertools

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.town import materials
from neural_sim.town.mesh import Colour, Mesh, merge, ribbon, uniform, wall
from neural_sim.town.network import PARKING_M, Network
from neural_sim.town.road import CrossSection, Road, stations

GROUND_MARGIN_M = 350.0
ZEBRA_HALF_M = 1.6
STONE: Colour = (0.42, 0.41, 0.38)
NO_COLOUR: Colour = (0.0, 0.0, 0.0)
# What lies under the town, so that no ray slips through a seam of its surfaces.
UNDERGROUND_M = -0.08


def ground_mesh(network: Network) -> Mesh:
    """Everything flat, world frame; the carriageway lies at z = 0, pavement and lawn at the height of the kerb."""
    section, carriageway = network.main.section, network.carriageway
    marked = _marked_stretches(network)
    parts = [_stretch(road, start, end, style) for road, start, end, style in marked]
    corridors = shapely.union_all([road.corridor(start, end) for road, start, end, _ in marked])
    parts += [_flat(carriageway.difference(corridors), 0.0, materials.ASPHALT, NO_COLOUR)]
    parts += _kerbs(carriageway, section)
    low, high = network.main.xy_m.min(0) - GROUND_MARGIN_M, network.main.xy_m.max(0) + GROUND_MARGIN_M
    everything = shapely.box(*low, *high)
    paved = carriageway.buffer(section.pavement_end_m)
    kerb = carriageway.buffer(section.kerb_width_m)
    height = section.kerb_height_m
    parts += [
        _flat(paved.difference(kerb), height, materials.PAVEMENT, STONE),
        _flat(everything.difference(paved), height - 0.01, materials.GRASS, NO_COLOUR),
        _flat(everything, UNDERGROUND_M, materials.ASPHALT, NO_COLOUR),
    ]
    return merge(parts)


def _marked_stretches(network: Network) -> list[tuple[Road, float, float, tuple[float, float]]]:
    """Stretches of road with the styles of their centre and edge lines; zebra crossings are stretches of their own."""
    plan = network.plan
    centre = materials.SOLID if plan.kind == "avenue" else materials.DASHED
    centre = materials.BARE if plan.kind == "narrow" else centre
    found = []
    for start, end in network.open_stretches():
        cuts = [start]
        for zebra in network.zebras_m:
            if start < zebra - ZEBRA_HALF_M and zebra + ZEBRA_HALF_M < end:
                cuts += [zebra - ZEBRA_HALF_M, zebra + ZEBRA_HALF_M]
        cuts.append(end)
        for number, (low, high) in enumerate(itertools.pairwise(cuts)):
            style = (materials.ZEBRA, 0.0) if number % 2 else (centre, _edge_style(network))
            found.append((network.main, low, high, style))
    for side in network.sides:
        found.append((side.road, side.mouth_m, side.road.length_m, (materials.DASHED, materials.BARE)))
    return found


def _edge_style(network: Network) -> float:
    plan = network.plan
    if network.merge_m is not None:
        return materials.SECOND_LANE
    if max(plan.left_strip_m, plan.right_strip_m) < PARKING_M or plan.kind == "narrow":
        return materials.BARE
    return materials.PARKING


def _stretch(road: Road, start_m: float, end_m: float, style: tuple[float, float]) -> Mesh:
    """The carriageway from kerb to kerb; u is s, v is d, and the colour holds lane width and line styles."""
    s_m = stations(start_m, end_m)
    colour = (road.section.lane_width_m, *style)
    edges, across = [], []
    for side in (1.0, -1.0):
        d_m = side * road.kerb_at(s_m, side)
        edges.append(np.column_stack([road.to_world(s_m, d_m)[:, :2], np.zeros(len(s_m))]))
        across.append(d_m)
    band = ribbon(edges[0], edges[1], s_m, (0.0, 0.0), materials.ROAD, colour)
    band.uv[..., 1] = _across(across[0], across[1])
    return band


def _across(left: Float[np.ndarray, "n"], right: Float[np.ndarray, "n"]) -> Float[np.ndarray, "t 3"]:
    """d of the triangle corners of a ribbon whose edges are not parallel."""
    first = np.stack([left[:-1], right[:-1], right[1:]], axis=1)
    second = np.stack([left[:-1], right[1:], left[1:]], axis=1)
    return np.concatenate([first, second])


def _flat(area: shapely.Geometry, z_m: float, material: int, colour: Colour) -> Mesh:
    """A level surface over polygons with holes; u and v are world x and y."""
    triangles = [_triangles(part) for part in shapely.get_parts(area) if isinstance(part, shapely.Polygon)]
    corners = np.concatenate([np.zeros((0, 3, 2)), *triangles])
    points = np.concatenate([corners, np.full((*corners.shape[:2], 1), z_m)], axis=-1)
    return uniform(points, corners, material, colour)


def _triangles(area: shapely.Polygon) -> Float[np.ndarray, "t 3 2"]:
    pieces = shapely.get_parts(shapely.constrained_delaunay_triangles(area))
    if not len(pieces):
        return np.zeros((0, 3, 2))
    return shapely.get_coordinates(pieces).reshape(-1, 4, 2)[:, :3]


def _kerbs(carriageway: shapely.Polygon, section: CrossSection) -> list[Mesh]:
    """Upright faces along the carriageway, and the stones on top."""
    parts = [_flat(carriageway.buffer(section.kerb_width_m).difference(carriageway), section.kerb_height_m,
                   materials.KERB, STONE)]  # fmt: skip
    for ring in (carriageway.exterior, *carriageway.interiors):
        xy = shapely.get_coordinates(ring)
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(xy, axis=0), axis=1))])
        low, high = (np.column_stack([xy, np.full(len(xy), z)]) for z in (UNDERGROUND_M, section.kerb_height_m))
        parts.append(ribbon(low, high, along, (UNDERGROUND_M, section.kerb_height_m), materials.KERB, STONE))
    return parts


def plot_wall(start_m: np.ndarray, end_m: np.ndarray, height_m: float, material: int, colour: Colour) -> Mesh:
    """A wall, fence or hedge of 0.3 m thickness over a ground segment [2] to [2], m."""
    along = (end_m - start_m) / max(float(np.linalg.norm(end_m - start_m)), 1e-6)
    aside = 0.15 * np.array([-along[1], along[0]])
    corners = [start_m - aside, end_m - aside, end_m + aside, start_m + aside]
    sides = [wall(corners[i], corners[(i + 1) % 4], 0.0, height_m, material, colour) for i in range(4)]
    top = np.column_stack([np.array(corners), np.full(4, height_m)])
    uv = np.array(corners)
    return merge([*sides, uniform(top[[[0, 1, 2], [0, 2, 3]]], uv[[[0, 1, 2], [0, 2, 3]]], material, colour)])
