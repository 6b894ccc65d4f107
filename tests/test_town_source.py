"""`roadloop ingest town`: the clip and the way back to the true world."""

from dataclasses import replace

import numpy as np
import pytest

from neural_sim.clips.check import check_clip
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose
from neural_sim.simulation.blank import blank_scene
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.simulator import Simulator
from neural_sim.town.config import TELE_CAMERA, WIDE_CAMERA
from neural_sim.town.source import town_config
from neural_sim.town.town import require_town, town_from_source, true_world

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
    assert {"oncoming_0", "parked_0"} <= {track.track_id for track in clip.tracks}
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
    assert sorted(late.lidar_paths) == list(range(1_000_000, 9_000_001, 500_000))


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


def test_kind_of_street_can_be_chosen():
    assert town_config(IngestOptions(seed=3, sequence="avenue")).street == "avenue"
    assert town_config(IngestOptions(seed=3)).street is None


def test_lidar_points_lie_on_what_the_camera_sees(clip):
    """Points of a sweep, drawn into the image of the same time, have the depth of the picture there."""
    town = town_from_source(clip.source)
    camera = town.cameras[WIDE_CAMERA]
    sweep = np.load(clip.lidar_paths[2_000_000])
    assert sweep.dtype == np.float32
    assert len(sweep) > 5000
    assert ((sweep[:, 3] > 0) & (sweep[:, 3] <= 1)).all()
    image = town.renderer.render([town.request(camera, 2_000_000)])[0]
    T_camera_rig = invert_pose(camera.T_rig_camera)
    local = sweep[:, :3] @ T_camera_rig[:3, :3].T + T_camera_rig[:3, 3]
    pixels, visible = camera.project(local)
    inside = visible & (pixels > 0).all(axis=1) & (pixels < [camera.width_px, camera.height_px]).all(axis=1)
    columns, rows = np.floor(pixels[inside]).astype(int).T
    difference = np.abs(image.depth_m[rows, columns] / local[inside, 2] - 1.0)
    assert inside.sum() > 1500
    # The scanner sits elsewhere than the camera, so a few points are hidden from it.
    assert np.median(difference) < 0.03
    assert (difference < 0.2).mean() > 0.85


def test_unknown_camera_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cameras is .*'rear'.*expected one or more of camera_front_wide_120fov"):
        ingest("town", IngestOptions(cameras=("rear",)), tmp_path / "clip")


def test_closed_loop_in_the_true_world_sees_the_recorded_pixels(clip):
    """On the recorded poses the simulator shows what the clip holds: one frame for scene and town."""
    cameras = {name: frames.camera for name, frames in clip.cameras.items()}
    times_us = {name: frames.t_us for name, frames in clip.cameras.items()}
    scene = replace(blank_scene(clip), cameras=cameras, camera_times_us=times_us)
    images = ImageFormat(tuple(cameras), num_frames=2, frame_interval_us=1_000_000, width_px=80, height_px=48)
    simulator = Simulator(scene, true_world(scene), SimulationConfig(warmup_us=2_000_000), images)
    observation = simulator.reset([5])
    for name, frames in clip.cameras.items():
        np.testing.assert_array_equal(observation.image_times_us[name][0], [1_000_000, 2_000_000])
        for place, index in enumerate((1, 2)):
            np.testing.assert_array_equal(observation.images[name][0, place], frames.load(index))


def test_scene_of_another_dataset_has_no_true_world(clip):
    other = replace(blank_scene(clip), metadata={"source": {"dataset": "kitti-raw"}})
    with pytest.raises(InputError, match=r"scene clip: the clip is of dataset 'kitti-raw'; expected 'town'"):
        true_world(other)
    with pytest.raises(InputError, match="dataset 'nurec'"):
        require_town(replace(other, metadata={"source": "nurec"}))


def test_clip_of_another_version_of_the_town_is_refused(clip):
    with pytest.raises(InputError, match=r"version 0 of the town, .* ingest and reconstruct again"):
        town_from_source({**clip.source, "town_version": 0})


def test_true_world_of_a_recorded_clip_is_refused():
    with pytest.raises(InputError, match="dataset 'kitti-odometry'; expected 'town'"):
        town_from_source({"dataset": "kitti-odometry"})
