"""Projection of a plan onto the unicycle: Gauss-Newton on the positions, from the regularised inversion.

The inversion takes headings from the plan's yaw alone. Recorded poses whose yaw and direction of travel differ by a
degree (slip, a tilted sensor, a blended recovery) then drift sideways by decimetres over 6.4 s. Here actions
x = (a, k) minimise

    sum |p_i(x) - p_i|^2 + w sum (th_i(x) - yaw_i)^2 + la |D2 a|^2 + lk |D2 k|^2 + ridge,

so that positions are met to millimetres and yaw follows where it agrees. With v, s, th and p as in
`action_space.actions_to_plan` and L the lower triangle of ones: dv/da = dt L, ds/da = dt^2 (L - I/2),
dth/da = L diag(k) ds/da, dth/dk = L diag(s), and dp follows from d(v u(th)) = u dv + v n dth, n = (-sin th, cos th).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vla.policy import PLAN_STEP_S, PLAN_STEPS

YAW_WEIGHT_M2 = 0.1
SMOOTH_ACCELERATION = 1e-2
SMOOTH_CURVATURE = 1.0
RIDGE_ACCELERATION = 1e-6
RIDGE_CURVATURE = 1e-4


@dataclass(frozen=True)
class _Constants:
    """Matrices that no plan changes, float64: L, ds/da and the quadratic form of the regularisers."""

    lower: Tensor
    arc_by_acceleration: Tensor
    regulariser: Tensor


@lru_cache(maxsize=1)
def _constants() -> _Constants:
    identity = torch.eye(PLAN_STEPS, dtype=torch.float64)
    lower = torch.tril(torch.ones_like(identity))
    second = torch.diff(identity, n=2, dim=0)
    smooth = second.T @ second
    regulariser = torch.block_diag(
        SMOOTH_ACCELERATION * smooth + RIDGE_ACCELERATION * identity,
        SMOOTH_CURVATURE * smooth + RIDGE_CURVATURE * identity,
    )
    return _Constants(lower, PLAN_STEP_S**2 * (lower - 0.5 * identity), regulariser)


def refine_actions(
    actions: Float[Tensor, "n 64 2"],
    plan: Float[Tensor, "n 64 3"],
    v0_mps: Float[Tensor, "n"],
    bound: Float[Tensor, "2"],
    iterations: int = 2,
) -> Float[Tensor, "n 64 2"]:
    """Actions, clamped to `bound`, whose integral is nearer to `plan` (x, y, yaw); all float64.

    A plan that the iterations bring no nearer keeps the actions it came with.
    """
    started, best = _residuals(actions, plan, v0_mps), actions
    for _ in range(iterations):
        refined = _gauss_newton_step(best, plan, v0_mps)
        best = torch.clamp(refined, -bound, bound)
    nearer = _residuals(best, plan, v0_mps) < started
    return torch.where(nearer[:, None, None], best, actions)


def _gauss_newton_step(actions: Tensor, plan: Tensor, v0_mps: Tensor) -> Tensor:
    constants = _constants()
    regulariser = constants.regulariser.to(actions)
    speed, arc_m, heading = _states(actions, v0_mps)
    position_by_action, heading_by_action = _jacobians(actions[..., 1], speed, arc_m, heading)
    position_left = (plan[..., :2] - _positions(speed, heading).mT).mT.flatten(1)
    yaw_left = plan[..., 2] - heading[:, 1:]
    yaw_left = torch.atan2(yaw_left.sin(), yaw_left.cos())
    unknowns = actions.mT.flatten(1)
    normal = position_by_action.mT @ position_by_action + regulariser
    normal = normal + YAW_WEIGHT_M2 * heading_by_action.mT @ heading_by_action
    right = _transposed_product(position_by_action, position_left) - unknowns @ regulariser
    right = right + YAW_WEIGHT_M2 * _transposed_product(heading_by_action, yaw_left)
    factor, failed = torch.linalg.cholesky_ex(normal)
    step = torch.cholesky_solve(right[..., None], factor)[..., 0]
    # Plans of absurd speed make a matrix that rounding no longer leaves positive; they keep what they have.
    step = torch.where((failed == 0)[:, None] & step.isfinite(), step, torch.zeros_like(step))
    return (unknowns + step).view(-1, 2, PLAN_STEPS).mT


def _states(actions: Tensor, v0_mps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Speeds [n, 65], arc lengths [n, 64] and headings [n, 65] of actions [n, 64, 2]."""
    acceleration, curvature = actions.unbind(-1)
    speed = v0_mps[:, None] + PLAN_STEP_S * functional.pad(acceleration.cumsum(-1), (1, 0))
    arc_m = speed[:, :-1] * PLAN_STEP_S + acceleration * (0.5 * PLAN_STEP_S**2)
    return speed, arc_m, functional.pad((curvature * arc_m).cumsum(-1), (1, 0))


def _positions(speed: Tensor, heading: Tensor) -> Tensor:
    """Positions [n, 2, 64]."""
    velocity = speed[:, None] * torch.stack([heading.cos(), heading.sin()], dim=1)
    return (0.5 * PLAN_STEP_S * (velocity[..., :-1] + velocity[..., 1:])).cumsum(-1)


def _jacobians(curvature: Tensor, speed: Tensor, arc_m: Tensor, heading: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of positions [n, 128, 128] (all x, then all y) and headings [n, 64, 128] by (a, k)."""
    constants = _constants()
    lower, arc_by_acceleration = constants.lower.to(speed), constants.arc_by_acceleration.to(speed)
    speed_by_action = functional.pad(PLAN_STEP_S * lower, (0, PLAN_STEPS, 1, 0))
    by_acceleration = (curvature[:, :, None] * arc_by_acceleration).cumsum(1)
    heading_by_action = torch.cat([by_acceleration, lower * arc_m[:, None]], dim=-1)
    padded = functional.pad(heading_by_action, (0, 0, 1, 0))
    unit = torch.stack([heading.cos(), heading.sin()], dim=1)[..., None]
    normal = torch.stack([-heading.sin(), heading.cos()], dim=1)[..., None]
    velocity_by_action = unit * speed_by_action + (speed[:, None, :, None] * normal) * padded[:, None]
    steps = 0.5 * PLAN_STEP_S * (velocity_by_action[:, :, :-1] + velocity_by_action[:, :, 1:])
    return steps.cumsum(2).flatten(1, 2), heading_by_action


def _transposed_product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix.mT @ vector[..., None])[..., 0]


def _residuals(actions: Tensor, plan: Tensor, v0_mps: Tensor) -> Tensor:
    """Sum of squared position errors of each plan, m^2."""
    speed, _, heading = _states(actions, v0_mps)
    return (_positions(speed, heading).mT - plan[..., :2]).square().sum(dim=(1, 2))
