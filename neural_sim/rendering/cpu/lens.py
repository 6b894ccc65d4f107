"""Projection of one camera-frame point through any lens, with first and second derivatives, float64.

`view` is the vector of `view_vector`. The lenses are those of `neural_sim.rendering.lenses`, which says what they mean;
here they are in closed form. An angular lens draws (x, y, z) at F (x, y), F = radius(angle) / |(x, y)|, a function of
a = x^2 + y^2 and z whose partial derivatives give all that is needed.
"""

import math

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.layout import JIT
from neural_sim.rendering.cpu.view_vector import (
    A00,
    A01,
    A10,
    A11,
    ANGULAR,
    COEFFICIENT_COUNT,
    COEFFICIENTS,
    CUBIC,
    CX,
    CY,
    DISTORTION,
    FX,
    FY,
    INVERTED,
    LIMIT,
    LINEAR,
    MODEL,
    TABLE,
    TABLE_SIZE,
    U_HIGH,
    U_LOW,
    V_HIGH,
    V_LOW,
)
from neural_sim.rendering.views import NEAR_M

NEWTON_STEPS = 4
# Tangent of the angle off the axis below which F's derivative comes from its series: the quotient has lost its digits.
NEAR_AXIS = 1e-4


@njit(**JIT)
def radial_factor(view: np.ndarray, s: float) -> tuple[float, float, float]:
    """Radial stretch of a perspective lens at squared radius s, and its first two derivatives."""
    k1, k2, k3 = view[DISTORTION], view[DISTORTION + 1], view[DISTORTION + 2]
    k4, k5, k6 = view[DISTORTION + 3], view[DISTORTION + 4], view[DISTORTION + 5]
    below = 1.0 + s * (k4 + s * (k5 + s * k6))
    below_1, below_2 = k4 + s * (2.0 * k5 + s * 3.0 * k6), 2.0 * k5 + 6.0 * k6 * s
    f = (1.0 + s * (k1 + s * (k2 + s * k3))) / below
    f_1 = (k1 + s * (2.0 * k2 + s * 3.0 * k3) - f * below_1) / below
    f_2 = (2.0 * k2 + 6.0 * k3 * s - 2.0 * f_1 * below_1 - f * below_2) / below
    return f, f_1, f_2


@njit(**JIT)
def bend(view: np.ndarray, u: float, v: float) -> tuple[float, float, float, float, float]:
    """Distorted (u, v) of a perspective lens and its Jacobian (du/du, du/dv = dv/du, dv/dv)."""
    p1, p2 = view[DISTORTION + 6], view[DISTORTION + 7]
    f, f_1, _ = radial_factor(view, u * u + v * v)
    x = u * f + 2.0 * p1 * u * v + p2 * (3.0 * u * u + v * v)
    y = v * f + p1 * (u * u + 3.0 * v * v) + 2.0 * p2 * u * v
    d_uu = f + 2.0 * u * u * f_1 + 2.0 * p1 * v + 6.0 * p2 * u
    d_uv = 2.0 * u * v * f_1 + 2.0 * p1 * u + 2.0 * p2 * v
    return x, y, d_uu, d_uv, f + 2.0 * v * v * f_1 + 6.0 * p1 * v + 2.0 * p2 * u


@njit(**JIT)
def bend_curvature(view: np.ndarray, u: float, v: float) -> tuple[float, float, float, float]:
    """Second derivatives of the distortion: x by uu, x by uv (= y by uu), x by vv (= y by uv), y by vv."""
    p1, p2 = view[DISTORTION + 6], view[DISTORTION + 7]
    _, f_1, f_2 = radial_factor(view, u * u + v * v)
    x_uu = 6.0 * u * f_1 + 4.0 * u * u * u * f_2 + 6.0 * p2
    x_uv = 2.0 * v * f_1 + 4.0 * u * u * v * f_2 + 2.0 * p1
    x_vv = 2.0 * u * f_1 + 4.0 * u * v * v * f_2 + 2.0 * p2
    return x_uu, x_uv, x_vv, 6.0 * v * f_1 + 4.0 * v * v * v * f_2 + 6.0 * p1


@njit(**JIT)
def polynomial(view: np.ndarray, x: float) -> tuple[float, float, float]:
    """The angular lens' reference polynomial at x, with its first two derivatives."""
    value, first, half_second = 0.0, 0.0, 0.0
    for power in range(int(view[COEFFICIENT_COUNT]) - 1, -1, -1):
        half_second = half_second * x + first
        first = first * x + value
        value = value * x + view[COEFFICIENTS + power]
    return value, first, 2.0 * half_second


@njit(**JIT)
def radius_of_angle(view: np.ndarray, angle: float) -> tuple[float, float, float]:
    """Radius in the image plane at `angle` (rad) off the axis, with its first two derivatives."""
    if view[INVERTED] == 0.0:
        return polynomial(view, angle)
    place = min(max(angle / view[LIMIT], 0.0), 1.0) * (TABLE_SIZE - 1)
    entry = min(int(place), TABLE_SIZE - 2)
    share = place - entry
    radius = view[TABLE + entry] * (1.0 - share) + view[TABLE + entry + 1] * share
    for _ in range(NEWTON_STEPS):
        value, slope, _ = polynomial(view, radius)
        radius -= (value - angle) / slope
    _, slope, bend_ = polynomial(view, radius)
    return radius, 1.0 / slope, -bend_ / (slope * slope * slope)


@njit(**JIT)
def angular_factor(view: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float, float, float, float]:
    """F and its derivatives by a, z, aa, az, zz at a = x^2 + y^2 and z."""
    a = x * x + y * y
    n, across = a + z * z, math.sqrt(a)
    r, r_1, r_2 = radius_of_angle(view, math.atan2(across, z))
    f_z = -r_1 / n
    f_zz = (r_2 * across + 2.0 * r_1 * z) / (n * n)
    if across < NEAR_AXIS * z:
        # The radius is linear c + cubic c^3 of the angle here; what F_aa adds is below any rounding.
        return view[LINEAR] / z, (view[CUBIC] - view[LINEAR] / 3.0) / (z * z * z), f_z, 0.0, r_1 / (n * n), f_zz
    f = r / across
    f_a = (r_1 * z / n - f) / (2.0 * a)
    bent = r_2 * z / (2.0 * across * n * n)
    f_aa = (bent * z - r_1 * z / (n * n) - 3.0 * f_a) / (2.0 * a)
    return f, f_a, f_z, f_aa, r_1 / (n * n) - bent, f_zz


@njit(**JIT)
def image_point(view: np.ndarray, x: float, y: float, z: float) -> tuple[float, float]:
    """Pixels of a camera-frame point; anything where the lens does not see it."""
    if view[MODEL] == ANGULAR:
        a = x * x + y * y
        across = math.sqrt(a)
        on_axis = across < NEAR_AXIS * z
        f = view[LINEAR] / z if on_axis else radius_of_angle(view, math.atan2(across, z))[0] / across
        u, v = f * x, f * y
        return view[A00] * u + view[A01] * v + view[CX], view[A10] * u + view[A11] * v + view[CY]
    u, v = x / z, y / z
    bent_u, bent_v, _, _, _ = bend(view, u, v)
    return view[FX] * bent_u + view[CX], view[FY] * bent_v + view[CY]


@njit(**JIT)
def depth_if_seen(view: np.ndarray, x: float, y: float, z: float) -> float:
    """Depth of a camera-frame point, m; negative where the lens does not see it, also for NaN."""
    if view[MODEL] == ANGULAR:
        depth = math.sqrt(x * x + y * y + z * z)
        inside = depth >= NEAR_M and math.atan2(math.sqrt(x * x + y * y), z) <= view[LIMIT]
        return depth if inside else -1.0
    inside = z >= NEAR_M and math.sqrt(x * x + y * y) <= view[LIMIT] * z
    return z if inside else -1.0


@njit(**JIT)
def image_jacobian(view: np.ndarray, x: float, y: float, z: float, bounded: bool) -> tuple:
    """Jacobian 2x3, row by row, px / m; `bounded` takes that of a perspective lens inside its limits."""
    if view[MODEL] == ANGULAR:
        f, f_a, f_z, _, _, _ = angular_factor(view, x, y, z)
        uu, uv, vv = f + 2.0 * f_a * x * x, 2.0 * f_a * x * y, f + 2.0 * f_a * y * y
        a00, a01, a10, a11 = view[A00], view[A01], view[A10], view[A11]
        return (
            a00 * uu + a01 * uv,
            a00 * uv + a01 * vv,
            (a00 * x + a01 * y) * f_z,
            a10 * uu + a11 * uv,
            a10 * uv + a11 * vv,
            (a10 * x + a11 * y) * f_z,
        )
    u, v = x / z, y / z
    if bounded:
        u, v = min(max(u, view[U_LOW]), view[U_HIGH]), min(max(v, view[V_LOW]), view[V_HIGH])
    _, _, d_uu, d_uv, d_vv = bend(view, u, v)
    ax, ay = view[FX] / z, view[FY] / z
    return (
        ax * d_uu,
        ax * d_uv,
        -ax * (d_uu * u + d_uv * v),
        ay * d_uv,
        ay * d_vv,
        -ay * (d_uv * u + d_vv * v),
    )


@njit(**JIT)
def angular_curvature(view: np.ndarray, x: float, y: float, z: float, g: tuple) -> tuple[float, float, float]:
    """`jacobian_gradient` of an angular lens."""
    g00, g01, g02, g10, g11, g12 = g
    c00, c01, c02 = view[A00] * g00 + view[A10] * g10, view[A00] * g01 + view[A10] * g11, view[A00] * g02
    c10, c11, c12 = view[A01] * g00 + view[A11] * g10, view[A01] * g01 + view[A11] * g11, view[A01] * g02
    c02, c12 = c02 + view[A10] * g12, c12 + view[A11] * g12
    _, f_a, f_z, f_aa, f_az, f_zz = angular_factor(view, x, y, z)
    trace, mixed, along = c00 + c11, c01 + c10, c02 * x + c12 * y
    square = c00 * x * x + mixed * x * y + c11 * y * y
    common = 2.0 * (f_a * trace + 2.0 * f_aa * square + f_az * along)
    return (
        x * common + 2.0 * f_a * (2.0 * c00 * x + mixed * y) + f_z * c02,
        y * common + 2.0 * f_a * (2.0 * c11 * y + mixed * x) + f_z * c12,
        f_z * trace + 2.0 * f_az * square + f_zz * along,
    )


@njit(**JIT)
def jacobian_gradient(view: np.ndarray, x: float, y: float, z: float, g: tuple) -> tuple[float, float, float]:
    """Gradient with respect to the point of the sum of `g` (2x3, row by row) times the bounded Jacobian."""
    if view[MODEL] == ANGULAR:
        return angular_curvature(view, x, y, z, g)
    g00, g01, g02, g10, g11, g12 = g
    free_u, free_v, fx, fy = x / z, y / z, view[FX], view[FY]
    u = min(max(free_u, view[U_LOW]), view[U_HIGH])
    v = min(max(free_v, view[V_LOW]), view[V_HIGH])
    _, _, d_uu, d_uv, d_vv = bend(view, u, v)
    x_uu, x_uv, x_vv, y_vv = bend_curvature(view, u, v)
    w_uu, w_vv = fx * (g00 - g02 * u), fy * (g11 - g12 * v)
    w_uv = fx * (g01 - g02 * v) + fy * (g10 - g12 * u)
    total = w_uu * d_uu + w_uv * d_uv + w_vv * d_vv
    g_u = w_uu * x_uu + w_uv * x_uv + w_vv * x_vv - fx * g02 * d_uu - fy * g12 * d_uv
    g_v = w_uu * x_uv + w_uv * x_vv + w_vv * y_vv - fx * g02 * d_uv - fy * g12 * d_vv
    g_u, g_v = (g_u if u == free_u else 0.0), (g_v if v == free_v else 0.0)
    scale = 1.0 / (z * z)
    return scale * g_u, scale * g_v, -scale * (total + g_u * free_u + g_v * free_v)
