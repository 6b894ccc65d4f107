"""Textured triangle meshes and the few shapes the town is built of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Mesh:
    """Triangles with texture coordinates.

    Attributes:
        triangles_m: float64 [T, 3, 3], corner positions, m.
        uv: float64 [T, 3, 2], texture coordinates of the corners, m unless the material says otherwise.
        material: int64 [T], one of `neural_sim.town.materials`.
        colour: float64 [T, 3], base colour, linear RGB 0..1.
        surface: int64 [T], number of the smooth surface a triangle belongs to; image edges between surfaces are
            antialiased.
    """

    triangles_m: Float[np.ndarray, "t 3 3"]
    uv: Float[np.ndarray, "t 3 2"]
    material: Int[np.ndarray, "t"]
    colour: Float[np.ndarray, "t 3"]
    surface: Int[np.ndarray, "t"]

    def transformed(self, T_world_mesh: Float[np.ndarray, "4 4"]) -> "Mesh":
        """The same mesh with its corners mapped by a rigid transform."""
        moved = self.triangles_m @ T_world_mesh[:3, :3].T + T_world_mesh[:3, 3]
        return Mesh(moved, self.uv, self.material, self.colour, self.surface)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of all triangles; surfaces of different meshes stay different. An empty sequence gives no triangles."""
    if not meshes:
        empty = np.zeros(0, np.int64)
        return Mesh(np.zeros((0, 3, 3)), np.zeros((0, 3, 2)), empty, np.zeros((0, 3)), empty)
    offsets = np.cumsum([0] + [int(mesh.surface.max(initial=-1)) + 1 for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.triangles_m for mesh in meshes]),
        np.concatenate([mesh.uv for mesh in meshes]),
        np.concatenate([mesh.material for mesh in meshes]),
        np.concatenate([mesh.colour for mesh in meshes]),
        np.concatenate([mesh.surface + offset for mesh, offset in zip(meshes, offsets, strict=True)]),
    )


def uniform(
    triangles_m: Float[np.ndarray, "t 3 3"], uv: Float[np.ndarray, "t 3 2"], material: int, colour: Colour
) -> Mesh:
    """A mesh of one material and colour whose triangles form one smooth surface."""
    count = len(triangles_m)
    return Mesh(
        np.asarray(triangles_m, float),
        np.asarray(uv, float),
        np.full(count, material, np.int64),
        np.tile(np.asarray(colour, float), (count, 1)),
        np.zeros(count, np.int64),
    )


def quad(corners_m: Float[np.ndarray, "4 3"], uv: Float[np.ndarray, "4 2"], material: int, colour: Colour) -> Mesh:
    """Two triangles through four corners in order around the quad."""
    order = [[0, 1, 2], [0, 2, 3]]
    return uniform(np.asarray(corners_m, float)[order], np.asarray(uv, float)[order], material, colour)


def ribbon(
    left_m: Float[np.ndarray, "n 3"],
    right_m: Float[np.ndarray, "n 3"],
    along: Float[np.ndarray, "n"],
    across: tuple[float, float],
    material: int,
    colour: Colour,
) -> Mesh:
    """A band between two polylines; u is `along`, v runs from `across[0]` on the left to `across[1]` on the right."""
    uv_left = np.stack([along, np.full(len(along), across[0])], axis=-1)
    uv_right = np.stack([along, np.full(len(along), across[1])], axis=-1)

    def triangles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        first = np.stack([left[:-1], right[:-1], right[1:]], axis=1)
        second = np.stack([left[:-1], right[1:], left[1:]], axis=1)
        return np.concatenate([first, second])

    return uniform(triangles(left_m, right_m), triangles(uv_left, uv_right), material, colour)


def wall(start_m: np.ndarray, end_m: np.ndarray, bottom_m: float, top_m: float, material: int, colour: Colour) -> Mesh:
    """An upright rectangle over the ground segment `start_m` to `end_m` [2]; u along the segment, v height, m."""
    length = float(np.linalg.norm(end_m - start_m))
    corners = [[*start_m, bottom_m], [*end_m, bottom_m], [*end_m, top_m], [*start_m, top_m]]
    uv = [[0.0, bottom_m], [length, bottom_m], [length, top_m], [0.0, top_m]]
    return quad(np.array(corners), np.array(uv), material, colour)


def loft(rings_m: Float[np.ndarray, "r p 3"], material: int, colour: Colour, closed_ends: bool = True) -> Mesh:
    """A skin over closed rings of points, one surface per strip; u and v count rings and points."""
    rings, points = rings_m.shape[:2]
    parts = []
    for j in range(points):
        left, right = rings_m[:, j], rings_m[:, (j + 1) % points]
        parts.append(ribbon(left, right, np.arange(rings, dtype=float), (j, j + 1.0), material, colour))
    if closed_ends:
        parts += [fan(rings_m[0], material, colour), fan(rings_m[-1], material, colour)]
    return merge(parts)


def fan(ring_m: Float[np.ndarray, "p 3"], material: int, colour: Colour) -> Mesh:
    """A flat cap over a convex ring; u is the share of the way from its centre (0) to its edge (1)."""
    centre = np.broadcast_to(ring_m.mean(axis=0), ring_m.shape)
    triangles = np.stack([centre, ring_m, np.roll(ring_m, -1, axis=0)], axis=1)
    uv = np.broadcast_to(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), (len(ring_m), 3, 2))
    return uniform(triangles, uv, material, colour)


def cylinder(
    start_m: np.ndarray, end_m: np.ndarray, radius_m: float, sides: int, material: int, colour: Colour
) -> Mesh:
    """A closed prism of `sides` sides around the axis from `start_m` to `end_m` [3], one surface for the side."""
    axis = (end_m - start_m) / np.linalg.norm(end_m - start_m)
    helper = np.array([1.0, 0.0, 0.0]) if abs(axis[2]) > 0.9 else np.array([0.0, 0.0, 1.0])
    across = np.cross(axis, helper)
    across /= np.linalg.norm(across)
    angle = np.linspace(0.0, 2 * np.pi, sides + 1)[:, None]
    circle = radius_m * (np.cos(angle) * across + np.sin(angle) * np.cross(axis, across))
    around_m = angle[:, 0] * radius_m
    height_m = float(np.linalg.norm(end_m - start_m))
    side = ribbon(start_m + circle, end_m + circle, around_m, (0.0, height_m), material, colour)
    caps = [fan((centre + circle)[:-1], material, colour) for centre in (start_m, end_m)]
    return merge([side, *caps])
