"""The static world as one mesh: ground, kerbs, houses, trees, lamps."""

import numpy as np
import trimesh

from neural_sim.town import materials
from neural_sim.town.layout import STOREY_M, Building, Layout, Tree
from neural_sim.town.mesh import Mesh, cylinder, merge, quad, ribbon, uniform, wall
from neural_sim.town.road import Road

BAY_M = 2.8
GROUND_MARGIN_M = 400.0
LAMP_HEIGHT_M = 6.5
METAL = (0.16, 0.17, 0.18)
BARK = (0.13, 0.09, 0.06)


def street_mesh(road: Road, layout: Layout) -> Mesh:
    """All that does not move, world frame; the carriageway lies at z = 0."""
    parts = [_lawn(road), *_road_bands(road)]
    parts += [_building_mesh(building) for building in layout.buildings]
    parts += [_tree_mesh(tree) for tree in layout.trees]
    parts += [_lamp_mesh(lamp) for lamp in layout.lamps]
    return merge(parts)


def _lawn(road: Road) -> Mesh:
    low, high = road.xy_m.min(0) - GROUND_MARGIN_M, road.xy_m.max(0) + GROUND_MARGIN_M
    z = -0.05
    corners = np.array([[low[0], low[1], z], [high[0], low[1], z], [high[0], high[1], z], [low[0], high[1], z]])
    return quad(corners, corners[:, :2], materials.GRASS, (0.0, 0.0, 0.0))


def _road_bands(road: Road) -> list[Mesh]:
    """Carriageway, and on both sides kerb face, kerb top, pavement and verge, as ribbons in road coordinates."""
    section, height = road.section, road.section.kerb_height_m
    half, inner, outer = section.carriageway_half_width_m, section.pavement_start_m, section.pavement_end_m
    stone = (0.42, 0.41, 0.38)
    bands = [_band(road, (half, 0.0), (-half, 0.0), materials.ROAD, stone)]
    for side in (1.0, -1.0):
        bands += [
            _band(road, (side * half, 0.0), (side * half, height), materials.KERB, stone),
            _band(road, (side * half, height), (side * inner, height), materials.KERB, stone),
            _band(road, (side * inner, height), (side * outer, height), materials.PAVEMENT, stone),
            _band(road, (side * outer, height), (side * (section.building_line_m - 0.5), 0.0), materials.GRASS, stone),
        ]
    return bands


def _band(road: Road, left: tuple[float, float], right: tuple[float, float], material: int, colour: tuple) -> Mesh:
    """Ribbon between two edges given as (d, z), m; u is s and v is d."""
    s_m = np.linspace(0.0, road.length_m, int(np.ceil(road.length_m)) + 1)
    edges = [np.column_stack([road.to_world(s_m, d)[:, :2], np.full(len(s_m), z)]) for d, z in (left, right)]
    return ribbon(edges[0], edges[1], s_m, (left[0], right[0]), material, colour)


def _building_mesh(building: Building) -> Mesh:
    """Four walls with windows in whole bays and storeys, and a flat or pitched roof."""
    corners, top = building.footprint_m, building.storeys * STOREY_M
    parts = []
    for i in range(4):
        start, end = corners[i], corners[(i + 1) % 4]
        side = wall(start, end, 0.0, top, materials.FACADE, building.wall)
        bays = max(1, round(float(np.linalg.norm(end - start)) / BAY_M))
        scale = np.array([bays / np.linalg.norm(end - start), 1.0 / STOREY_M])
        parts.append(Mesh(side.triangles_m, side.uv * scale, side.material, side.colour, side.surface))
    return merge([*parts, *(_gable_roof(building, top) if building.gable else [_flat_roof(building, top)])])


def _flat_roof(building: Building, top_m: float) -> Mesh:
    corners = np.column_stack([building.footprint_m, np.full(4, top_m)])
    return quad(corners, building.footprint_m, materials.PLAIN, (0.2, 0.2, 0.2))


def _gable_roof(building: Building, top_m: float) -> list[Mesh]:
    """Two slopes with the ridge parallel to the street, and the gable ends."""
    a, b, c, d = np.column_stack([building.footprint_m, np.full(4, top_m)])
    rise = np.array([0.0, 0.0, 0.32 * float(np.linalg.norm(d - a))])
    left, right = (a + d) / 2 + rise, (b + c) / 2 + rise
    length, slope = float(np.linalg.norm(b - a)), float(np.linalg.norm(left - a))
    uv = np.array([[0.0, 0.0], [length, 0.0], [length, slope], [0.0, slope]])
    slopes = [
        quad(np.stack([*eaves, *ridge]), uv, materials.ROOF, building.roof)
        for eaves, ridge in (((a, b), (right, left)), ((c, d), (left, right)))
    ]
    flat_uv = np.zeros((1, 3, 2))
    gables = np.array([[d, a, left], [b, c, right]])
    ends = [uniform(gable[None], flat_uv, materials.PLAIN, building.wall) for gable in gables]
    return slopes + ends


def _tree_mesh(tree: Tree) -> Mesh:
    """A trunk under three overlapping bumpy blobs."""
    rng = np.random.default_rng(tree.shape_seed)
    base, crown_z = np.array([*tree.xy_m, 0.0]), tree.height_m - tree.crown_m
    trunk_top = np.array([*tree.xy_m, crown_z])
    parts = [cylinder(base, trunk_top, 0.09 + 0.06 * tree.crown_m, 7, materials.PLAIN, BARK)]
    sphere = trimesh.creation.icosphere(subdivisions=2)
    for _ in range(3):
        spread = rng.uniform(-0.35, 0.35, 3) * tree.crown_m
        bumps = 1.0 + 0.16 * rng.standard_normal((len(sphere.vertices), 1))
        points = np.asarray(sphere.vertices) * bumps * tree.crown_m * rng.uniform(0.65, 0.85) + trunk_top + spread
        triangles = points[np.asarray(sphere.faces)]
        parts.append(uniform(triangles, np.zeros((len(triangles), 3, 2)), materials.LEAVES, tree.colour))
    return merge(parts)


def _lamp_mesh(lamp: np.ndarray) -> Mesh:
    foot = np.array([lamp[0], lamp[1], 0.0])
    top = np.array([lamp[0], lamp[1], LAMP_HEIGHT_M])
    end = top + 1.6 * np.array([np.cos(lamp[2]), np.sin(lamp[2]), 0.0])
    head = end - 0.5 * (end - top) / np.linalg.norm(end - top)
    return merge(
        [
            cylinder(foot, top, 0.1, 8, materials.PLAIN, METAL),
            cylinder(top, end, 0.05, 6, materials.PLAIN, METAL),
            cylinder(head, end, 0.12, 6, materials.PLAIN, (0.7, 0.7, 0.65)),
        ]
    )
