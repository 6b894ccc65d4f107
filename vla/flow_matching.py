"""Flow matching on normalised actions: t = 0 is noise, t = 1 is data, x_t = t x + (1 - t) e."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vla.policy import PLAN_STEPS

LATEST_TIME = 0.999
BETA_SHAPE = 1.5


def draw_times(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*n"]:
    """Training times t = 0.999 (1 - u), u ~ Beta(1.5, 1): more weight on noisy inputs. CPU float32.

    The distribution function of Beta(a, 1) is u^a, so its inverse draws it from a uniform number.
    """
    u = torch.rand(shape, generator=generator) ** (1.0 / BETA_SHAPE)
    return LATEST_TIME * (1.0 - u)


def draw_noise(
    generators: Sequence[torch.Generator], num_samples: int, temperature: float
) -> Float[Tensor, "b k 64 2"]:
    """Initial noise of K samples per rollout, CPU float32; temperature is its scale (1 is the trained distribution).

    One draw per rollout from its own generator: sample k is the same for every K and however samples are chunked.
    """
    draws = [torch.randn(num_samples, PLAN_STEPS, 2, generator=generator) for generator in generators]
    return temperature * torch.stack(draws)


def interpolate(
    actions: Float[Tensor, "b k 64 2"], noise: Float[Tensor, "b k 64 2"], time: Float[Tensor, "b k"]
) -> tuple[Float[Tensor, "b k 64 2"], Float[Tensor, "b k 64 2"]]:
    """Noisy actions x_t and the velocity x - e that the expert learns."""
    t = time[..., None, None]
    return t * actions + (1.0 - t) * noise, actions - noise


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Float[Tensor, "b k 64 2"], steps: int
) -> Float[Tensor, "b k 64 2"]:
    """Follow the flow from noise to data in `steps` uniform Euler steps."""
    state = noise
    for step in range(steps):
        time = torch.full(state.shape[:2], step / steps, device=state.device)
        state = state + velocity(state, time) / steps
    return state
