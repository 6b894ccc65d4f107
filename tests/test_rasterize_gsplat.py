"""The gsplat backend: parity with the CPU rasterizer on a GPU, and plain words where there is none."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from neural_sim.distortion import Distortion, EquidistantFisheye, FTheta
from neural_sim.rendering.gsplat_backend import _replace_unsound, probe_gsplat
from neural_sim.rendering.rasterize import Actors, Shutter, choose_backend, rasterize
from tests.test_rasterize import cameras, draw_with_gradients, random_scene
from tests.test_rasterize_cameras import LENSES, moving_scene, moving_setup, owners


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


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"actors": True, "close": True}, "does not draw actors that move while the shutter is open"),
        ({"lens": "opencv", "antialias": True}, "does not draw anti-aliasing through a lens or a rolling shutter"),
        ({"lens": "opencv", "offset": True}, "does not draw gradients of projected centres"),
        ({"lens": "fisheye"}, "does not draw rays beyond 90 degrees"),
        ({"lens": "ftheta"}, "does not draw (rays beyond|an f-theta lens with one)"),
    ],
)
def test_what_gsplat_lacks_is_refused_by_name(wanted: dict, message: str) -> None:
    # Before gsplat is imported: this holds where there is none.
    setup = moving_setup(LENSES[wanted.get("lens", "pinhole")])
    actors = Actors(torch.zeros(20, dtype=torch.long), setup["T_world_actor"], setup["T_world_actor_close"])
    with pytest.raises(ValueError, match=message):
        rasterize(
            random_scene(0, 20, 0),
            setup["T_camera_world"],
            setup["K"],
            50,
            37,
            backend="gsplat",
            lens=LENSES[wanted.get("lens", "pinhole")],
            shutter=Shutter(setup["T_camera_world_close"]) if wanted.get("close") else None,
            actors=actors if wanted.get("actors") else None,
            antialias=wanted.get("antialias", False),
            means_px_offset=torch.zeros(2, 20, 2, requires_grad=True) if wanted.get("offset") else None,
        )


def _narrow(name: str) -> Distortion | None:
    """A lens of the CPU tests, held to the 90 degrees and the two polynomials that gsplat takes."""
    lens = LENSES[name]
    if isinstance(lens, EquidistantFisheye):
        return replace(lens, max_angle_rad=1.5)
    if isinstance(lens, FTheta):
        return FTheta((0.0, 22.0), (0.0, 1 / 22.0), "angle_to_radius", 1.5)
    return lens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["pinhole", "opencv", "fisheye", "ftheta"])
@pytest.mark.parametrize("rolling", [False, True])
def test_gsplat_lenses_equal_cpu(name: str, rolling: bool) -> None:
    # Small splats: there the unscented transform along rays and the linearised lens are the same picture.
    scene, lens = random_scene(2, 400, 1), _narrow(name)
    scene.log_scales[:] = -3.0
    setup = moving_setup(lens)
    cpu, cuda = (
        rasterize(
            scene.to(device),
            setup["T_camera_world"].float().to(device),
            setup["K"].to(device),
            50,
            37,
            lens=lens,
            shutter=Shutter(setup["T_camera_world_close"].float().to(device)) if rolling else None,
        )
        for device in ("cpu", "cuda")
    )
    assert (cuda.rgb.cpu() - cpu.rgb).abs().median() < 1e-3
    assert ((cuda.rgb.cpu() - cpu.rgb).abs() > 0.05).float().mean() < 0.03
    drawn = cpu.opacity > 0.2
    assert ((cuda.depth_m.cpu() - cpu.depth_m).abs()[drawn] > 0.2).float().mean() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("antialias", [False, True])
def test_gsplat_actors_equal_cpu(antialias: bool) -> None:
    scene, setup = moving_scene(5), moving_setup(None)
    setup["T_world_actor"][0, 1] = torch.nan
    cpu, cuda = (
        rasterize(
            scene.to(device),
            setup["T_camera_world"].float().to(device),
            setup["K"].to(device),
            50,
            37,
            actors=Actors(owners(len(scene)).to(device), setup["T_world_actor"].to(device)),
            antialias=antialias,
        )
        for device in ("cpu", "cuda")
    )
    assert (cuda.rgb.cpu() - cpu.rgb).abs().median() < 1e-4
    assert ((cuda.rgb.cpu() - cpu.rgb).abs() > 0.01).float().mean() < 0.01
