"""Masks of the sky from images alone, and the loss that keeps the sky clear."""

import numpy as np
import pytest
import torch

from neural_sim.cameras import Camera
from neural_sim.frames import R_RIG_FORWARD_CAMERA
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.loss import sky_opacity
from neural_sim.reconstruction.sky_mask import sky_mask
from neural_sim.reconstruction.views import View
from neural_sim.rendering.rasterize import rasterize

WIDTH_PX, HEIGHT_PX = 160, 96
NOWHERE = np.zeros((0, 3))


def view_of(image: np.ndarray, usable: np.ndarray | None = None) -> View:
    """A level camera 1.5 m above the ground whose horizon is the middle row."""
    camera = Camera("front", WIDTH_PX, HEIGHT_PX, 80.0, 80.0, WIDTH_PX / 2, HEIGHT_PX / 2, np.eye(4))
    pose = np.eye(4)
    pose[:3, :3], pose[2, 3] = R_RIG_FORWARD_CAMERA, 1.5
    return View(camera, 0, 0, pose, image, False, usable=usable)


def street(sky: tuple[int, int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Roofs of changing height before a sky of this colour, brighter downwards, or none; and where the sky is."""
    rng = np.random.default_rng(0)
    ground = rng.integers(40, 130, (HEIGHT_PX // 4, WIDTH_PX // 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
    roof = 20 + 12 * (np.arange(WIDTH_PX) // 40 % 2) + np.arange(WIDTH_PX) // 20
    is_sky = np.arange(HEIGHT_PX)[:, None] < roof
    if sky is None:
        return ground.astype(np.uint8), np.zeros_like(is_sky)
    shade = np.asarray(sky) + 0.4 * np.arange(HEIGHT_PX)[:, None, None] + rng.normal(0, 1.0, is_sky.shape)[..., None]
    return np.where(is_sky[..., None], shade, ground).clip(0, 255).astype(np.uint8), is_sky


@pytest.mark.parametrize("sky", [(120, 160, 220), (225, 225, 225)], ids=["blue", "overcast"])
def test_sky_above_roofs_is_found_and_nothing_else(sky) -> None:
    image, is_sky = street(sky)
    mask = sky_mask(view_of(image), NOWHERE)
    assert mask is not None
    assert not (mask & ~is_sky).any()
    assert (mask & is_sky).sum() > 0.8 * is_sky.sum()


@pytest.mark.parametrize(
    "image",
    [
        street(None)[0],
        np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8),
        np.full((HEIGHT_PX, WIDTH_PX, 3), 200, np.uint8),
        # A tunnel: the even part above is darker than the road.
        street((10, 10, 10))[0],
    ],
    ids=["walls", "black", "even", "tunnel"],
)
def test_images_without_sky_have_no_mask(image: np.ndarray) -> None:
    assert sky_mask(view_of(image), NOWHERE) is None


def test_nothing_below_the_horizon_is_sky() -> None:
    image, _ = street((225, 225, 225))
    image[:, :40] = 225
    mask = sky_mask(view_of(image), NOWHERE)
    assert mask is not None
    assert mask[:30, :30].all()
    assert not mask[HEIGHT_PX // 2 :].any()


def test_known_points_refute_what_is_below_and_around_them() -> None:
    image, _ = street((225, 225, 225))
    # Projects to column 80, row 8: 10 m ahead, 5 m above the camera.
    point = np.array([[10.0, 0.0, 6.5]])
    free, refuted = sky_mask(view_of(image), NOWHERE), sky_mask(view_of(image), point)
    assert free is not None
    assert refuted is not None
    assert free[8:18, 80].all()
    assert not refuted[6:, 79:82].any()
    assert np.array_equal(free[:, :70], refuted[:, :70])
    assert np.array_equal(free[:, 90:], refuted[:, 90:])


def test_unusable_pixels_are_neither_judged_nor_sky() -> None:
    image, is_sky = street((225, 225, 225))
    usable = np.ones((HEIGHT_PX, WIDTH_PX), bool)
    usable[:6] = False
    image[~usable] = 0
    mask = sky_mask(view_of(image, usable), NOWHERE)
    assert mask is not None
    assert not mask[:6].any()
    assert (mask & is_sky).sum() > 0.7 * (is_sky & usable).sum()


@pytest.mark.parametrize(("seed", "overlap"), [(7, 0.7), (11, 0.3)], ids=["even sky", "clouds"])
def test_town_sky_agrees_with_the_truth(seed: int, overlap: float) -> None:
    from neural_sim.town.config import WIDE_CAMERA, TownConfig
    from neural_sim.town.town import build_town

    town = build_town(TownConfig(seed=seed, duration_s=4.0, image_width_px=240, image_height_px=144))
    camera = town.cameras[WIDE_CAMERA]
    request = town.request(camera, 2_000_000)
    (drawn,) = town.renderer.render([request])
    view = View(camera, 0, 2_000_000, request.T_world_camera_open, np.round(255 * drawn.rgb).astype(np.uint8), False)
    mask, truth = sky_mask(view, NOWHERE), drawn.opacity == 0
    assert mask is not None
    assert (mask & truth).sum() / (mask | truth).sum() > overlap
    assert (mask & (drawn.opacity > 0.5)).sum() < 0.02 * mask.sum()


def test_loss_is_the_mean_over_the_sky() -> None:
    opacity, sky = torch.tensor([[0.2, 0.6], [0.9, 1.0]]), torch.tensor([[True, True], [False, False]])
    assert float(sky_opacity(opacity, sky)) == pytest.approx(0.4)
    assert float(sky_opacity(opacity, torch.zeros(2, 2, dtype=torch.bool))) == 0.0


def test_loss_clears_the_sky_and_leaves_the_rest() -> None:
    # Two half transparent splats, one in the sky and one on the ground.
    means, scales = torch.tensor([[0.0, -1.0, 4.0], [0.0, 1.0, 4.0]]), torch.full((2, 3), -1.5)
    logits = torch.zeros(2, requires_grad=True)
    K = torch.tensor([[[20.0, 0.0, 16.0], [0.0, 20.0, 16.0], [0.0, 0.0, 1.0]]])
    sky = torch.zeros(32, 32, dtype=torch.bool)
    sky[:12] = True

    def opacity() -> torch.Tensor:
        scene = Gaussians(means, torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2), scales, logits, torch.zeros(2, 1, 3))
        return rasterize(scene, torch.eye(4)[None], K, 32, 32, backend="cpu").opacity[0]

    before = opacity().detach()
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(20):
        optimizer.zero_grad()
        sky_opacity(opacity(), sky).backward()
        optimizer.step()
    after = opacity().detach()
    assert float(before[sky].max()) > 0.3
    assert float(after[sky].max()) < 0.1
    assert torch.equal(after[20:], before[20:])
