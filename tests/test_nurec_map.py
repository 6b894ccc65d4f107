"""Road maps inside NuRec archives: lane tables, OpenDRIVE, and which of them is taken."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_clip import make_map
from synthetic_scene import make_scene, make_track
from test_nurec_scene import rewrite

from neural_sim.errors import InputError
from neural_sim.maps.nurec_tables import map_folder, parse_lane_tables
from neural_sim.maps.nurec_tables_writer import encode_lane_tables
from neural_sim.maps.opendrive_writer import encode_opendrive
from neural_sim.road_map import Lane, RoadMap
from neural_sim.scenes.archive import member_names, read_members, write_archive
from neural_sim.scenes.nurec_scene import read_nurec_scene
from neural_sim.scenes.storage import read_scene, world_origin, write_scene


def table(rows):
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def points(*xyz):
    return [dict(zip("xyz", map(float, point), strict=True)) for point in xyz]


def lane_row(name, start, end, use_types=(), speed_limit="25 mph"):
    left = points((start, 1.75, 0), ((start + end) / 2, 1.75, 0), (end, 1.75, 0))
    right = points((start, -1.75, 0), (end, -1.75, 0))
    rails = {"left_rail": left, "right_rail": right, "use_types": list(use_types), "speed_limit": speed_limit}
    return {"key": {"map_id": name, "clip_id": "c"}, "lane": rails, "version": 1}


KEY = {"clip_id": "c"}


def make_tables():
    following = {"key": {"kind": "NEXT_LANE"}, "association": {"subjects": ["1"], "objects": ["2", "gone"]}}
    before = {"key": {"kind": "PREVIOUS_LANE"}, "association": {"subjects": ["2"], "objects": ["1"]}}
    rows = [lane_row("1", 0, 20), lane_row("2", 20, 40, speed_limit="fast"), lane_row("3", 0, 20, ["BICYCLE"])]
    return {
        "lane": table(rows),
        "association": table([following, before]),
        "road_boundary": table([{"key": KEY, "road_boundary": {"location": points((0, 3, 0), (40, 3, 0))}}]),
        "intersection_area": table(
            [{"key": KEY, "intersection_area": {"location": points((20, -9, 0), (40, -9, 0), (40, 9, 0), (20, 9, 0))}}]
        ),
    }


def test_lane_tables():
    road_map = parse_lane_tables(make_tables(), "scene")
    first, second = road_map.lanes
    assert (first.lane_id, second.lane_id) == ("1", "2")
    np.testing.assert_allclose(first.centerline_m[[0, -1]], [[0, 0, 0], [20, 0, 0]], atol=1e-12)
    assert first.width_m == pytest.approx(3.5)
    assert first.successors == ("2",)
    assert (first.speed_limit_mps, second.speed_limit_mps) == (pytest.approx(11.176), None)
    assert (first.is_junction, second.is_junction) == (False, True)
    np.testing.assert_array_equal(road_map.road_edges_m[0], [[0, 3], [40, 3]])
    assert road_map.drivable.area == pytest.approx(20 * 3.5 + 20 * 18)
    assert road_map.source == "recorded"


def test_lanes_alone_are_enough():
    road_map = parse_lane_tables({"lane": make_tables()["lane"]}, "scene")
    assert [lane.successors for lane in road_map.lanes] == [(), ()]
    assert road_map.road_edges_m == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"no table", "lane.parquet is not a readable table"),
        ([lane_row("1", 0, 20, ["BICYCLE"])], "no lane for cars"),
        ([{"key": {"map_id": "1"}, "lane": {"left_rail": points((0, 0, 0))}}], "row 0: left_rail: 1 points, expected"),
        ([{"key": {"map_id": "1"}, "lane": {"left_rail": [{"x": 1.0}]}}], "row 0: left_rail: not a list of x, y, z"),
        ([{"key": {"map_id": "1"}, "lane": {"left_rail": points((0, 0, 0), (float("nan"), 0, 0))}}], "finite numbers"),
        ([{"other": 1}], "row 0: left_rail: not a list"),
    ],
)
def test_malformed_lane_tables(rows, message):
    with pytest.raises(InputError, match=message):
        parse_lane_tables({"lane": rows if isinstance(rows, bytes) else table(rows)}, "scene")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_tables_give_one_error(data):
    tables = make_tables()
    name = data.draw(st.sampled_from(sorted(tables)))
    content = bytearray(tables[name])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    tables[name] = bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InputError):
        parse_lane_tables(tables, "scene")


def test_folders_are_looked_for_in_the_order_of_alpasim():
    assert map_folder(["clipgt/lane.parquet", "map_data/lane.parquet"]) == "map_data"
    assert map_folder(["fastmap/lane.parquet", "clipgt/lane.parquet", "clipgt/clip.parquet"]) == "clipgt"
    assert map_folder(["map_data/dw_lane.parquet"]) is None


@pytest.fixture
def foreign(tmp_path):
    """A scene with a recorded map as OpenDRIVE alone, without roadloop's own members."""
    scene = replace(make_scene(), road_map=make_map())
    path = tmp_path / "s.usdz"
    write_scene(scene, path)
    rewrite(path)
    with_members(path, {name: None for name in member_names(path) if name.startswith("clipgt/")})
    return scene, path


def with_members(path, changes):
    """Replace members, drop those that are None, add new ones."""
    members = read_members(path, member_names(path), "")
    write_archive(path, [(name, content) for name, content in (members | changes).items() if content is not None])


def test_our_map_comes_back_as_opendrive(foreign):
    scene, path = foreign
    back = read_scene(path).road_map
    assert back.source == "recorded"
    shift = world_origin(scene.expert)
    for written, read in zip(scene.road_map.lanes, back.lanes, strict=True):
        np.testing.assert_allclose(read.centerline_m[[0, -1]], written.centerline_m[[0, -1]] - shift, atol=1e-5)
    assert back.lanes[0].successors == (back.lanes[1].lane_id,)


def test_our_map_comes_back_from_its_lane_tables(tmp_path):
    scene, path = replace(make_scene(), road_map=make_map()), tmp_path / "s.usdz"
    write_scene(scene, path)
    rewrite(path)
    with_members(path, {"map.xodr": None})
    back, shift = read_scene(path).road_map, world_origin(scene.expert)
    assert [lane.lane_id for lane in back.lanes] == ["a", "b"]
    assert [lane.successors for lane in back.lanes] == [("b",), ()]
    assert [lane.width_m for lane in back.lanes] == pytest.approx([3.5, 3.25])
    for written, read in zip(scene.road_map.lanes, back.lanes, strict=True):
        np.testing.assert_allclose(read.centerline_m[[0, -1]], written.centerline_m[[0, -1]] - shift, atol=1e-9)
    np.testing.assert_allclose(back.road_edges_m[0], scene.road_map.road_edges_m[0] - shift[:2], atol=1e-9)


def rows(content):
    return parquet.read_table(io.BytesIO(content)).to_pylist()


def test_lane_tables_are_as_their_loader_in_alpasim_wants_them():
    """It halves the sum of both rails point by point, and compares a relation's subjects with one lane."""
    bend = Lane(
        "bend", np.array([[0.0, 0, 0], [10, 0, 1], [10, 10, 2]]), 4.0, ("a", "b", "gone"), 5.0, is_junction=True
    )
    straight = [Lane(name, np.array([[10.0, 10, 2], [x, 20, 2]]), 4.0) for name, x in (("a", 10), ("b", 15))]
    edge = np.array([[-1.0, 2.0], [9.0, 2.5]])
    tables = encode_lane_tables(RoadMap((bend, *straight), (edge,), (), "recorded"), np.zeros(3), "drive")
    names = {"clip", "lane", "association", "road_boundary", "intersection_area", "traffic_sign", "wait_line"}
    assert set(tables) == names
    lanes = {row["key"]["map_id"]: row["lane"] for row in rows(tables["lane"])}
    left, right = ([list(point.values()) for point in lanes["bend"][f"{side}_rail"]] for side in ("left", "right"))
    np.testing.assert_allclose((np.array(left) + right) / 2, bend.centerline_m, atol=1e-12)
    np.testing.assert_allclose(left[0], [0, 2, 0], atol=1e-12)
    np.testing.assert_allclose(left[1], [10 - 2**0.5, 2**0.5, 1], atol=1e-12)
    assert lanes["bend"]["speed_limit"] == "5 m/s"
    relations = [(row["key"]["kind"], row["association"]) for row in rows(tables["association"])]
    assert relations == [
        ("NEXT_LANE", {"subjects": ["bend"], "objects": ["a", "b"]}),
        ("PREVIOUS_LANE", {"subjects": ["a"], "objects": ["bend"]}),
        ("PREVIOUS_LANE", {"subjects": ["b"], "objects": ["bend"]}),
    ]
    assert rows(tables["clip"])[0]["key"]["clip_id"] == rows(tables["lane"])[0]["key"]["clip_id"] == "drive"
    (boundary,) = rows(tables["road_boundary"])
    assert [point["z"] for point in boundary["road_boundary"]["location"]] == [0.0, 1.0]
    assert len(rows(tables["intersection_area"])[0]["intersection_area"]["location"]) == 6
    for name, column in (("wait_line", "key.map_id"), ("association", "Association.subjects")):
        alone = encode_lane_tables(RoadMap((straight[0],), (), (), "recorded"), np.zeros(3), "drive")[name]
        assert column in parquet.read_schema(io.BytesIO(alone)).names, "asked for even where there is no row"


def test_a_corridor_is_not_written_as_a_map(tmp_path):
    write_scene(make_scene(), tmp_path / "s.usdz")
    assert not [name for name in member_names(tmp_path / "s.usdz") if name == "map.xodr" or "clipgt" in name]


def test_lane_tables_win_and_follow_the_world(foreign):
    _, path = foreign
    with_members(path, {f"clipgt/{name}.parquet": content for name, content in make_tables().items()})
    np.testing.assert_allclose(read_nurec_scene(path).road_map.lanes[0].centerline_m[-1], [20, 0, 0], atol=1e-12)
    rig = read_members(path, ["rig_trajectories.json"], "")["rig_trajectories.json"]
    turned = b'"world_to_nre": {"matrix": [[0,-1,0,1],[1,0,0,2],[0,0,1,3],[0,0,0,1]]}, "T_world_base"'
    start, end = rig.index(b'"world_to_nre"'), rig.index(b'"T_world_base"')
    with_members(path, {"rig_trajectories.json": rig[:start] + turned + rig[end + len(b'"T_world_base"') :]})
    np.testing.assert_allclose(read_nurec_scene(path).road_map.lanes[0].centerline_m[-1], [1, 22, 3], atol=1e-12)


def test_fast_maps_are_put_on_the_ground(foreign):
    scene, path = foreign
    raised = [lane_row("1", 0, 20)]
    for rail in (raised[0]["lane"]["left_rail"], raised[0]["lane"]["right_rail"]):
        rail[:] = [{**point, "z": 50.0} for point in rail]
    with_members(path, {"map.xodr": None, "fastmap/lane.parquet": table(raised)})
    ground_z = scene.ground.vertices_m[:, 2] - world_origin(scene.expert)[2]
    assert np.abs(read_nurec_scene(path).road_map.lanes[0].centerline_m[:, 2]).max() <= np.abs(ground_z).max() + 1e-6


def test_without_a_map_there_is_a_corridor_and_a_note(foreign):
    _, path = foreign
    with_members(path, {"map.xodr": None})
    scene = read_nurec_scene(path)
    assert scene.road_map.source == "derived"
    assert any("corridor" in note for note in scene.metadata["approximations"])


def test_damaged_maps_are_named(foreign):
    _, path = foreign
    with_members(path, {"map.xodr": encode_opendrive(make_map(), np.zeros(3), "x")[:500]})
    with pytest.raises(InputError, match=r"s.usdz: map.xodr: not XML"):
        read_nurec_scene(path)
    with_members(path, {"map_data/lane.parquet": b"PAR1"})
    with pytest.raises(InputError, match=r"s.usdz: map_data: lane.parquet is not a readable table"):
        read_nurec_scene(path)


def test_road_users_seen_once_stay_out_of_the_file_for_alpasim(tmp_path):
    """Its reader fits a spline through every track and fails on a single pose; ours keeps them."""
    seen_once = make_track("glimpse", (20.0, 3.0, 0.0), duration_s=0.0)
    write_scene(make_scene(tracks=[seen_once, make_track("car", (9.0, 2.0, 0.0))]), tmp_path / "s.usdz")
    content = read_members(tmp_path / "s.usdz", ["sequence_tracks.json"], "")["sequence_tracks.json"]
    (sequence,) = json.loads(content).values()
    assert sequence["tracks_data"]["tracks_id"] == ["car"]
    assert len(sequence["cuboidtracks_data"]["cuboids_dims"]) == 1
    assert {track.track_id for track in read_scene(tmp_path / "s.usdz").tracks} == {"glimpse", "car"}
