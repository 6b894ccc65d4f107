import contextlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarionet_log import STEPS, make_log, write_log

from neural_sim.clips.check import check_clip
from neural_sim.clips.describe import describe_clip
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.clips.restricted_pickle import load_restricted
from neural_sim.clips.scenarionet import steps_before_jump_back
from neural_sim.clips.scenarionet_map import even_odd
from neural_sim.errors import InputError
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.road_users import box_corners
from pipelines.reconstruct import reconstruct

DATA = Path(__file__).parents[2] / "shared" / "data" / "scenarionet"
# The last good step of the ego, found by hand.
REAL = {"0061": 187, "0103": 193, "0553": 200, "0655": 196, "1077": 198}


def read(root, tmp_path, **options):
    return ingest("scenarionet", IngestOptions(root=root, **options), tmp_path / "clip")


@pytest.fixture
def root(tmp_path):
    return write_log(tmp_path / "logs")


def test_a_log_without_images_is_a_sound_clip(root, tmp_path):
    clip = read(root, tmp_path, sequence="0042")
    assert clip.cameras == {}
    assert check_clip(clip, decode_images=True) == []
    facts, problems = describe_clip(tmp_path / "clip")
    assert problems == []
    assert "for reconstruct: needs images, and the clip has none" in facts
    assert any(fact.startswith("note: ego cut after step 96 of 101") for fact in facts)


def test_reconstruction_says_that_images_are_missing(root, tmp_path):
    read(root, tmp_path)
    with pytest.raises(InputError, match="clip clip: has no camera; reconstruction needs images"):
        reconstruct([tmp_path / "clip"], out=tmp_path / "scenes", config=ReconstructionConfig())
    assert not (tmp_path / "scenes" / "clip.usdz").exists()


def test_swapped_ego_size_is_mended(root, tmp_path):
    vehicle = read(root, tmp_path).ego_vehicle
    assert (vehicle.length_m, vehicle.width_m, vehicle.height_m) == (4.08, 1.73, 1.56)
    assert vehicle.center_x_m == pytest.approx(1.35, abs=0.01)


def test_ego_is_cut_where_it_jumps_back(root, tmp_path):
    clip = read(root, tmp_path)
    assert len(clip.ego.t_us) == 97
    assert clip.ego.end_us == 9_600_000
    assert clip.ego.path_length_m == pytest.approx(96 * 0.8)
    assert max(track.trajectory.end_us for track in clip.tracks) <= clip.ego.end_us


def test_driving_backwards_is_no_jump():
    reversing = np.column_stack([-0.3 * np.arange(50.0), np.zeros(50), np.zeros(50)])
    assert steps_before_jump_back(reversing) == 50
    parked = np.zeros((50, 3))
    assert steps_before_jump_back(parked) == 50


def test_world_has_a_local_origin(root, tmp_path):
    clip = read(root, tmp_path)
    assert clip.source["world_origin_m"] == [600.0, 1600.0, 0.0]
    np.testing.assert_allclose(clip.ego.planar[0], 0.0, atol=1e-12)
    assert clip.road_map is not None
    np.testing.assert_allclose(clip.road_map.lanes[0].centerline_m[0], 0.0, atol=1e-12)


def test_tracks_stand_on_the_ground_and_split_at_gaps(root, tmp_path):
    tracks = {track.track_id: track for track in read(root, tmp_path).tracks}
    assert sorted(tracks) == ["car", "lost", "lost/2", "once"]
    np.testing.assert_allclose(tracks["car"].trajectory.T_world_rig[:, 2, 3], 0.8)
    assert tracks["lost"].trajectory.end_us == 1_900_000
    assert tracks["lost/2"].trajectory.start_us == 5_000_000
    assert tracks["once"].category == "obstacle"
    # A heading outside (-pi, pi] is an angle like any other.
    np.testing.assert_allclose(tracks["car"].trajectory.planar[:, 2], 7.0 - 2 * np.pi)


def test_map_has_holes_widths_and_no_heights(root, tmp_path):
    road_map = read(root, tmp_path).road_map
    assert road_map is not None
    assert road_map.drivable.area == pytest.approx(200 * 40 - 20 * 5 + 5 * 1)
    assert not road_map.drivable.contains(shapely.Point(42, 14))
    assert road_map.drivable.contains(shapely.Point(46, 12.5))
    lanes = {lane.lane_id: lane for lane in road_map.lanes}
    assert lanes["lane"].width_m == pytest.approx(4.0)
    assert lanes["connector"].width_m == 3.5
    np.testing.assert_array_equal(lanes["lane"].centerline_m[:, 2], 0.0)
    assert len(road_map.road_edges_m) == 3


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3), st.floats(0, 9), st.floats(0, 9))
def test_even_odd_ignores_order_and_orientation(order, flipped, x, y):
    boxes = [shapely.box(0, 0, 9, 9), shapely.box(2, 2, 7, 7), shapely.box(3, 3, 5, 8)]
    rings = [shapely.get_coordinates(boxes[i])[:: -1 if flip else 1] for i, flip in zip(order, flipped, strict=True)]
    point = shapely.Point(x, y)
    if min(box.exterior.distance(point) for box in boxes) < 1e-6:
        return
    assert even_odd(rings).contains(point) == (sum(box.contains(point) for box in boxes) % 2 == 1)


def test_smoothing_on_request_is_told(tmp_path):
    log = make_log(jump_after=STEPS)
    log["tracks"]["ego"]["state"]["position"][40:, 0] += 0.3
    root = write_log(tmp_path / "logs", log)
    rough = read(root, tmp_path)
    assert "1 ego steps are over 15 % longer than their neighbours" in rough.source["notes"][-1]
    smooth = ingest("scenarionet", IngestOptions(root=root, smooth_ego_s=1.0), tmp_path / "smooth")
    change = smooth.source["ego_smoothing"]
    assert 0.05 < change["largest_shift_m"] < 0.16
    steps = np.diff(smooth.ego.planar[:, 0])
    assert np.abs(np.diff(steps)).max() < 0.1 < np.abs(np.diff(np.diff(rough.ego.planar[:, 0]))).max()


def test_a_time_range(root, tmp_path):
    clip = read(root, tmp_path, start_s=0.5, duration_s=8.5)
    assert (clip.ego.start_us, clip.ego.end_us) == (500_000, 9_000_000)


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ.get("TMPDIR", "/tmp")) / "evil"),)


def change_state(track, key, value):
    def change(log):
        log["tracks"][track]["state"][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.pop("tracks"), "0042.pkl: key 'tracks' is missing; expected the ScenarioNet layout"),
        (lambda log: log["tracks"].pop("ego"), "0042.pkl: tracks: key 'ego' is missing"),
        (lambda log: log["metadata"].update(ts=np.zeros(STEPS)), "metadata.ts: expected at least two increasing"),
        (change_state("ego", "position", np.zeros((5, 3))), r"position: shape \[5, 3\], expected 101 rows of 3"),
        (change_state("ego", "heading", np.full(STEPS, np.nan)), "track 'ego', heading: has NaN or infinite"),
        (change_state("ego", "position", np.full((STEPS, 3), 1e200)), r"position: 1e\+200 m is no place; get"),
        (change_state("ego", "valid", np.zeros(STEPS)), "track 'ego': the ego is never valid"),
        (change_state("car", "heading", np.array([None] * STEPS)), "array of 'O8', expected plain numbers"),
        (change_state("car", "length", np.zeros((STEPS, 1))), "track 'car' has box size .*, expected positive"),
        (change_state("car", "width", "wide"), "track 'car', width: not an array of numbers"),
        (lambda log: log["map_features"]["lane"].update(polyline=[1, 2]), r"feature lane: polyline has shape \[2\]"),
        (lambda log: log["map_features"].update(x=Evil()), "it names posix.mkdir, and only NumPy arrays are allowed"),
    ],
)
def test_bad_logs(tmp_path, change, message):
    log = make_log()
    change(log)
    root = write_log(tmp_path / "logs", log)
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)
    assert not (tmp_path / "clip").exists()


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_truncated_logs(root, tmp_path, length):
    path = next(root.iterdir())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"0042.pkl: not loaded as a pickle: .*get it again"):
        read(root, tmp_path)


def test_an_array_that_claims_to_be_huge_is_not_allocated(tmp_path):
    content = pickle.dumps({"a": np.zeros((3, 7))}, protocol=4).replace(b"K\x03K\x07\x86", b"K\x63K\x63\x86")
    (tmp_path / "sd_x.pkl").write_bytes(content)
    value = load_restricted(tmp_path / "sd_x.pkl")["a"]
    with pytest.raises(InputError, match=r"x: array of shape \(99, 99\) does not fit its bytes"):
        value.to_numpy("x")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_pickles_never_escape_as_other_errors(tmp_path_factory, data):
    content = bytearray(pickle.dumps({"a": np.arange(4.0), "b": [1, "x"]}, protocol=4))
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "sd_x.pkl"
    path.write_bytes(bytes(content))
    with contextlib.suppress(InputError):
        load_restricted(path)


def test_unknown_log_lists_the_available(root, tmp_path):
    with pytest.raises(InputError, match=r"no log named sd_\*0999.pkl; available: sd_nuscenes_v1.0-mini_scene-0042"):
        read(root, tmp_path, sequence="0999")
    with pytest.raises(InputError, match="scenarionet has no images, so cameras does not apply"):
        read(root, tmp_path, cameras=("front",))


@pytest.mark.shared_data
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real logs")
@pytest.mark.parametrize("name", REAL)
def test_real_logs(tmp_path, name):
    clip = read(DATA, tmp_path, sequence=name)
    assert len(clip.ego.t_us) == REAL[name] + 1
    assert clip.road_map is not None
    assert shapely.contains_xy(clip.road_map.drivable, *clip.ego.planar[:, :2].T).all()
    assert replay_overlaps(clip) == 0


def replay_overlaps(clip):
    """Overlaps of the logged ego box with any logged box, at every 5th ego pose (the actors' keyframes)."""
    vehicle, count = clip.ego_vehicle, 0
    for t_us, planar in zip(clip.ego.t_us[::5], clip.ego.planar[::5], strict=True):
        ego = shapely.Polygon(box_corners(planar, vehicle.length_m, vehicle.width_m, vehicle.center_x_m))
        for track in clip.tracks:
            pose = track.trajectory.planar_at(np.array([t_us]))[0]
            if track.is_present(int(t_us)) and np.hypot(*(pose[:2] - planar[:2])) < 20:
                count += ego.intersects(shapely.Polygon(box_corners(pose, *track.size_m[:2])))
    return count
