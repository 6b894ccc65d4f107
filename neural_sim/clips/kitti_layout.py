"""The files of one KITTI odometry sequence: images, `times.txt`, `calib.txt` and poses."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from neural_sim.cameras import Camera
from neural_sim.errors import InputError

CAMERA_FOLDERS = ("image_0", "image_1", "image_2", "image_3")
# Colour before gray, left before right.
DEFAULT_ORDER = ("image_2", "image_0", "image_3", "image_1")


@dataclass(frozen=True)
class KittiSequence:
    """One sequence as published.

    Attributes:
        folder: `sequences/<name>`.
        t_us: int64 [N] frame times after the first frame, us.
        T_first_cam0: float64 [N, 4, 4], cam0 to the first cam0 (x right, y down, z forward), m.
        projections: float64 [3, 4] matrix `P0`..`P3` by camera folder name, pixels, as far as `calib.txt` has them.
    """

    folder: Path
    t_us: Int[np.ndarray, "n"]
    T_first_cam0: Float[np.ndarray, "n 4 4"]
    projections: dict[str, Float[np.ndarray, "3 4"]]

    def image_path(self, camera: str, index: int) -> Path:
        """Path of frame `index` of `camera`."""
        return self.folder / camera / f"{index:06d}.png"


def read_sequence(root: Path, sequence: str) -> KittiSequence:
    """Read times, calibration and poses of `sequence` below `root` (the folder with `sequences/` and `poses/`).

    Raises `InputError` naming the file when one is missing or malformed, when times do not increase, or when times
    and poses do not cover the same frames.
    """
    folder = root / "sequences" / sequence
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder, expected the KITTI odometry layout sequences/<sequence>/ below the root; "
            f"available sequences: {', '.join(available_sequences(root)) or 'none'}"
        )
    t_us = _read_times(folder / "times.txt")
    poses_path = root / "poses" / f"{sequence}.txt"
    poses = _read_poses(poses_path)
    if len(poses) < len(t_us):
        raise InputError(
            f"{poses_path}: {len(poses)} poses, but times.txt has {len(t_us)} frames; use the pose file of the whole "
            "sequence (only 00 to 10 have published poses)"
        )
    return KittiSequence(folder, t_us, poses[: len(t_us)], _read_calibration(folder / "calib.txt"))


def available_sequences(root: Path) -> list[str]:
    """Names of the sequences below `root`, sorted."""
    return sorted(path.name for path in (root / "sequences").glob("*") if path.is_dir())


def require_images(sequence: KittiSequence, camera: str, indices: Int[np.ndarray, "m"]) -> tuple[Path, ...]:
    """Paths of the frames `indices` of `camera`.

    Raises `InputError` when a frame file is missing, or when the camera has frames that `times.txt` does not time.
    """
    present = [int(path.stem) for path in (sequence.folder / camera).glob("*.png") if path.stem.isdigit()]
    if present and max(present) >= len(sequence.t_us):
        raise InputError(
            f"{sequence.folder / 'times.txt'}: {len(sequence.t_us)} times, but {camera} has frames up to "
            f"{max(present):06d}.png; use the times.txt of the whole sequence"
        )
    paths = tuple(sequence.image_path(camera, int(index)) for index in indices)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: the frame is missing ({len(missing)} of {len(paths)} are); restore it, or choose a range "
            "without it by start_s and duration_s"
        )
    return paths


def _read_times(path: Path) -> Int[np.ndarray, "n"]:
    values = _read_rows(path, columns=1, what="one time in seconds")[:, 0]
    t_us = np.round(values * 1e6).astype(np.int64)
    backwards = np.flatnonzero(np.diff(t_us) <= 0)
    if backwards.size:
        i = int(backwards[0])
        raise InputError(
            f"{path}: line {i + 2} ({values[i + 1]:.6f} s) does not come after line {i + 1} ({values[i]:.6f} s); frame "
            "times must increase, restore the file"
        )
    return t_us


def _read_poses(path: Path) -> Float[np.ndarray, "n 4 4"]:
    rows = _read_rows(path, columns=12, what="a 3x4 pose")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    rotation = poses[:, :3, :3]
    error = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero((error > 1e-3) | (np.linalg.det(rotation) < 0))
    if bad.size:
        raise InputError(f"{path}: line {int(bad[0]) + 1} is not a rotation and translation; restore the file")
    return poses


def _read_calibration(path: Path) -> dict[str, Float[np.ndarray, "3 4"]]:
    projections = {}
    for number, line in enumerate(_read_lines(path), start=1):
        name, _, rest = line.partition(":")
        if name.strip() in ("P0", "P1", "P2", "P3"):
            row = _parse_row(rest, 12, f"{path}: line {number}", "a 3x4 projection matrix")
            projections[f"image_{name.strip()[1]}"] = row.reshape(3, 4)
    if "image_0" not in projections:
        raise InputError(f"{path}: no line P0; use the calib.txt of this sequence from the KITTI odometry download")
    return projections


def _read_rows(path: Path, columns: int, what: str) -> Float[np.ndarray, "n c"]:
    lines = [line for line in _read_lines(path) if line.strip()]
    if not lines:
        raise InputError(f"{path}: the file is empty, expected {what} a line; restore it")
    return np.stack([_parse_row(line, columns, f"{path}: line {i + 1}", what) for i, line in enumerate(lines)])


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; restore it from the KITTI odometry download")
    try:
        return path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error}); restore it") from error


def _parse_row(text: str, columns: int, where: str, what: str) -> Float[np.ndarray, "c"]:
    try:
        row = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise InputError(f"{where}: {error}; expected {what}, restore the file") from error
    if len(row) != columns or not np.isfinite(row).all():
        raise InputError(f"{where}: found {len(row)} values, expected {columns} finite ones ({what}); restore the file")
    return row


def rectified_camera(
    name: str,
    projection: Float[np.ndarray, "3 4"],
    image_path: Path,
    T_rig_cam0: Float[np.ndarray, "4 4"],
    where: str,
) -> Camera:
    """A rectified camera from its projection matrix P, as large as the image at `image_path`; `where` holds P.

    Raises `InputError` when the image does not open, or the matrix is none of a camera.
    """
    try:
        with Image.open(image_path) as image:
            width_px, height_px = image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{image_path}: the image does not decode ({error}); restore the file") from error
    T_cam0_camera = np.eye(4)
    try:
        # P = K [I | t] maps rectified camera 0 coordinates, so the camera sits at -t.
        T_cam0_camera[:3, 3] = -np.linalg.solve(projection[:, :3], projection[:, 3])
    except np.linalg.LinAlgError as error:
        raise InputError(f"{where}: the projection of camera {name} cannot be inverted; restore the file") from error
    return Camera(
        name=name,
        width_px=width_px,
        height_px=height_px,
        fx_px=float(projection[0, 0]),
        fy_px=float(projection[1, 1]),
        cx_px=float(projection[0, 2]) + 0.5,
        cy_px=float(projection[1, 2]) + 0.5,
        T_rig_camera=T_rig_cam0 @ T_cam0_camera,
    )
