"""Plans as unicycle actions: acceleration and curvature at 10 Hz, in both directions."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vla.errors import PolicyError
from vla.plan_projection import refine_actions
from vla.policy import PLAN_STEP_S, PLAN_STEPS

ACCELERATION_BOUND_MPS2 = 9.8
CURVATURE_BOUND_PER_M = 0.33
SMOOTH_THIRD = 1e-6 / PLAN_STEP_S**6
SMOOTH_SECOND = 1e-4 / PLAN_STEP_S**4
RIDGE_HEADING = 1e-8
RIDGE = 1e-4
# Below these spreads a dimension carries no information and dividing by its spread would only amplify rounding.
LEAST_STD = (0.05, 1e-3)


@dataclass(frozen=True)
class ActionStatistics:
    """Mean and standard deviation of the actions (acceleration m/s^2, curvature 1/m) of the training data.

    Plain numbers rather than buffers: casting a policy to bfloat16 must not round them. The defaults are those of
    the published Alpamayo R1 configuration.
    """

    acceleration_mean: float = 0.02902694707164455
    acceleration_std: float = 0.6810426736454882
    curvature_mean: float = 0.0002692167976330542
    curvature_std: float = 0.026148280660833106

    @property
    def mean(self) -> Float[Tensor, "2"]:
        """Means of (acceleration, curvature), float32."""
        return torch.tensor([self.acceleration_mean, self.curvature_mean])

    @property
    def std(self) -> Float[Tensor, "2"]:
        """Standard deviations of (acceleration, curvature), float32."""
        return torch.tensor([self.acceleration_std, self.curvature_std])

    def normalise(self, actions: Float[Tensor, "*n t 2"]) -> Float[Tensor, "*n t 2"]:
        """Actions in units of their standard deviation."""
        return (actions - self.mean.to(actions)) / self.std.to(actions)

    def denormalise(self, normalised: Float[Tensor, "*n t 2"]) -> Float[Tensor, "*n t 2"]:
        """Inverse of `normalise`."""
        return normalised * self.std.to(normalised) + self.mean.to(normalised)

    @staticmethod
    def fit(actions: Float[Tensor, "n t 2"]) -> "ActionStatistics":
        """Statistics of `actions` over all examples and steps. Raises `PolicyError` on none or non-finite ones."""
        if actions.numel() == 0 or not bool(torch.isfinite(actions).all()):
            raise PolicyError(f"action statistics: expected finite actions, found {tuple(actions.shape)} with gaps")
        flat = actions.reshape(-1, 2).double()
        mean, std = flat.mean(0), flat.std(0, correction=0).clamp_min(torch.tensor(LEAST_STD))
        rounded = torch.stack([mean, std], dim=1).float().flatten().tolist()
        return ActionStatistics(*rounded)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_json`."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "units": ["m/s^2", "1/m"]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "ActionStatistics":
        """Read what `to_json` wrote. Raises `PolicyError` on missing or unusable values."""
        try:
            mean, std = [float(x) for x in value["mean"]], [float(x) for x in value["std"]]
            statistics = ActionStatistics(mean[0], std[0], mean[1], std[1])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise PolicyError(f"action statistics: found {value}, expected mean and std of two values") from error
        if not all(0 < deviation < float("inf") for deviation in std):
            raise PolicyError(f"action statistics: std is {std}, expected two positive values")
        return statistics


def actions_to_plan(actions: Float[Tensor, "*n 64 2"], v0_mps: Float[Tensor, "*n"]) -> Float[Tensor, "*n 64 3"]:
    """Integrate actions (acceleration, curvature) from rest of pose 0 and speed `v0_mps`; trapezoidal in position.

    Returns (x, y, yaw) at 0.1 s to 6.4 s in the rig frame at time 0, m and rad, in the dtype of `actions`. Actions
    are clamped to the bounds first; speed may become negative.
    """
    bound = actions.new_tensor([ACCELERATION_BOUND_MPS2, CURVATURE_BOUND_PER_M])
    acceleration, curvature = torch.clamp(actions, -bound, bound).unbind(-1)
    dt = PLAN_STEP_S
    speed = torch.cat([v0_mps[..., None], v0_mps[..., None] + dt * acceleration.cumsum(-1)], dim=-1)
    arc_m = speed[..., :-1] * dt + acceleration * (0.5 * dt * dt)
    yaw = (curvature * arc_m).cumsum(-1)
    heading = torch.nn.functional.pad(yaw, (1, 0))
    velocity = speed[..., None] * torch.stack([heading.cos(), heading.sin()], dim=-1)
    position = (0.5 * dt * (velocity[..., :-1, :] + velocity[..., 1:, :])).cumsum(-2)
    return torch.cat([position, yaw[..., None]], dim=-1)


def plan_to_actions(plan: Float[Tensor, "n 64 3"], v0_mps: Float[Tensor, "n"]) -> Float[Tensor, "n 64 2"]:
    """Actions whose integral is nearest to `plan`: the regularised inversion, refined on the positions.

    `plan`: (x, y, yaw) at 0.1 s to 6.4 s in the rig frame at time 0. Solved in float64, within the bounds, returned
    in the dtype of `plan`.
    """
    if plan.shape[0] == 0:
        return plan.new_zeros(0, PLAN_STEPS, 2)
    exact, v0 = plan.double(), v0_mps.double()
    start = invert_plan(exact, v0)
    bound = exact.new_tensor([ACCELERATION_BOUND_MPS2, CURVATURE_BOUND_PER_M])
    return refine_actions(torch.clamp(start, -bound, bound), exact, v0, bound).to(plan.dtype)


def invert_plan(plan: Float[Tensor, "n 64 3"], v0_mps: Float[Tensor, "n"]) -> Float[Tensor, "n 64 2"]:
    """Regularised inversion of Alpamayo: smoothed heading, then speed, acceleration and curvature, float64.

    Each step is a ridge regression with differences as smoothness terms; the bounds are not enforced.
    """
    heading = _smooth_heading(_unwrap(plan[..., 2]))
    speed = _solve_speed(plan[..., :2], heading, v0_mps)
    acceleration = (torch.diff(speed, dim=-1) / PLAN_STEP_S) @ _acceleration_smoother().to(speed)
    curvature = _solve_curvature(heading, speed, acceleration)
    return torch.stack([acceleration, curvature], dim=-1)


def projection_error_m(
    plan: Float[Tensor, "n 64 3"], actions: Float[Tensor, "n 64 2"], v0_mps: Float[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Mean distance between each plan and what its actions integrate to, m: how far it lies off the unicycle."""
    reached = actions_to_plan(actions.double(), v0_mps.double())
    return (reached[..., :2] - plan.double()[..., :2]).norm(dim=-1).mean(-1).to(plan.dtype)


def _unwrap(yaw_rad: Tensor) -> Tensor:
    """Continuous headings [n, 64] that start from heading 0."""
    step = torch.diff(yaw_rad, dim=-1, prepend=torch.zeros_like(yaw_rad[..., :1]))
    return torch.atan2(step.sin(), step.cos()).cumsum(-1)


def _difference(columns: int, order: int) -> Tensor:
    """Matrix of the `order`-th difference over `columns` values, float64 [columns - order, columns]."""
    return torch.diff(torch.eye(columns, dtype=torch.float64), n=order, dim=0)


@lru_cache(maxsize=1)
def _third_difference_gram() -> Tensor:
    """SMOOTH_THIRD times D3'D3 over the fixed first value and the 64 unknowns, float64 [65, 65]."""
    difference = _difference(PLAN_STEPS + 1, 3)
    return SMOOTH_THIRD * difference.T @ difference


@lru_cache(maxsize=1)
def _second_difference_gram() -> Tensor:
    """SMOOTH_SECOND times D2'D2 plus the ridge over 64 unknowns, float64 [64, 64]."""
    difference = _difference(PLAN_STEPS, 2)
    return SMOOTH_SECOND * difference.T @ difference + RIDGE * torch.eye(PLAN_STEPS, dtype=torch.float64)


@lru_cache(maxsize=1)
def _heading_smoother() -> Tensor:
    identity = torch.eye(PLAN_STEPS, dtype=torch.float64)
    return torch.linalg.inv((1.0 + RIDGE_HEADING) * identity + _third_difference_gram()[1:, 1:])


@lru_cache(maxsize=1)
def _acceleration_smoother() -> Tensor:
    return torch.linalg.inv(torch.eye(PLAN_STEPS, dtype=torch.float64) + _second_difference_gram())


def _smooth_heading(yaw_rad: Tensor) -> Tensor:
    """Smoothed headings [n, 65] from headings [n, 64]; the first is fixed at 0."""
    return torch.nn.functional.pad(yaw_rad @ _heading_smoother().to(yaw_rad), (1, 0))


def _solve_speed(position_m: Tensor, heading_rad: Tensor, v0_mps: Tensor) -> Tensor:
    """Speeds [n, 65] whose trapezoidal integral along the headings meets the positions; the first is `v0_mps`."""
    unit = torch.stack([heading_rad.cos(), heading_rad.sin()], dim=-1)
    step = torch.diff(position_m, dim=-2, prepend=torch.zeros_like(position_m[:, :1]))
    target = (2.0 / PLAN_STEP_S) * step
    gram_third = _third_difference_gram().to(step)
    # Row t couples v_t and v_{t+1}, so the normal matrix is tridiagonal plus the smoothness term.
    diagonal = torch.full_like(heading_rad[:, 1:], 2.0 + RIDGE)
    diagonal[:, -1] -= 1.0
    coupling = (unit[:, 1:-1] * unit[:, 2:]).sum(-1)
    normal = (
        torch.diag_embed(diagonal)
        + torch.diag_embed(coupling, offset=1)
        + torch.diag_embed(coupling, offset=-1)
        + gram_third[1:, 1:]
    )
    following = torch.nn.functional.pad(target[:, 1:], (0, 0, 0, 1))
    right = (unit[:, 1:] * (target + following)).sum(-1) - v0_mps[:, None] * gram_third[1:, 0]
    right[:, 0] -= v0_mps * (unit[:, 0] * unit[:, 1]).sum(-1)
    solved = _solve_positive(normal, right)
    return torch.cat([v0_mps[:, None], solved], dim=-1)


def _solve_curvature(heading_rad: Tensor, speed_mps: Tensor, acceleration_mps2: Tensor) -> Tensor:
    """Curvatures [n, 64] that turn the arc lengths into the heading steps."""
    arc_m = speed_mps[:, :-1] * PLAN_STEP_S + acceleration_mps2 * (0.5 * PLAN_STEP_S**2)
    normal = torch.diag_embed(arc_m * arc_m) + _second_difference_gram().to(arc_m)
    return _solve_positive(normal, arc_m * torch.diff(heading_rad, dim=-1))


def _solve_positive(normal: Tensor, right: Tensor) -> Tensor:
    """Solve batched symmetric positive definite systems [n, m, m] x = [n, m]."""
    return torch.cholesky_solve(right[..., None], torch.linalg.cholesky(normal))[..., 0]
