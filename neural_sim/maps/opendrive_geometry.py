"""Reference lines and offset profiles of OpenDRIVE roads."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from neural_sim.errors import InputError

# Step along curves without a closed form, m; the error of a spiral over 100 m is below 1 mm.
_CURVE_STEP_M = 0.05


@dataclass(frozen=True)
class Profile:
    """Cubic pieces along a road: value(s) = a + b u + c u^2 + d u^3 with u = s - start of the piece.

    Attributes:
        starts_m: float64 [P], increasing.
        coefficients: float64 [P, 4], a to d.
    """

    starts_m: Float[np.ndarray, "p"]
    coefficients: Float[np.ndarray, "p 4"]

    def at(self, s_m: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """Values at `s_m`; the first piece also holds before its start. Zero without pieces."""
        if len(self.starts_m) == 0:
            return np.zeros(len(s_m))
        piece = np.maximum(np.searchsorted(self.starts_m, s_m + 1e-9, side="right") - 1, 0)
        u = s_m - self.starts_m[piece]
        a, b, c, d = self.coefficients[piece].T
        return a + u * (b + u * (c + u * d))


def read_profile(elements: list[ET.Element], start_name: str, where: str, base_m: float = 0.0) -> Profile:
    """The pieces of `elements` (attributes a to d and their start), `base_m` added to the starts, m."""
    rows = sorted((number(e, start_name, where) + base_m, *(number(e, k, where) for k in "abcd")) for e in elements)
    table = np.array(rows, float).reshape(-1, 5)
    return Profile(table[:, 0], table[:, 1:])


def number(element: ET.Element, name: str, where: str, default: float | None = None) -> float:
    """A finite number from an attribute. Raises `InputError` naming it when it is missing or no number."""
    text = element.get(name)
    if text is None and default is not None:
        return default
    try:
        value = float(text) if text is not None else float("nan")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"{where}: {element.tag} has {name}={text!r}, expected a finite number; mend the file")
    return value


@dataclass(frozen=True)
class ReferenceLine:
    """Where a road runs.

    Attributes:
        s_m: float64 [N], increasing distances along the line.
        xy_m: float64 [N, 2].
        heading_rad: float64 [N], not wrapped at the borders of pieces.
    """

    s_m: Float[np.ndarray, "n"]
    xy_m: Float[np.ndarray, "n 2"]
    heading_rad: Float[np.ndarray, "n"]

    @property
    def length_m(self) -> float:
        """Distance of the last point, m."""
        return float(self.s_m[-1])

    def at(self, s_m: Float[np.ndarray, "m"]) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m"]]:
        """Positions (m) and headings (rad) at `s_m`, linear between the points."""
        x, y = (np.interp(s_m, self.s_m, self.xy_m[:, axis]) for axis in (0, 1))
        return np.stack([x, y], axis=-1), np.interp(s_m, self.s_m, np.unwrap(self.heading_rad))


def read_reference_line(plan_view: ET.Element | None, where: str) -> ReferenceLine:
    """The line of a road's `planView`: straights, arcs, spirals, cubic and parametric cubic curves.

    Raises `InputError` when there is none or a piece is malformed or of another kind.
    """
    pieces = [] if plan_view is None else plan_view.findall("geometry")
    pieces = sorted(pieces, key=lambda piece: number(piece, "s", where))
    parts = [_sample(piece, where) for piece in pieces if number(piece, "length", where) > 0]
    if not parts:
        raise InputError(f"{where}: no geometry of positive length in planView; mend the file")
    for before, after in pairwise(parts):
        if after[0][0] < before[0][-1] - 1e-3:
            raise InputError(f"{where}: geometries overlap at s = {after[0][0]:.3f} m; mend the file")
    s, xy, heading = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = np.concatenate([[True], np.diff(s) > 1e-9])
    return ReferenceLine(s[kept], xy[kept], heading[kept])


def _sample(piece: ET.Element, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, positions and headings of one piece."""
    start, length = number(piece, "s", where), number(piece, "length", where)
    shape = next((child for child in piece if child.tag in _SHAPES), None)
    if shape is None:
        found = ", ".join(child.tag for child in piece) or "nothing"
        raise InputError(f"{where}: geometry at s = {start} is {found}, expected one of {', '.join(_SHAPES)}")
    u, local, turn = _SHAPES[shape.tag](shape, length, where)
    x, y, heading = (number(piece, name, where) for name in ("x", "y", "hdg"))
    cosine, sine = np.cos(heading), np.sin(heading)
    world = local @ np.array([[cosine, sine], [-sine, cosine]]) + [x, y]
    return start + u, world, heading + turn


def _steps(length_m: float) -> Float[np.ndarray, "n"]:
    return np.linspace(0.0, length_m, max(2, int(np.ceil(length_m / _CURVE_STEP_M)) + 1))


def _line(shape: ET.Element, length_m: float, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u = np.array([0.0, length_m])
    return u, np.stack([u, np.zeros(2)], axis=-1), np.zeros(2)


def _bent(u: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The curve from the origin whose heading is `turn` at the distances `u`."""
    middle = np.diff(u)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=-1)[:-1]
    after = np.diff(u)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=-1)[1:]
    return u, np.concatenate([np.zeros((1, 2)), np.cumsum((middle + after) / 2, axis=0)]), turn


def _arc(shape: ET.Element, length_m: float, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, curvature = _steps(length_m), number(shape, "curvature", where)
    if abs(curvature) < 1e-12:
        return _line(shape, length_m, where)
    turn = curvature * u
    return u, np.stack([np.sin(turn), 1 - np.cos(turn)], axis=-1) / curvature, turn


def _spiral(shape: ET.Element, length_m: float, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, last = number(shape, "curvStart", where), number(shape, "curvEnd", where)
    u = _steps(length_m)
    return _bent(u, first * u + (last - first) / (2 * length_m) * u**2)


def _poly3(shape: ET.Element, length_m: float, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, c, d = (number(shape, name, where) for name in "abcd")
    u = _steps(length_m)
    local = np.stack([u, a + u * (b + u * (c + u * d))], axis=-1)
    return _by_length(local, np.arctan(b + u * (2 * c + u * 3 * d)), length_m)


def _param_poly3(shape: ET.Element, length_m: float, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    normalized = shape.get("pRange", "normalized") == "normalized"
    p = _steps(length_m) / (length_m if normalized else 1.0)
    powers, slopes = np.stack([p**0, p, p**2, p**3]), np.stack([0 * p, p**0, 2 * p, 3 * p**2])
    weights = np.array([[number(shape, f"{name}{axis}", where) for name in "abcd"] for axis in "UV"])
    along, across = weights @ slopes
    local = (weights @ powers).T
    return _by_length(local, np.unwrap(np.arctan2(across, along)), length_m)


def _by_length(local: np.ndarray, turn: np.ndarray, length_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A curve with its distances measured along it, stretched to the length that the file gives."""
    u = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(local, axis=0), axis=1))])
    return u * (length_m / max(u[-1], 1e-9)), local, turn


_SHAPES = {"line": _line, "arc": _arc, "spiral": _spiral, "poly3": _poly3, "paramPoly3": _param_poly3}
