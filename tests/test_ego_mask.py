"""The image of the own car in a camera: outlines, files, sizes, and paint."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from neural_sim.cameras import Camera
from neural_sim.clips.storage import read_clip, write_clip
from neural_sim.ego_mask import EgoMask, read_ego_mask
from neural_sim.errors import InputError
from neural_sim.rendering.splat_renderer import SplatRenderer
from tests.synthetic_clip import make_clip
from tests.test_splat_renderer import request, scene  # noqa: F401

BONNET = EgoMask((((0.0, 6.0), (10.0, 6.0), (10.0, 8.0), (0.0, 8.0)),), (0.1, 0.2, 0.3))


def test_pixels_whose_centre_is_inside() -> None:
    mask = BONNET.pixels(10, 8)
    assert mask[6:].all()
    assert not mask[:6].any()
    # At half the size the same part of the image.
    half = BONNET.resized(0.5, 0.5).pixels(5, 4)
    assert half[3].all()
    assert not half[:3].any()


def test_camera_keeps_its_mask_through_json_and_sizes() -> None:
    camera = Camera("front", 10, 8, 10.0, 10.0, 5.0, 4.0, np.eye(4), ego_mask=BONNET)
    again = Camera.from_json(json.loads(json.dumps(camera.to_json())))
    assert again.ego_mask == BONNET
    assert camera.resized(20, 16).ego_pixels()[12:].all()
    assert not camera.resized(20, 16).ego_pixels()[:12].any()
    assert not replace(camera, ego_mask=None).ego_pixels().any()
    assert "ego_mask" not in replace(camera, ego_mask=None).to_json()


def test_mask_file(tmp_path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[30:, 10:50] = (200, 100, 50)
    Image.fromarray(picture).save(tmp_path / "mask.png")
    mask = read_ego_mask(tmp_path / "mask.png", 60, 40)
    assert mask.color == pytest.approx((200 / 255, 100 / 255, 50 / 255))
    assert np.array_equal(mask.pixels(60, 40), picture.any(axis=-1))
    rows, columns = np.mgrid[:40, :60]
    bonnet = (rows - 45) ** 2 * 4 + (columns - 25) ** 2 < 25**2
    Image.fromarray(bonnet).save(tmp_path / "round.png")
    assert np.array_equal(read_ego_mask(tmp_path / "round.png", 60, 40).pixels(60, 40), bonnet)
    Image.fromarray(picture[..., 0]).save(tmp_path / "gray.png")
    assert read_ego_mask(tmp_path / "gray.png", 60, 40).color is None
    with pytest.raises(InputError, match=r"mask.png: the ego mask is 60x40, expected 30x20 like the images"):
        read_ego_mask(tmp_path / "mask.png", 30, 20)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="the ego mask does not decode"):
        read_ego_mask(tmp_path / "broken.png", 60, 40)


def test_bad_masks_are_named() -> None:
    with pytest.raises(InputError, match="an outline has 2 points"):
        EgoMask((((0.0, 0.0), (1.0, 1.0)),))
    with pytest.raises(InputError, match="color is"):
        EgoMask((), (2.0, 0.0, 0.0))
    with pytest.raises(InputError, match="expected outlines"):
        EgoMask.from_json({"outlines": [[1, 2]]})


def test_a_mask_beside_the_frames_belongs_to_the_camera(tmp_path) -> None:
    clip = make_clip(tmp_path / "images")
    write_clip(clip, tmp_path / "clip")
    name, frames = next(iter(clip.cameras.items()))
    size = (frames.camera.height_px, frames.camera.width_px)
    picture = np.zeros(size, np.uint8)
    picture[-2:] = 255
    Image.fromarray(picture).save(tmp_path / "clip" / "frames" / name / "ego_mask.png")
    found = read_clip(tmp_path / "clip")
    assert np.array_equal(found.cameras[name].camera.ego_pixels(), picture > 0)
    # Written again it is part of the calibration.
    write_clip(found, tmp_path / "again")
    assert np.array_equal(read_clip(tmp_path / "again").cameras[name].camera.ego_pixels(), picture > 0)


def test_the_simulator_paints_the_own_car(scene) -> None:  # noqa: F811
    asked = request({})
    outline = ((0.0, 25.0), (40.0, 25.0), (40.0, 30.0), (0.0, 30.0))
    camera = replace(asked.camera, ego_mask=EgoMask((outline,), (0.1, 0.2, 0.3)))
    plain, painted = SplatRenderer(scene).render([asked, replace(asked, camera=camera)])
    np.testing.assert_allclose(painted.rgb[25:], np.broadcast_to([0.1, 0.2, 0.3], (5, 40, 3)), atol=1e-6)
    assert np.array_equal(painted.rgb[:25], plain.rgb[:25])
