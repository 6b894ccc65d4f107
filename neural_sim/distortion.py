"""Lens models beyond the pinhole: OpenCV radial-tangential, equidistant fisheye, and f-theta.

A lens maps a ray (x, y, z) in camera axes to a point of the image plane and back. The first two speak in normalised
image coordinates, pixels being fx x + cx and fy y + cy. F-theta speaks in pixels from the principal point. Every model
says which rays and image points it covers; beyond its field of view a polynomial folds back and means nothing.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from neural_sim.errors import InputError

_NEWTON_STEPS = 30
# Tangent of the widest ray that a perspective lens is asked about, 84 degrees off the axis.
_MAX_TANGENT = 10.0
_TABLE_SIZE = 4001

Points = Float[np.ndarray, "*n 2"]
Rays = Float[np.ndarray, "*n 3"]
Covered = Bool[np.ndarray, "*n"]


@dataclass(frozen=True)
class RadialTangential:
    """OpenCV's model: x' = x (1 + k1 r2 + k2 r4 + k3 r6) / (1 + k4 r2 + k5 r4 + k6 r6) + tangential terms.

    Attributes:
        radial: k1..k3, or k1..k6 of the rational model.
        tangential: p1, p2.
    """

    radial: tuple[float, ...]
    tangential: tuple[float, float] = (0.0, 0.0)
    model = "opencv"

    def __post_init__(self) -> None:
        _require_numbers(self.model, "radial", self.radial, (3, 6))
        _require_numbers(self.model, "tangential", self.tangential, (2,))

    def project(self, rays: Rays) -> tuple[Points, Covered]:
        """Normalised image points of rays, and which of them the lens sees: in front and before it folds back."""
        ahead = rays[..., 2] > 0
        plane = rays[..., :2] / np.where(ahead, rays[..., 2], 1.0)[..., None]
        covered = ahead & (np.linalg.norm(plane, axis=-1) <= self.max_tangent)
        return self._distort(np.where(covered[..., None], plane, 0.0)), covered

    def unproject(self, points: Points) -> tuple[Rays, Covered]:
        """Rays (z = 1) of normalised image points, by Newton's method, and which points the lens reaches."""
        tangents = np.linspace(0.0, self.max_tangent, _TABLE_SIZE)
        radius = np.linalg.norm(points, axis=-1)
        guess = np.interp(radius, tangents * self._radial_factor(tangents**2), tangents)
        plane = points * np.where(radius > 0, guess / np.where(radius > 0, radius, 1.0), 1.0)[..., None]
        for _ in range(_NEWTON_STEPS):
            miss = self._distort(plane) - points
            plane = plane - np.linalg.solve(self._jacobian(plane), miss[..., None])[..., 0]
            plane *= np.minimum(1.0, self.max_tangent / np.maximum(np.linalg.norm(plane, axis=-1), 1e-12))[..., None]
        covered = np.linalg.norm(self._distort(plane) - points, axis=-1) < 1e-9
        return np.concatenate([plane, np.ones_like(plane[..., :1])], axis=-1), covered

    @cached_property
    def max_tangent(self) -> float:
        """Tangent of the widest covered ray: where the radius stops growing, at most `_MAX_TANGENT`."""
        tangents = np.linspace(0.0, _MAX_TANGENT, _TABLE_SIZE)
        shrinking = np.flatnonzero(np.diff(tangents * self._radial_factor(tangents**2)) <= 0)
        return float(tangents[shrinking[0]]) if shrinking.size else _MAX_TANGENT

    def _radial_factor(self, r2: np.ndarray) -> np.ndarray:
        k1, k2, k3, k4, k5, k6 = (*self.radial, 0.0, 0.0, 0.0)[:6]
        above = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        below = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        return above / np.where(below > 1e-6, below, np.inf)

    def _distort(self, plane: Points) -> Points:
        x, y = plane[..., 0], plane[..., 1]
        p1, p2 = self.tangential
        r2 = x * x + y * y
        factor = self._radial_factor(r2)
        bent_x = x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        bent_y = y * factor + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        return np.stack([bent_x, bent_y], axis=-1)

    def _jacobian(self, plane: Points) -> Float[np.ndarray, "*n 2 2"]:
        step = 1e-6
        columns = [
            (self._distort(plane + offset) - self._distort(plane - offset)) / (2 * step)
            for offset in (np.array([step, 0.0]), np.array([0.0, step]))
        ]
        return np.stack(columns, axis=-1)


@dataclass(frozen=True)
class EquidistantFisheye:
    """OpenCV's fisheye model: r' = theta (1 + k1 theta2 + k2 theta4 + k3 theta6 + k4 theta8).

    Attributes:
        coefficients: k1..k4.
        max_angle_rad: widest covered angle off the optical axis, rad.
    """

    coefficients: tuple[float, float, float, float]
    max_angle_rad: float = np.pi / 2
    model = "fisheye"

    def __post_init__(self) -> None:
        _require_numbers(self.model, "coefficients", self.coefficients, (4,))
        _require_angle(self.model, self.max_angle_rad)

    def project(self, rays: Rays) -> tuple[Points, Covered]:
        """Normalised image points of rays, and which of them the lens sees."""
        angle, direction = _polar(rays)
        return _evaluate(self.polynomial, angle)[..., None] * direction, angle <= self.limit_rad

    def unproject(self, points: Points) -> tuple[Rays, Covered]:
        """Unit rays of normalised image points, and which points the lens reaches."""
        radius, direction = _radius(points)
        angle, covered = _invert(self.polynomial, radius, self.limit_rad)
        return _from_polar(angle, direction), covered

    @property
    def polynomial(self) -> tuple[float, ...]:
        """Coefficients of the radius over the angle (rad), from the constant on."""
        k1, k2, k3, k4 = self.coefficients
        return (0.0, 1.0, 0.0, k1, 0.0, k2, 0.0, k3, 0.0, k4)

    @cached_property
    def limit_rad(self) -> float:
        """Widest angle that is seen, rad: `max_angle_rad`, or where the radius stops growing."""
        return _growing_until(self.polynomial, self.max_angle_rad)


@dataclass(frozen=True)
class FTheta:
    """NVIDIA's f-theta lens: radius = poly(theta) pixels, then a 2x2 linear map, from the principal point.

    One of the two polynomials is the reference and exact; the other approximates its inverse and is not used here.

    Attributes:
        angle_to_radius_px: coefficients c0, c1, ... of the radius (px) over the angle (rad).
        radius_px_to_angle: coefficients of the angle (rad) over the radius (px).
        reference: "angle_to_radius" or "radius_to_angle".
        linear: (c, d, e) of [[c, d], [e, 1]].
        max_angle_rad: widest calibrated angle off the optical axis, rad.
    """

    angle_to_radius_px: tuple[float, ...]
    radius_px_to_angle: tuple[float, ...]
    reference: str
    max_angle_rad: float
    linear: tuple[float, float, float] = (1.0, 0.0, 0.0)
    model = "ftheta"

    def __post_init__(self) -> None:
        polynomials = {"angle_to_radius": "angle_to_radius_px", "radius_to_angle": "radius_px_to_angle"}
        if self.reference not in polynomials:
            raise InputError(f"f-theta lens: reference is {self.reference!r}, expected one of {', '.join(polynomials)}")
        name = polynomials[self.reference]
        _require_numbers(self.model, name, getattr(self, name), range(2, 17))
        if not getattr(self, name)[1] > 0:
            raise InputError(f"f-theta lens: {name} starts with slope {getattr(self, name)[1]}, expected more than 0")
        _require_numbers(self.model, "linear", self.linear, (3,))
        _require_angle(self.model, self.max_angle_rad)
        if abs(np.linalg.det(self.linear_map)) < 1e-6:
            raise InputError(f"f-theta lens: the linear map {self.linear} flattens the image; mend the calibration")

    def project(self, rays: Rays) -> tuple[Points, Covered]:
        """Pixels from the principal point of rays, and which of them the lens sees."""
        angle, direction = _polar(rays)
        covered = angle <= self.limit_rad
        if self.reference == "angle_to_radius":
            radius = _evaluate(self.angle_to_radius_px, angle)
        else:
            radius, inverted = _invert(self.radius_px_to_angle, angle, self.limit_px)
            covered &= inverted
        return (radius[..., None] * direction) @ self.linear_map.T, covered

    def unproject(self, points: Points) -> tuple[Rays, Covered]:
        """Unit rays of pixels from the principal point, and which pixels the lens reaches."""
        radius, direction = _radius(points @ np.linalg.inv(self.linear_map).T)
        if self.reference == "angle_to_radius":
            angle, covered = _invert(self.angle_to_radius_px, radius, self.limit_rad)
        else:
            angle = _evaluate(self.radius_px_to_angle, radius)
            covered = (radius <= self.limit_px) & (angle <= self.max_angle_rad)
        return _from_polar(angle, direction), covered

    def resized(self, scale_x: float, scale_y: float) -> "FTheta":
        """The lens for an image scaled by these factors; unequal ones go into the linear map."""
        c, d, e = self.linear
        return FTheta(
            angle_to_radius_px=tuple(value * scale_y for value in self.angle_to_radius_px),
            radius_px_to_angle=tuple(value / scale_y**power for power, value in enumerate(self.radius_px_to_angle)),
            reference=self.reference,
            max_angle_rad=self.max_angle_rad,
            linear=(c * scale_x / scale_y, d * scale_x / scale_y, e),
        )

    @property
    def focal_px(self) -> float:
        """Pixels per radian on the optical axis, along y."""
        if self.reference == "angle_to_radius":
            return float(self.angle_to_radius_px[1])
        return 1.0 / float(self.radius_px_to_angle[1])

    @property
    def linear_map(self) -> Float[np.ndarray, "2 2"]:
        """The 2x2 map from radius times direction to pixels."""
        c, d, e = self.linear
        return np.array([[c, d], [e, 1.0]])

    @cached_property
    def limit_rad(self) -> float:
        """Widest angle that is seen, rad: `max_angle_rad`, or where the radius stops growing."""
        if self.reference == "angle_to_radius":
            return _growing_until(self.angle_to_radius_px, self.max_angle_rad)
        return min(self.max_angle_rad, float(_evaluate(self.radius_px_to_angle, np.asarray(self.limit_px))))

    @cached_property
    def limit_px(self) -> float:
        """Largest radius of the reference polynomial from radius to angle, px: where it stops growing."""
        # A lens of this focal length reaches its widest angle within a few times focal x angle.
        return _growing_until(self.radius_px_to_angle, 8.0 * self.focal_px * self.max_angle_rad)


Distortion = RadialTangential | EquidistantFisheye | FTheta
_MODELS: dict[str, type[Distortion]] = {kind.model: kind for kind in (RadialTangential, EquidistantFisheye, FTheta)}


def distortion_to_json(distortion: Distortion) -> dict[str, Any]:
    """Plain JSON values of the lens; its model name is kept by the camera."""
    fields = {name: getattr(distortion, name) for name in distortion.__dataclass_fields__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def distortion_from_json(model: str, value: Any) -> Distortion:
    """Inverse of `distortion_to_json`. Raises `InputError` on an unknown model or malformed values."""
    if model not in _MODELS:
        expected = ", ".join(repr(name) for name in ("pinhole", *_MODELS))
        raise InputError(f"model {model!r} is not supported; expected one of {expected}")
    if not isinstance(value, dict):
        raise InputError(f"distortion of model {model!r} should be an object, found {type(value).__name__}")
    fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    try:
        return _MODELS[model](**fields)
    except TypeError as error:
        raise InputError(f"distortion of model {model!r} is incomplete ({error}); mend the calibration") from error


def _polar(rays: Rays) -> tuple[Float[np.ndarray, "*n"], Points]:
    """Angle off the optical axis, rad, and unit direction in the image plane (0 on the axis)."""
    radius = np.linalg.norm(rays[..., :2], axis=-1)
    direction = rays[..., :2] / np.where(radius > 0, radius, 1.0)[..., None]
    return np.arctan2(radius, rays[..., 2]), direction


def _from_polar(angle: Float[np.ndarray, "*n"], direction: Points) -> Rays:
    return np.concatenate([np.sin(angle)[..., None] * direction, np.cos(angle)[..., None]], axis=-1)


def _radius(points: Points) -> tuple[Float[np.ndarray, "*n"], Points]:
    radius = np.linalg.norm(points, axis=-1)
    return radius, points / np.where(radius > 0, radius, 1.0)[..., None]


def _evaluate(polynomial: tuple[float, ...], x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return np.polynomial.polynomial.polyval(x, np.asarray(polynomial))


def _growing_until(polynomial: tuple[float, ...], limit: float) -> float:
    """Largest x up to `limit` below which the polynomial grows."""
    x = np.linspace(0.0, limit, _TABLE_SIZE)
    shrinking = np.flatnonzero(np.diff(_evaluate(polynomial, x)) <= 0)
    return float(x[shrinking[0]]) if shrinking.size else limit


def _invert(
    polynomial: tuple[float, ...], y: Float[np.ndarray, "*n"], limit: float
) -> tuple[Float[np.ndarray, "*n"], Covered]:
    """x in 0..limit with polynomial(x) = y, by Newton's method from a table; and where there is one."""
    table = np.linspace(0.0, limit, _TABLE_SIZE)
    values = _evaluate(polynomial, table)
    slope = np.polynomial.polynomial.polyder(np.asarray(polynomial))
    x = np.interp(y, values, table)
    for _ in range(_NEWTON_STEPS):
        gradient = np.polynomial.polynomial.polyval(x, slope)
        step = (_evaluate(polynomial, x) - y) / np.where(np.abs(gradient) > 1e-12, gradient, np.inf)
        x = np.clip(x - step, 0.0, limit)
    tolerance = 1e-9 * (1.0 + np.abs(y))
    return x, np.abs(_evaluate(polynomial, x) - y) < tolerance


def _require_numbers(model: str, name: str, values: Any, lengths: Any) -> None:
    if not isinstance(values, tuple) or len(values) not in lengths:
        raise InputError(f"{model} lens: {name} is {values}, expected {' or '.join(map(str, lengths))} numbers")
    if not all(isinstance(value, int | float) and np.isfinite(value) for value in values):
        raise InputError(f"{model} lens: {name} is {values}, expected finite numbers; mend the calibration")


def _require_angle(model: str, angle_rad: float) -> None:
    if not isinstance(angle_rad, int | float) or not 0 < angle_rad <= np.pi:
        raise InputError(f"{model} lens: max_angle_rad is {angle_rad}, expected an angle in (0, pi]")
