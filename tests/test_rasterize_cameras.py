"""Lenses, rolling shutter, moving bodies, anti-aliasing: kernels against the reference, the reference against truth."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from neural_sim.cameras import SHUTTER_DIRECTIONS, Camera
from neural_sim.distortion import Distortion, EquidistantFisheye, FTheta, RadialTangential
from neural_sim.frames import interpolate_poses, invert_pose
from neural_sim.gaussians import Gaussians, transform_gaussians
from neural_sim.rendering.lenses import image_points, seen
from neural_sim.rendering.motion import SHUTTER_KNOTS, interpolate_rigid
from neural_sim.rendering.rasterize import Actors, RasterizedViews, Shutter, rasterize
from tests.test_rasterize import PARAMETERS, assert_images_agree, cameras, random_scene, with_gradients

OPENCV = RadialTangential((-0.25, 0.08, -0.01), (0.002, -0.003))
RATIONAL = RadialTangential((0.4, 0.1, 0.02, 0.6, 0.2, 0.01), (-0.001, 0.002))
FISHEYE = EquidistantFisheye((0.02, -0.01, 0.003, -0.0005), max_angle_rad=1.75)
FTHETA = FTheta((0.0, 22.0, 0.3, -1.1, 0.02), (), "angle_to_radius", 1.9, linear=(1.02, 0.01, -0.02))
FTHETA_INVERSE = FTheta((), (0.0, 0.045, 1e-5, 4e-6, 1e-8), "radius_to_angle", 1.9)
LENSES: dict[str, Distortion | None] = {
    "pinhole": None,
    "opencv": OPENCV,
    "rational": RATIONAL,
    "fisheye": FISHEYE,
    "ftheta": FTHETA,
    "ftheta_inverse": FTHETA_INVERSE,
}
WIDTH_PX, HEIGHT_PX = 50, 37
POSES = ("T_camera_world", "T_camera_world_close", "T_world_actor", "T_world_actor_close")


def rigid(rotation_vector: list[float], translation_m: list[float]) -> torch.Tensor:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(rotation_vector).as_matrix(), translation_m
    return torch.from_numpy(pose)


def moving_setup(lens: Distortion | None) -> dict[str, torch.Tensor]:
    """Poses of two cameras and of two bodies when the shutter opens and closes, float64, and intrinsics."""
    poses, K = cameras(WIDTH_PX, HEIGHT_PX)
    if lens is not None and lens.model == "fisheye":
        K[:, 0, 0] = K[:, 1, 1] = 20.0
    camera_step = rigid([0.02, -0.03, 0.01], [0.05, -0.04, 0.3])
    bodies = torch.stack([rigid([0.3, -0.2, 0.9], [1.0, 0.5, 5.0]), rigid([0.0, 0.4, -0.2], [-1.5, -0.2, 4.0])])
    body_step = rigid([0.0, 0.03, 0.05], [0.2, 0.3, -0.1])
    return {
        "T_camera_world": poses.double(),
        "T_camera_world_close": camera_step @ poses.double(),
        "T_world_actor": bodies.repeat(2, 1, 1, 1),
        "T_world_actor_close": (bodies @ body_step).repeat(2, 1, 1, 1),
        "K": K,
    }


def owners(count: int) -> torch.Tensor:
    """A third each for the world and two bodies."""
    return torch.arange(count) * 3 // max(count, 1)


def moving_scene(seed: int, count: int = 240, sh_degree: int = 2) -> Gaussians:
    """A random scene whose bodies are gathered around their own origins."""
    scene = random_scene(seed, count, sh_degree)
    scene.means_m[owners(count) > 0] = scene.means_m[owners(count) > 0] * 0.3 - torch.tensor([0.0, 0.0, 1.5])
    return scene


def draw_moving(
    gaussians: Gaussians,
    setup: dict[str, torch.Tensor],
    lens: Distortion | None,
    backend: str,
    direction: str = "top-to-bottom",
    antialias: bool = False,
    offset: torch.Tensor | None = None,
) -> RasterizedViews:
    bodies = Actors(owners(len(gaussians)), setup["T_world_actor"], setup["T_world_actor_close"])
    return rasterize(
        gaussians,
        setup["T_camera_world"],
        setup["K"],
        WIDTH_PX,
        HEIGHT_PX,
        backend=backend,
        lens=lens,
        shutter=Shutter(setup["T_camera_world_close"], direction),
        actors=bodies,
        antialias=antialias,
        means_px_offset=offset,
    )


def random_loss(views: RasterizedViews) -> torch.Tensor:
    """A fixed random linear function of all outputs."""
    generator = torch.Generator().manual_seed(7)
    outputs = (views.rgb, 0.1 * views.depth_m, views.opacity)
    return torch.stack([(o * torch.randn(o.shape, generator=generator).to(o)).sum() for o in outputs]).sum()


def assert_views_agree(fast: RasterizedViews, exact: RasterizedViews) -> None:
    assert torch.equal(fast.visible, exact.visible)
    assert_images_agree(fast.rgb, exact.rgb, 1.0)
    assert_images_agree(fast.opacity, exact.opacity, 1.0)
    drawn = exact.opacity > 0.02
    assert_images_agree(fast.depth_m[drawn], exact.depth_m[drawn], 10.0)


def as_double(gaussians: Gaussians) -> Gaussians:
    return Gaussians(**{name: tensor.double() for name, tensor in gaussians.tensors().items()})


@pytest.mark.parametrize("name", LENSES)
@pytest.mark.parametrize("antialias", [False, True])
def test_lens_forward_equals_reference(name: str, antialias: bool) -> None:
    scene, setup = random_scene(1, sh_degree=2), moving_setup(LENSES[name])
    arguments = (setup["T_camera_world"], setup["K"], WIDTH_PX, HEIGHT_PX)
    options = {"lens": LENSES[name], "antialias": antialias}
    fast = rasterize(scene, *arguments, backend="cpu", **options)
    exact = rasterize(as_double(scene), *arguments, backend="reference", **options)
    assert exact.visible.sum() > 100
    assert_views_agree(fast, exact)


@pytest.mark.parametrize("direction", SHUTTER_DIRECTIONS)
@pytest.mark.parametrize("name", ["pinhole", "opencv", "ftheta"])
def test_moving_forward_equals_reference(name: str, direction: str) -> None:
    scene, setup = moving_scene(2), moving_setup(LENSES[name])
    fast = draw_moving(scene, setup, LENSES[name], "cpu", direction)
    exact = draw_moving(as_double(scene), setup, LENSES[name], "reference", direction)
    for body in range(3):
        assert exact.visible[:, owners(len(scene)) == body].sum() > 10
    assert_views_agree(fast, exact)


@pytest.mark.parametrize(("name", "antialias"), [(name, i % 2 == 1) for i, name in enumerate(LENSES)])
def test_gradients_equal_reference(name: str, antialias: bool) -> None:
    results = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        scene, setup = with_gradients(moving_scene(3), dtype, "cpu"), moving_setup(LENSES[name])
        poses = [key for key in setup if key != "K"]
        for key in poses:
            setup[key].requires_grad_()
        offset = torch.zeros(2, len(scene), 2, dtype=dtype, requires_grad=True)
        random_loss(draw_moving(scene, setup, LENSES[name], backend, antialias=antialias, offset=offset)).backward()
        leaves = {**scene.tensors(), **{key: setup[key] for key in poses}, "offset": offset}
        results.append({key: leaf.grad for key, leaf in leaves.items()})
    fast, exact = results
    assert set(exact) == {*PARAMETERS, "offset", *poses}
    for key, gradient in exact.items():
        assert gradient.abs().max() > 0, key
        error = (fast[key].double() - gradient).norm() / gradient.norm()
        assert error < 2e-3, f"{key}: relative error {error:.2e}"


@pytest.mark.parametrize("name", LENSES)
def test_reference_gradients_equal_finite_differences(name: str) -> None:
    # Large faint splats, far from the thresholds on alpha and transmittance: the image is smooth in every input.
    generator = torch.Generator().manual_seed(1)
    values = {
        "means_m": torch.tensor([[0.4, 0.3, 3.0], [-0.5, 0.1, -0.6], [0.3, -0.4, 0.2]]).double(),
        "quaternions_xyzw": torch.randn(3, 4, generator=generator).double(),
        "log_scales": torch.tensor([[0.5, 0.7, 0.3], [0.4, 0.1, 0.2], [0.2, 0.4, 0.3]]).double(),
        "opacity_logits": torch.tensor([0.0, 0.5, -0.5]).double(),
        "sh": 0.2 * torch.randn(3, 4, 3, generator=generator).double(),
        # Derivatives along rigid motions: other changes of a matrix leave the set that poses come from.
        **{key: torch.zeros(6).double() for key in POSES},
    }
    leaves = {key: value.clone().requires_grad_() for key, value in values.items()}
    smooth_loss(leaves, LENSES[name]).backward()
    for key, value in values.items():
        direction = torch.randn(value.shape, generator=generator).double()
        with torch.no_grad():
            high, low = (smooth_loss({**values, key: value + s * 1e-5 * direction}, LENSES[name]) for s in (1, -1))
        gradient = leaves[key].grad
        assert gradient is not None
        expected, found = float((high - low) / 2e-5), float((gradient * direction).sum())
        assert abs(expected) > 1e-4, key
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6), key


def smooth_loss(values: dict[str, torch.Tensor], lens: Distortion | None) -> torch.Tensor:
    """`random_loss` of three splats in three frames, whose poses move by the rigid motions in `values`."""
    setup = moving_setup(lens)
    body = setup["T_world_actor"][:1]
    # Slow enough that the steps towards the time of exposure end at it.
    slow = {
        "T_camera_world_close": rigid([0.002, -0.003, 0.001], [0.005, -0.004, 0.03]) @ setup["T_camera_world"][:1],
        "T_world_actor_close": body @ rigid([0.0, 0.003, 0.005], [0.02, 0.03, -0.01]),
    }
    setup = {**setup, **slow}
    open_, close, start, end = (moved(setup[key][:1], values[key]) for key in POSES)
    K = torch.tensor([[[20.0, 0.0, 2.0], [0.0, 22.0, 5.0], [0.0, 0.0, 1.0]]]).double()
    views = rasterize(
        Gaussians(**{key: values[key] for key in PARAMETERS}),
        open_,
        K,
        4,
        12,
        backend="reference",
        lens=lens,
        shutter=Shutter(close),
        actors=Actors(torch.tensor([0, 1, 2]), start, end),
        antialias=True,
    )
    assert views.visible.all()
    return random_loss(views)


def moved(pose: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Rigid transforms changed by small motions [.., 6]: rotation vector and translation."""
    x, y, z, *_ = turn.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, turn[..., 3], z, zero, -x, turn[..., 4], -y, x, zero, turn[..., 5], zero, zero, zero, zero]
    return torch.matrix_exp(torch.stack(rows, dim=-1).reshape(*turn.shape[:-1], 4, 4)) @ pose


@pytest.mark.parametrize("name", LENSES)
def test_torch_lens_equals_camera(name: str) -> None:
    # `Camera.project` is the calibration's own definition, in numpy.
    lens = LENSES[name]
    points = np.random.default_rng(0).normal(size=(500, 3)) * [2.0, 2.0, 2.0]
    camera = Camera("c", 50, 37, 30.0, 31.0, 24.0, 19.0, np.eye(4), distortion=lens)
    expected, visible = camera.project(points)
    far = np.linalg.norm(points, axis=1) > 0.3
    far &= (points[:, 2] > 0.3) | (name in ("fisheye", "ftheta", "ftheta_inverse"))
    found = image_points(torch.from_numpy(points), torch.from_numpy(camera.K), lens)
    assert np.array_equal(seen(torch.from_numpy(points), lens).numpy()[far], visible[far])
    np.testing.assert_allclose(found.numpy()[far & visible], expected[far & visible], atol=1e-6)
    assert (far & visible).sum() > 100


@pytest.mark.parametrize("name", LENSES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_point_lands_where_the_camera_says(name: str, backend: str) -> None:
    lens = LENSES[name]
    camera = Camera("c", 80, 60, 30.0, 31.0, 40.0, 30.0, np.eye(4), distortion=lens)
    for point in ([0.0, 0.0, 4.0], [0.7, -0.5, 3.0], [-1.1, 0.9, 2.5]):
        pixel, visible = camera.project(np.array(point))
        assert visible
        views = rasterize(
            dot(point), torch.eye(4)[None], torch.from_numpy(camera.K)[None], 80, 60, backend=backend, lens=lens
        )
        weight = views.opacity[0].double()
        y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(80) + 0.5, indexing="ij")
        center = [float((axis * weight).sum() / weight.sum()) for axis in (x, y)]
        np.testing.assert_allclose(center, pixel, atol=0.05)


def dot(point: list[float], logit: float = 5.0) -> Gaussians:
    """One tiny gray Gaussian."""
    orientation = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    return Gaussians(
        torch.tensor([point], dtype=torch.float32),
        orientation,
        torch.full((1, 3), -6.0),
        torch.tensor([logit]),
        torch.zeros(1, 1, 3),
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_wide_fisheye_sees_beside_and_behind_itself(backend: str) -> None:
    lens = EquidistantFisheye((0.0, 0.0, 0.0, 0.0), max_angle_rad=np.radians(110))
    K = torch.tensor([[[20.0, 0.0, 50.0], [0.0, 20.0, 50.0], [0.0, 0.0, 1.0]]])
    for degrees, is_seen in ((0.0, True), (89.0, True), (90.0, True), (105.0, True), (111.0, False), (179.0, False)):
        angle = np.radians(degrees)
        point = [3 * np.sin(angle), 0.0, 3 * np.cos(angle)]
        views = rasterize(dot(point), torch.eye(4)[None], K, 100, 100, backend=backend, lens=lens)
        assert bool(views.visible[0, 0]) == is_seen, degrees
        if is_seen:
            row, column = divmod(int(views.opacity[0].argmax()), 100)
            assert abs(column + 0.5 - (50.0 + 20.0 * angle)) <= 1.0
            assert row in (49, 50)
            # Depth of a wide lens is the distance from the camera.
            assert views.depth_m[0, row, column] == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nothing_is_drawn_where_the_polynomial_folds_back(backend: str) -> None:
    # x (1 - 0.3 x^2) turns at x = 1.054; the ray at x = 1.6 would come back to 0.37.
    lens = RadialTangential((-0.3, 0.0, 0.0))
    K = torch.tensor([[[40.0, 0.0, 50.0], [0.0, 40.0, 50.0], [0.0, 0.0, 1.0]]])
    for tangent, is_seen in ((0.9, True), (1.04, True), (1.07, False), (1.6, False), (-1.6, False)):
        views = rasterize(dot([2 * tangent, 0.0, 2.0]), torch.eye(4)[None], K, 100, 100, backend=backend, lens=lens)
        assert bool(views.visible.any()) == is_seen, tangent
        assert bool((views.opacity > 0).any()) == is_seen


def test_interpolated_poses_are_those_of_frames() -> None:
    start, end = rigid([0.3, -0.2, 0.1], [1.0, 2.0, 3.0]), rigid([0.9, 0.2, -0.4], [2.0, 1.0, 3.5])
    shares = torch.linspace(0, 1, SHUTTER_KNOTS, dtype=torch.float64)
    times = (shares.numpy() * 1_000_000).astype(np.int64)
    expected = interpolate_poses(np.array([0, 1_000_000]), torch.stack([start, end]).numpy(), times)
    found = interpolate_rigid(start[None], end[None], shares)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    still = interpolate_rigid(start[None], start[None], shares)[0]
    np.testing.assert_allclose(still.numpy(), np.broadcast_to(start.numpy(), still.shape), atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("direction", SHUTTER_DIRECTIONS)
def test_each_line_is_drawn_at_its_own_time(backend: str, direction: str) -> None:
    # The camera moves 1 m to the left while it reads its lines: a dot 10 m ahead appears 4 px further right per 1 m.
    size, focal = 41, 40.0
    K = torch.tensor([[[focal, 0.0, 20.5], [0.0, focal, 20.5], [0.0, 0.0, 1.0]]])
    close = torch.eye(4)[None].clone()
    close[0, 0, 3] = 1.0
    vertical = direction in ("top-to-bottom", "bottom-to-top")
    for line in (2, 20, 38):
        across = (line - 20) * 10.0 / focal
        point = [0.0, across, 10.0] if vertical else [across, 0.0, 10.0]
        views = rasterize(
            dot(point), torch.eye(4)[None], K, size, size, backend=backend, shutter=Shutter(close, direction)
        )
        weight = views.opacity[0]
        shift = float((weight.sum(0) * torch.arange(size)).sum() / weight.sum()) - (20 if vertical else line)
        share = line / 40 if direction in ("top-to-bottom", "left-to-right") else 1 - line / 40
        if not vertical:
            # Sideways the dot runs with or against the lines: t = (c + 4 t) / 40.
            share = (line / 40) / (1 - 0.1) if direction == "left-to-right" else (1 - line / 40) / (1 + 0.1)
        if share <= 1:
            assert shift == pytest.approx(4.0 * share, abs=0.02)


def test_harmonics_turn_with_a_body() -> None:
    # A body and the camera turned together: the picture stays, colours included.
    scene, (poses, K) = random_scene(5, 120, 3), cameras(40, 30, 1)
    still = rasterize(scene, poses, K, 40, 30, backend="cpu")
    pose = rigid([0.4, -0.9, 1.3], [4.0, -3.0, 2.0])
    actors = Actors(torch.ones(120, dtype=torch.long), pose[None, None])
    carried = rasterize(scene, poses.double() @ torch.linalg.inv(pose), K, 40, 30, backend="cpu", actors=actors)
    assert ((still.rgb - carried.rgb).abs() > 2e-3).float().mean() < 0.02
    # Without the turn of the harmonics the colours are others.
    world = transform_gaussians(scene, pose.float())
    unturned = rasterize(world, (poses.double() @ torch.linalg.inv(pose)).float(), K, 40, 30, backend="cpu")
    assert ((still.rgb - unturned.rgb).abs() > 2e-3).float().mean() > 0.3


def test_hidden_body_is_not_drawn_and_has_no_gradient() -> None:
    scene = with_gradients(moving_scene(4), torch.float32, "cpu")
    setup = moving_setup(None)
    setup["T_world_actor"][0, 1] = torch.nan
    setup["T_world_actor"].requires_grad_()
    views = draw_moving(scene, setup, None, "cpu")
    second = owners(len(scene)) == 2
    assert not views.visible[0, second].any()
    assert views.visible[1, second].any()
    random_loss(views).backward()
    gradient = setup["T_world_actor"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert (gradient[0, 1] == 0).all()
    assert (gradient[1, 1] != 0).any()
    assert_views_agree(views, draw_moving(as_double(scene), setup, None, "reference"))


def test_owners_in_any_order_draw_the_same() -> None:
    scene, setup = moving_scene(6), moving_setup(None)
    order = torch.randperm(len(scene), generator=torch.Generator().manual_seed(0))
    shuffled = Gaussians(**{name: tensor[order] for name, tensor in scene.tensors().items()})
    both = [
        rasterize(
            part,
            setup["T_camera_world"],
            setup["K"],
            WIDTH_PX,
            HEIGHT_PX,
            backend="cpu",
            actors=Actors(owner, setup["T_world_actor"]),
        )
        for part, owner in ((scene, owners(len(scene))), (shuffled, owners(len(scene))[order]))
    ]
    assert_images_agree(both[1].rgb, both[0].rgb, 1.0)


def test_antialiasing_keeps_the_light_of_a_small_splat() -> None:
    # A Gaussian of s px spread over s^2 + 0.3 px^2: with compensation its sum over the image is that of s alone.
    K = torch.tensor([[[100.0, 0.0, 20.5], [0.0, 100.0, 20.5], [0.0, 0.0, 1.0]]])
    for sigma_px in (0.3, 0.6, 2.0):
        scene = dot([0.0, 0.0, 10.0], logit=0.0)
        scene.log_scales[:] = np.log(sigma_px / 10.0)
        views = rasterize(scene, torch.eye(4)[None], K, 41, 41, backend="cpu", antialias=True)
        blurred = np.sqrt(sigma_px**4 / (sigma_px**2 + 0.3) ** 2)
        assert views.opacity[0, 20, 20] == pytest.approx(0.5 * blurred, rel=1e-3)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(LENSES)), st.sampled_from(SHUTTER_DIRECTIONS), st.booleans())
def test_any_scene_equals_reference(seed: int, name: str, direction: str, antialias: bool) -> None:
    scene, setup = moving_scene(seed, 90, 1), moving_setup(LENSES[name])
    fast = draw_moving(scene, setup, LENSES[name], "cpu", direction, antialias)
    exact = draw_moving(as_double(scene), setup, LENSES[name], "reference", direction, antialias)
    # Rounding decides for a splat that just reaches the image or an alpha of 1/255.
    assert (fast.visible != exact.visible).sum() <= 1
    error = (fast.rgb.double() - exact.rgb).abs()
    assert (error > 1e-3).double().mean() < 0.01


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("lens", ["opencv", "fisheye"])
def test_unsound_parameters_are_dropped(name: str, lens: str) -> None:
    clean, setup = moving_scene(7, 60, 1), moving_setup(LENSES[lens])
    scene = with_gradients(clean, torch.float32, "cpu")
    with torch.no_grad():
        scene.tensors()[name][5:9] = torch.nan
    views = draw_moving(scene, setup, LENSES[lens], "cpu", antialias=True)
    assert not views.visible[:, 5:9].any()
    assert views.rgb.isfinite().all()
    random_loss(views).backward()
    for key, tensor in scene.tensors().items():
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all(), key


@pytest.mark.parametrize("name", LENSES)
def test_camera_inside_a_gaussian_and_empty_scenes(name: str) -> None:
    lens, setup = LENSES[name], moving_setup(LENSES[name])
    scene = dot([0.05, 0.02, 0.6])
    scene.log_scales[:] = 0.7
    scene = with_gradients(scene, torch.float32, "cpu")
    arguments = (torch.eye(4)[None], setup["K"][:1], WIDTH_PX, HEIGHT_PX)
    views = rasterize(scene, *arguments, backend="cpu", lens=lens)
    exact = rasterize(as_double(scene), *arguments, backend="reference", lens=lens)
    assert_views_agree(views, exact)
    random_loss(views).backward()
    for tensor in scene.tensors().values():
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    empty = rasterize(Gaussians.empty(1), *arguments, backend="cpu", lens=lens)
    assert (empty.opacity == 0).all()


def test_shutter_of_a_still_camera_changes_nothing() -> None:
    scene, (poses, K) = random_scene(8, 200, 2), cameras(40, 30)
    plain = rasterize(scene, poses, K, 40, 30, backend="cpu")
    rolling = rasterize(scene, poses, K, 40, 30, backend="cpu", shutter=Shutter(poses))
    assert_images_agree(rolling.rgb, plain.rgb.double(), 1.0)


def test_bad_arguments_are_named() -> None:
    scene, (poses, K) = random_scene(0, 20, 0), cameras(20, 10)
    bodies = torch.eye(4).repeat(2, 1, 1, 1)
    owner = torch.zeros(20, dtype=torch.long)
    cases = [
        ({"shutter": Shutter(poses[:1])}, r"T_camera_world_close \(1, 4, 4\); expected \(2, 4, 4\)"),
        ({"shutter": Shutter(poses, "diagonal")}, "direction 'diagonal'; expected one of top-to-bottom"),
        ({"actors": Actors(owner, bodies[:1])}, r"T_world_actor \(1, 1, 4, 4\); expected \[2, A, 4, 4\]"),
        ({"actors": Actors(owner, bodies, bodies)}, "and a rolling shutter"),
        ({"actors": Actors(owner[:3], bodies)}, r"owner torch.int64 \(3,\); expected int64 \[20\]"),
        ({"actors": Actors(owner + 2, bodies)}, "owner spans 2 to 2; expected 0 to 1"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            rasterize(scene, poses, K, 20, 10, **arguments)


def test_inverse_pose_convention_of_the_setup() -> None:
    # The setup's close pose is a rigid motion of the open one, in camera axes.
    setup = moving_setup(None)
    relative = setup["T_camera_world_close"][0].numpy() @ invert_pose(setup["T_camera_world"][0].numpy())
    np.testing.assert_allclose(relative @ invert_pose(relative), np.eye(4), atol=1e-12)
