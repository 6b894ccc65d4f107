from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from reconstruction_clip import make_clip

from neural_sim.errors import InputError
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.memory import predicted_peak_bytes
from neural_sim.reconstruction.reconstruct import reconstruct
from neural_sim.road_users import Track
from neural_sim.scenes.recorded_views import recorded_request
from neural_sim.trajectory import Trajectory

TINY = ReconstructionConfig(
    image_width_px=64, iterations=12, max_gaussians=2000, sky_size_px=8, track_corners=200, far_points=50
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("corridor"), moving_box=True)


def with_camera(clip, **changes):
    frames = clip.cameras["front"]
    return replace(clip, cameras={"front": replace(frames, camera=replace(frames.camera, **changes))})


def test_calibration_of_another_image_size_is_refused(clip):
    with pytest.raises(InputError, match="image is 128x64 but the calibration says 256x128"):
        reconstruct(with_camera(clip, width_px=256, height_px=128), TINY, seed=0)


def test_missing_calibration_is_refused(clip):
    with pytest.raises(InputError, match="focal lengths 0"):
        with_camera(clip, fx_px=0.0)


def test_broken_image_is_named(clip, tmp_path):
    frames = clip.cameras["front"]
    (tmp_path / "half.png").write_bytes(frames.paths[3].read_bytes()[:200])
    paths = (*frames.paths[:3], tmp_path / "half.png", *frames.paths[4:])
    broken = replace(clip, cameras={"front": replace(frames, paths=paths)})
    with pytest.raises(InputError, match=r"frame 3 .* does not decode"):
        reconstruct(broken, TINY, seed=0)


def test_black_clip_is_refused(clip, tmp_path):
    frames = clip.cameras["front"]
    Image.new("RGB", (128, 64)).save(tmp_path / "black.png")
    paths = tuple(path if i < 5 else tmp_path / "black.png" for i, path in enumerate(frames.paths))
    dark = replace(clip, cameras={"front": replace(frames, paths=paths)})
    with pytest.raises(InputError, match="has 5 frames that are not black; expected at least 8"):
        reconstruct(dark, TINY, seed=0)


def cut(track: Track, first: int, last: int) -> Track:
    whole = track.trajectory
    return replace(track, trajectory=Trajectory(whole.t_us[first:last], whole.T_world_rig[first:last]))


def test_track_that_ends_early_ends_its_actor(clip):
    track = cut(clip.tracks[0], 0, 12)
    scene = reconstruct(replace(clip, tracks=(track,)), TINY, seed=0)
    assert set(scene.actors) == {track.track_id}
    assert np.array_equal(scene.tracks[0].trajectory.t_us, track.trajectory.t_us)
    camera = scene.cameras["front"]
    assert track.track_id in recorded_request(scene, camera, track.trajectory.end_us).T_world_actors
    assert track.track_id not in recorded_request(scene, camera, track.trajectory.end_us + 1).T_world_actors
    assert all(np.isfinite(frame["psnr_db"]) for frame in scene.metadata["quality"]["held_out"]["frames"])


def test_track_between_two_frames_gets_no_actor_that_moves_it(clip):
    """Three poses within one frame interval: never seen, so nothing is learned and nothing fails."""
    T = np.tile(clip.tracks[0].trajectory.T_world_rig[:1], (3, 1, 1))
    T[:, 0, 3] += [0.0, 1.0, 2.0]
    track = replace(clip.tracks[0], trajectory=Trajectory(np.array([510_000, 520_000, 530_000]), T))
    scene = reconstruct(replace(clip, tracks=(track,)), TINY, seed=0)
    np.testing.assert_array_equal(scene.tracks[0].trajectory.T_world_rig, T)


def test_memory_budget_is_checked_before_any_work(clip):
    with pytest.raises(InputError, match=r"would take up to \d\.\d GB, more than the memory budget of 0\.1 GB"):
        reconstruct(clip, replace(TINY, memory_budget_gb=0.1), seed=0)


def test_predicted_memory_grows_with_what_takes_it(clip):
    base = predicted_peak_bytes(clip, TINY)
    assert predicted_peak_bytes(clip, replace(TINY, max_gaussians=10**6)) > base + 0.5e9
    assert predicted_peak_bytes(clip, replace(TINY, image_width_px=128)) > base
    assert predicted_peak_bytes(clip, replace(TINY, track_corners=4000)) > base
