"""From hits to colours: compiled loops over rays.

Ray directions are scaled to 1 along the optical axis, so the ray parameter of a hit is its depth.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numba import njit

from neural_sim.town import materials
from neural_sim.town.mesh import Mesh
from neural_sim.town.texture import filtered_noise

HAZE = (0.66, 0.74, 0.84)
SHADOW_OFFSET_M = 0.004
# Noise is cut at this share of the pixel's longer side: sharper than a full box filter, still without aliasing.
FOOTPRINT_SHARE = 0.7
LEAVES_SOFTNESS = 0.6

Vector = tuple[float, float, float]


class Surfaces(NamedTuple):
    """Per-triangle tables for the compiled loops.

    Attributes:
        anchor_m: float64 [T, 3], first corner, m.
        normal: float64 [T, 3], unit normal, either side.
        uv: float64 [T, 2], texture coordinates at the anchor.
        gradient_u, gradient_v: float64 [T, 3], change of the texture coordinates per metre in the plane.
        material: int64 [T].
        colour: float64 [T, 3].
        surface: int64 [T].
    """

    anchor_m: Float[np.ndarray, "t 3"]
    normal: Float[np.ndarray, "t 3"]
    uv: Float[np.ndarray, "t 2"]
    gradient_u: Float[np.ndarray, "t 3"]
    gradient_v: Float[np.ndarray, "t 3"]
    material: Int[np.ndarray, "t"]
    colour: Float[np.ndarray, "t 3"]
    surface: Int[np.ndarray, "t"]


class Triangle(NamedTuple):
    """One row of `Surfaces`."""

    anchor_m: Vector
    normal: Vector
    uv: tuple[float, float]
    gradient_u: Vector
    gradient_v: Vector
    material: int
    colour: Vector


class Light(NamedTuple):
    """What all points of the world share.

    Attributes:
        sun: unit vector towards the sun, world frame.
        texture_seed: seed of all textures.
        sunlight: strength of the sun.
        skylight: strength of the light from the whole sky.
        clouds: added to the cover of clouds, -1..1.
        haze_m: distance over which haze takes 63 % of the light, m.
    """

    sun: Vector
    texture_seed: int
    sunlight: float = 2.1
    skylight: float = 1.0
    clouds: float = 0.0
    haze_m: float = 500.0


class Hits(NamedTuple):
    """First hits of N rays.

    Attributes:
        owner: int64 [N], 0 sky, 1 static world, 2 movers.
        triangle: int64 [N], index into the tables of the owner.
        depth_m: float64 [N], distance along the optical axis, 0 for sky.
        shadow_origins_m: float32 [N, 3], start of the ray to the sun.
        faces_sun: bool [N], whether the sun can shine on the visible side.
    """

    owner: Int[np.ndarray, "n"]
    triangle: Int[np.ndarray, "n"]
    depth_m: Float[np.ndarray, "n"]
    shadow_origins_m: Float[np.ndarray, "n 3"]
    faces_sun: Bool[np.ndarray, "n"]


@njit(cache=True, error_model="numpy")
def _row(array: np.ndarray, i: int) -> Vector:
    return array[i, 0], array[i, 1], array[i, 2]


@njit(cache=True, error_model="numpy")
def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, error_model="numpy")
def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@njit(cache=True, error_model="numpy")
def _along(a: Vector, factor: float, b: Vector) -> Vector:
    """`a + factor * b`."""
    return a[0] + factor * b[0], a[1] + factor * b[1], a[2] + factor * b[2]


def surfaces_of(mesh: Mesh) -> Surfaces:
    """Tables of a mesh: planes and the linear texture map of each triangle."""
    anchor_m, uv = np.ascontiguousarray(mesh.triangles_m[:, 0]), np.ascontiguousarray(mesh.uv[:, 0])
    normal, gradient_u, gradient_v = _planes(mesh.triangles_m, mesh.uv)
    return Surfaces(
        anchor_m, normal, uv, gradient_u, gradient_v, mesh.material, np.ascontiguousarray(mesh.colour), mesh.surface
    )


@njit(cache=True, error_model="numpy")
def _planes(triangles_m: np.ndarray, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit normals and gradients of the texture coordinates, float64 [T, 3] each."""
    shape = (len(triangles_m), 3)
    normal, gradient_u, gradient_v = np.empty(shape), np.empty(shape), np.empty(shape)
    for t in range(len(triangles_m)):
        corner = triangles_m[t]
        anchor = _row(corner, 0)
        a, b = _along(_row(corner, 1), -1.0, anchor), _along(_row(corner, 2), -1.0, anchor)
        across = _cross(a, b)
        area2 = max(_dot(across, across), 1e-18)
        # The dual basis of the two edges: its rows turn a displacement in the plane into barycentric shares.
        dual_a, dual_b = _cross(b, across), _cross(across, a)
        for axis in range(3):
            normal[t, axis] = across[axis] / math.sqrt(area2)
            share_a, share_b = dual_a[axis] / area2, dual_b[axis] / area2
            gradient_u[t, axis] = (uv[t, 1, 0] - uv[t, 0, 0]) * share_a + (uv[t, 2, 0] - uv[t, 0, 0]) * share_b
            gradient_v[t, axis] = (uv[t, 1, 1] - uv[t, 0, 1]) * share_a + (uv[t, 2, 1] - uv[t, 0, 1]) * share_b
    return normal, gradient_u, gradient_v


@njit(cache=True, error_model="numpy")
def _plane_depth(table: Surfaces, triangle: int, origin: Vector, direction: Vector) -> float:
    normal = _row(table.normal, triangle)
    facing = _dot(normal, direction)
    if abs(facing) < 1e-12:
        return np.inf
    return _dot(normal, _along(_row(table.anchor_m, triangle), -1.0, origin)) / facing


@njit(cache=True, error_model="numpy")
def plane_depths(table: Surfaces, triangle: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Ray parameters, float64 [N], at which rays (float64 [N, 3]) meet the planes of their triangles (int [N])."""
    out = np.empty(len(triangle))
    for i in range(len(triangle)):
        out[i] = _plane_depth(table, triangle[i], _row(origins, i), _row(directions, i))
    return out


@njit(cache=True, error_model="numpy")
def resolve_hits(
    origins: np.ndarray,
    directions: np.ndarray,
    static_hit: np.ndarray,
    mover_hit: np.ndarray,
    static: Surfaces,
    movers: Surfaces,
    light: Light,
) -> Hits:
    """Keep the nearer of two hits of each ray and compute its exact depth and shadow ray, in float64.

    `origins`, `directions`: float64 [N, 3]; `static_hit`, `mover_hit`: int32 [N], triangle or -1.
    """
    count = len(origins)
    owner, triangle = np.zeros(count, np.int64), np.zeros(count, np.int64)
    depth, faces_sun = np.zeros(count), np.zeros(count, np.bool_)
    shadow = np.zeros((count, 3), np.float32)
    for i in range(count):
        origin, direction, nearest = _row(origins, i), _row(directions, i), np.inf
        if static_hit[i] >= 0:
            nearest = _plane_depth(static, static_hit[i], origin, direction)
            owner[i], triangle[i] = 1, static_hit[i]
        if mover_hit[i] >= 0:
            other = _plane_depth(movers, mover_hit[i], origin, direction)
            if other < nearest:
                nearest, owner[i], triangle[i] = other, 2, mover_hit[i]
        if not np.isfinite(nearest):
            owner[i] = 0
            continue
        depth[i] = nearest
        normal = _row(static.normal if owner[i] == 1 else movers.normal, triangle[i])
        side = -1.0 if _dot(normal, direction) > 0 else 1.0
        faces_sun[i] = side * _dot(normal, light.sun) > 0
        lifted = _along(_along(origin, nearest, direction), SHADOW_OFFSET_M * side, normal)
        shadow[i, 0], shadow[i, 1], shadow[i, 2] = lifted
    return Hits(owner, triangle, depth, shadow, faces_sun)


@njit(cache=True, error_model="numpy")
def sky_colour(x: float, y: float, z: float, light: Light) -> Vector:
    """Linear RGB of the sky in a unit direction: a gradient, a glow around the sun and clouds at infinity."""
    height = max(z, 0.0)
    blend = 1.0 - math.exp(-3.5 * height)
    red, green, blue = 0.66 - 0.46 * blend, 0.74 - 0.36 * blend, 0.84 - 0.12 * blend
    if z > 0.02:
        px, py = x / (z + 0.25), y / (z + 0.25)
        cloud = filtered_noise(px, py, 0.9, 0.0, 71) + 0.5 * filtered_noise(px, py, 0.4, 0.0, 72)
        cloud += 0.25 * filtered_noise(px, py, 0.17, 0.0, 73) - 0.15 + light.clouds
        cover = max(0.0, min(1.0, cloud)) * min(1.0, 6 * z)
        red, green, blue = red + (0.9 - red) * cover, green + (0.9 - green) * cover, blue + (0.92 - blue) * cover
    aligned = _dot((x, y, z), light.sun)
    glow = 0.17 * light.sunlight * max(0.0, aligned) ** 24
    return (red + glow, green + glow, blue + 0.8 * glow)


@njit(cache=True, error_model="numpy")
def _triangle(table: Surfaces, t: int) -> Triangle:
    return Triangle(
        _row(table.anchor_m, t),
        _row(table.normal, t),
        (table.uv[t, 0], table.uv[t, 1]),
        _row(table.gradient_u, t),
        _row(table.gradient_v, t),
        table.material[t],
        _row(table.colour, t),
    )


@njit(cache=True, error_model="numpy")
def _albedo(triangle: Triangle, p: Vector, along_x: Vector, along_y: Vector, seed: int) -> Vector:
    """Surface colour at world point `p`; `along_x`, `along_y` span the pixel on the surface, m."""
    gu, gv = triangle.gradient_u, triangle.gradient_v
    offset = _along(p, -1.0, triangle.anchor_m)
    u, v = triangle.uv[0] + _dot(gu, offset), triangle.uv[1] + _dot(gv, offset)
    u_width = abs(_dot(gu, along_x)) + abs(_dot(gu, along_y))
    v_width = abs(_dot(gv, along_x)) + abs(_dot(gv, along_y))
    width = FOOTPRINT_SHARE * math.sqrt(max(_dot(along_x, along_x), _dot(along_y, along_y)))
    red, green, blue = triangle.colour
    material = triangle.material
    if material == materials.ROAD:
        return materials.road_colour(u, v, p[0], p[1], u_width, v_width, width, (red, green, blue), seed)
    if material == materials.ASPHALT:
        return materials.asphalt_colour(p[0], p[1], width, seed)
    if material == materials.PAVEMENT:
        return materials.pavement_colour(u, v, p[0], p[1], u_width, v_width, width, seed)
    if material == materials.GRASS:
        return materials.grass_colour(p[0], p[1], width, seed)
    if material == materials.FACADE:
        return materials.facade_colour(u, v, u_width, v_width, red, green, blue, seed)
    if material == materials.CAR_WINDOW:
        pane = materials.car_window_share(u, v, u_width, v_width)
        return red + (0.02 - red) * pane, green + (0.025 - green) * pane, blue + (0.03 - blue) * pane
    if material == materials.SIGN:
        return materials.sign_colour(u, v, max(u_width, v_width), red, green, blue)
    factor = 1.0
    if material == materials.KERB:
        factor = materials.kerb_factor(u, u_width, p[0], p[1], width, seed)
    elif material == materials.ROOF:
        factor = materials.roof_factor(v, v_width, u, u_width, seed)
    elif material == materials.LEAVES:
        factor = materials.leaves_factor(p[0], p[1], p[2], width, seed)
    return red * factor, green * factor, blue * factor


@njit(cache=True, error_model="numpy")
def shade_hits(
    origins: np.ndarray,
    directions: np.ndarray,
    pixel_x: np.ndarray,
    pixel_y: np.ndarray,
    hits: Hits,
    lit: np.ndarray,
    static: Surfaces,
    movers: Surfaces,
    light: Light,
) -> np.ndarray:
    """Linear RGB, float64 [N, 3], of what each ray sees.

    `pixel_x`, `pixel_y`: float64 [N, 3], change of `directions` over one pixel to the right and down;
    `lit`: bool [N], whether the sun shines on the hit.
    """
    out = np.zeros((len(origins), 3))
    for i in range(len(origins)):
        direction = _row(directions, i)
        length = math.sqrt(_dot(direction, direction))
        if hits.owner[i] == 0:
            out[i, 0], out[i, 1], out[i, 2] = sky_colour(
                direction[0] / length, direction[1] / length, direction[2] / length, light
            )
            continue
        # Values, not a choice between tables: counting references to their arrays costs more than the shading.
        t, depth = hits.triangle[i], hits.depth_m[i]
        triangle = _triangle(static, t) if hits.owner[i] == 1 else _triangle(movers, t)
        normal, point = triangle.normal, _along(_row(origins, i), depth, direction)
        facing = _dot(normal, direction)
        x, y = _row(pixel_x, i), _row(pixel_y, i)
        # How the hit moves over the plane when the ray turns by one pixel.
        along_x = _along((0.0, 0.0, 0.0), depth, _along(x, -_dot(normal, x) / facing, direction))
        along_y = _along((0.0, 0.0, 0.0), depth, _along(y, -_dot(normal, y) / facing, direction))
        colour = _albedo(triangle, point, along_x, along_y, light.texture_seed)
        is_leaf = triangle.material == materials.LEAVES
        glow = _irradiance(normal, -1.0 if facing > 0 else 1.0, lit[i], is_leaf, light)
        clear = math.exp(-depth * length / light.haze_m)
        for channel in range(3):
            out[i, channel] = colour[channel] * glow[channel] * clear + HAZE[channel] * (1.0 - clear)
    return out


@njit(cache=True, error_model="numpy")
def _irradiance(normal: Vector, side: float, lit: bool, is_leaf: bool, light: Light) -> Vector:
    """Light that falls on a surface: warm sun by Lambert's law and bluish sky from above, linear RGB."""
    slope = side * _dot(normal, light.sun)
    if is_leaf:
        slope = LEAVES_SOFTNESS + (1.0 - LEAVES_SOFTNESS) * slope
    sun = light.sunlight * max(slope, 0.0) if lit else 0.0
    sky = light.skylight * (0.62 + 0.3 * side * normal[2])
    return sun + 0.9 * sky, 0.95 * sun + 0.98 * sky, 0.85 * sun + 1.15 * sky


@njit(cache=True, error_model="numpy")
def mark_edges(hits: Hits, lit: np.ndarray, static: Surfaces, movers: Surfaces, height: int, width: int) -> np.ndarray:
    """Pixels, bool [H*W], whose surface or shadow differs from a neighbour's: those need more rays."""
    key = np.zeros(height * width, np.int64)
    for i in range(height * width):
        if hits.owner[i] == 1:
            key[i] = 4 * (static.surface[hits.triangle[i]] + 1) + lit[i]
        elif hits.owner[i] == 2:
            key[i] = -4 * (movers.surface[hits.triangle[i]] + 1) - lit[i]
    edge = np.zeros(height * width, np.bool_)
    for row in range(height):
        for column in range(width):
            i = row * width + column
            if column + 1 < width and key[i] != key[i + 1]:
                edge[i] = edge[i + 1] = True
            if row + 1 < height and key[i] != key[i + width]:
                edge[i] = edge[i + width] = True
    return edge
