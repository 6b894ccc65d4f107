"""Makes `sky_views.png`: what a car sees of a sky that came in NuRec's cubemap layout.

Run `python tests/golden/sky_views.py` from the top of the repository after a deliberate change, and look at the
picture: six views, ahead, left, behind, right, up, down. Each must show its own upright face with the white bar at the
top and the black dot at its left end; ahead is face 4, red. If the test fails without such a change, the sky is turned
or mirrored.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from neural_sim.rendering.sky import sample_sky, view_directions
from neural_sim.scenes.sky_layouts import sky_from_layout

GOLDEN = Path(__file__).with_name("sky_views.png")
SIZE_PX = 48
# Right, left, up, down, ahead, behind: the order of the stored faces.
COLORS = ((0.2, 0.7, 0.2), (0.2, 0.3, 0.9), (0.4, 0.8, 0.9), (0.5, 0.35, 0.2), (0.9, 0.2, 0.2), (0.8, 0.5, 0.9))
# Axes x right, y down, z ahead of a camera that looks ahead, left, behind, right, up and down in a world with x ahead.
CAMERAS = (
    ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
    ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
)


def stored_sky() -> torch.Tensor:
    """A cubemap [6, 16, 16, 3] of plain faces with a white bar along the top and a black dot at its left end."""
    faces = torch.tensor(COLORS)[:, None, None].repeat(1, 16, 16, 1)
    faces[:, 1:4, 2:14] = 1.0
    faces[:, 1:4, 2:5] = 0.0
    return faces


def draw_views() -> np.ndarray:
    """The six views beside each other, uint8 [SIZE_PX, 6 SIZE_PX, 3]."""
    sky = sky_from_layout(stored_sky(), "nurec")
    T_world_camera = torch.eye(4).repeat(6, 1, 1)
    T_world_camera[:, :3, :3] = torch.tensor(CAMERAS, dtype=torch.float32).transpose(1, 2)
    half = SIZE_PX / 2
    K = torch.tensor([[half, 0, half], [0, half, half], [0, 0, 1]]).expand(6, 3, 3)
    views = sample_sky(sky, view_directions(K, T_world_camera, SIZE_PX, SIZE_PX))
    return (views * 255).round().byte().numpy().transpose(1, 0, 2, 3).reshape(SIZE_PX, 6 * SIZE_PX, 3)


if __name__ == "__main__":
    Image.fromarray(draw_views()).save(GOLDEN)
