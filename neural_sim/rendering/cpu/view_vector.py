"""One camera of a batch as the float64 vector that the kernels read."""

import numpy as np

from neural_sim.distortion import Distortion, EquidistantFisheye, FTheta, RadialTangential
from neural_sim.rendering.lenses import view_limits
from neural_sim.rendering.motion import is_read_by_rows

PINHOLE, PERSPECTIVE, ANGULAR = 0, 1, 2
# Columns for every lens: intrinsics, limits of the Jacobian, image size, kind of lens.
FX, FY, CX, CY, U_LOW, U_HIGH, V_LOW, V_HIGH, WIDTH, HEIGHT, MODEL = range(11)
# 1 for anti-aliasing; the image axis along which lines follow one another, px of the first line, lines per exposure.
ANTIALIAS, SHUTTER_AXIS, SHUTTER_FIRST, SHUTTER_RATE = range(11, 15)
# From the image plane to pixels; largest tangent or angle that is seen.
A00, A01, A10, A11, LIMIT = range(15, 20)
# A perspective lens: k1 to k6, p1, p2.
DISTORTION = 20
# An angular lens: whether its polynomial gives the angle over the radius, first and third power of radius(angle) at 0,
# the polynomial, and for an inverted one its radius at equal steps of the angle up to LIMIT.
INVERTED, LINEAR, CUBIC, COEFFICIENT_COUNT, COEFFICIENTS = 20, 21, 22, 23, 24
MAX_COEFFICIENTS, TABLE_SIZE = 16, 65
TABLE = COEFFICIENTS + MAX_COEFFICIENTS
VIEW_SIZE = TABLE + TABLE_SIZE


def view_vector(
    K: np.ndarray, width_px: int, height_px: int, lens: Distortion | None, direction: str | None, antialias: bool
) -> np.ndarray:
    """Camera matrix, image size, lens and shutter direction (None for a global shutter) as float64 [VIEW_SIZE]."""
    view = np.zeros(VIEW_SIZE)
    view[[FX, FY, CX, CY]] = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    view[U_LOW : V_HIGH + 1] = view_limits(K, width_px, height_px, lens)
    view[[WIDTH, HEIGHT, ANTIALIAS]] = width_px, height_px, antialias
    view[[A00, A11]], view[LIMIT] = (K[0, 0], K[1, 1]), np.inf
    if direction is not None:
        _set_shutter(view, direction, width_px, height_px)
    if isinstance(lens, RadialTangential):
        view[MODEL], view[LIMIT] = PERSPECTIVE, lens.max_tangent
        view[DISTORTION : DISTORTION + len(lens.radial)] = lens.radial
        view[DISTORTION + 6 : DISTORTION + 8] = lens.tangential
    elif lens is not None:
        _set_angular(view, lens)
    return view


def _set_shutter(view: np.ndarray, direction: str, width_px: int, height_px: int) -> None:
    axis = 1 if is_read_by_rows(direction) else 0
    size = height_px if axis else width_px
    rate = 1.0 / max(size - 1, 1)
    forward = direction in ("top-to-bottom", "left-to-right")
    view[SHUTTER_AXIS], view[SHUTTER_FIRST] = axis, 0.5 if forward else size - 0.5
    view[SHUTTER_RATE] = rate if forward else -rate


def _set_angular(view: np.ndarray, lens: EquidistantFisheye | FTheta) -> None:
    view[MODEL], view[LIMIT] = ANGULAR, lens.limit_rad
    if isinstance(lens, EquidistantFisheye):
        coefficients = lens.polynomial
    else:
        view[[A00, A01, A10, A11]] = lens.linear_map.ravel()
        coefficients = lens.angle_to_radius_px
        if lens.reference == "radius_to_angle":
            coefficients = lens.radius_px_to_angle
            _set_inverse(view, lens)
    view[COEFFICIENT_COUNT] = len(coefficients)
    view[COEFFICIENTS : COEFFICIENTS + len(coefficients)] = coefficients
    if not view[INVERTED]:
        _, view[LINEAR], _, view[CUBIC] = (*coefficients, 0.0, 0.0)[:4]


def _set_inverse(view: np.ndarray, lens: FTheta) -> None:
    _, c1, c2, c3 = (*lens.radius_px_to_angle, 0.0, 0.0)[:4]
    view[INVERTED], view[LINEAR], view[CUBIC] = 1.0, 1.0 / c1, (2.0 * c2 * c2 / c1 - c3) / c1**4
    radii = np.linspace(0.0, lens.limit_px, 16 * TABLE_SIZE)
    angles = np.polynomial.polynomial.polyval(radii, np.asarray(lens.radius_px_to_angle))
    view[TABLE:] = np.interp(np.linspace(0.0, lens.limit_rad, TABLE_SIZE), angles, radii)
