"""Matrix products of linear layers: on a CPU in float32 through oneDNN, elsewhere as PyTorch does them.

PyTorch sends float32 products on a CPU to MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN uses
AVX-512 on all of them and is twice as fast there (`benchmarks/policy.py` prints both).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

# Below this many rows the set-up of a oneDNN call costs more than it saves.
LEAST_ROWS = 64


class Linear(nn.Linear):
    """`nn.Linear` with the same weights, names and results up to rounding, through `linear`."""

    def forward(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Apply."""
        return linear(input, self.weight, self.bias)


def use_fast_linear(module: nn.Module) -> None:
    """Make every plain `nn.Linear` inside `module` a `Linear`, in place; weights and names stay."""
    for inner in module.modules():
        if type(inner) is nn.Linear:
            inner.__class__ = Linear


def linear(x: Float[Tensor, "*n i"], weight: Float[Tensor, "o i"], bias: Tensor | None = None) -> Float[Tensor, "*n o"]:
    """`x` times the transposed `weight` plus `bias`, differentiable."""
    if not is_fast(x, weight):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def is_fast(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` takes oneDNN for these."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and _has_onednn()
    )


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """The product and its derivatives; oneDNN's operator has none of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_output = gradients[0].contiguous()
        rows = by_output.flatten(0, -2)
        by_x = _product(by_output, weight.T, None) if ctx.needs_input_grad[0] else None
        by_weight = _product(rows.T, x.flatten(0, -2).T, None) if ctx.needs_input_grad[1] else None
        by_bias = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias
