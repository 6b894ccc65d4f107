"""Meshes of cars: body, cabin, wheels and lamps inside an exact box."""

import numpy as np

from neural_sim.town import materials
from neural_sim.town.mesh import Colour, Mesh, cylinder, fan, loft, merge, quad

PAINTS: tuple[Colour, ...] = (
    (0.55, 0.04, 0.03),
    (0.04, 0.12, 0.42),
    (0.7, 0.7, 0.7),
    (0.03, 0.03, 0.035),
    (0.3, 0.32, 0.34),
    (0.62, 0.48, 0.05),
    (0.05, 0.26, 0.14),
    (0.5, 0.18, 0.04),
)
RUBBER, RIM = (0.02, 0.02, 0.02), (0.35, 0.35, 0.36)
RED_LAMP, WHITE_LAMP, PLATE = (0.75, 0.02, 0.02), (0.95, 0.95, 0.85), (0.8, 0.8, 0.75)

# Along the car as shares of its length, height and half width: x, underside z, shoulder z, top z, width.
BODY_STATIONS = np.array(
    [
        [-0.495, 0.26, 0.44, 0.56, 0.90],
        [-0.465, 0.17, 0.45, 0.62, 0.98],
        [-0.30, 0.14, 0.45, 0.65, 1.00],
        [0.15, 0.14, 0.44, 0.63, 1.00],
        [0.40, 0.15, 0.40, 0.54, 0.98],
        [0.47, 0.17, 0.36, 0.46, 0.93],
        [0.495, 0.24, 0.34, 0.40, 0.85],
    ]
)


def car_mesh(size_m: tuple[float, float, float], paint: Colour) -> Mesh:
    """A car that touches every side of a box of `size_m` (length, width, height); origin at the box centre, x forward.

    Parts are in the unit box first: x in +-0.5, y in +-1 (half widths), z in 0..1.
    """
    parts = [_body(paint), *_cabin(paint), *_lamps()]
    scale = np.array([size_m[0], size_m[1] / 2, size_m[2]])
    shaped = merge(parts)
    triangles = (shaped.triangles_m - [0.0, 0.0, 0.5]) * scale
    body = Mesh(triangles, shaped.uv, shaped.material, shaped.colour, shaped.surface)
    return merge([body, *_wheels(size_m)])


def _body(paint: Colour) -> Mesh:
    x, low, middle, top, width = BODY_STATIONS.T
    points = [(width * 0.96, low), (width, middle), (width * 0.88, top)]
    points += [(-y, z) for y, z in reversed(points)]
    rings = np.stack([np.stack([x, y, z], axis=-1) for y, z in points], axis=1)
    return loft(rings, materials.PLAIN, paint)


def _cabin(paint: Colour) -> list[Mesh]:
    """Four sloping windows with painted pillars, and the roof."""
    low = np.array([[0.23, 0.86, 0.62], [0.23, -0.86, 0.62], [-0.42, -0.86, 0.63], [-0.42, 0.86, 0.63]])
    high = np.array([[0.07, 0.68, 1.0], [0.07, -0.68, 1.0], [-0.29, -0.68, 1.0], [-0.29, 0.68, 1.0]])
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    parts = [quad(high, uv, materials.PLAIN, paint)]
    for i in range(4):
        j = (i + 1) % 4
        parts.append(quad(np.stack([low[i], low[j], high[j], high[i]]), uv, materials.CAR_WINDOW, paint))
    return parts


def _lamps() -> list[Mesh]:
    """Lamps and number plates on the outermost planes of bumper and tail."""
    parts = []
    for x, low, high, colour in ((-0.5, 0.44, 0.55, RED_LAMP), (0.5, 0.33, 0.41, WHITE_LAMP)):
        for side in (1.0, -1.0):
            parts.append(_panel(x, side * 0.48, side * 0.82, low, high, colour))
        parts.append(_panel(x, -0.27, 0.27, 0.29, 0.36, PLATE))
    return parts


def _panel(x: float, y_first: float, y_second: float, low: float, high: float, colour: Colour) -> Mesh:
    corners = [[x, y_first, low], [x, y_second, low], [x, y_second, high], [x, y_first, high]]
    return quad(np.array(corners), np.zeros((4, 2)), materials.PLAIN, colour)


def _wheels(size_m: tuple[float, float, float]) -> list[Mesh]:
    length, width, height = size_m
    radius = min(0.34, 0.24 * height)
    angle = np.linspace(0.0, 2 * np.pi, 8, endpoint=False)
    parts = []
    for x in (-0.3 * length, 0.31 * length):
        for side in (1.0, -1.0):
            rim = np.array([x, side * width / 2, radius - height / 2])
            outer = rim - [0.0, side * 0.01, 0.0]
            inner = rim - [0.0, side * 0.22, 0.0]
            parts.append(cylinder(inner, outer, radius, 12, materials.PLAIN, RUBBER))
            disc = rim + 0.6 * radius * np.stack([np.cos(angle), 0 * angle, np.sin(angle)], axis=-1)
            parts.append(fan(disc, materials.PLAIN, RIM))
    return parts
