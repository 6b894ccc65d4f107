"""`roadloop ingest town`: the clip and the way back to the true world."""

import numpy as np
import pytest

from neural_sim.clips.check import check_clip
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.errors import InputError
from neural_sim.town.config import TELE_CAMERA, WIDE_CAMERA
from neural_sim.town.town import town_from_source

OPTIONS = IngestOptions(seed=4, duration_s=9.0, rate_hz=1.0, scale=0.25, cameras=(WIDE_CAMERA, TELE_CAMERA))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return ingest("town", OPTIONS, tmp_path_factory.mktemp("town") / "clip")


def test_clip_is_sound_and_complete(clip):
    assert check_clip(clip, decode_images=True) == []
    assert set(clip.cameras) == {WIDE_CAMERA, TELE_CAMERA}
    frames = clip.cameras[WIDE_CAMERA]
    assert (frames.camera.width_px, frames.camera.height_px) == (80, 48)
    np.testing.assert_array_equal(frames.t_us, np.arange(10) * 1_000_000)
    assert clip.duration_s == 9.0
    assert {"lead", "oncoming_0", "parked_0"} <= {track.track_id for track in clip.tracks}
    assert clip.road_map is not None
    assert clip.road_map.source == "recorded"
    assert clip.navigation_at(0) != ""


def test_true_world_rebuilt_from_the_clip_draws_the_same_images(clip):
    town = town_from_source(clip.source)
    for name, frames in clip.cameras.items():
        assert frames.camera.to_json() == town.cameras[name].to_json()
        image = town.renderer.render([town.request(frames.camera, int(frames.t_us[3]))])[0]
        np.testing.assert_array_equal(np.round(image.rgb * 255).astype(np.uint8), frames.load(3))
    np.testing.assert_allclose(clip.ego.T_world_rig, town.expert.T_world_rig, atol=1e-9)


def test_later_start_is_a_cut_of_the_longer_drive(clip, tmp_path):
    options = IngestOptions(seed=4, start_s=1.0, duration_s=8.0, rate_hz=1.0, scale=0.25)
    late = ingest("town", options, tmp_path / "late")
    frames = late.cameras[WIDE_CAMERA]
    np.testing.assert_array_equal(frames.t_us, np.arange(1, 10) * 1_000_000)
    np.testing.assert_array_equal(frames.load(0), clip.cameras[WIDE_CAMERA].load(1))
    assert late.ego.start_us == 1_000_000
    assert late.navigation[0].text == clip.navigation_at(1_000_000)
    assert all(track.trajectory.start_us == 1_000_000 for track in late.tracks)


def test_same_options_same_files(clip, tmp_path):
    again = ingest("town", OPTIONS, tmp_path / "again")
    for name, frames in clip.cameras.items():
        for first, second in zip(frames.paths, again.cameras[name].paths, strict=True):
            assert first.read_bytes() == second.read_bytes()
    np.testing.assert_array_equal(clip.ego.T_world_rig, again.ego.T_world_rig)


def test_folder_or_sequence_is_refused(tmp_path):
    with pytest.raises(InputError, match="the town is generated, but root is"):
        ingest("town", IngestOptions(root=tmp_path), tmp_path / "clip")
    with pytest.raises(InputError, match="sequence is '07'"):
        ingest("town", IngestOptions(sequence="07"), tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


def test_unknown_camera_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cameras is .*'rear'.*expected one or more of camera_front_wide_120fov"):
        ingest("town", IngestOptions(cameras=("rear",)), tmp_path / "clip")


def test_true_world_of_a_recorded_clip_is_refused():
    with pytest.raises(InputError, match="dataset 'kitti-odometry'; expected 'town'"):
        town_from_source({"dataset": "kitti-odometry"})
