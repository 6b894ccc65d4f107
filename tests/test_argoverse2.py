import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
import shapely
from scipy.spatial.transform import Rotation
from synthetic_clip import write_image

from neural_sim.clips.argoverse2 import EGO_ABOVE_GROUND_M, T_EGO_RIG
from neural_sim.clips.argoverse_map import center_line
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose

DATA = Path(__file__).parents[2] / "shared" / "data" / "argoverse2"
START_NS = 315_966_253_000_000_000
CITY = np.array([5000.0, 2000.0, 60.0])
FOLDER = "0000aaaa-log"


def poses_table(rows):
    """Feather columns of (translation, yaw) rows."""
    quaternion = Rotation.from_euler("z", np.array([[yaw] for _, yaw in rows])).as_quat()
    names = ("qx", "qy", "qz", "qw")
    columns = {name: quaternion[:, i] for i, name in enumerate(names)}
    return columns | {f"t{axis}_m": np.array([t[i] for t, _ in rows], float) for i, axis in enumerate("xyz")}


def write(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table(columns), str(path))


def points(*xy, z=60.0):
    return [{"x": x + CITY[0], "y": y + CITY[1], "z": z} for x, y in xy]


def write_log(root):
    """10 s along +x at 5 m/s at 100 Hz; a parked car 30 m ahead of the start; one camera at 10 Hz, two sweeps."""
    log = root / FOLDER
    stamps = START_NS + np.arange(1001) * 10_000_000
    # A second copy of a pose one nanosecond later, as the published logs have.
    stamps = np.sort(np.append(stamps, stamps[500] + 1))
    x = 5.0 * (stamps - START_NS) * 1e-9
    ego = [(CITY + np.array([d, 0, EGO_ABOVE_GROUND_M]), 0.0) for d in x]
    write(log / "city_SE3_egovehicle.feather", {"timestamp_ns": stamps, **poses_table(ego)})
    sweeps = START_NS + np.arange(0, 101, 1) * 100_000_000
    box = [((30.0 - 5.0 * (t - START_NS) * 1e-9, 3.0, 0.5), 0.2) for t in sweeps]
    n = len(sweeps)
    write(
        log / "annotations.feather",
        {
            "timestamp_ns": sweeps,
            "track_uuid": ["car"] * n,
            "category": ["REGULAR_VEHICLE"] * n,
            "length_m": np.full(n, 4.5),
            "width_m": np.full(n, 1.9),
            "height_m": np.full(n, 1.6),
            **poses_table(box),
            "num_interior_pts": np.zeros(n, np.int64),
        },
    )
    sensors = {"sensor_name": ["ring_front_center", "up_lidar"]}
    write(
        log / "calibration" / "egovehicle_SE3_sensor.feather",
        sensors | poses_table([((1.6, 0.0, 1.4), 0.0), ((1.3, 0.0, 1.6), 0.0)]),
    )
    numbers = {"fx_px": 30.0, "fy_px": 30.0, "cx_px": 15.5, "cy_px": 9.5, "k1": -0.2, "k2": 0.0, "k3": 0.0}
    write(
        log / "calibration" / "intrinsics.feather",
        {"sensor_name": ["ring_front_center"], **{key: [value] for key, value in numbers.items()}}
        | {"height_px": np.array([20], np.uint16), "width_px": np.array([32], np.uint16)},
    )
    for t in sweeps[:2]:
        write(
            log / "sensors" / "lidar" / f"{t}.feather",
            {name: np.array([v, v], np.float16) for name, v in (("x", 5.0), ("y", 1.0), ("z", -EGO_ABOVE_GROUND_M))}
            | {"intensity": np.array([0, 255], np.uint8), "laser_number": np.array([0, 1], np.uint8)},
        )
    for i, t in enumerate(sweeps[5:100]):
        write_image(log / "sensors" / "cameras" / "ring_front_center" / f"{t + 1234}.jpg", i)
    lane = {
        "lane_type": "VEHICLE",
        "is_intersection": False,
        "left_lane_boundary": points((0, 4), (30, 4)),
        "right_lane_boundary": points((0, 0), (10, 0), (30, 0)),
        "successors": [2, 99],
    }
    value = {
        "lane_segments": {
            "1": lane,
            "2": lane
            | {"left_lane_boundary": points((30, 4), (60, 4)), "right_lane_boundary": points((30, 0), (60, 0))}
            | {"is_intersection": True},
            "3": lane | {"lane_type": "BIKE"},
        },
        "drivable_areas": {
            "7": {"area_boundary": points((-9, -9), (30, -9), (30, 9), (-9, 9))},
            "8": {"area_boundary": points((20, -9), (60, -9), (60, 9), (20, 9))},
        },
        "pedestrian_crossings": {},
    }
    (log / "map").mkdir()
    (log / "map" / "log_map_archive_x____PIT_city_1.json").write_text(json.dumps(value))
    return root


@pytest.fixture
def root(tmp_path):
    return write_log(tmp_path / "av2")


def read(root, tmp_path, **options):
    return ingest("argoverse2", IngestOptions(root=root, **options), tmp_path / "clip")


def test_a_log_with_images(root, tmp_path):
    clip = read(root, tmp_path)
    frames = clip.cameras["ring_front_center"]
    assert len(frames.t_us) == 95
    assert frames.t_us[0] == START_NS // 1000 + 500_001
    assert frames.camera.distortion is None
    np.testing.assert_allclose(frames.camera.T_rig_camera[:3, 3], [1.6, 0.0, 1.4 + EGO_ABOVE_GROUND_M])
    assert (frames.camera.cx_px, frames.camera.cy_px) == (16.0, 10.0)


def test_ego_is_on_the_ground_and_repeated_poses_are_gone(root, tmp_path):
    ego = read(root, tmp_path).ego
    assert np.diff(ego.t_us).min() == 10_000
    np.testing.assert_allclose(ego.T_world_rig[:, 2, 3], 0.0, atol=1e-9)
    np.testing.assert_allclose(ego.speed_mps_at(ego.t_us), 5.0, atol=1e-6)


def test_boxes_leave_the_ego_frame(root, tmp_path):
    clip = read(root, tmp_path)
    origin = np.array(clip.source["world_origin_m"])
    (car,) = clip.tracks
    expected = CITY + np.array([30.0, 3.0, 0.5 + EGO_ABOVE_GROUND_M]) - origin
    np.testing.assert_allclose(car.trajectory.T_world_rig[:, :3, 3], np.tile(expected, (95, 1)), atol=1e-6)
    assert not car.is_moving()


def test_lidar_is_in_the_rig_frame(root, tmp_path):
    shorter = read(root, tmp_path)
    assert shorter.lidar_paths == {}
    for path in (root / FOLDER / "sensors" / "cameras").rglob("*.jpg"):
        path.unlink()
    (root / FOLDER / "sensors" / "cameras" / "ring_front_center").rmdir()
    clip = ingest("argoverse2", IngestOptions(root=root), tmp_path / "again")
    assert clip.cameras == {}
    sweep = np.load(clip.lidar_paths[START_NS // 1000])
    np.testing.assert_allclose(sweep, [[5, 1, 0, 0], [5, 1, 0, 1]], atol=1e-3)


def test_map(root, tmp_path):
    clip = read(root, tmp_path)
    assert clip.road_map is not None
    lanes = {lane.lane_id: lane for lane in clip.road_map.lanes}
    assert sorted(lanes) == ["1", "2"]
    assert lanes["1"].successors == ("2",)
    assert lanes["1"].width_m == pytest.approx(4.0)
    assert len(lanes["1"].centerline_m) == 31
    assert clip.road_map.drivable.area == pytest.approx(69 * 18)
    assert len(clip.road_map.road_edges_m) == 1


def test_center_line_of_unequal_boundaries():
    left, right = np.array([[0.0, 2, 0], [8, 2, 1]]), np.array([[0.0, 0, 0], [1, 0, 0], [8, 0, 1]])
    line, width_m = center_line(left, right)
    np.testing.assert_allclose(line[[0, -1]], [[0, 1, 0], [8, 1, 1]], atol=1e-9)
    assert width_m == pytest.approx(2.0, abs=0.02)


def rewrite(path, change):
    table = feather.read_table(str(path)).to_pydict()
    change(table)
    feather.write_feather(pa.table(table), str(path))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("city_SE3_egovehicle.feather", lambda t: t.pop("qw"), "egovehicle.feather: columns qw are missing; found "),
        (
            "city_SE3_egovehicle.feather",
            lambda t: t["tx_m"].__setitem__(3, float("nan")),
            "column tx_m is nan in row 3",
        ),
        ("city_SE3_egovehicle.feather", lambda t: t["qw"].__setitem__(3, 0.0), "row 3 has a quaternion of norm 0, exp"),
        ("annotations.feather", lambda t: t.update(length_m=[0.0] * 101), "track 'car' has box size .* positive"),
        (
            "annotations.feather",
            lambda t: t.update(length_m=["x"] * 101),
            "column length_m is string with 0 empty rows",
        ),
        ("annotations.feather", lambda t: t["track_uuid"].__setitem__(0, None), "track_uuid is string with 1 empty"),
        ("calibration/intrinsics.feather", lambda t: t.update(fx_px=[0.0]), "focal lengths 0.0, 30.0 px must be pos"),
        (
            "calibration/intrinsics.feather",
            lambda t: t.update(width_px=[33]),
            "image is 32x20 but the calibration says",
        ),
        ("calibration/intrinsics.feather", lambda t: t.update(sensor_name=["b"]), "no row for sensor b"),
    ],
)
def test_bad_tables(root, tmp_path, file, change, message):
    rewrite(root / FOLDER / file, change)
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)
    assert not (tmp_path / "clip").exists()


@pytest.mark.parametrize("file", ["city_SE3_egovehicle.feather", "annotations.feather"])
def test_truncated_tables(root, tmp_path, file):
    path = root / FOLDER / file
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=rf"{file}: not a readable table"):
        read(root, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("lane_segments"), "city_1.json: key 'lane_segments' is missing"),
        (
            lambda v: v["lane_segments"]["1"].update(left_lane_boundary=[{"x": 1}]),
            "lane 1: left_lane_boundary has a po",
        ),
        (lambda v: v["drivable_areas"]["7"].update(area_boundary=[]), "drivable area 7: area_boundary has 0 points"),
    ],
)
def test_bad_maps(root, tmp_path, change, message):
    path = next((root / FOLDER / "map").iterdir())
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)


def test_unknown_logs_and_cameras(root, tmp_path):
    with pytest.raises(InputError, match=r"0 logs named zz\* with .*; available: 0000aaaa-log"):
        read(root, tmp_path, sequence="zz")
    with pytest.raises(InputError, match="no images of camera 'rear'; available: ring_front_center"):
        read(root, tmp_path, cameras=("rear",))


@pytest.mark.shared_data
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real log")
def test_real_log_reproduces_the_published_point_counts(tmp_path):
    clip = read(DATA, tmp_path)
    assert clip.road_map is not None
    assert shapely.contains_xy(clip.road_map.drivable, *clip.ego.planar[:, :2].T).all()
    table = feather.read_table(str(next(DATA.glob("*/annotations.feather")))).to_pydict()
    tracks = {track.track_id: track for track in clip.tracks}
    checked = 0
    for row, stamp in enumerate(table["timestamp_ns"]):
        if stamp // 1000 not in clip.lidar_paths:
            continue
        t_us = np.array([stamp // 1000])
        # The published counts need the exact size of the row; the clip keeps one size a track, equal in these logs.
        track = tracks[table["track_uuid"][row]]
        T_box_rig = invert_pose(track.trajectory.poses_at(t_us)[0]) @ clip.ego.poses_at(t_us)[0]
        sweep = np.load(clip.lidar_paths[int(t_us[0])])[:, :3].astype(float)
        inside = np.abs(sweep @ T_box_rig[:3, :3].T + T_box_rig[:3, 3]) <= np.array(track.size_m) / 2 + 1e-6
        checked += 1
        assert abs(int(inside.all(axis=1).sum()) - table["num_interior_pts"][row]) <= 2
    assert checked == 162


def test_rig_is_below_the_ego_frame():
    np.testing.assert_allclose(T_EGO_RIG[:3, 3], [0, 0, -EGO_ABOVE_GROUND_M])
