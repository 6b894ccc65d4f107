"""Adam over rows, where only rows that were seen are stepped."""

from collections.abc import Mapping

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-15


class RowAdam:
    """Adam (Kingma and Ba 2015) for tensors that share their first axis, with a step count per row.

    A row that no image shows keeps its moments, so that a street passed long ago does not drift.

    Attributes:
        first, second: moments by tensor name, shaped as the tensors.
        steps: float32 [N], steps taken by each row.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.first = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        some = next(iter(tensors.values()))
        self.steps = torch.zeros(len(some), device=some.device)

    @torch.no_grad()
    def step(
        self, tensors: Mapping[str, Tensor], active: Bool[Tensor, "n"], rates: Mapping[str, Float[Tensor, "n d"]]
    ) -> None:
        """Update `tensors` in place from their `.grad`; `rates` are step sizes, [N, 1] or [N, D] or [1, D]."""
        self.steps += active
        for name, tensor in tensors.items():
            assert tensor.grad is not None
            columns = tensor[0].numel()
            update = _update_torch if tensor.is_cuda else _update_cpu
            value, grad, first, second = (
                each.detach().reshape(len(tensor), columns)
                for each in (tensor, tensor.grad, self.first[name], self.second[name])
            )
            update(value, grad, first, second, self.steps, active, rates[name].expand(len(tensor), columns))

    def select(self, rows: Tensor) -> None:
        """Keep only `rows` (indices or mask), in that order."""
        self.first = {name: tensor[rows] for name, tensor in self.first.items()}
        self.second = {name: tensor[rows] for name, tensor in self.second.items()}
        self.steps = self.steps[rows]

    def append(self, count: int) -> None:
        """Add `count` rows without history."""
        self.first = {name: _with_zero_rows(tensor, count) for name, tensor in self.first.items()}
        self.second = {name: _with_zero_rows(tensor, count) for name, tensor in self.second.items()}
        self.steps = _with_zero_rows(self.steps, count)

    def forget(self, rows: Tensor) -> None:
        """Reset the history of `rows`."""
        for moments in (self.first, self.second):
            for tensor in moments.values():
                tensor[rows] = 0
        self.steps[rows] = 0

    def state(self, prefix: str) -> dict[str, Tensor]:
        """All tensors under names that begin with `prefix`, for a checkpoint."""
        first = {f"{prefix}.first.{name}": tensor for name, tensor in self.first.items()}
        second = {f"{prefix}.second.{name}": tensor for name, tensor in self.second.items()}
        return {**first, **second, f"{prefix}.steps": self.steps}

    def load(self, prefix: str, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned. Raises `KeyError` when a tensor is missing."""
        self.first = {name: state[f"{prefix}.first.{name}"] for name in self.first}
        self.second = {name: state[f"{prefix}.second.{name}"] for name in self.second}
        self.steps = state[f"{prefix}.steps"]


def _with_zero_rows(tensor: Tensor, count: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(count, *tensor.shape[1:])])


def _update_torch(
    tensor: Tensor, grad: Tensor, first: Tensor, second: Tensor, steps: Tensor, active: Tensor, rates: Tensor
) -> None:
    new_first = BETA_1 * first + (1 - BETA_1) * grad
    new_second = BETA_2 * second + (1 - BETA_2) * grad * grad
    count = steps.clamp_min(1)[:, None]
    unbiased = (new_second / (1 - BETA_2**count)).sqrt() + EPSILON
    moved = tensor - rates * new_first / (1 - BETA_1**count) / unbiased
    for old, new in ((tensor, moved), (first, new_first), (second, new_second)):
        old.copy_(torch.where(active[:, None], new, old))


def _update_cpu(
    tensor: Tensor, grad: Tensor, first: Tensor, second: Tensor, steps: Tensor, active: Tensor, rates: Tensor
) -> None:
    arrays = (value.numpy() for value in (tensor, grad.contiguous(), first, second, steps, active, rates))
    _update_rows(*arrays)


@numba.njit(cache=True, parallel=True)
def _update_rows(  # noqa: ANN202 - compiled
    tensor: np.ndarray,
    grad: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    steps: np.ndarray,
    active: np.ndarray,
    rates: np.ndarray,
):
    b1, b2 = np.float32(BETA_1), np.float32(BETA_2)
    one, epsilon = np.float32(1.0), np.float32(EPSILON)
    for i in numba.prange(tensor.shape[0]):
        if not active[i]:
            continue
        unbias_1, unbias_2 = one / (one - b1 ** steps[i]), one / (one - b2 ** steps[i])
        for j in range(tensor.shape[1]):
            g = grad[i, j]
            first[i, j] = b1 * first[i, j] + (one - b1) * g
            second[i, j] = b2 * second[i, j] + (one - b2) * g * g
            tensor[i, j] -= rates[i, j] * first[i, j] * unbias_1 / (np.sqrt(second[i, j] * unbias_2) + epsilon)
