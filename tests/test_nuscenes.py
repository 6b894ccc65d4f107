import json

import numpy as np
import pytest
import shapely
from synthetic_clip import write_image

from neural_sim.clips.nuscenes import category_of
from neural_sim.clips.nuscenes_map import arc_line
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.errors import InputError

START_US = 1_533_151_600_000_000
X0, Y0 = 600.0, 1600.0
LEVEL_CAMERA_WXYZ = [0.5, -0.5, 0.5, -0.5]
YAW_90_WXYZ = [np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)]


def make_tables():
    """10 s along +x at 6 m/s: keyframes at 2 Hz, camera at 10 Hz 30 ms after, lidar at 20 Hz; a car across the road."""
    samples = [
        {"token": f"s{i}", "timestamp": START_US + 500_000 * i, "scene_token": "scene", "prev": "", "next": ""}
        for i in range(21)
    ]
    data, poses = [], []
    for channel, step_us, count, offset_us in (("CAM_FRONT", 100_000, 100, 30_000), ("LIDAR_TOP", 50_000, 201, 0)):
        for i in range(count):
            t = START_US + step_us * i + offset_us
            token, key = f"{channel}{i}", i % (500_000 // step_us) == 0
            folder = "samples" if key else "sweeps"
            data.append({
                "token": token,
                "sample_token": f"s{min(round((t - START_US) / 500_000), 20)}",
                "ego_pose_token": token,
                "calibrated_sensor_token": f"c{channel}",
                "timestamp": t,
                "is_key_frame": key,
                "filename": f"{folder}/{channel}/{i}" + (".jpg" if channel == "CAM_FRONT" else ".pcd.bin"),
                "width": 32 if channel == "CAM_FRONT" else 0,
                "height": 20 if channel == "CAM_FRONT" else 0,
            })  # fmt: skip
            x = X0 + 6.0 * (t - START_US) * 1e-6
            poses.append({"token": token, "timestamp": t, "translation": [x, Y0, 0.0], "rotation": [1, 0, 0, 0]})
    return {
        "scene": [{"token": "scene", "name": "scene-0042", "log_token": "log"}],
        "sample": samples,
        "sample_data": data,
        "ego_pose": poses,
        "sensor": [{"token": name, "channel": name} for name in ("CAM_FRONT", "LIDAR_TOP")],
        "calibrated_sensor": [
            {
                "token": "cCAM_FRONT",
                "sensor_token": "CAM_FRONT",
                "translation": [1.7, 0.0, 1.5],
                "rotation": LEVEL_CAMERA_WXYZ,
                "camera_intrinsic": [[30, 0, 15.5], [0, 30, 9.5], [0, 0, 1]],
            },
            {
                "token": "cLIDAR_TOP",
                "sensor_token": "LIDAR_TOP",
                "translation": [0.9, 0.0, 1.8],
                "rotation": YAW_90_WXYZ,
                "camera_intrinsic": [],
            },
        ],
        "sample_annotation": [
            {
                "token": f"a{i}",
                "sample_token": f"s{i}",
                "instance_token": "car",
                "translation": [X0 + 40.0, Y0 + 5.0 + i, 0.8],
                "size": [1.9, 4.5, 1.6],
                "rotation": YAW_90_WXYZ,
            }
            for i in range(21)
        ],
        "instance": [{"token": "car", "category_token": "k"}],
        "category": [{"token": "k", "name": "vehicle.car"}],
        "log": [{"token": "log", "location": "testville"}],
    }


def make_map():
    corners = {"a": (500, 1500), "b": (900, 1500), "c": (900, 1700), "d": (500, 1700)}
    holes = {"e": (650, 1650), "f": (660, 1650), "g": (660, 1660)}
    quarter = {"start_pose": [X0 + 20, Y0, 0.0], "shape": "SLS", "radius": 10.0}
    return {
        "node": [{"token": name, "x": x, "y": y} for name, (x, y) in (corners | holes).items()],
        "polygon": [
            {"token": "area", "exterior_node_tokens": list("abcd"), "holes": [{"node_tokens": list("efg")}]},
            {"token": "lane", "exterior_node_tokens": list("abcd"), "holes": []},
        ],
        "drivable_area": [{"token": "x", "polygon_tokens": ["area"]}],
        "lane": [{"token": "L1", "polygon_token": "lane"}, {"token": "far", "polygon_token": "lane"}],
        "lane_connector": [{"token": "L2", "polygon_token": "lane"}],
        "arcline_path_3": {
            "L1": [{"start_pose": [X0, Y0, 0.0], "shape": "SSS", "radius": 999.0, "segment_length": [20.0, 0.0, 0.0]}],
            "L2": [quarter | {"segment_length": [5.0, 5 * np.pi, 3.0]}],
            "far": [{"start_pose": [9e3, 0, 0], "shape": "S", "radius": 9.0, "segment_length": [20.0]}],
        },
        "connectivity": {"L1": {"incoming": [], "outgoing": ["L2", "far"]}, "L2": {"incoming": ["L1"], "outgoing": []}},
    }


def write_layout(root, tables, road_map=None):
    folder = root / "v1.0-mini"
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    for i, row in enumerate(tables["sample_data"]):
        path = root / row["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            write_image(path, i)
        elif row["is_key_frame"]:
            np.array([[0, -10, -1.8, 255, 3]], np.float32).tofile(path)
    if road_map is not None:
        (root / "maps" / "expansion").mkdir(parents=True)
        (root / "maps" / "expansion" / "testville.json").write_text(json.dumps(road_map))
    return root


def read(root, tmp_path, **options):
    return ingest("nuscenes", IngestOptions(root=root, **options), tmp_path / "clip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nuscenes")
    return read(write_layout(folder / "data", make_tables(), make_map()), folder, sequence="0042")


def test_camera_keeps_sweeps_with_their_own_times(clip):
    frames = clip.cameras["CAM_FRONT"]
    assert len(frames.t_us) == 100
    assert frames.t_us[0] == START_US + 30_000
    np.testing.assert_allclose(clip.ego.planar_at(frames.t_us)[:, 0], 0.18 + 0.6 * np.arange(100), atol=1e-6)
    np.testing.assert_allclose(frames.camera.T_rig_camera[:3, 2], [1, 0, 0], atol=1e-9)
    assert (frames.camera.cx_px, frames.camera.cy_px) == (16.0, 10.0)


def test_boxes_are_width_length_height(clip):
    (car,) = clip.tracks
    assert car.size_m == (4.5, 1.9, 1.6)
    assert car.category == "vehicle"
    planar = car.trajectory.planar_at(np.array([START_US + 5_000_000]))[0]
    np.testing.assert_allclose(planar, [40.0, 15.0, np.pi / 2], atol=1e-6)


def test_lidar_keyframes_are_in_the_rig_frame(clip):
    assert len(clip.lidar_paths) == 19
    sweep = np.load(clip.lidar_paths[START_US + 500_000])
    # The sensor's -y is the rig's x.
    np.testing.assert_allclose(sweep, [[10.9, 0, 0, 1]], atol=1e-5)


def test_map_expansion(clip):
    lanes = {lane.lane_id: lane for lane in clip.road_map.lanes}
    assert sorted(lanes) == ["L1", "L2"]
    assert lanes["L1"].successors == ("L2",)
    np.testing.assert_allclose(lanes["L2"].centerline_m[-1], [35.0, 13.0, 0.0], atol=1e-6)
    assert clip.road_map.drivable.contains(shapely.Point(30.0, 0.0))
    # The hole of the area, 50 to 60 m ahead and to the left of the start.
    assert not clip.road_map.drivable.contains(shapely.Point(59.0, 53.0))


def test_arc_line_by_hand():
    line = arc_line([{"start_pose": [0, 0, 0], "shape": "R", "radius": 10.0, "segment_length": [5 * np.pi]}], "x")
    np.testing.assert_allclose(line[-1], [10, -10, -np.pi / 2], atol=1e-9)
    np.testing.assert_allclose(np.hypot(line[:, 0], line[:, 1] + 10), 10, atol=1e-9)


def test_categories():
    names = ("vehicle.car", "vehicle.bicycle", "human.pedestrian.adult", "movable_object.barrier", "")
    assert [category_of(name) for name in names] == ["vehicle", "cyclist", "pedestrian", "obstacle", "obstacle"]


def set_field(table, index, **changes):
    return lambda tables: tables[table][index].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("ego_pose"), "ego_pose.json: the table is missing"),
        (lambda t: t.update(sample=3), "sample.json: expected a list of objects"),
        (set_field("scene", 0, name="scene-0001"), "scene.json: no scene '0042'; available: scene-0001"),
        (set_field("ego_pose", 3, rotation=[2, 0, 0, 0]), "ego_pose.json: CAM_FRONT3: not a pose"),
        (set_field("ego_pose", 3, translation=["x"]), "CAM_FRONT3: translation or rotation is not numbers"),
        (set_field("sample_data", 3, filename="../../etc/passwd"), "names the file .* outside the dataset"),
        (set_field("sample_data", 3, filename="samples/x.jpg"), "samples/x.jpg.*the image file is missing"),
        (set_field("sample_data", 3, timestamp="x"), "sample_data.json: key 'timestamp' should be int"),
        (set_field("calibrated_sensor", 0, camera_intrinsic=[]), r"camera_intrinsic has shape \[0\]"),
        (set_field("sample_annotation", 0, size=[1, 2]), "instance car: size is not three numbers"),
        (set_field("calibrated_sensor", 1, sensor_token="?"), "no sensor for row cLIDAR_TOP"),
    ],
)
def test_bad_tables(tmp_path, change, message):
    tables = make_tables()
    root = write_layout(tmp_path / "data", tables)
    change(tables)
    for path in (root / "v1.0-mini").iterdir():
        path.unlink()
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=message):
        read(root, tmp_path, sequence="0042")
    assert not (tmp_path / "clip").exists()


def test_a_truncated_table_and_sweep(tmp_path):
    root = write_layout(tmp_path / "data", make_tables())
    sweep = root / "samples" / "LIDAR_TOP" / "10.pcd.bin"
    sweep.write_bytes(sweep.read_bytes()[:13])
    with pytest.raises(InputError, match=r"10.pcd.bin: 13 bytes are no finite float32 rows of 5"):
        read(root, tmp_path)
    table = root / "v1.0-mini" / "ego_pose.json"
    table.write_text(table.read_text()[:-50])
    with pytest.raises(InputError, match=r"ego_pose.json: not valid JSON"):
        read(root, tmp_path)
    with pytest.raises(InputError, match=r"expected one folder v1.0-\*/ with scene.json, found none"):
        read(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["polygon"].pop(0), "testville.json: no polygon area"),
        (lambda m: m["node"].pop(0), "polygon area is malformed"),
        (lambda m: m["arcline_path_3"]["L1"][0].update(shape="SX"), "lane L1: arc line 'SX' is malformed"),
        (lambda m: m.pop("connectivity"), "key 'connectivity' is missing"),
    ],
)
def test_bad_maps(tmp_path, change, message):
    value = make_map()
    change(value)
    root = write_layout(tmp_path / "data", make_tables(), value)
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)
