import numpy as np
import pytest
from synthetic_clip import write_image

from neural_sim.clips.kitti_raw_layout import EARTH_RADIUS_M, imu_poses, read_timestamps
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.errors import InputError

DATE = "2011_09_26"
FRAMES = 90
LATITUDE, LONGITUDE = 49.0, 8.4
# Axes of the velodyne are those of the IMU, 0.8 m ahead and 0.8 m above it; the camera looks ahead, 0.27 m behind it.
IMU_TO_VELO = "calib_time: x\nR: 1 0 0 0 1 0 0 0 1\nT: -0.8 0 -0.8\n"
VELO_TO_CAM = "R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 -0.27\n"
CAM_TO_CAM = (
    "R_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_00: 30 0 15.5 0 0 30 9.5 0 0 0 1 0\n"
    "P_rect_02: 30 0 15.5 1.8 0 30 9.5 0 0 0 1 0\n"
)
TRACKLET = """<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>
<!DOCTYPE boost_serialization>
<boost_serialization signature="serialization::archive" version="9">
<tracklets class_id="0" tracking_level="0" version="0">
 <count>1</count><item_version>1</item_version>
 <item><objectType>Car</objectType><h>1.5</h><w>1.8</w><l>4.2</l><first_frame>10</first_frame>
  <poses><count>2</count><item_version>2</item_version>
   <item><tx>12</tx><ty>3</ty><tz>-1.73</tz><rx>0</rx><ry>0</ry><rz>0.5</rz><state>2</state></item>
   <item><tx>11.2</tx><ty>3</ty><tz>-1.73</tz><rx>0</rx><ry>0</ry><rz>0.5</rz><state>2</state></item>
  </poses><finished>1</finished>
 </item>
</tracklets></boost_serialization>
"""


def stamps(offset_s=0.0):
    return "".join(f"2011-09-26 13:02:{25 + 0.1 * i + offset_s:.9f}\n" for i in range(FRAMES))


def oxts(i):
    """East at 8 m/s."""
    degrees = np.rad2deg(0.8 * i / (EARTH_RADIUS_M * np.cos(np.deg2rad(LATITUDE))))
    return " ".join(map(str, [LATITUDE, LONGITUDE + degrees, 110.0, 0.0, 0.0, 0.0, *[0.0] * 24]))


def write_layout(tmp_path):
    root = tmp_path / "raw"
    drive = root / DATE / f"{DATE}_drive_0005_sync"
    for folder in ("oxts/data", "velodyne_points/data", "image_02"):
        (drive / folder).mkdir(parents=True)
    for name, text in (("imu_to_velo", IMU_TO_VELO), ("velo_to_cam", VELO_TO_CAM), ("cam_to_cam", CAM_TO_CAM)):
        (root / DATE / f"calib_{name}.txt").write_text(text)
    (drive / "tracklet_labels.xml").write_text(TRACKLET)
    for folder, offset_s in (("oxts", 0.002), ("velodyne_points", 0.0), ("image_02", 0.003)):
        (drive / folder / "timestamps.txt").write_text(stamps(offset_s))
    for i in range(FRAMES):
        (drive / "oxts" / "data" / f"{i:010d}.txt").write_text(oxts(i))
        write_image(drive / "image_02" / "data" / f"{i:010d}.png", i)
    np.array([[10, 0, -1.73, 0.5]], np.float32).tofile(drive / "velodyne_points" / "data" / "0000000007.bin")
    return root


@pytest.fixture
def root(tmp_path):
    return write_layout(tmp_path)


def read(root, tmp_path, **options):
    return ingest("kitti-raw", IngestOptions(root=root, **options), tmp_path / "clip")


def test_chain_from_oxts_to_images_and_lidar(root, tmp_path):
    clip = read(root, tmp_path, sequence="drive_0005")
    frames = clip.cameras["image_02"]
    assert len(frames.t_us) == FRAMES - 1, "the last image is after the last oxts packet"
    np.testing.assert_allclose(clip.ego.speed_mps_at(clip.ego.t_us), 8.0, rtol=1e-4)
    np.testing.assert_allclose(clip.ego.planar[:, 2], 0.0, atol=1e-9)
    # IMU to rig (-0.05, 0, 0.93), velodyne (0.8, 0, 0.8) from the IMU, camera 0.27 m ahead of it, stereo 0.06 m left.
    T_rig_camera = frames.camera.T_rig_camera
    np.testing.assert_allclose(T_rig_camera[:3, 3], [0.8 - 0.05 + 0.27, 0.06, 0.8 + 0.93], atol=1e-9)
    np.testing.assert_allclose(T_rig_camera[:3, 2], [1, 0, 0], atol=1e-9)
    (path,) = clip.lidar_paths.values()
    np.testing.assert_allclose(np.load(path), [[10.75, 0, 0, 0.5]], atol=1e-5)


def test_tracklets_are_in_the_velodyne_frame(root, tmp_path):
    clip = read(root, tmp_path)
    (car,) = clip.tracks
    assert (car.category, car.size_m) == ("vehicle", (4.2, 1.8, 1.5))
    # Box position relative to the rig at the label's time: 12 m ahead of the velodyne, bottom on the road.
    ego = clip.ego.poses_at(car.trajectory.t_us)
    offset = car.trajectory.T_world_rig[:, :3, 3] - ego[:, :3, 3]
    np.testing.assert_allclose(offset, [[12.75, 3.0, 0.75], [11.95, 3.0, 0.75]], atol=1e-6)
    np.testing.assert_allclose(car.trajectory.planar[:, 2], 0.5)


def test_mercator_is_metric_at_the_first_latitude():
    rows = np.zeros((2, 30))
    rows[:, 0], rows[:, 1] = [LATITUDE, LATITUDE + 1e-5], [LONGITUDE, LONGITUDE]
    step = np.diff(imu_poses(rows)[:, :3, 3], axis=0)[0]
    np.testing.assert_allclose(step, [0, EARTH_RADIUS_M * np.deg2rad(1e-5), 0], atol=1e-5)


def test_roll_pitch_yaw_order():
    rows = np.zeros((1, 30))
    rows[0, 3:6] = 0.1, 0.2, 0.3
    forward = imu_poses(rows)[0, :3, 0]
    np.testing.assert_allclose(forward, [np.cos(0.2) * np.cos(0.3), np.cos(0.2) * np.sin(0.3), -np.sin(0.2)])


def test_nanosecond_stamps(tmp_path):
    path = tmp_path / "timestamps.txt"
    path.write_text("2011-09-26 13:02:25.964389445\n2011-09-26 13:02:26.000000600\n")
    assert np.diff(read_timestamps(path)).tolist() == [35_612]


def drive_of(root):
    return root / DATE / f"{DATE}_drive_0005_sync"


def put(name, text):
    return lambda root: (drive_of(root) / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put("oxts/timestamps.txt", "yesterday\n"), "oxts/timestamps.txt: line 1 is no time"),
        (put("oxts/data/0000000003.txt", "1 2 3"), "0000000003.txt: 3 values, expected 30 finite"),
        (
            put("oxts/data/0000000003.txt", oxts(3).replace("110.0", "nan")),
            "0000000003.txt: 30 values, expected 30 fin",
        ),
        (put("../calib_velo_to_cam.txt", "R: 1 2\n"), "calib_velo_to_cam.txt: R has 2 numbers, expected 9"),
        (put("tracklet_labels.xml", TRACKLET[:300]), "tracklet_labels.xml: not valid XML"),
        (put("tracklet_labels.xml", TRACKLET.replace("<h>1.5", "<h>tall")), "item 0: h is 'tall', expected a number"),
        (put("tracklet_labels.xml", TRACKLET.replace(">10<", ">89<")), "item 0: frames up to 90, but the drive has 90"),
        (
            put("tracklet_labels.xml", '<!DOCTYPE x [<!ENTITY a "aaaa">]>' + TRACKLET[60:]),
            "tracklet_labels.xml: too large or with entities",
        ),
        (lambda r: (drive_of(r) / "velodyne_points/data/0000000007.bin").write_bytes(b"123"), "3 bytes are no float32"),
        (lambda r: (drive_of(r) / "image_02/data/0000000009.png").unlink(), "0000000009.png.*file is missing"),
    ],
)
def test_bad_files(root, tmp_path, damage, message):
    damage(root)
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)
    assert not (tmp_path / "clip").exists()


def test_unknown_drive(root, tmp_path):
    with pytest.raises(InputError, match=r"0 drives named \*0099\*_sync; available: 2011_09_26_drive_0005_sync"):
        read(root, tmp_path, sequence="0099")
