"""The CPU rasterizer against the dense torch reference, and properties that any rasterizer must have."""

from pathlib import Path

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_sim.gaussians import Gaussians, transform_gaussians
from neural_sim.rendering.cpu.cache import discard_stale_kernels
from neural_sim.rendering.rasterize import RasterizedViews, choose_backend, rasterize

SIZES_PX = [(64, 48), (50, 37), (16, 16), (33, 70), (1, 1)]
PARAMETERS = ("means_m", "quaternions_xyzw", "log_scales", "opacity_logits", "sh")


def random_scene(seed: int, count: int = 250, sh_degree: int = 3) -> Gaussians:
    """Gaussians before, beside and behind the camera; among them needles, specks, giants and opaque walls."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    means = normal(count, 3) * torch.tensor([3.0, 2.0, 3.0]) + torch.tensor([0.0, 0.0, 6.0])
    log_scales = normal(count, 3) * 0.7 - 1.5
    log_scales[:10, 0] += 4.0  # needles
    log_scales[10:20] -= 8.0  # specks
    log_scales[20:24] += 5.0  # giants
    logits = normal(count) * 2.0
    logits[24:40] = 12.0  # opaque
    logits[40:50] = -8.0  # below 1/255
    means[50:60] *= torch.tensor([8.0, 8.0, 1.0])  # beside the image
    return Gaussians(means, normal(count, 4), log_scales, logits, normal(count, (sh_degree + 1) ** 2, 3) * 0.3)


def cameras(width_px: int, height_px: int, views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses [V, 4, 4] near the origin looking along +Z and intrinsics [V, 3, 3] with an off-centre principal point."""
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, :3, 3] = torch.linspace(-0.3, 0.4, 3 * views).reshape(views, 3)
    angle = torch.tensor(0.1)
    poses[-1, 0, 0], poses[-1, 0, 2], poses[-1, 2, 0], poses[-1, 2, 2] = (
        angle.cos(),
        angle.sin(),
        -angle.sin(),
        angle.cos(),
    )
    K = torch.tensor([[50.0, 0.0, width_px / 2 + 1.0], [0.0, 52.0, height_px / 2 - 1.0], [0.0, 0.0, 1.0]])
    return poses, K.repeat(views, 1, 1)


def with_gradients(gaussians: Gaussians, dtype: torch.dtype, device: str) -> Gaussians:
    """A copy whose tensors are leaves that collect gradients."""
    return Gaussians(
        **{n: t.detach().to(device, dtype).clone().requires_grad_() for n, t in gaussians.tensors().items()}
    )


def draw(gaussians: Gaussians, width_px: int, height_px: int, backend: str = "cpu") -> RasterizedViews:
    return rasterize(gaussians, *cameras(width_px, height_px), width_px, height_px, backend=backend)


def draw_with_gradients(
    gaussians: Gaussians, width_px: int, height_px: int, backend: str, dtype: torch.dtype, device: str = "cpu"
) -> tuple[RasterizedViews, dict[str, torch.Tensor]]:
    """Views, and the gradients of a fixed random linear loss over all outputs, by parameter name."""
    leaves, (poses, K) = with_gradients(gaussians, dtype, device), cameras(width_px, height_px)
    poses = poses.to(device, dtype).requires_grad_()
    offset = torch.zeros(len(K), len(gaussians), 2, dtype=dtype, device=device, requires_grad=True)
    views = rasterize(leaves, poses, K.to(device, dtype), width_px, height_px, backend=backend, means_px_offset=offset)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (output * torch.randn(output.shape, generator=generator).to(output)).sum()
        for output in (views.rgb, 0.1 * views.depth_m, views.opacity)
    )
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    leaf_gradients = {name: tensor.grad for name, tensor in leaves.tensors().items()}
    gradients = {**leaf_gradients, "T_camera_world": poses.grad, "means_px_offset": offset.grad}
    return views, {name: gradient for name, gradient in gradients.items() if gradient is not None}


def assert_images_agree(fast: torch.Tensor, exact: torch.Tensor, scale: float) -> None:
    """Equal to float32 rounding, but where rounding decides whether an alpha reaches 1/255: there a splat may flip."""
    error = (fast.double() - exact.double()).abs() / scale
    assert (error > 1e-4).double().mean() < 2e-3, f"{int((error > 1e-4).sum())} pixels differ"
    assert error.max() < 0.02


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("width_px", "height_px"), SIZES_PX)
def test_forward_equals_reference(seed: int, width_px: int, height_px: int) -> None:
    scene = random_scene(seed, sh_degree=seed)
    double = Gaussians(**{name: tensor.double() for name, tensor in scene.tensors().items()})
    poses, K = cameras(width_px, height_px)
    fast = rasterize(scene, poses, K, width_px, height_px, backend="cpu")
    exact = rasterize(double, poses.double(), K.double(), width_px, height_px, backend="reference")
    assert fast.rgb.shape == (2, height_px, width_px, 3)
    assert exact.visible.any()
    assert torch.equal(fast.visible, exact.visible)
    assert_images_agree(fast.rgb, exact.rgb, 1.0)
    assert_images_agree(fast.opacity, exact.opacity, 1.0)
    # Expected depth is a ratio, ill-conditioned where next to nothing was drawn.
    drawn = exact.opacity > 0.02
    assert_images_agree(fast.depth_m[drawn], exact.depth_m[drawn], 10.0)


@pytest.mark.parametrize(("seed", "sh_degree"), [(0, 3), (1, 0), (2, 2), (3, 1)])
def test_gradients_equal_reference(seed: int, sh_degree: int) -> None:
    scene = random_scene(seed, sh_degree=sh_degree)
    _, fast = draw_with_gradients(scene, 50, 37, "cpu", torch.float32)
    _, exact = draw_with_gradients(scene, 50, 37, "reference", torch.float64)
    assert fast.keys() == exact.keys()
    assert set(fast) == {*PARAMETERS, "T_camera_world", "means_px_offset"}
    for name, gradient in exact.items():
        assert gradient.abs().max() > 0, name
        error = (fast[name].double() - gradient).norm() / gradient.norm()
        # Float32 leaves 1e-6 on ordinary splats and 1e-4 on needles, whose covariance is nearly singular.
        assert error < 1e-3, f"{name}: relative error {error:.2e}"


def test_reference_gradients_equal_finite_differences() -> None:
    # Far from the thresholds on alpha and transmittance, where the image is smooth in every parameter.
    generator = torch.Generator().manual_seed(1)
    means = torch.tensor([[0.1, 0.0, 3.0], [-0.2, 0.1, 4.0], [0.0, -0.1, 5.0]]).double()
    quaternions = torch.randn(3, 4, generator=generator).double()
    log_scales = torch.tensor([[1.0, 1.2, 0.8]]).repeat(3, 1).double()
    sh = 0.2 * torch.randn(3, 4, 3, generator=generator).double()
    poses, K = cameras(3, 2, views=1)
    inputs = (means, quaternions, log_scales, torch.tensor([0.0, 0.5, -0.5]).double(), sh, poses.double())

    def outputs(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        views = rasterize(Gaussians(*values[:5]), values[5], K.double(), 3, 2, backend="reference")
        return views.rgb, views.depth_m, views.opacity

    leaves = tuple(value.clone().requires_grad_() for value in inputs)
    assert torch.autograd.gradcheck(outputs, leaves, eps=1e-6, atol=1e-6)


def test_one_gaussian_by_hand() -> None:
    # A tiny splat on a pixel centre: the blur alone gives its footprint, alpha = 0.5 exp(-d^2 / 0.6).
    scene = Gaussians(
        torch.tensor([[0.0, 0.0, 2.0]]),
        torch.tensor([[0.0, 0.0, 0.0, 1.0]]),
        torch.full((1, 3), -20.0),
        torch.zeros(1),
        torch.tensor([[[1.0, 0.0, -9.0]]]),
    )
    K = torch.tensor([[[10.0, 0.0, 2.5], [0.0, 10.0, 1.5], [0.0, 0.0, 1.0]]])
    for backend in ("reference", "cpu"):
        views = rasterize(scene, torch.eye(4)[None], K, 5, 3, backend=backend)
        side, corner = 0.5 * torch.exp(torch.tensor(-1 / 0.6)), 0.5 * torch.exp(torch.tensor(-2 / 0.6))
        expected = torch.zeros(3, 5)
        expected[1, 2], expected[0, 2], expected[2, 2] = 0.5, side, side
        expected[1, 1] = expected[1, 3] = side
        expected[0, 1] = expected[0, 3] = expected[2, 1] = expected[2, 3] = corner
        torch.testing.assert_close(views.opacity[0], expected, atol=1e-6, rtol=1e-5)
        color = torch.tensor([0.5 + 0.28209479, 0.5, 0.0])
        torch.testing.assert_close(views.rgb[0], expected[..., None] * color, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(views.depth_m[0], torch.where(expected > 0, 2.0, 0.0))
        assert views.visible.tolist() == [[True]]


def test_nearer_gaussian_hides_farther_one() -> None:
    red, blue = [[1.5, -9.0, -9.0]], [[-9.0, -9.0, 1.5]]
    scene = Gaussians(
        torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 2.0]]),
        torch.tensor([[0.0, 0.0, 0.0, 1.0]]).repeat(2, 1),
        torch.full((2, 3), 1.0),
        torch.full((2,), 20.0),
        torch.tensor([red, blue]),
    )
    for backend in ("reference", "cpu"):
        pixel = draw(scene, 9, 9, backend).rgb[0, 4, 4]
        assert pixel[2] > 0.9
        assert pixel[0] < 0.01


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_unsound_parameters_are_dropped(name: str, value: float) -> None:
    if name == "opacity_logits" and value == float("inf"):
        pytest.skip("an infinite logit is opacity 1")
    scene = random_scene(0, 60, 1)
    tensors = {key: tensor.clone() for key, tensor in scene.tensors().items()}
    tensors[name][5:9] = value
    if (name, value) == ("log_scales", float("-inf")):
        tensors[name][5:9] = float("nan")
    fast, gradients = draw_with_gradients(Gaussians(**tensors), 30, 20, "cpu", torch.float32)
    kept = torch.ones(60, dtype=torch.bool)
    kept[5:9] = False
    expected = draw(Gaussians(**{key: tensor[kept] for key, tensor in scene.tensors().items()}), 30, 20)
    assert not fast.visible[:, 5:9].any()
    assert torch.equal(fast.rgb, expected.rgb)
    for key, gradient in gradients.items():
        assert gradient.isfinite().all(), key
    assert (gradients[name][5:9] == 0).all()


def test_zero_quaternion_and_overflowing_scale_are_dropped() -> None:
    scene = random_scene(0, 40, 0)
    scene.quaternions_xyzw[3] = 0.0
    scene.log_scales[4] = 100.0
    for backend in ("cpu", "reference"):
        views = draw(scene, 30, 20, backend)
        assert not views.visible[:, 3:5].any()
        assert views.rgb.isfinite().all()


def test_no_gaussians_is_black() -> None:
    views = draw(Gaussians.empty(2), 20, 10)
    assert views.visible.shape == (2, 0)
    for image in (views.rgb, views.depth_m, views.opacity):
        assert (image == 0).all()


def test_result_is_bit_identical_for_any_number_of_threads_and_on_repeat() -> None:
    scene, before = random_scene(4, 2000, 2), numba.get_num_threads()
    results = []
    try:
        for threads in (1, before, before):
            numba.set_num_threads(threads)
            views, gradients = draw_with_gradients(scene, 150, 90, "cpu", torch.float32)
            results.append([views.rgb, views.depth_m, views.opacity, *gradients.values()])
    finally:
        numba.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_offset_moves_the_image() -> None:
    # Principal point and offset both add to the projected centre; splats on the axis keep their shape.
    scene = random_scene(0, 30, 0)
    scene.means_m[:, :2] = 0.0
    poses, K = torch.eye(4)[None], cameras(40, 30, 1)[1]
    shifted_K = K.clone()
    shifted_K[:, :2, 2] += torch.tensor([3.0, -2.0])
    offset = torch.tensor([3.0, -2.0]).expand(1, 30, 2)
    moved = rasterize(scene, poses, K, 40, 30, backend="cpu", means_px_offset=offset)
    expected = rasterize(scene, poses, shifted_K, 40, 30, backend="cpu")
    torch.testing.assert_close(moved.rgb, expected.rgb, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 70), st.integers(1, 70))
def test_opacity_depth_and_color_stay_in_range(seed: int, width_px: int, height_px: int) -> None:
    scene = random_scene(seed, 80, 1)
    views = draw(scene, width_px, height_px)
    assert views.opacity.min() >= 0
    assert views.opacity.max() <= 1
    assert views.rgb.min() >= 0
    assert views.rgb.isfinite().all()
    drawn = views.opacity > 0.01
    assert (views.depth_m[drawn] >= 0.2 * 0.999).all()
    assert (views.depth_m <= scene.means_m[:, 2].max() + 1.0).all()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x * x for x in q) > 0.1),
)
def test_moving_scene_and_camera_together_changes_nothing(seed: int, quaternion: list[float]) -> None:
    scene = random_scene(seed, 100, 0)
    from scipy.spatial.transform import Rotation

    motion = torch.eye(4)
    motion[:3, :3] = torch.from_numpy(Rotation.from_quat(quaternion).as_matrix())
    motion[:3, 3] = torch.tensor([4.0, -3.0, 2.0])
    poses, K = cameras(40, 30)
    still = rasterize(scene, poses, K, 40, 30, backend="cpu")
    moved_poses = poses @ torch.linalg.inv(motion)
    moved = rasterize(transform_gaussians(scene, motion), moved_poses, K, 40, 30, backend="cpu")
    # Rounding of the moved coordinates may flip single splats at the alpha threshold.
    assert (still.rgb - moved.rgb).abs().median() < 1e-4
    assert ((still.rgb - moved.rgb).abs() > 2e-3).float().mean() < 0.02


def test_no_gradient_wanted_gives_the_same_image() -> None:
    scene = random_scene(1)
    with torch.no_grad():
        plain = draw(scene, 64, 48)
    traced, _ = draw_with_gradients(scene, 64, 48, "cpu", torch.float32)
    assert torch.equal(plain.rgb, traced.rgb)
    assert not plain.rgb.requires_grad


def test_backend_choice() -> None:
    name, reason = choose_backend("cpu")
    assert name == "cpu"
    assert "cpu" in reason
    scene = random_scene(0, 20, 0)
    auto = rasterize(scene, *cameras(20, 10), 20, 10)
    assert torch.equal(auto.rgb, draw(scene, 20, 10).rgb)


def test_bad_arguments_are_named() -> None:
    scene = random_scene(0, 20, 0)
    poses, K = cameras(20, 10)
    with pytest.raises(ValueError, match="backend 'vulkan' is unknown; expected auto, cpu, gsplat or reference"):
        rasterize(scene, poses, K, 20, 10, backend="vulkan")
    with pytest.raises(ValueError, match=r"T_camera_world \(2, 4, 4\) and K \(1, 3, 3\)"):
        rasterize(scene, poses, K[:1], 20, 10)
    with pytest.raises(ValueError, match="image of 0x10 px"):
        rasterize(scene, poses, K, 0, 10)
    with pytest.raises(ValueError, match=r"means_px_offset \(1, 20, 2\); expected \(2, 20, 2\)"):
        rasterize(scene, poses, K, 20, 10, means_px_offset=torch.zeros(1, 20, 2))


def test_changed_kernel_sources_discard_compiled_kernels(tmp_path: Path) -> None:
    source, cache = tmp_path / "kernel.py", tmp_path / "cache"
    source.write_text("A = 1")
    cache.mkdir()
    compiled = cache / "kernel.nbc"
    assert discard_stale_kernels((source,), cache)
    compiled.write_text("machine code")
    assert not discard_stale_kernels((source,), cache)
    assert compiled.exists()
    source.write_text("A = 2")
    assert discard_stale_kernels((source,), cache)
    assert not compiled.exists()
