"""Speed and memory of ingesting a long drive: `python benchmarks/ingest.py --json ingest.json`.

Writes a made-up drive in the layout of Argoverse 2 (six cameras at 10 Hz), copies its images with plain file copies,
and ingests it in a process of its own. Compared are bytes per second; the memory is the peak of that process.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
from PIL import Image

CAMERAS = ("front_center", "front_left", "front_right", "side_left", "side_right", "rear_left")
WIDTH_PX, HEIGHT_PX, RATE_HZ, SPEED_MPS = 800, 450, 10, 8.0
TEMPLATES = 12
# A clip of 8 s is the shortest that is sound.
SHORTEST_MINUTES = 0.2
START_NS = 315_966_000_000_000_000


def write_drive(log: Path, minutes: float) -> int:
    """Write the log folder and return the bytes of its images."""
    stamps = START_NS + np.arange(round(minutes * 60 * RATE_HZ)) * (1_000_000_000 // RATE_HZ)
    pose_ns = np.arange(stamps[0] - 50_000_000, stamps[-1] + 60_000_000, 10_000_000)
    x = SPEED_MPS * (pose_ns - pose_ns[0]) * 1e-9
    _write(log / "city_SE3_egovehicle.feather", {"timestamp_ns": pose_ns, **_poses(x, np.zeros(len(x)))})
    names = [f"ring_{name}" for name in CAMERAS]
    calibration = {"sensor_name": names, **_poses(np.full(6, 1.6), np.full(6, 1.4))}
    _write(log / "calibration" / "egovehicle_SE3_sensor.feather", calibration)
    numbers = {"fx_px": 600.0, "fy_px": 600.0, "cx_px": 399.5, "cy_px": 224.5, "k1": 0.0, "k2": 0.0, "k3": 0.0}
    sizes = {"height_px": np.full(6, HEIGHT_PX, np.uint16), "width_px": np.full(6, WIDTH_PX, np.uint16)}
    columns = {name: np.full(6, value) for name, value in numbers.items()}
    _write(log / "calibration" / "intrinsics.feather", {"sensor_name": names, **columns, **sizes})
    templates = _templates(log.parent / "templates")
    total = 0
    for number, name in enumerate(names):
        folder = log / "sensors" / "cameras" / name
        folder.mkdir(parents=True)
        for i, t_ns in enumerate(stamps.tolist()):
            template = templates[(i + number) % TEMPLATES]
            shutil.copyfile(template, folder / f"{t_ns}.jpg")
            total += template.stat().st_size
    return total


def _templates(folder: Path) -> list[Path]:
    """Street-like images: smooth shades with fine texture, about as large on disk as photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for i in range(TEMPLATES):
        coarse = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC), float)
        noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return paths


def _poses(x_m: np.ndarray, z_m: np.ndarray) -> dict[str, np.ndarray]:
    zero = np.zeros(len(x_m))
    return {"qw": zero + 1, "qx": zero, "qy": zero, "qz": zero, "tx_m": x_m, "ty_m": zero, "tz_m": z_m}


def _write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table(columns), str(path))


def plain_copy(log: Path, out: Path) -> float:
    """Seconds to copy every image, file by file."""
    started_s = time.perf_counter()
    for path in sorted((log / "sensors" / "cameras").rglob("*.jpg")):
        target = out / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return time.perf_counter() - started_s


def ingest(log: Path, out: Path) -> tuple[float, float]:
    """Seconds of the command, without its start, and its peak memory in MB."""
    program = (
        "import json, resource, sys, time\n"
        "from pathlib import Path\n"
        "from neural_sim.clips.options import IngestOptions\n"
        "from neural_sim.clips.registry import ingest\n"
        "started_s = time.perf_counter()\n"
        f"names = tuple('ring_' + name for name in {CAMERAS!r})\n"
        "ingest('argoverse2', IngestOptions(root=Path(sys.argv[1]), cameras=names), Path(sys.argv[2]))\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps([time.perf_counter() - started_s, peak / 1024]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(log), str(out)], check=True, capture_output=True, text=True
    )
    seconds, peak_mb = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak_mb


def measure(minutes: float, folder: Path) -> dict[str, float]:
    """Figures of a drive of `minutes`, and the peak memory of one of a tenth of it."""
    log, short = folder / "drive", folder / "short" / "drive"
    short.parent.mkdir()
    size_mb = write_drive(log, minutes) / 1e6
    copy_s = plain_copy(log, folder / "copy")
    shutil.rmtree(folder / "copy")
    ingest_s, peak_mb = ingest(log, folder / "clip")
    shutil.rmtree(folder / "clip")
    write_drive(short, max(minutes / 10, SHORTEST_MINUTES))
    _, short_peak_mb = ingest(short, folder / "short" / "clip")
    return {
        "ingest_minutes": minutes,
        "ingest_images": len(CAMERAS) * round(minutes * 60 * RATE_HZ),
        "ingest_size_mb": size_mb,
        "ingest_s": ingest_s,
        "ingest_mb_per_s": size_mb / ingest_s,
        "copy_mb_per_s": size_mb / copy_s,
        "ingest_over_copy_time": ingest_s / copy_s,
        "ingest_peak_mb": peak_mb,
        "ingest_peak_mb_of_a_tenth": short_peak_mb,
        "own_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the drive")
    parser.add_argument("--folder", type=Path, help="where to put some GB for a while; default the temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(arguments.minutes, Path(folder))
    print(json.dumps(figures, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
