"""The files of one KITTI raw drive: timestamps, calibration, oxts, tracklets."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from neural_sim.errors import InputError
from neural_sim.frames import pose_from_planar

EARTH_RADIUS_M = 6_378_137.0
OXTS_VALUES = 30
MAX_TRACKLET_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Tracklet:
    """One labelled road user.

    Attributes:
        object_type: for example "Car".
        size_m: (length, width, height), m.
        first_frame: frame of the first pose.
        T_velo_box: float64 [N, 4, 4], box centre in the velodyne frame, one a frame, m.
    """

    object_type: str
    size_m: tuple[float, float, float]
    first_frame: int
    T_velo_box: Float[np.ndarray, "n 4 4"]


def read_timestamps(path: Path) -> Int[np.ndarray, "n"]:
    """Times of `timestamps.txt`, us since 1970, without time zone."""
    times = []
    for number, line in enumerate(_lines(path), start=1):
        day, _, fraction = line.partition(".")
        try:
            since = datetime.strptime(day, "%Y-%m-%d %H:%M:%S") - datetime(1970, 1, 1)
            times.append(round(since.total_seconds()) * 1_000_000 + round(float(f"0.{fraction or 0}") * 1e6))
        except ValueError as error:
            raise InputError(f"{path}: line {number} is no time ({error}); restore the file") from error
    t_us = np.array(times, np.int64)
    backwards = np.flatnonzero(np.diff(t_us) <= 0)
    if backwards.size:
        raise InputError(f"{path}: line {int(backwards[0]) + 2} does not come after the line before; restore the file")
    return t_us


def read_calibration(path: Path) -> dict[str, Float[np.ndarray, "n"]]:
    """Rows `name: numbers` of a `calib_*.txt`; rows that are not numbers (the date) are left out."""
    rows = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        try:
            rows[name.strip()] = np.array([float(word) for word in rest.split()])
        except ValueError:
            continue
    return rows


def matrix(rows: dict[str, Float[np.ndarray, "n"]], name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Row `name` as a matrix. Raises `InputError` naming `where` when it is missing or of another size."""
    row = rows.get(name, np.zeros(0))
    if row.size != np.prod(shape) or not np.isfinite(row).all():
        raise InputError(f"{where}: {name} has {row.size} numbers, expected {int(np.prod(shape))}; restore the file")
    return row.reshape(shape)


def rigid(rows: dict[str, Float[np.ndarray, "n"]], where: str) -> Float[np.ndarray, "4 4"]:
    """The transform of rows `R` and `T`."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = matrix(rows, "R", (3, 3), where), matrix(rows, "T", (3,), where)
    return pose


def read_oxts(path: Path) -> Float[np.ndarray, "30"]:
    """The 30 values of one oxts file: lat, lon (degrees), alt (m), roll, pitch, yaw (rad), velocities, ..."""
    words = " ".join(_lines(path)).split()
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise InputError(f"{path}: {error}; restore the file") from error
    if values.size < OXTS_VALUES or not np.isfinite(values[:6]).all():
        raise InputError(f"{path}: {values.size} values, expected {OXTS_VALUES} finite ones; restore the file")
    return values[:OXTS_VALUES]


def imu_poses(oxts: Float[np.ndarray, "n 30"]) -> Float[np.ndarray, "n 4 4"]:
    """IMU poses (x forward, y left, z up) in a world of x east, y north, z up by Mercator projection, m.

    The projection is scaled by the cosine of the first latitude, so that it is metric there.
    """
    latitude, longitude, altitude = oxts[:, 0], oxts[:, 1], oxts[:, 2]
    scale = np.cos(np.deg2rad(latitude[0]))
    poses = np.tile(np.eye(4), (len(oxts), 1, 1))
    poses[:, 0, 3] = scale * EARTH_RADIUS_M * np.deg2rad(longitude)
    poses[:, 1, 3] = scale * EARTH_RADIUS_M * np.log(np.tan(np.pi / 4 + np.deg2rad(latitude) / 2))
    poses[:, 2, 3] = altitude
    poses[:, :3, :3] = Rotation.from_euler("ZYX", oxts[:, [5, 4, 3]]).as_matrix()
    return poses


def read_tracklets(path: Path) -> list[Tracklet]:
    """The road users of `tracklet_labels.xml`. Raises `InputError` on entities, and on a malformed item."""
    content = path.read_bytes()
    # The published files carry a bare "<!DOCTYPE boost_serialization>"; anything inside one could expand without end.
    if len(content) > MAX_TRACKLET_BYTES or b"<!ENTITY" in content:
        raise InputError(f"{path}: too large or with entities; do not trust this file, get it again")
    try:
        items = ElementTree.fromstring(content).findall("./tracklets/item")
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: not valid XML ({error}); restore the file") from error
    return [_tracklet(item, f"{path}: item {i}") for i, item in enumerate(items)]


def _tracklet(item: ElementTree.Element, where: str) -> Tracklet:
    poses = item.findall("./poses/item")
    values = np.array([[_number(pose, key, where) for key in ("tx", "ty", "tz", "rz")] for pose in poses])
    if not len(values):
        raise InputError(f"{where}: no poses; restore the file")
    height_m, width_m, length_m = (_number(item, key, where) for key in ("h", "w", "l"))
    # The position is the middle of the box's bottom.
    T_velo_box = pose_from_planar(values[:, [0, 1, 3]], values[:, 2] + height_m / 2)
    name = item.findtext("objectType", "").strip()
    return Tracklet(name, (length_m, width_m, height_m), int(_number(item, "first_frame", where)), T_velo_box)


def _number(element: ElementTree.Element, key: str, where: str) -> float:
    text = element.findtext(key, "")
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{where}: {key} is {text!r}, expected a number; restore the file") from error
    if not np.isfinite(value):
        raise InputError(f"{where}: {key} is {text!r}, expected a finite number; restore the file")
    return value


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; restore it from the KITTI raw download")
    try:
        lines = [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error}); restore it") from error
    if not lines:
        raise InputError(f"{path}: the file is empty; restore it from the KITTI raw download")
    return lines
