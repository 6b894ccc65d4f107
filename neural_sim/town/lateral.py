"""Where in the street a driver wants to be: lane centre, distance to parked cars, a slow drift."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from neural_sim.town.road import STEP_M, Road

DRIFT_WAVES_M = (31.0, 53.0, 90.0)
DRIFT_M = (0.03, 0.06, 0.08)


@dataclass(frozen=True)
class Obstacle:
    """Something that stands at the side of the street and reaches into it.

    Attributes:
        start_m, end_m: along the street, m.
        inner_m: road coordinate d of its inner edge; negative on the right, m.
    """

    start_m: float
    end_m: float
    inner_m: float


@dataclass(frozen=True)
class CarBody:
    """What of a car lies around its reference point.

    Attributes:
        ahead_m, behind_m: reference point to the front and the rear bumper, m.
        half_width_m: m.
    """

    ahead_m: float
    behind_m: float
    half_width_m: float


@dataclass(frozen=True)
class LateralPlan:
    """A wanted path along a street.

    Attributes:
        d_m: float64 [N], road coordinate d of the reference point at every `STEP_M` of the street, m.
    """

    d_m: Float[np.ndarray, "n"]

    @cached_property
    def slope(self) -> Float[np.ndarray, "n"]:
        """First derivative along s."""
        return np.gradient(self.d_m, STEP_M)

    @cached_property
    def bend_per_m(self) -> Float[np.ndarray, "n"]:
        """Second derivative along s, 1/m."""
        return np.gradient(self.slope, STEP_M)

    def at(self, s_m: float) -> tuple[float, float, float]:
        """d (m) and its first (1) and second (1/m) derivative along s at `s_m`."""
        place = min(max(s_m / STEP_M, 0.0), len(self.d_m) - 1.001)
        i = int(place)
        share = place - i
        return (
            float(self.d_m[i] + share * (self.d_m[i + 1] - self.d_m[i])),
            float(self.slope[i] + share * (self.slope[i + 1] - self.slope[i])),
            float(self.bend_per_m[i] + share * (self.bend_per_m[i + 1] - self.bend_per_m[i])),
        )

    def path_curvature(self, road: Road) -> Float[np.ndarray, "n"]:
        """Curvature of the path in the plane, 1/m."""
        return road.curvature_per_m / (1.0 - road.curvature_per_m * self.d_m) + self.bend_per_m


def plan_path(
    base_m: Float[np.ndarray, "n"],
    obstacles: Sequence[Obstacle],
    body: CarBody,
    clearance_m: float,
    blend_m: float,
    direction: float = 1.0,
) -> LateralPlan:
    """The path along `base_m` (d every `STEP_M`) that passes obstacles with `clearance_m` to spare.

    It blends over `blend_m` before and after each. `direction`: +1 when driving along s, -1 against it. Between two
    obstacles that leave less room than wanted, the path takes the middle.
    """
    s_m = np.arange(len(base_m)) * STEP_M
    low, high = np.full(len(s_m), -np.inf), np.full(len(s_m), np.inf)
    before, after = (body.ahead_m, body.behind_m) if direction > 0 else (body.behind_m, body.ahead_m)
    for obstacle in obstacles:
        near = (s_m > obstacle.start_m - before - blend_m / 2) & (s_m < obstacle.end_m + after + blend_m / 2)
        room = clearance_m + body.half_width_m
        if obstacle.inner_m < 0:
            low[near] = np.maximum(low[near], obstacle.inner_m + room)
        else:
            high[near] = np.minimum(high[near], obstacle.inner_m - room)
    with np.errstate(invalid="ignore"):
        wanted = np.where(low > high, (low + high) / 2, np.clip(base_m, low, high))
    return LateralPlan(_blended(wanted, blend_m))


def with_drift(plan: LateralPlan, rng: np.random.Generator, strength: float) -> LateralPlan:
    """The plan with a sideways drift of a few centimetres times `strength`, as people drive."""
    s_m = np.arange(len(plan.d_m)) * STEP_M
    d_m = plan.d_m.copy()
    for wave_m, amplitude_m in zip(DRIFT_WAVES_M, DRIFT_M, strict=True):
        wave_number = 2 * np.pi / (wave_m * rng.uniform(0.85, 1.15))
        d_m += strength * amplitude_m * rng.uniform(0.6, 1.2) * np.sin(wave_number * s_m + rng.uniform(0, 2 * np.pi))
    return LateralPlan(d_m)


def _blended(values: Float[np.ndarray, "n"], blend_m: float) -> Float[np.ndarray, "n"]:
    """Values smoothed by a bell of the given width; its flanks keep curvature continuous."""
    half = max(2, round(blend_m / STEP_M / 2))
    bell = 0.5 + 0.5 * np.cos(np.pi * np.arange(-half, half + 1) / (half + 1))
    padded = np.concatenate([np.full(half, values[0]), values, np.full(half, values[-1])])
    return np.convolve(padded, bell / bell.sum(), mode="valid")
