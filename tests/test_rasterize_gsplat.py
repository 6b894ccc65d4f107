"""The gsplat backend: parity with the CPU rasterizer on a GPU, and plain words where there is none."""

import subprocess
import sys

import pytest
import torch

from neural_sim.rendering.gsplat_backend import _replace_unsound, probe_gsplat
from neural_sim.rendering.rasterize import choose_backend, rasterize
from tests.test_rasterize import cameras, draw_with_gradients, random_scene


def test_rendering_imports_neither_numba_nor_gsplat() -> None:
    code = (
        "import sys, neural_sim.rendering.rasterize, neural_sim.rendering.gsplat_backend, "
        "neural_sim.rendering.splat_renderer; "
        "print([name for name in ('numba', 'gsplat') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_reason_is_given() -> None:
    assert probe_gsplat() == "torch sees no CUDA device"
    assert choose_backend("cuda") == (
        "cpu",
        "device is cuda, but torch sees no CUDA device; drawing on the CPU is slower",
    )


def test_unsound_gaussians_are_made_transparent() -> None:
    scene = random_scene(0, 30, 1)
    scene.means_m[2, 0] = float("nan")
    scene.quaternions_xyzw[3] = 0.0
    scene.log_scales[4] = 200.0
    sound = _replace_unsound(scene)
    assert all(tensor.isfinite().all() for tensor in sound.tensors().values())
    assert (torch.sigmoid(sound.opacity_logits[2:5]) < 1 / 255).all()
    assert torch.equal(sound.means_m[5:], scene.means_m[5:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gsplat_equals_cpu() -> None:
    scene, (poses, K) = random_scene(0, 400, 3), cameras(64, 48)
    slow = rasterize(scene, poses, K, 64, 48, backend="cpu")
    fast = rasterize(scene.to("cuda"), poses.cuda(), K.cuda(), 64, 48)
    # gsplat uses fast-math exponentials and may flip splats at the alpha threshold.
    assert (fast.rgb.cpu() - slow.rgb).abs().median() < 1e-4
    assert ((fast.rgb.cpu() - slow.rgb).abs() > 0.01).float().mean() < 0.01
    assert ((fast.opacity.cpu() - slow.opacity).abs() > 0.01).float().mean() < 0.01
    drawn = slow.opacity > 0.1
    assert ((fast.depth_m.cpu() - slow.depth_m).abs()[drawn] > 0.1).float().mean() < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gsplat_gradients_equal_cpu() -> None:
    scene = random_scene(1, 400, 2)
    _, slow = draw_with_gradients(scene, 64, 48, "cpu", torch.float32)
    _, fast = draw_with_gradients(scene, 64, 48, "gsplat", torch.float32, device="cuda")
    for name, gradient in slow.items():
        error = (fast[name].cpu() - gradient).norm() / gradient.norm()
        assert error < 0.02, f"{name}: relative error {error:.2e}"
