from dataclasses import replace

import numpy as np
import pytest
from reconstruction_clip import make_clip

from neural_sim.cameras import Camera
from neural_sim.clips.options import IngestOptions
from neural_sim.frames import R_RIG_FORWARD_CAMERA
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.off_log import (
    conflict_share,
    held_out_indices,
    hole_share,
    measure_off_log,
    shifted_request,
)
from neural_sim.reconstruction.reconstruct import reconstruct
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.town.source import ingest_town

SMALL = ReconstructionConfig(
    image_width_px=96,
    iterations=80,
    max_gaussians=4000,
    sky_size_px=8,
    track_corners=400,
    dense_points_per_frame=60,
    far_points=200,
    road_spacing_m=0.5,
    densify_every=20,
)


def request() -> RenderRequest:
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3], T_rig_camera[:3, 3] = R_RIG_FORWARD_CAMERA, (1.0, 0.0, 1.5)
    camera = Camera("front", 40, 20, 40.0, 40.0, 20.0, 10.0, T_rig_camera)
    return RenderRequest(camera, T_rig_camera, T_rig_camera, {}, 0)


def wall(depth_m: float) -> RenderedImage:
    return RenderedImage(
        np.zeros((20, 40, 3), np.float32), np.full((20, 40), depth_m, np.float32), np.ones((20, 40), np.float32)
    )


def test_shift_is_to_the_left_of_the_rig():
    moved = shifted_request(request(), 2.0)
    np.testing.assert_allclose(moved.T_world_camera_open[:3, 3], [1.0, 2.0, 1.5])
    np.testing.assert_allclose(moved.T_world_camera_open[:3, :3], R_RIG_FORWARD_CAMERA)


def test_holes_count_below_the_horizon_only():
    image = wall(10.0)
    image.opacity[:10] = 0.0  # sky
    image.opacity[15:, :20] = 0.1
    y = (np.arange(20) + 0.5 - 10.0) / 40.0
    directions = np.stack(np.broadcast_arrays(1.0, 0.0, -y[:, None] * np.ones(40)), axis=-1)
    below = (y > 0.02 * np.sqrt(1 + y**2)).sum()
    assert hole_share(image, directions) == pytest.approx(5 * 20 / (below * 40))


def test_floaters_conflict_and_what_was_hidden_does_not():
    on_log = request()
    shifted = shifted_request(on_log, 1.0)
    assert conflict_share(on_log, wall(10.0), on_log, wall(10.0)) == 0.0
    assert conflict_share(on_log, wall(10.0), shifted, wall(10.0)) == 0.0
    assert conflict_share(on_log, wall(10.0), shifted, wall(12.0)) == 0.0
    floating = wall(10.0)
    floating.depth_m[:, 20:24] = 5.0
    assert conflict_share(on_log, wall(10.0), shifted, floating) == pytest.approx(0.1)
    # Where the recorded view saw the sky, everything solid is a floater.
    empty = replace(wall(10.0), opacity=np.zeros((20, 40), np.float32))
    assert conflict_share(on_log, empty, on_log, wall(10.0)) == 1.0
    assert conflict_share(on_log, wall(10.0), on_log, empty) == 0.0


def test_scene_carries_the_measure(tmp_path):
    scene = reconstruct(make_clip(tmp_path), SMALL, seed=0)
    measured = scene.metadata["quality"]["off_log"]
    assert list(measured) == ["0", "1", "2", "4"]
    assert measured["0"]["conflict_share"] < 0.02
    assert all(0 <= each[name] <= 1 for each in measured.values() for name in ("hole_share", "conflict_share"))
    assert "psnr_db" not in measured["0"]
    assert held_out_indices(scene, "front") == [4, 12, 20]
    # A world whose road is gone has more holes.
    thin = replace(scene.background, opacity_logits=scene.background.opacity_logits - 20)
    worse = measure_off_log(
        replace(scene, background=thin, road=replace(scene.road, means_m=scene.road.means_m + 1e4)), 96
    )
    assert worse["2"]["hole_share"] > measured["2"]["hole_share"] + 0.3


def test_town_is_compared_with_the_truth(tmp_path):
    options = IngestOptions(seed=3, duration_s=8.2, rate_hz=4.0, scale=0.25, cameras=())
    clip = ingest_town(options, tmp_path / "town")
    scene = reconstruct(clip, replace(SMALL, iterations=60), seed=0)
    measured = scene.metadata["quality"]["off_log"]
    assert measured["0"]["psnr_db"] == pytest.approx(scene.metadata["quality"]["held_out"]["psnr_db"], abs=2.5)
    assert measured["4"]["psnr_db"] < measured["0"]["psnr_db"]
