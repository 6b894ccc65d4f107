"""Sky cubemap: orientation of each face, interpolation, gradients, and the CPU fast path."""

import numpy as np
import pytest
import torch

from neural_sim.distortion import EquidistantFisheye
from neural_sim.frames import R_RIG_FORWARD_CAMERA, pose_from_planar
from neural_sim.rendering.cpu.sky import add_sky, add_sky_along
from neural_sim.rendering.lenses import view_rays
from neural_sim.rendering.motion import line_poses
from neural_sim.rendering.sky import sample_sky, sample_sky_reference, texel_directions, view_directions

AXES = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
RED = torch.tensor([1.0, 0.0, 0.0])


@pytest.mark.parametrize("face", range(6))
def test_red_face_is_seen_along_its_axis_only(face: int) -> None:
    sky = torch.zeros(6, 4, 4, 3)
    sky[face] = RED
    seen = sample_sky(sky, AXES)
    assert torch.equal(seen, torch.zeros(6, 3).index_fill(0, torch.tensor(face), 1.0) * RED)


@pytest.mark.parametrize(
    ("face", "row", "column", "direction"),
    [
        (0, 0, 0, (1, 1, 1)),  # forward: top left is up and to +Y, the left of a car that drives along +X
        (0, 3, 3, (1, -1, -1)),
        (1, 0, 0, (-1, -1, 1)),
        (2, 0, 0, (-1, 1, 1)),
        (3, 0, 0, (1, -1, 1)),
        (4, 3, 0, (1, 1, 1)),  # the bottom row of the ceiling meets the top row of +X
        (4, 0, 3, (-1, -1, 1)),
        (5, 0, 0, (1, 1, -1)),  # the top row of the floor meets the bottom row of +X
        (5, 3, 3, (-1, -1, -1)),
    ],
)
def test_corners_of_faces(face: int, row: int, column: int, direction: tuple[int, int, int]) -> None:
    sky = torch.zeros(6, 4, 4, 3)
    sky[face, row, column] = RED
    ray = torch.tensor(direction, dtype=torch.float32) * 0.76
    ray[face // 2] = AXES[face, face // 2]
    assert torch.allclose(sample_sky(sky, ray), RED)


def test_texel_centers_give_texels_back() -> None:
    sky = torch.rand(6, 5, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample_sky(sky, 7.0 * texel_directions(5)), sky, atol=1e-5, rtol=1e-5)


def test_between_texels_is_linear() -> None:
    sky = torch.zeros(6, 2, 2, 3)
    sky[0, :, 1] = RED
    # s = 0.25 is a quarter of the way right of the middle, s in -0.5..0.5 spans the two texel centres.
    assert torch.allclose(sample_sky(sky, torch.tensor([1.0, -0.25, 0.0])), 0.75 * RED)


def test_gradient_of_the_sky_equals_finite_differences() -> None:
    sky = torch.rand(6, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rays = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda s: sample_sky(s, rays), (sky,))


def _driving_along(yaw_rad: float) -> np.ndarray:
    pose = pose_from_planar(np.array([5.0, 6.0, yaw_rad]), 1.5)
    pose[:3, :3] = pose[:3, :3] @ R_RIG_FORWARD_CAMERA
    return pose


def test_view_directions_of_a_forward_camera() -> None:
    K = torch.tensor([[[10.0, 0.0, 1.5], [0.0, 10.0, 1.5], [0.0, 0.0, 1.0]]])
    rays = view_directions(K, torch.from_numpy(_driving_along(0.0))[None].float(), 3, 3)[0]
    torch.testing.assert_close(rays[1, 1], torch.tensor([1.0, 0.0, 0.0]))
    assert rays[0, 1, 2] > 0  # the upper row looks up
    assert rays[1, 0, 1] > 0  # the left column looks left, +Y
    torch.testing.assert_close(rays.norm(dim=-1), torch.ones(3, 3))


@pytest.mark.parametrize("yaw_rad", [0.0, 0.9, 2.4, -1.7])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_fast_path_equals_torch(yaw_rad: float, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    sky = torch.rand(6, size, size, 3, generator=generator)
    rgb, opacity = torch.rand(20, 31, 3, generator=generator), torch.rand(20, 31, generator=generator)
    pose = _driving_along(yaw_rad)
    pose[:3, :3] = pose[:3, :3] @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    K = np.array([[9.0, 0.0, 14.0], [0.0, 8.0, 11.0], [0.0, 0.0, 1.0]])
    fast = add_sky(rgb.numpy(), opacity.numpy(), sky.numpy(), K, np.ascontiguousarray(pose[:3, :3]))
    rays = view_directions(torch.from_numpy(K)[None], torch.from_numpy(pose)[None], 31, 20)[0]
    slow = (rgb + (1 - opacity[..., None]) * sample_sky_reference(sky, rays.float())).clamp(0, 1)
    torch.testing.assert_close(torch.from_numpy(fast), slow, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("direction", ["top-to-bottom", "right-to-left"])
def test_fast_path_through_a_lens_and_a_shutter_equals_torch(direction: str) -> None:
    generator = torch.Generator().manual_seed(3)
    sky = torch.rand(6, 5, 5, 3, generator=generator)
    rgb, opacity = torch.rand(20, 31, 3, generator=generator), torch.rand(20, 31, generator=generator)
    K = np.array([[9.0, 0.0, 14.0], [0.0, 8.0, 11.0], [0.0, 0.0, 1.0]])
    lens = EquidistantFisheye((0.01, 0.0, 0.0, 0.0), max_angle_rad=1.6)
    start, end = (torch.from_numpy(_driving_along(yaw))[None] for yaw in (0.9, 1.3))
    poses = line_poses(start, end, direction, 31, 20)[0].numpy()
    fast = add_sky_along(
        rgb.numpy(), opacity.numpy(), sky.numpy(), view_rays(K, 31, 20, lens), poses, direction == "top-to-bottom"
    )
    rays = view_directions(torch.from_numpy(K)[None], start, 31, 20, lens=lens, close=(end, direction))[0]
    assert 0 < (rays.norm(dim=-1) == 0).sum() < 300
    slow = (rgb + (1 - opacity[..., None]) * sample_sky_reference(sky, rays.float())).clamp(0, 1)
    torch.testing.assert_close(torch.from_numpy(fast), slow, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_kernels_of_lookup_and_gradient_equal_torch(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    rays = torch.randn(3, 50, 3, generator=generator)
    rays[1, 7] = 0.0
    weights = torch.randn(3, 50, 3, generator=generator)
    fast, slow = (torch.rand(6, size, size, 3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    colors = {}
    for name, sky, look in (("fast", fast, sample_sky), ("slow", slow, sample_sky_reference)):
        colors[name] = look(sky.requires_grad_(), rays)
        (colors[name] * weights).sum().backward()
    torch.testing.assert_close(colors["fast"], colors["slow"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5, rtol=1e-5)


def test_kernel_of_pinhole_rays_equals_torch() -> None:
    K = torch.tensor([[[9.0, 0.0, 14.0], [0.0, 8.0, 11.0], [0.0, 0.0, 1.0]]])
    pose = torch.from_numpy(_driving_along(0.9))[None].float()
    fast = view_directions(K, pose, 31, 20)
    slow = view_directions(K.double(), pose.double(), 31, 20)
    torch.testing.assert_close(fast, slow.float(), atol=1e-6, rtol=1e-6)
