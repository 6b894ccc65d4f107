"""Reader of NVIDIA PhysicalAI-AV: clips in zip chunks, f-theta cameras, egomotion. Gated; no obstacle labels are read.

    clip_index.parquet                                   clip_id, chunk
    camera/<cam>/<cam>.chunk_0000.zip                    <clip>.<cam>.mp4, <clip>.<cam>.timestamps.parquet
    labels/egomotion/egomotion.chunk_0000.zip            <clip>.egomotion.parquet
    calibration/camera_intrinsics/camera_intrinsics.chunk_0000.parquet
    calibration/sensor_extrinsics/sensor_extrinsics.chunk_0000.parquet

Members are read in place: a camera chunk is about 2 GB and one clip of it is about 20 MB.
"""

import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float

from neural_sim.artifacts import work_folder
from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.finishing import cover, finish_clip, trajectory_from_poses, with_local_world
from neural_sim.clips.foreign_tables import Columns, parse_columns, read_columns
from neural_sim.clips.frame_selection import choose_cameras, select_frames
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.video_frames import extract_frames
from neural_sim.distortion import FTheta
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_translation_quaternion
from neural_sim.road_users import EgoVehicle
from neural_sim.trajectory import Trajectory

CAMERA_ORDER = ("camera_front_wide_120fov", "camera_front_tele_30fov", "camera_cross_left_120fov")
MAX_TABLE_BYTES = 200 * 2**20
POLYNOMIAL = range(5)
POSE_KINDS = dict.fromkeys(("x", "y", "z", "qx", "qy", "qz", "qw"), np.float64)


def ingest_physical_ai(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from clip `options.sequence` below `options.root` and return it as read back.

    Raises `InputError` naming the chunk and member on anything missing, damaged or unsafe.
    """
    root, clip_id, chunk = _find_clip(options)
    available = sorted(path.parent.name for path in root.glob(f"camera/*/*.chunk_{chunk:04d}.zip"))
    names = choose_cameras(available, CAMERA_ORDER, options, f"{root / 'camera'}, chunk {chunk:04d}")
    cameras = _calibration(root, clip_id, chunk)
    missing = [name for name in names if name not in cameras]
    if missing:
        raise InputError(
            f"{root / 'calibration'}: no calibration of {missing[0]} for clip {clip_id}; restore the files"
        )
    ego = _ego(root, clip_id, chunk)
    with work_folder(out) as work:
        frames = {name: _frames(root, clip_id, chunk, cameras[name], ego, options, work / name) for name in names}
        clip = Clip(
            clip_id=out.name,
            source={
                "dataset": "physicalai-av",
                "sequence": clip_id,
                "chunk": chunk,
                "licence": "gated; derived data may not be redistributed",
                "rate_hz": options.rate_hz,
                "scale": options.scale,
            },
            cameras=frames,
            ego=cover(ego, *_span(frames)),
            ego_vehicle=EgoVehicle(),
        )
        return finish_clip(with_local_world(clip), options, out, work)


def _find_clip(options: IngestOptions) -> tuple[Path, str, int]:
    if options.root is None:
        raise InputError("physicalai-av needs the folder with clip_index.parquet; pass --root DIR")
    path = options.root / "clip_index.parquet"
    index = read_columns(path, {"clip_id": np.str_, "chunk": np.int64})
    rows = [i for i, name in enumerate(index["clip_id"]) if str(name).startswith(options.sequence)]
    if len(rows) != 1 and (options.sequence or not rows):
        names = ", ".join(map(str, index["clip_id"][:3])) or "none"
        raise InputError(f"{path}: {len(rows)} clips named {options.sequence}*; available: {names}, ...")
    return options.root, str(index["clip_id"][rows[0]]), int(index["chunk"][rows[0]])


def _frames(
    root: Path, clip_id: str, chunk: int, camera: Camera, ego: Trajectory, options: IngestOptions, folder: Path
) -> CameraFrames:
    path = root / "camera" / camera.name / f"{camera.name}.chunk_{chunk:04d}.zip"
    with _open_chunk(path) as archive:
        name = f"{clip_id}.{camera.name}.timestamps.parquet"
        t_us = parse_columns(_read(archive, name, path), {"timestamp": np.int64}, f"{path}: {name}")["timestamp"]
        inside = np.flatnonzero((t_us >= ego.start_us) & (t_us <= ego.end_us))
        kept = inside[select_frames(t_us[inside], options, f"{path}: {name}")]
        size = (camera.width_px, camera.height_px)
        with _open_member(archive, f"{clip_id}.{camera.name}.mp4", path) as video:
            paths = extract_frames(video, kept, folder, size, f"{path}: {clip_id}.{camera.name}.mp4")
    return CameraFrames(camera, t_us[kept], paths)


def _ego(root: Path, clip_id: str, chunk: int) -> Trajectory:
    path = root / "labels" / "egomotion" / f"egomotion.chunk_{chunk:04d}.zip"
    name = f"{clip_id}.egomotion.parquet"
    with _open_chunk(path) as archive:
        content = _read(archive, name, path)
    where = f"{path}: {name}"
    columns = parse_columns(content, {"timestamp": np.int64, **POSE_KINDS}, where)
    return trajectory_from_poses(columns["timestamp"], _poses(columns, where), where)


def _calibration(root: Path, clip_id: str, chunk: int) -> dict[str, Camera]:
    """Cameras of one clip by name, those that both tables have."""
    intrinsics_path = _calibration_file(root, "camera_intrinsics", chunk)
    extrinsics_path = _calibration_file(root, "sensor_extrinsics", chunk)
    numbers = ["width", "height", "cx", "cy", *(f"{way}_poly_{i}" for way in ("fw", "bw") for i in POLYNOMIAL)]
    kinds = {"clip_id": np.str_, "camera_name": np.str_, **dict.fromkeys(numbers, np.float64)}
    found = read_columns(intrinsics_path, kinds)
    placed = read_columns(extrinsics_path, {"clip_id": np.str_, "sensor_name": np.str_, **POSE_KINDS})
    poses = _poses(placed, str(extrinsics_path))
    pose_by_name = {str(placed["sensor_name"][i]): poses[i] for i in np.flatnonzero(placed["clip_id"] == clip_id)}
    cameras = {}
    for i in np.flatnonzero(found["clip_id"] == clip_id):
        name = str(found["camera_name"][i])
        if name in pose_by_name:
            cameras[name] = _camera(name, {key: float(found[key][i]) for key in numbers}, pose_by_name[name])
    return cameras


def _camera(name: str, row: dict[str, float], T_rig_camera: Float[np.ndarray, "4 4"]) -> Camera:
    forward = tuple(row[f"fw_poly_{i}"] for i in POLYNOMIAL)
    backward = tuple(row[f"bw_poly_{i}"] for i in POLYNOMIAL)
    # The calibrated field ends at the image corner farthest from the principal point.
    farthest_px = np.hypot(max(row["cx"], row["width"] - row["cx"]), max(row["cy"], row["height"] - row["cy"]))
    angle = float(np.polynomial.polynomial.polyval(farthest_px, backward))
    lens = FTheta(forward, backward, "angle_to_radius", min(max(angle, 1e-3), np.pi))
    # F-theta principal points count pixel centres as integers.
    center = row["cx"] + 0.5, row["cy"] + 0.5
    size = int(row["width"]), int(row["height"])
    return Camera(name, *size, lens.focal_px, lens.focal_px, *center, T_rig_camera, distortion=lens)


def _calibration_file(root: Path, name: str, chunk: int) -> Path:
    whole = root / "calibration" / f"{name}.parquet"
    return whole if whole.is_file() else root / "calibration" / name / f"{name}.chunk_{chunk:04d}.parquet"


def _poses(columns: Columns, where: str) -> Float[np.ndarray, "n 4 4"]:
    quaternion = np.stack([columns[name] for name in ("qx", "qy", "qz", "qw")], axis=-1)
    norm = np.linalg.norm(quaternion, axis=1)
    bad = np.flatnonzero(np.abs(norm - 1.0) > 1e-3)
    if bad.size:
        raise InputError(f"{where}: row {int(bad[0])} has a quaternion of norm {norm[bad[0]]:.4g}, expected 1")
    return pose_from_translation_quaternion(np.stack([columns[name] for name in "xyz"], axis=-1), quaternion)


def _span(frames: dict[str, CameraFrames]) -> tuple[int, int]:
    return min(int(f.t_us[0]) for f in frames.values()), max(int(f.t_us[-1]) for f in frames.values())


def _open_chunk(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise InputError(f"{path}: the chunk is missing; download it")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole zip file ({error}); download it again") from error


def _open_member(archive: zipfile.ZipFile, name: str, path: Path) -> IO[bytes]:
    try:
        return archive.open(name)
    except KeyError as error:
        raise InputError(f"{path}: member {name} is missing; download the chunk again") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise InputError(f"{path}: member {name} cannot be read ({error}); download the chunk again") from error


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    with _open_member(archive, name, path) as member:
        try:
            content = member.read(MAX_TABLE_BYTES + 1)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{path}: member {name} is damaged ({error}); download the chunk again") from error
    if len(content) > MAX_TABLE_BYTES:
        raise InputError(f"{path}: member {name} is larger than {MAX_TABLE_BYTES} bytes; do not trust this file")
    return content
