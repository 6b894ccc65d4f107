import pytest
import torch
from torch.nn import functional
from vla_examples import SMALL, seeded

from vla.backbone import load_backbone
from vla.linear import LEAST_ROWS, Linear, is_fast, linear, use_fast_linear
from vla.vision_attention import BatchedVisionAttention


@pytest.mark.parametrize("shape", [(3, 70, 24), (200, 24), (4, 24), (0, 24)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_and_derivatives_equal_those_of_pytorch(shape, has_bias):
    random = seeded(0)[0]
    x, weight = torch.randn(shape, generator=random), torch.randn(16, 24, generator=random)
    bias = torch.randn(16, generator=random) if has_bias else None
    leaves = [part.requires_grad_() for part in (x, weight, bias) if part is not None]
    found, expected = linear(x, weight, bias), functional.linear(x, weight, bias)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(expected.shape, generator=random)
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_strided_inputs_and_frozen_weights():
    random = seeded(0)[0]
    x = torch.randn(100, 48, generator=random)[:, ::2].requires_grad_()
    weight = torch.randn(24, 16, generator=random).T
    found = linear(x, weight)
    torch.testing.assert_close(found, functional.linear(x, weight))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).expand(100, -1))


def test_only_large_float32_products_on_the_cpu_take_the_fast_way():
    weight = torch.zeros(8, 8)
    assert is_fast(torch.zeros(LEAST_ROWS, 8), weight) == torch.backends.mkldnn.is_available()
    assert not is_fast(torch.zeros(LEAST_ROWS - 1, 8), weight)
    assert not is_fast(torch.zeros(LEAST_ROWS, 8, dtype=torch.float64), weight.double())
    assert not is_fast(torch.zeros(LEAST_ROWS, 8, dtype=torch.bfloat16), weight.bfloat16())
    assert not is_fast(torch.zeros(LEAST_ROWS, 8, device="meta"), weight.to("meta"))


def test_layers_keep_their_names_and_weights():
    plain = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU())
    before = dict(plain.named_parameters())
    use_fast_linear(plain)
    assert isinstance(plain[0], Linear)
    assert all(parameter is before[name] for name, parameter in plain.named_parameters())


@torch.no_grad()
def test_images_attend_to_themselves_alone_in_one_kernel():
    backbone, _ = load_backbone(SMALL, seed=0)
    visual = backbone.model.model.visual
    assert sum(isinstance(module, BatchedVisionAttention) for module in visual.modules()) == len(visual.blocks)
    patches = torch.randn(3 * 8, 1536, generator=seeded(0)[0])
    grid = torch.tensor([[1, 2, 4]]).expand(3, 3)
    together = visual(patches, grid_thw=grid, return_dict=True).pooler_output
    # One image at a time, and images of two sizes, which take the library's own loop.
    for place in range(3):
        alone = visual(patches[8 * place : 8 * place + 8], grid_thw=grid[:1], return_dict=True).pooler_output
        torch.testing.assert_close(together[2 * place : 2 * place + 2], alone, atol=1e-5, rtol=1e-4)
    mixed = torch.cat([patches[:8], torch.randn(16, 1536, generator=seeded(1)[0])])
    sizes = torch.tensor([[1, 2, 4], [1, 4, 4]])
    torch.testing.assert_close(
        visual(mixed, grid_thw=sizes, return_dict=True).pooler_output[:2], together[:2], atol=1e-5, rtol=1e-4
    )
