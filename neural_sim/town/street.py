"""The static world as one mesh: ground, houses, trees, lamps, signs, hedges."""

import numpy as np
import trimesh

from neural_sim.town import materials
from neural_sim.town.ground import ground_mesh, plot_wall
from neural_sim.town.layout import STOREY_M, Building, Hedge, Layout, Sign, Tree
from neural_sim.town.mesh import Mesh, cylinder, merge, quad, uniform, wall
from neural_sim.town.network import Network

BAY_M = 2.8
LAMP_HEIGHT_M = 6.5
# Taller trees stand in yards, farther from the cameras, and get coarser crowns.
FINE_BELOW_M = 7.0
SIGN_HEIGHT_M, SIGN_RADIUS_M = 2.3, 0.38
METAL = (0.16, 0.17, 0.18)
BARK = (0.13, 0.09, 0.06)


def street_mesh(network: Network, layout: Layout) -> Mesh:
    """All that does not move, world frame; the carriageway lies at z = 0."""
    parts = [ground_mesh(network)]
    parts += [_building_mesh(building) for building in layout.buildings]
    parts += [_tree_mesh(tree) for tree in layout.trees]
    parts += [_lamp_mesh(lamp) for lamp in layout.lamps]
    parts += [_sign_mesh(sign) for sign in layout.signs]
    parts += [_hedge_mesh(hedge) for hedge in layout.hedges]
    return merge(parts)


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
    sphere = trimesh.creation.icosphere(subdivisions=2 if tree.height_m < FINE_BELOW_M else 1)
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


def _sign_mesh(sign: Sign) -> Mesh:
    """A post with a plate that is coloured in front and grey behind."""
    ahead = np.array([np.cos(sign.yaw_rad), np.sin(sign.yaw_rad), 0.0])
    foot, up = np.array([*sign.xy_m, 0.0]), np.array([0.0, 0.0, 1.0])
    post = cylinder(foot, foot + (SIGN_HEIGHT_M + 0.3) * up, 0.035, 6, materials.PLAIN, METAL)
    aside = np.cross(up, ahead)
    turn = np.pi / 2 + 2 * np.pi * np.arange(sign.corners) / sign.corners
    uv = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    ring = SIGN_RADIUS_M * (uv[:, :1] * aside + uv[:, 1:] * up) + foot + SIGN_HEIGHT_M * up
    order = [[0, i, i + 1] for i in range(1, sign.corners - 1)]
    front = uniform((ring + 0.05 * ahead)[order], uv[order], materials.SIGN, sign.colour)
    back = uniform((ring + 0.04 * ahead)[order], uv[order], materials.PLAIN, METAL)
    return merge([post, front, back])


def _hedge_mesh(hedge: Hedge) -> Mesh:
    material = materials.LEAVES if hedge.leafy else materials.PLAIN
    return plot_wall(hedge.ends_m[0], hedge.ends_m[1], hedge.height_m, material, hedge.colour)
