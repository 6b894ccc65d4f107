"""OpenDRIVE in and out: geometry by hand, links, bad input, and both ways."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import fresnel
from synthetic_clip import make_map
from test_kitti_odometry import write_layout

from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.errors import InputError
from neural_sim.maps.geo_reference import T_map_world, ecef_position, enu_axes
from neural_sim.maps.moving import map_on_ground, moved_map
from neural_sim.maps.opendrive import parse_opendrive, parse_xml, read_opendrive
from neural_sim.maps.opendrive_writer import encode_opendrive
from neural_sim.road_map import Lane, RoadMap

LINE = '<geometry s="0" x="10" y="20" hdg="0" length="30"><line/></geometry>'


def lane(number, kind="driving", width="3.5", link="", extra=""):
    profile = f'<width sOffset="0" a="{width}" b="0" c="0" d="0"/>' if width else ""
    return f'<lane id="{number}" type="{kind}"><link>{link}</link>{profile}{extra}</lane>'


def section(left="", right="", s=0):
    return (
        f'<laneSection s="{s}"><left>{left}</left><center><lane id="0" type="none"/></center>'
        f"<right>{right}</right></laneSection>"
    )


def road(number="1", plan=LINE, lanes=None, link="", attributes='junction="-1"', extra=""):
    lanes = section(lane(1), lane(-1)) if lanes is None else lanes
    return (
        f'<road id="{number}" {attributes}><link>{link}</link>{extra}<planView>{plan}</planView>'
        f"<lanes>{lanes}</lanes></road>"
    )


def parse(*parts):
    return parse_opendrive(f"<OpenDRIVE><header/>{''.join(parts)}</OpenDRIVE>".encode(), "map.xodr")


def by_id(road_map):
    return {item.lane_id: item for item in road_map.lanes}


def test_right_lanes_run_along_the_road_and_left_ones_against_it():
    lanes = by_id(parse(road()))
    np.testing.assert_allclose(lanes["1.0.-1"].centerline_m[[0, -1]], [[10, 18.25, 0], [40, 18.25, 0]], atol=1e-9)
    np.testing.assert_allclose(lanes["1.0.1"].centerline_m[[0, -1]], [[40, 21.75, 0], [10, 21.75, 0]], atol=1e-9)
    assert {item.width_m for item in lanes.values()} == {3.5}


def test_where_one_drives_on_the_left_it_is_the_other_way_round():
    lanes = by_id(parse(road(attributes='junction="-1" rule="LHT"')))
    assert lanes["1.0.-1"].centerline_m[0, 0] == pytest.approx(40)
    assert lanes["1.0.1"].centerline_m[0, 0] == pytest.approx(10)


def test_drivable_area_and_edges():
    """Two lanes and a parking strip of 2 m; the pavement is no road."""
    right = lane(-1) + lane(-2, "parking", "2") + lane(-3, "sidewalk", "4")
    road_map = parse(road(lanes=section(lane(1), right)))
    assert road_map.drivable.area == pytest.approx(30 * (3.5 + 3.5 + 2), rel=1e-3)
    assert len(road_map.lanes) == 2
    assert len(road_map.road_edges_m) == 1
    assert road_map.drivable.contains(shapely.Point(25, 15))
    assert not road_map.drivable.contains(shapely.Point(25, 13))
    assert road_map.source == "recorded"


def test_widths_are_cubic_and_offsets_shift_the_lanes():
    widening = '<width sOffset="0" a="3" b="0.1" c="0" d="0"/><width sOffset="10" a="4" b="0" c="0" d="0"/>'
    lanes = f'<laneOffset s="0" a="1.5" b="0" c="0" d="0"/>{section("", lane(-1, width="", extra=widening))}'
    only = parse(road(lanes=lanes)).lanes[0]
    y = np.interp([10, 15, 20, 39], only.centerline_m[:, 0], only.centerline_m[:, 1])
    np.testing.assert_allclose(y, 20 + 1.5 - np.array([3, 3.5, 4, 4]) / 2, atol=1e-6)


def test_borders_are_measured_from_the_offset_line():
    border = '<border sOffset="0" a="-3" b="0" c="0" d="0"/>'
    second = '<border sOffset="0" a="-7" b="0" c="0" d="0"/>'
    right = lane(-1, width="", extra=border) + lane(-2, width="", extra=second)
    lanes = by_id(parse(road(lanes=section("", right))))
    assert lanes["1.0.-1"].centerline_m[0, 1] == pytest.approx(20 - 1.5)
    assert lanes["1.0.-2"].centerline_m[0, 1] == pytest.approx(20 - 5)
    assert lanes["1.0.-2"].width_m == pytest.approx(4)


def test_heights_follow_the_elevation_profile():
    rise = '<elevationProfile><elevation s="0" a="2" b="0.1" c="0" d="0"/></elevationProfile>'
    only = by_id(parse(road(extra=rise)))["1.0.-1"]
    np.testing.assert_allclose(only.centerline_m[:, 2], 2 + 0.1 * (only.centerline_m[:, 0] - 10), atol=1e-9)


def center(plan):
    """The reference line: one lane of 2 m whose offset puts its centre there."""
    lanes = f'<laneOffset s="0" a="1" b="0" c="0" d="0"/>{section("", lane(-1, width="2"))}'
    return parse(road(plan=plan, lanes=lanes)).lanes[0].centerline_m


def test_an_arc_is_a_circle():
    line = center('<geometry s="0" x="0" y="0" hdg="0" length="31.41592654"><arc curvature="0.05"/></geometry>')
    np.testing.assert_allclose(np.hypot(line[:, 0], line[:, 1] - 20), 20, atol=1e-4)
    np.testing.assert_allclose(line[-1, :2], [20, 20], atol=1e-3)


def test_a_spiral_is_that_of_fresnel():
    """Curvature 0 to 0.05 over 40 m: heading = s^2 / (2 A^2) with A^2 = 800."""
    plan = '<geometry s="0" x="0" y="0" hdg="0" length="40"><spiral curvStart="0" curvEnd="0.05"/></geometry>'
    scale = np.sqrt(np.pi * 800)
    sine, cosine = fresnel(40 / scale)
    np.testing.assert_allclose(center(plan)[-1, :2], [scale * cosine, scale * sine], atol=1e-3)


def test_parametric_cubics_in_both_ranges():
    """u = p, v = p^2 / 20 up to p = 20, in arc length and normalised."""
    length = 22.9559
    for attributes, scale in (('pRange="arcLength"', 1.0), ('pRange="normalized"', 20.0), ("", 20.0)):
        if attributes.endswith('"arcLength"'):
            poly = '<paramPoly3 pRange="arcLength" aU="0" bU="1" cU="0" dU="0" aV="0" bV="0" cV="0.01" dV="0"/>'
            expected_y = center(f'<geometry s="0" x="0" y="0" hdg="0" length="10">{poly}</geometry>')[-1, 1]
            assert expected_y == pytest.approx(1.0, abs=1e-2)
            continue
        poly = f'<paramPoly3 {attributes} aU="0" bU="{scale}" cU="0" dU="0" aV="0" bV="0" cV="{scale**2 / 20}" dV="0"/>'
        line = center(f'<geometry s="0" x="0" y="0" hdg="0" length="{length}">{poly}</geometry>')
        np.testing.assert_allclose(line[-1, :2], [20, 20], atol=1e-3)
        np.testing.assert_allclose(line[:, 1], line[:, 0] ** 2 / 20, atol=5e-3)


def test_a_cubic_turned_and_shifted():
    plan = '<geometry s="0" x="5" y="-1" hdg="1.5707963268" length="10"><poly3 a="0" b="0" c="0.02" d="0"/></geometry>'
    line = center(plan)
    np.testing.assert_allclose(5 - line[:, 0], 0.02 * (line[:, 1] + 1) ** 2, atol=5e-3)


SUCCESSOR, PREDECESSOR = '<successor id="{}"/>', '<predecessor id="{}"/>'


def test_successors_across_sections_and_roads_both_ways():
    first = section(lane(1, link=SUCCESSOR.format(2)), lane(-1, link=SUCCESSOR.format(-1)))
    second = section(
        lane(1) + lane(2, link=PREDECESSOR.format(1)), lane(-1, link=PREDECESSOR.format(-1) + SUCCESSOR.format(1)), 15
    )
    # The second road is drawn towards the first one, so its left lane continues the first one's right lane.
    back = '<geometry s="0" x="80" y="20" hdg="3.14159265" length="40"><line/></geometry>'
    out = '<successor elementType="road" elementId="2" contactPoint="end"/>'
    other = section(lane(1), lane(-1, link=SUCCESSOR.format(1)))
    road_map = parse(
        road(lanes=first + second, link=out),
        road("2", back, other, '<successor elementType="road" elementId="1" contactPoint="end"/>'),
    )
    lanes = by_id(road_map)
    assert lanes["1.0.-1"].successors == ("1.1.-1",)
    assert lanes["1.1.2"].successors == ("1.0.1",)
    assert lanes["1.1.-1"].successors == ("2.0.1",)
    assert lanes["2.0.-1"].successors == ("1.1.1",)
    end, start = lanes["1.1.-1"].centerline_m[-1], lanes["2.0.1"].centerline_m[0]
    np.testing.assert_allclose(end, start, atol=1e-6)


def test_junctions_lead_on_and_mark_their_lanes():
    ahead = '<geometry s="0" x="40" y="20" hdg="0" length="10"><line/></geometry>'
    right = section("", lane(-1))
    junction = (
        '<junction id="7"><connection id="0" incomingRoad="1" connectingRoad="2" contactPoint="start">'
        '<laneLink from="-1" to="-1"/></connection><connection id="1" incomingRoad="1" connectingRoad="3" '
        'contactPoint="start"><laneLink from="-1" to="-1"/></connection></junction>'
    )
    road_map = parse(
        road(lanes=right, link='<successor elementType="junction" elementId="7"/>'),
        road("2", ahead, right, attributes='junction="7"'),
        road("3", ahead, right, attributes='junction="7"'),
        junction,
    )
    lanes = by_id(road_map)
    assert lanes["1.0.-1"].successors == ("2.0.-1", "3.0.-1")
    assert [item.is_junction for item in road_map.lanes] == [False, True, True]


@pytest.mark.parametrize(
    ("unit", "limit", "expected"),
    [('unit="km/h"', "36", 10.0), ('unit="mph"', "25", 11.176), ("", "8", 8.0), ("", "no limit", None)],
)
def test_speed_limits(unit, limit, expected):
    limited = lane(-1, extra=f'<speed sOffset="0" max="{limit}" {unit}/>')
    assert parse(road(lanes=section("", limited))).lanes[0].speed_limit_mps == pytest.approx(expected)


def test_the_limit_of_the_road_holds_where_a_lane_has_none():
    kind = '<type s="0" type="town"><speed max="50" unit="km/h"/></type>'
    assert parse(road(extra=kind)).lanes[0].speed_limit_mps == pytest.approx(50 / 3.6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not XML"),
        (b"<OpenDRIVE>", "not XML"),
        (b"\xff\xfe\x00", "not XML"),
        (b"<html/>", "root element is html, expected OpenDRIVE"),
        (b'<!DOCTYPE x [<!ENTITY a "aa">]><OpenDRIVE>&a;</OpenDRIVE>', "declares a document type"),
        (b"<OpenDRIVE/>", "no lane of type driving"),
    ],
)
def test_what_is_no_map(content, message):
    with pytest.raises(InputError, match=message):
        parse_opendrive(content, "map.xodr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (road(plan=""), "road 1: no geometry of positive length"),
        (road(plan=LINE.replace('"30"', '"nan"')), "geometry has length='nan', expected a finite number"),
        (road(plan=LINE.replace('"30"', '"1e12"')), "1000000000 km of roads"),
        (road(plan=LINE.replace("<line/>", "<circle/>")), "geometry at s = 0.0 is circle, expected one of line, arc"),
        (road(plan=LINE + LINE), "geometries overlap at s = 0.000"),
        (road(plan=LINE.replace('x="10"', "")), "geometry has x=None"),
        (road(lanes=section("", lane("a"))), "lane has id='a'"),
        (road(lanes=section("", lane(-1, width="wide"))), "lane -1: width has a='wide'"),
        (road(lanes=section("", lane(-1, "sidewalk"))), "no lane of type driving"),
    ],
)
def test_malformed_roads_are_named(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


def test_missing_and_huge_files(tmp_path):
    with pytest.raises(InputError, match="map file is missing"):
        read_opendrive(tmp_path / "none.xodr")
    with (tmp_path / "huge.xodr").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(InputError, match="more than the 268435456 allowed"):
        read_opendrive(tmp_path / "huge.xodr")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 900), insert=st.binary(max_size=6))
def test_damaged_documents_give_one_error(cut, insert):
    whole = encode_opendrive(make_map(), np.zeros(3), "x")
    with contextlib.suppress(InputError):
        parse_opendrive(whole[:cut] + insert + whole[cut + 3 :], "map.xodr")


def branching_map():
    """A lane that parts into two, one of which a third one joins."""
    points = {
        "a": [(0, 0), (10, 0)],
        "b": [(10, 0), (20, 5)],
        "c": [(10, 0), (20, -5)],
        "d": [(0, 9), (10, 7), (20, 5)],
    }
    following = {"a": ("b", "c"), "d": ("e",), "b": ("e",)}
    points["e"] = [(20, 5), (30, 5)]
    lanes = tuple(
        Lane(name, np.array([(x, y, 0.1 * x) for x, y in line], float), 3.2, following.get(name, ()), 13.9, name == "b")
        for name, line in points.items()
    )
    return RoadMap(lanes, (), (shapely.box(0, -10, 30, 10),), "recorded")


def test_maps_come_back_from_opendrive():
    road_map, origin = branching_map(), np.array([100.0, -50.0, 2.0])
    back = parse_opendrive(encode_opendrive(road_map, -origin, "x"), "x")
    assert len(back.lanes) == len(road_map.lanes)
    names = {f"{index}.0.-1": item.lane_id for index, item in enumerate(road_map.lanes)}
    for found in back.lanes:
        written = next(item for item in road_map.lanes if item.lane_id == names[found.lane_id])
        line = shapely.LineString(written.centerline_m[:, :2] + origin[:2])
        assert max(line.distance(shapely.Point(point)) for point in found.centerline_m[:, :2]) < 1e-6
        np.testing.assert_allclose(found.centerline_m[[0, -1]], written.centerline_m[[0, -1]] + origin, atol=1e-6)
        assert [names[successor] for successor in found.successors] == list(written.successors)
        assert (found.speed_limit_mps, found.is_junction) == (written.speed_limit_mps, written.is_junction)
        assert found.width_m == pytest.approx(3.2)


def test_writing_is_reproducible():
    assert encode_opendrive(branching_map(), np.zeros(3), "x") == encode_opendrive(branching_map(), np.zeros(3), "x")


def test_geographic_references():
    """A world placed by its own east-north-up frame 111 km north of the map lies about 111 km north in it."""
    latitude, longitude = np.radians(48.0), np.radians(11.0)
    T_ecef_world = np.eye(4)
    T_ecef_world[:3, :3] = enu_axes(latitude, longitude).T
    T_ecef_world[:3, 3] = ecef_position(latitude, longitude, 500.0)
    place = "<geoReference>+proj=tmerc +lat_0={} +lon_0=11 +alt_0=500</geoReference>"
    text = f"<OpenDRIVE><header>{place}</header></OpenDRIVE>"
    same = T_map_world(parse_xml(text.format(48).encode(), "x"), T_ecef_world)
    np.testing.assert_allclose(same, np.eye(4), atol=1e-6)
    south = T_map_world(parse_xml(text.format(47).encode(), "x"), T_ecef_world)
    assert south[1, 3] == pytest.approx(111_180, rel=1e-3)
    nowhere = T_map_world(parse_xml(b"<OpenDRIVE/>", "x"), T_ecef_world)
    np.testing.assert_array_equal(nowhere, np.eye(4))


def test_moved_maps_turn_in_the_plane_and_lie_on_the_ground():
    quarter = np.array([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
    road_map = make_map()
    moved = moved_map(road_map, quarter)
    x, y, z = road_map.lanes[0].centerline_m.T
    np.testing.assert_allclose(moved.lanes[0].centerline_m, np.column_stack([5 - y, 6 + x, 7 + z]))
    assert moved.drivable.area == pytest.approx(road_map.drivable.area)
    ground = np.array([[0.0, 0.0, 3.0], [30.0, 0.0, 4.0]])
    assert map_on_ground(road_map, ground).lanes[0].centerline_m[:, 2].tolist() == [3.0, 4.0]


def test_other_tools_find_no_place_on_earth_and_right_lanes_only():
    """AlpaSim moves a map by its geographic reference, and takes ids of lanes below zero as driving along the road."""
    root = parse_xml(encode_opendrive(branching_map(), np.zeros(3), "x"), "x")
    assert root.find(".//geoReference") is None
    lanes = [item for item in root.iterfind("road/lanes/laneSection/*/lane") if item.get("id") != "0"]
    assert {(item.get("id"), item.get("type")) for item in lanes} == {("-1", "driving")}
    assert [element.get("s") for element in root.iterfind("road/lanes/laneSection")] == ["0"] * 5
    assert len(root.findall("road")) == 5


def test_a_map_of_its_own_for_a_dataset(tmp_path):
    """In the coordinates of the dataset's world: lane a starts at the origin of the clip."""
    first = ingest("kitti-odometry", IngestOptions(root=write_layout(tmp_path / "kitti")), tmp_path / "first")
    origin = np.array(first.source["world_origin_m"]) if "world_origin_m" in first.source else np.zeros(3)
    (tmp_path / "map.xodr").write_bytes(encode_opendrive(branching_map(), -origin, "x"))
    options = IngestOptions(root=tmp_path / "kitti", map=tmp_path / "map.xodr")
    clip = ingest("kitti-odometry", options, tmp_path / "clip")
    assert first.road_map is None
    assert clip.road_map is not None
    np.testing.assert_allclose(clip.road_map.lanes[0].centerline_m[0], [0, 0, 0], atol=1e-6)
    assert clip.source["map"] == "map.xodr"
    with pytest.raises(InputError, match="the town has a map of its own"):
        ingest("town", IngestOptions(map=tmp_path / "map.xodr"), tmp_path / "town")
    with pytest.raises(InputError, match="map file is missing"):
        ingest("kitti-odometry", replace(options, map=tmp_path / "none.xodr"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_parity_with_another_reader(tmp_path):
    pyxodr = pytest.importorskip("pyxodr.road_objects.network")
    arc = '<geometry s="0" x="0" y="0" hdg="0.3" length="40"><arc curvature="0.02"/></geometry>'
    spiral = '<geometry s="0" x="0" y="0" hdg="0.3" length="40"><spiral curvStart="0.001" curvEnd="0.03"/></geometry>'
    text = "".join(road(str(i), plan) for i, plan in enumerate((LINE, arc, spiral)))
    path = tmp_path / "map.xodr"
    path.write_text(f"<OpenDRIVE><header/>{text}</OpenDRIVE>")
    ours = by_id(read_opendrive(path))
    for theirs in pyxodr.RoadNetwork(str(path)).get_roads():
        for item in theirs.lane_sections[0].lanes:
            if item.id != 0:
                line = shapely.LineString(item.traffic_flow_line[:, :2])
                mine = ours[f"{theirs.id}.0.{item.id}"].centerline_m[:, :2]
                assert max(line.distance(shapely.Point(point)) for point in mine) < 0.05
                assert np.linalg.norm(mine[0] - line.coords[0]) < 0.15
