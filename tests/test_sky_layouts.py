"""Skies of other tools: face order and orientation, decided by a golden picture and by hand."""

import numpy as np
import pytest
import torch
from golden.sky_views import GOLDEN, draw_views
from PIL import Image

from neural_sim.errors import InputError
from neural_sim.rendering.sky import sample_sky, texel_directions
from neural_sim.scenes.sky_layouts import SKY_LAYOUTS, sky_from_layout, sky_to_layout


def random_sky(size=6, seed=0):
    return torch.rand(6, size, size, 3, generator=torch.Generator().manual_seed(seed))


def test_views_of_a_stored_sky_equal_the_golden_picture():
    """`tests/golden/sky_views.py` made it and says what must be seen in it."""
    with Image.open(GOLDEN) as golden:
        difference = np.abs(draw_views().astype(int) - np.asarray(golden).astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize("layout", SKY_LAYOUTS)
def test_both_ways_is_exact(layout):
    sky = random_sky()
    assert torch.equal(sky_from_layout(sky_to_layout(sky, layout), layout), sky)
    assert torch.equal(sky_to_layout(sky_from_layout(sky, layout), layout), sky)


@pytest.mark.parametrize(
    ("layout", "face", "row", "column", "direction"),
    [
        ("nurec", 4, 0, 0, (1, 0.8, 0.8)),  # ahead, top left: to the left and up
        ("nurec", 0, 0, 0, (0.8, -1, 0.8)),  # right, top left: ahead and up
        ("nurec", 2, 4, 4, (0.8, -0.8, 1)),  # up, bottom right: ahead and to the right
        ("nurec", 3, 0, 4, (0.8, -0.8, -1)),  # down, top right
        ("axes", 4, 0, 4, (0.8, -0.8, 1)),  # +z of the file: row along y, column along x
        ("axes", 2, 4, 0, (-0.8, -1, 0.8)),
        ("axes", 3, 4, 0, (-0.8, 1, -0.8)),
        ("axes", 5, 0, 0, (0.8, -0.8, -1)),
    ],
)
def test_texels_lie_where_the_layout_says(layout, face, row, column, direction):
    stored = torch.zeros(6, 5, 5, 3)
    stored[face, row, column] = 1.0
    sky = sky_from_layout(stored, layout)
    assert torch.allclose(sample_sky(sky, torch.tensor(direction)), torch.ones(3), atol=1e-5)


def test_a_turned_file_turns_its_sky():
    """A file whose frame is turned by a quarter about z, and by an odd angle."""
    sky = random_sky(16)
    smooth = sky_from_layout(
        torch.nn.functional.avg_pool2d(sky.permute(0, 3, 1, 2), 9, 1, 4).permute(0, 2, 3, 1), "axes"
    )
    for angle, tolerance in ((np.pi / 2, 1e-6), (0.3, 0.06)):
        cosine, sine = np.cos(angle), np.sin(angle)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        turned = sky_from_layout(sky_to_layout(smooth, "axes"), "axes", turn)
        rays = texel_directions(16)[:, 4:12, 4:12]
        expected = sample_sky(smooth, (rays.double() @ torch.from_numpy(turn)).float())
        assert (sample_sky(turned, rays) - expected).abs().max() < tolerance


def test_other_layouts_are_refused():
    with pytest.raises(InputError, match="sky layout is 'opengl', expected one of nurec, axes"):
        sky_from_layout(random_sky(), "opengl")
