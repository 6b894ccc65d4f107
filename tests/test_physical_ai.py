import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from video_fixture import frame_number, write_video

from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.distortion import FTheta
from neural_sim.errors import InputError
from neural_sim.nerf.config import NerfConfig
from neural_sim.nerf.training import train_nerf

CLIP = "25cd4769-5dcf-4b53-a351-bf2c5deb6124"
CAMERA = "camera_front_wide_120fov"
SIZE = (64, 48)
FRAMES = 90
STEP_US = 100_000


def parquet(columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def egomotion(**changes):
    """8 m/s along x, 100 Hz, 9 s; the rig turns slowly."""
    t = np.arange(901) * 10_000
    yaw = 0.05 * t * 1e-6
    zeros = np.zeros(len(t))
    columns = {"timestamp": t, "qx": zeros, "qy": zeros, "qz": np.sin(yaw / 2), "qw": np.cos(yaw / 2)}
    return columns | {"x": 8.0 * t * 1e-6, "y": zeros, "z": zeros} | changes


def intrinsics(**changes):
    row = {"clip_id": CLIP, "camera_name": CAMERA, "width": 64, "height": 48, "cx": 31.0, "cy": 23.5}
    row |= {f"fw_poly_{i}": value for i, value in enumerate((0.0, 30.0, 0.5, -0.8, 0.0))}
    row |= {f"bw_poly_{i}": value for i, value in enumerate((0.0, 1 / 30.0, 0.0, 1e-6, 0.0))}
    return {key: [value] for key, value in (row | changes).items()}


def write_layout(tmp_path):
    root = tmp_path / "pai"
    root.mkdir()
    (root / "clip_index.parquet").write_bytes(parquet({"clip_id": ["other", CLIP], "chunk": [3, 7]}))
    video = write_video(tmp_path / "video.mp4", FRAMES, SIZE, rate=10).read_bytes()
    times = parquet({"timestamp": 5_000 + STEP_US * np.arange(FRAMES)})
    write_zip(
        root / "camera" / CAMERA / f"{CAMERA}.chunk_0007.zip",
        {f"{CLIP}.{CAMERA}.mp4": video, f"{CLIP}.{CAMERA}.timestamps.parquet": times},
    )
    write_zip(
        root / "labels" / "egomotion" / "egomotion.chunk_0007.zip", {f"{CLIP}.egomotion.parquet": parquet(egomotion())}
    )
    folder = root / "calibration"
    (folder / "camera_intrinsics").mkdir(parents=True)
    (folder / "sensor_extrinsics").mkdir()
    (folder / "camera_intrinsics" / "camera_intrinsics.chunk_0007.parquet").write_bytes(parquet(intrinsics()))
    pose = {"x": 1.7, "y": 0.0, "z": 1.4, "qx": -0.5, "qy": 0.5, "qz": -0.5, "qw": 0.5}
    (folder / "sensor_extrinsics" / "sensor_extrinsics.chunk_0007.parquet").write_bytes(
        parquet({"clip_id": [CLIP], "sensor_name": [CAMERA], **{key: [value] for key, value in pose.items()}})
    )
    return root


@pytest.fixture
def root(tmp_path):
    return write_layout(tmp_path)


def read(root, tmp_path, **options):
    return ingest("physicalai-av", IngestOptions(root=root, **{"sequence": CLIP[:8], **options}), tmp_path / "clip")


def test_a_clip_out_of_its_chunks(root, tmp_path):
    clip = read(root, tmp_path)
    frames = clip.cameras[CAMERA]
    assert len(frames.t_us) == FRAMES
    assert [frame_number(frames.load(i)) for i in (0, 33, 80)] == [0, 33, 80]
    lens = frames.camera.distortion
    assert isinstance(lens, FTheta)
    np.testing.assert_allclose(frames.camera.T_rig_camera[:3, 2], [1, 0, 0], atol=1e-12)
    # The principal point counts pixel centres as integers.
    assert (frames.camera.cx_px, frames.camera.cy_px) == (31.5, 24.0)
    angle = 0.4
    pixel, visible = frames.camera.project(np.array([np.sin(angle), 0, np.cos(angle)]))
    assert visible
    np.testing.assert_allclose(pixel, [31.5 + 30 * angle + 0.5 * angle**2 - 0.8 * angle**3, 24.0])
    np.testing.assert_allclose(clip.ego.speed_mps_at(clip.ego.t_us), 8.0, rtol=1e-6)


def test_scaled_images_have_scaled_lenses(root, tmp_path):
    camera = read(root, tmp_path, scale=0.5, rate_hz=5.0).cameras[CAMERA].camera
    assert (camera.width_px, camera.height_px) == (32, 24)
    assert isinstance(camera.distortion, FTheta)
    assert camera.distortion.angle_to_radius_px[1] == 15.0


def test_a_nerf_refuses_the_lens_by_name(root, tmp_path):
    clip = read(root, tmp_path)
    with pytest.raises(InputError, match=f"camera {CAMERA}: .* draws pinhole cameras only, and this lens is 'ftheta'"):
        train_nerf(clip, NerfConfig(), seed=0)


def replace_intrinsics(**changes):
    def damage(root):
        path = root / "calibration" / "camera_intrinsics" / "camera_intrinsics.chunk_0007.parquet"
        path.write_bytes(parquet(intrinsics(**changes)))

    return damage


def replace_egomotion(columns):
    return lambda root: write_zip(
        root / "labels" / "egomotion" / "egomotion.chunk_0007.zip", {f"{CLIP}.egomotion.parquet": parquet(columns)}
    )


def truncate(path):
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate(f"camera/{CAMERA}/{CAMERA}.chunk_0007.zip"), "chunk_0007.zip: not a whole zip file"),
        (
            lambda r: write_zip(r / f"camera/{CAMERA}/{CAMERA}.chunk_0007.zip", {"x": b""}),
            "timestamps.parquet is missing",
        ),
        (replace_egomotion(egomotion(qw=np.zeros(901))), "row 0 has a quaternion of norm 0, expected 1"),
        (replace_egomotion(egomotion(timestamp=np.zeros(901, int))), "timestamps must increase"),
        (replace_egomotion(egomotion(x=np.full(901, np.nan))), "column x is nan in row 0"),
        (replace_egomotion({"timestamp": [1]}), "egomotion.parquet: columns x, y, z, qx, qy, qz, qw are missing"),
        (replace_intrinsics(camera_name="rear"), f"no calibration of {CAMERA} for clip"),
        (replace_intrinsics(fw_poly_1=-3.0), "angle_to_radius_px starts with slope -3.0, expected more than 0"),
        (replace_intrinsics(width=128), "64x48, but the calibration says 128x48"),
        (lambda r: (r / "clip_index.parquet").write_bytes(b"PAR1"), "clip_index.parquet: not a readable table"),
    ],
)
def test_bad_chunks(root, tmp_path, damage, message):
    damage(root)
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)
    assert not (tmp_path / "clip").exists()


def test_unknown_clip(root, tmp_path):
    with pytest.raises(InputError, match=r"0 clips named zz\*; available: other, "):
        read(root, tmp_path, sequence="zz")
