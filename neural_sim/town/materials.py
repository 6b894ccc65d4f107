"""Surface colours of the town: one compiled function per material, linear RGB.

Each takes texture coordinates (u, v), their footprints (u_width, v_width) and the mean footprint `width_m`; see
`neural_sim.town.texture`.
"""

import math

import numpy as np
from numba import njit

from neural_sim.town.texture import band, cell_hash, filtered_noise, filtered_noise_3d, stripes

ROAD, PAVEMENT, KERB, GRASS, FACADE, ROOF, LEAVES, PLAIN, CAR_WINDOW, ASPHALT, SIGN = range(11)
# Share of a lidar pulse that comes back from each material, in the order above.
REFLECTIVITY = np.array([0.15, 0.35, 0.4, 0.3, 0.45, 0.35, 0.3, 0.4, 0.05, 0.15, 0.9])

# Line styles of a stretch of ROAD, which stand in the colour of its triangles beside the lane width.
DASHED, SOLID, BARE, ZEBRA = 0.0, 1.0, 2.0, 3.0
PARKING, SECOND_LANE = 0.0, 1.0

DASH_PERIOD_M = 7.5
DASH_LENGTH_M = 3.0
MARKING_WIDTH_M = 0.18
BAY_LENGTH_M = 6.0


@njit(cache=True, error_model="numpy")
def asphalt(x: float, y: float, width_m: float, seed: int) -> float:
    """Brightness of worn asphalt at a world point (m)."""
    coarse = 0.016 * filtered_noise(x, y, 5.3, width_m, seed) + 0.02 * filtered_noise(x, y, 1.5, width_m, seed + 1)
    fine = 0.026 * filtered_noise(x, y, 0.45, width_m, seed + 2) + 0.03 * filtered_noise(x, y, 0.15, width_m, seed + 3)
    return 0.115 + coarse + fine + 0.024 * filtered_noise(x, y, 0.055, width_m, seed + 5)


@njit(cache=True, error_model="numpy")
def repair_patch(s: float, d: float, s_width: float, d_width: float, seed: int) -> float:
    """Share of a pixel covered by a rectangle of newer, darker asphalt; road coordinates, m."""
    cell_s, cell_d = math.floor(s / 8.0), math.floor(d / 2.85)
    if cell_hash(cell_s, cell_d, seed + 11) > 0.4:
        return 0.0
    low_s = 8.0 * cell_s + 3.0 * cell_hash(cell_s, cell_d, seed + 12)
    low_d = 2.85 * cell_d + 0.2 + 0.9 * cell_hash(cell_s, cell_d, seed + 13)
    length = 1.2 + 3.5 * cell_hash(cell_s, cell_d, seed + 14)
    across = 0.7 + 0.9 * cell_hash(cell_s, cell_d, seed + 15)
    return band(s, low_s, low_s + length, s_width) * band(d, low_d, low_d + across, d_width)


@njit(cache=True, error_model="numpy")
def marking(
    s: float, d: float, s_width: float, d_width: float, lane_m: float, centre_style: float, edge_style: float
) -> float:
    """Share of a pixel covered by white paint: centre line, lane edges, ticks between parking bays, zebra bars."""
    if centre_style == ZEBRA:
        return stripes(d + 0.25, 1.0, 0.5, d_width) * band(abs(d), 0.0, 2.0 * lane_m + 0.2, d_width)
    half = MARKING_WIDTH_M / 2
    paint = 0.0
    if centre_style != BARE:
        dash = 1.0 if centre_style == SOLID else stripes(s, DASH_PERIOD_M, DASH_LENGTH_M, s_width)
        paint = band(d, -half, half, d_width) * dash
    side = abs(d)
    if edge_style == PARKING:
        paint += band(side, lane_m - half, lane_m + half, d_width)
        paint += band(side, lane_m, 100.0, d_width) * stripes(s + half, BAY_LENGTH_M, MARKING_WIDTH_M, s_width)
    elif edge_style == SECOND_LANE:
        paint += band(-d, lane_m - half, lane_m + half, d_width) * stripes(s, 4.5, 1.5, s_width)
    return min(1.0, paint)


@njit(cache=True, error_model="numpy")
def road_colour(
    s: float,
    d: float,
    x: float,
    y: float,
    s_width: float,
    d_width: float,
    width_m: float,
    style: tuple[float, float, float],
    seed: int,
) -> tuple[float, float, float]:
    """The carriageway: asphalt, lighter parking strips, repair patches, wheel tracks, paint.

    `style`: lane width (m), centre line, edge line.
    """
    lane_m, centre_style, edge_style = style
    grey = asphalt(x, y, width_m, seed)
    parking = band(abs(d), lane_m, 100.0, d_width) if edge_style == PARKING else 0.0
    grey *= 1.0 + 0.45 * parking
    grey *= 1.0 - 0.42 * repair_patch(s, d, s_width, d_width, seed)
    track = abs(abs(abs(d) - lane_m / 2) - 0.75)
    grey *= 1.0 - 0.14 * band(track, -0.3, 0.3, d_width) * (1.0 - parking)
    paint = marking(s, d, s_width, d_width, lane_m, centre_style, edge_style)
    if paint <= 0.0:
        return grey, grey * 0.99, grey * 1.02
    wear = 0.5 * (1.0 + 0.16 * filtered_noise(x, y, 0.6, width_m, seed + 4))
    return (
        grey + (wear - grey) * paint,
        grey * 0.99 + (wear - grey) * paint,
        grey * 1.02 + (wear * 0.97 - grey) * paint,
    )


@njit(cache=True, error_model="numpy")
def asphalt_colour(x: float, y: float, width_m: float, seed: int) -> tuple[float, float, float]:
    """Carriageway without markings, in junctions."""
    grey = asphalt(x, y, width_m, seed) * (1.0 - 0.3 * repair_patch(x, y, width_m, width_m, seed + 7))
    return grey, grey * 0.99, grey * 1.02


@njit(cache=True, error_model="numpy")
def sign_colour(u: float, v: float, width: float, red: float, green: float, blue: float) -> tuple[float, float, float]:
    """A sign: a coloured rim around a white field with a dark bar; u and v run over -1..1 across it."""
    reach = math.sqrt(u * u + v * v)
    rim = band(reach, 0.72, 9.0, width)
    bar = band(abs(u), -1.0, 0.16, width) * band(abs(v), -1.0, 0.45, width)
    field = 0.85 - 0.78 * bar
    return field + (red - field) * rim, field + (green - field) * rim, field + (blue - field) * rim


@njit(cache=True, error_model="numpy")
def pavement_colour(
    s: float, d: float, x: float, y: float, s_width: float, d_width: float, width_m: float, seed: int
) -> tuple[float, float, float]:
    """Concrete slabs of 0.8 m with joints, each of its own tone."""
    joint = max(stripes(s, 0.8, 0.05, s_width), stripes(d, 0.8, 0.05, d_width))
    near = max(0.0, min(1.0, 1.6 - width_m / 0.8))
    tone = near * (cell_hash(math.floor(s / 0.8), math.floor(d / 0.8), seed + 21) - 0.5)
    broad = 0.1 * filtered_noise(x, y, 2.7, width_m, seed + 22) + 0.12 * filtered_noise(x, y, 0.3, width_m, seed + 23)
    grey = 0.33 * (1.0 + 0.4 * tone + broad) * (1.0 - 0.5 * joint)
    return (grey, grey * 0.96, grey * 0.9)


@njit(cache=True, error_model="numpy")
def grass_colour(x: float, y: float, width_m: float, seed: int) -> tuple[float, float, float]:
    """Lawn with bare patches."""
    tone = (
        1.0 + 0.3 * filtered_noise(x, y, 3.1, width_m, seed + 31) + 0.4 * filtered_noise(x, y, 0.7, width_m, seed + 32)
    )
    tone += 0.35 * filtered_noise(x, y, 0.2, width_m, seed + 33)
    dry = max(0.0, filtered_noise(x, y, 6.5, width_m, seed + 34))
    return ((0.085 + 0.13 * dry) * tone, (0.15 + 0.04 * dry) * tone, 0.045 * tone)


@njit(cache=True, error_model="numpy")
def facade_colour(
    u: float, v: float, u_width: float, v_width: float, red: float, green: float, blue: float, seed: int
) -> tuple[float, float, float]:
    """A wall with one window per bay and storey; u counts bays, v counts storeys.

    Colour decides the style: plaster or brick, window width, frames.
    """
    style = int(red * 7919 + green * 104729 + blue * 1299709)
    wide = 0.42 + 0.2 * cell_hash(style, 1, seed)
    side = (1.0 - wide) / 2
    glass = stripes(u - side, 1.0, wide, u_width) * stripes(v - 0.3, 1.0, 0.5, v_width)
    frame = stripes(u - side + 0.05, 1.0, wide + 0.1, u_width) * stripes(v - 0.25, 1.0, 0.6, v_width)
    cross = stripes(u - 0.48, 1.0, 0.04, u_width)
    bay, storey = math.floor(u), math.floor(v)
    near = max(0.0, min(1.0, 1.6 - max(u_width, v_width)))
    curtain = 0.045 + near * 0.22 * max(0.0, cell_hash(bay, storey, style + seed) - 0.55)
    ledge = stripes(v, 1.0, 0.06, v_width)
    stain = 1.0 + 0.1 * filtered_noise(u, v, 0.9, max(u_width, v_width), style)
    stain += 0.16 * filtered_noise(u, v, 0.13, max(u_width, v_width), style + 1)
    stone = band(v, -1.0, 0.22, v_width)
    wall = stain * (1.0 - 0.3 * ledge) * (1.0 - 0.45 * stone)
    trim = 0.55 if cell_hash(style, 2, seed) > 0.4 else 0.12
    glass *= 1.0 - 0.8 * cross
    rest = 1.0 - frame
    share = frame - glass if frame > glass else 0.0
    return (
        red * wall * rest + trim * share + curtain * 0.9 * glass,
        green * wall * rest + trim * share + curtain * glass,
        blue * wall * rest + trim * share + curtain * 1.15 * glass,
    )


@njit(cache=True, error_model="numpy")
def roof_factor(v: float, v_width: float, u: float, u_width: float, seed: int) -> float:
    """Brightness of rows of tiles; u and v in m."""
    rows = 1.0 - 0.35 * stripes(v, 0.35, 0.09, v_width)
    return rows * (1.0 + 0.22 * filtered_noise(u, v, 0.6, max(u_width, v_width), seed + 41))


@njit(cache=True, error_model="numpy")
def kerb_factor(s: float, s_width: float, x: float, y: float, width_m: float, seed: int) -> float:
    """Brightness of kerb stones of 1 m with dark joints."""
    joint = 1.0 - 0.45 * stripes(s, 1.0, 0.05, s_width)
    return joint * (1.0 + 0.25 * filtered_noise(x, y, 0.5, width_m, seed + 61))


@njit(cache=True, error_model="numpy")
def leaves_factor(x: float, y: float, z: float, width_m: float, seed: int) -> float:
    """Brightness of foliage at a world point (m): light tufts before dark gaps."""
    tuft = 0.7 * filtered_noise_3d(x, y, z, 0.5, width_m, seed + 51)
    return max(0.15, 0.95 + tuft + 0.7 * filtered_noise_3d(x, y, z, 0.2, width_m, seed + 52))


@njit(cache=True, error_model="numpy")
def car_window_share(u: float, v: float, u_width: float, v_width: float) -> float:
    """Share of a pixel covered by the pane of a car window; u and v run over 0..1 across the window."""
    return band(u, 0.07, 0.93, u_width) * band(v, 0.1, 0.88, v_width)
