import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation
from synthetic_clip import make_clip, straight_trajectory, write_image

from neural_sim.clips.clip import NavigationStep
from neural_sim.clips.storage import read_clip, write_clip
from neural_sim.clips.tables import read_tracks, read_trajectory, write_tracks, write_trajectory
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_translation_quaternion
from neural_sim.road_users import CATEGORIES, Track
from neural_sim.trajectory import Trajectory


@pytest.fixture
def written(tmp_path):
    clip = make_clip(tmp_path / "source")
    folder = tmp_path / "clip"
    write_clip(clip, folder)
    return clip, folder


def edit(folder, change):
    value = json.loads((folder / "clip.json").read_text())
    change(value)
    (folder / "clip.json").write_text(json.dumps(value))


def test_layout_on_disk(written):
    clip, folder = written
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    t_us = clip.ego.t_us[::10]
    expected = {"clip.json", "egomotion.parquet", "tracks.parquet", "map.json", "lidar/1000.npy"}
    expected |= {f"frames/camera_front/{t}.png" for t in t_us} | {f"frames/camera_tele/{t}.jpg" for t in t_us}
    assert names == expected
    assert pq.read_table(folder / "egomotion.parquet").column_names == ["t_us", "x", "y", "z", "qx", "qy", "qz", "qw"]
    header = ["track_id", "category", "length", "width", "height", "t_us", "x", "y", "z", "qx", "qy", "qz", "qw"]
    assert pq.read_table(folder / "tracks.parquet").column_names == header


def test_round_trip(written):
    clip, folder = written
    back = read_clip(folder)
    for name in ("clip_id", "source", "ego_vehicle", "navigation"):
        assert getattr(back, name) == getattr(clip, name)
    np.testing.assert_array_equal(back.ego.t_us, clip.ego.t_us)
    np.testing.assert_allclose(back.ego.T_world_rig, clip.ego.T_world_rig, atol=1e-12)
    assert [track.track_id for track in back.tracks] == ["car/1", "7"]
    assert list(back.cameras) == list(clip.cameras)
    for name, frames in clip.cameras.items():
        assert back.cameras[name].camera.to_json() == frames.camera.to_json()
        np.testing.assert_array_equal(back.cameras[name].t_us, frames.t_us)
        for source, copy in zip(frames.paths, back.cameras[name].paths, strict=True):
            assert source.read_bytes() == copy.read_bytes()
    np.testing.assert_array_equal(np.load(back.lidar_paths[1_000]), np.load(clip.lidar_paths[1_000]))


def test_round_trip_of_the_map_is_exact(written):
    clip, folder = written
    back, road_map = read_clip(folder).road_map, clip.road_map
    assert back is not None
    assert road_map is not None
    assert back.source == "recorded"
    lanes = [(lane.lane_id, lane.width_m, lane.successors) for lane in back.lanes]
    assert lanes == [("a", 3.5, ("b",)), ("b", 3.25, ())]
    np.testing.assert_array_equal(back.lanes[1].centerline_m, road_map.lanes[1].centerline_m)
    np.testing.assert_array_equal(back.road_edges_m[0], road_map.road_edges_m[0])
    assert back.drivable_areas == road_map.drivable_areas
    assert len(back.drivable_areas[0].interiors) == 1


def test_clip_without_map_and_tracks(tmp_path):
    clip = replace(make_clip(tmp_path / "source"), road_map=None, tracks=(), navigation=(), lidar_paths={})
    write_clip(clip, tmp_path / "clip")
    back = read_clip(tmp_path / "clip")
    assert back.road_map is None
    assert back.tracks == ()
    assert back.lidar_paths == {}


def test_a_failed_write_leaves_the_old_clip(written):
    clip, folder = written
    clip.cameras["camera_tele"].paths[3].unlink()
    with pytest.raises(InputError, match=r"source3\.jpg\): the image file is missing"):
        write_clip(clip, folder)
    assert len(read_clip(folder).cameras) == 2
    assert sorted(path.name for path in folder.parent.iterdir()) == ["clip", "source"]


def test_rewriting_a_clip_over_itself_keeps_its_images(written):
    clip, folder = written
    write_clip(read_clip(folder), folder)
    assert read_clip(folder).cameras["camera_front"].load(2).shape == (20, 32, 3)
    assert len(clip.cameras) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format_version=99), r"format_version is 99, expected 1; make the file again"),
        (lambda v: v.pop("ego_vehicle"), r"clip\.json: key 'ego_vehicle' is missing"),
        (lambda v: v.update(clip_id=5), r"key 'clip_id' should be str, found int"),
        (lambda v: v.update(clip_id="../evil"), r"clip_id '\.\./evil' must be letters"),
        (lambda v: v["cameras"][0]["calibration"].update(name="../../x"), r"camera name '\.\./\.\./x' must be letters"),
        (lambda v: v["cameras"][0]["calibration"].update(model="prism"), r"model 'prism' is not supported"),
        (lambda v: v["cameras"][0]["calibration"].update(T_rig_camera=[[1]]), r"T_rig_camera must be 4x4"),
        (lambda v: v["cameras"][0].update(extension="gif"), r"image extension is 'gif', expected jpg or png"),
        (lambda v: v["cameras"][0]["t_us"].reverse(), r"camera camera_front: times must increase, but entry 1"),
        (lambda v: v["cameras"][0]["t_us"].append(9e6), r"t_us must be a list of whole microseconds"),
        (lambda v: v["cameras"][1]["t_us"].append(99_000_000), r"99000000\.jpg: the image file is missing \(1 of 11"),
        (lambda v: v["ego_vehicle"].update(width_m=0), r"ego_vehicle\.width_m is 0\.0, expected a positive length"),
        (lambda v: v["navigation"].reverse(), r"navigation steps are not in order of start_us"),
        (lambda v: v["lidar_t_us"].append(5_000), r"5000\.npy: the lidar sweep is missing"),
    ],
)
def test_bad_clip_json(written, change, message):
    edit(written[1], change)
    with pytest.raises(InputError, match=message):
        read_clip(written[1])


def test_json_that_is_not_json(written):
    (written[1] / "clip.json").write_text('{"a": NaN}')
    with pytest.raises(InputError, match=r"clip\.json: not valid JSON \(NaN is not a JSON number\)"):
        read_clip(written[1])


def test_folder_that_is_no_clip(tmp_path):
    with pytest.raises(InputError, match=r"no clip\.json here, so this is not a clip folder; make one with"):
        read_clip(tmp_path)


@pytest.mark.parametrize("name", ["egomotion.parquet", "tracks.parquet"])
def test_damaged_tables(written, name):
    path = written[1] / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{name}: not a readable Parquet file"):
        read_clip(written[1])
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: the file is missing"):
        read_clip(written[1])


def test_missing_column_and_bad_pose(tmp_path):
    path = tmp_path / "egomotion.parquet"
    write_trajectory(straight_trajectory(5), path)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["qw"]), path)
    with pytest.raises(InputError, match="columns qw are missing"):
        read_trajectory(path)
    pq.write_table(table.set_column(7, "qw", [[0.0] * 5]), path)
    with pytest.raises(InputError, match=r"row 0 is not a pose .* quaternion norm 0, expected finite and 1"):
        read_trajectory(path)
    pq.write_table(table.set_column(0, "t_us", [[0, 1, 1, 2, 3]]), path)
    with pytest.raises(InputError, match="timestamps must increase, but entry 2"):
        read_trajectory(path)


def test_column_of_another_type_or_with_gaps(tmp_path):
    path = tmp_path / "egomotion.parquet"
    write_trajectory(straight_trajectory(2), path)
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "t_us", [[0.5, 1.5]]), path)
    with pytest.raises(InputError, match="column t_us is double with 0 empty rows, expected int64 without"):
        read_trajectory(path)
    pq.write_table(table.set_column(1, "x", [[0.5, None]]), path)
    with pytest.raises(InputError, match="column x is double with 1 empty rows, expected double without"):
        read_trajectory(path)


def test_unknown_category(tmp_path):
    track = Track("a", "spaceship", (1.0, 1.0, 1.0), straight_trajectory(2))
    write_tracks((track,), tmp_path / "tracks.parquet")
    with pytest.raises(InputError, match=r"track 'a': category is 'spaceship', expected one of vehicle, pedestrian"):
        read_tracks(tmp_path / "tracks.parquet")


def test_map_with_a_broken_polyline(written):
    path = written[1] / "map.json"
    value = json.loads(path.read_text())
    value["lanes"][1]["centerline_m"] = [[0, 0, 0]]
    path.write_text(json.dumps(value))
    with pytest.raises(
        InputError, match=r"map\.json, lane 1: points have shape \[1, 3\], expected at least 2 rows of 3"
    ):
        read_clip(written[1])


def test_mixed_image_kinds_are_refused(tmp_path):
    clip = make_clip(tmp_path / "source")
    frames = clip.cameras["camera_front"]
    write_image(tmp_path / "other.jpg", 1)
    mixed = replace(frames, paths=(tmp_path / "other.jpg", *frames.paths[1:]))
    with pytest.raises(InputError, match=r"camera_front: images are \['jpg', 'png'\], expected all jpg or all png"):
        write_clip(replace(clip, cameras={"camera_front": mixed}), tmp_path / "clip")


@st.composite
def trajectories(draw):
    count = draw(st.integers(1, 6))
    steps = draw(st.lists(st.integers(1, 10**7), min_size=count, max_size=count))
    t_us = draw(st.integers(-(10**15), 10**15)) + np.cumsum(np.array(steps, np.int64))
    translation = draw(arrays(float, (count, 3), elements=st.floats(-1e6, 1e6)))
    rotation = draw(arrays(float, (count, 3), elements=st.floats(-3.0, 3.0)))
    return Trajectory(t_us, pose_from_translation_quaternion(translation, Rotation.from_rotvec(rotation).as_quat()))


track_values = st.tuples(
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.sampled_from(CATEGORIES),
    st.tuples(*[st.floats(0.1, 20.0)] * 3),
    trajectories(),
)


def assert_same_trajectory(back, trajectory):
    np.testing.assert_array_equal(back.t_us, trajectory.t_us)
    np.testing.assert_array_equal(back.T_world_rig[:, :3, 3], trajectory.T_world_rig[:, :3, 3])
    np.testing.assert_allclose(back.T_world_rig, trajectory.T_world_rig, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(trajectory=trajectories())
def test_any_trajectory_round_trips(tmp_path_factory, trajectory):
    path = tmp_path_factory.mktemp("t") / "egomotion.parquet"
    write_trajectory(trajectory, path)
    assert_same_trajectory(read_trajectory(path), trajectory)


@settings(max_examples=40, deadline=None)
@given(values=st.lists(track_values, max_size=4, unique_by=lambda value: value[0]))
def test_any_tracks_round_trip(tmp_path_factory, values):
    tracks = tuple(Track(*value) for value in values)
    path = tmp_path_factory.mktemp("t") / "tracks.parquet"
    write_tracks(tracks, path)
    back = read_tracks(path)
    assert [(t.track_id, t.category, t.size_m) for t in back] == [(t.track_id, t.category, t.size_m) for t in tracks]
    for left, right in zip(back, tracks, strict=True):
        assert_same_trajectory(left.trajectory, right.trajectory)


def test_rows_of_a_track_need_not_be_contiguous(tmp_path):
    path = tmp_path / "tracks.parquet"
    tracks = tuple(Track(name, "vehicle", (4.0, 2.0, 1.5), straight_trajectory(2, 3.0)) for name in "ab")
    write_tracks(tracks, path)
    pq.write_table(pq.read_table(path).take([0, 2, 1, 3]), path)
    for back, track in zip(read_tracks(path), tracks, strict=True):
        assert_same_trajectory(back.trajectory, track.trajectory)


def test_navigation_of_a_read_clip(written):
    back = read_clip(written[1])
    assert back.navigation_at(500_000) == "go straight"
    assert back.navigation_at(3_000_000) == "turn left"
    assert back.navigation[0] == NavigationStep(1_000, "go straight")
