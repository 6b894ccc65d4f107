"""Speed and memory of ingesting a long drive: `python benchmarks/ingest.py --json ingest.json`.

Writes a made-up drive in the layout of Argoverse 2 (six cameras at 10 Hz), copies its images with plain file copies,
and ingests it in a process of its own. Both read files that are not in memory and wait until theirs are on the disk.
Ten minutes take 3.3 GB three times over, and are deleted at the end.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
from PIL import Image

from neural_sim.artifacts import flush_folder

CAMERAS = ("front_center", "front_left", "front_right", "side_left", "side_right", "rear_left")
WIDTH_PX, HEIGHT_PX, RATE_HZ, SPEED_MPS = 800, 450, 10, 8.0
TEMPLATES = 12
# A clip of 8 s is the shortest that is sound, and half of the drive is ingested too.
SHORTEST_MINUTES = 0.3
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


def forget(folder: Path) -> None:
    """Write what is in `folder` to the disk and drop it from memory, so that it is read from the disk again."""
    flush_folder(folder)
    for path in folder.rglob("*.jpg"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def plain_copy(log: Path, out: Path) -> dict[str, float]:
    """Copy every image, file by file, and wait for the disk."""
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    for path in sorted((log / "sensors" / "cameras").rglob("*.jpg")):
        target = out / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    flush_folder(out)
    return {"s": time.perf_counter() - started_s, "cpu_s": time.process_time() - started_cpu_s}


INGEST = """
import json, sys, time
from pathlib import Path
from neural_sim.clips.argoverse2 import ingest_argoverse2
from neural_sim.clips.options import IngestOptions

def peak_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

imported_mb, started_s, started_cpu_s = peak_mb(), time.perf_counter(), time.process_time()
ingest_argoverse2(IngestOptions(root=Path(sys.argv[1]), cameras=tuple(sys.argv[3:])), Path(sys.argv[2]))
taken = {"s": time.perf_counter() - started_s, "cpu_s": time.process_time() - started_cpu_s}
print(json.dumps({**taken, "peak_mb": peak_mb(), "imported_mb": imported_mb}))
"""


def ingest(log: Path, out: Path) -> dict[str, float]:
    """Ingest the drive in a process of its own; times are without its start."""
    names = [f"ring_{name}" for name in CAMERAS]
    done = subprocess.run(
        [sys.executable, "-c", INGEST, str(log), str(out), *names], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def shortened(log: Path, out: Path) -> Path:
    """The first half of the drive, its files linked."""
    shutil.copytree(log / "calibration", out / "calibration")
    shutil.copyfile(log / "city_SE3_egovehicle.feather", out / "city_SE3_egovehicle.feather")
    for camera in (log / "sensors" / "cameras").iterdir():
        target = out / "sensors" / "cameras" / camera.name
        target.mkdir(parents=True)
        images = sorted(camera.iterdir())
        for path in images[: len(images) // 2]:
            (target / path.name).hardlink_to(path)
    return out


def measure(minutes: float, rounds: int, folder: Path) -> dict[str, float]:
    """Medians over rounds of copying and ingesting a drive of `minutes`, and the peak memory of one of half of it."""
    log = folder / "drive"
    size_mb = write_drive(log, minutes) / 1e6
    taken: dict[str, list[dict[str, float]]] = {"copy": [], "ingest": []}
    for _ in range(rounds):
        for name, work in (("copy", plain_copy), ("ingest", ingest)):
            forget(log)
            taken[name].append(work(log, folder / name))
            shutil.rmtree(folder / name)
    half = ingest(shortened(log, folder / "half"), folder / "clip")
    figures = {
        f"{name}_{key}": median([item[key] for item in items]) for name, items in taken.items() for key in items[0]
    }
    return {
        "ingest_minutes": minutes,
        "ingest_images": len(CAMERAS) * round(minutes * 60 * RATE_HZ),
        "ingest_size_mb": size_mb,
        **figures,
        "ingest_mb_per_s": size_mb / figures["ingest_s"],
        "copy_mb_per_s": size_mb / figures["copy_s"],
        "ingest_over_copy_time": figures["ingest_s"] / figures["copy_s"],
        "ingest_peak_mb_of_half": half["peak_mb"],
        "ingest_peak_growth_mb_per_minute": (figures["ingest_peak_mb"] - half["peak_mb"]) / (minutes / 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the drive")
    parser.add_argument("--folder", type=Path, help="where to put some GB for a while; default the temporary folder")
    parser.add_argument("--rounds", type=int, default=2, help="how often to copy and ingest it, by turns")
    arguments = parser.parse_args()
    if arguments.minutes < SHORTEST_MINUTES:
        parser.error(f"--minutes is {arguments.minutes}, expected at least {SHORTEST_MINUTES}")
    # A terminated run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(arguments.minutes, arguments.rounds, Path(folder))
    print(json.dumps(figures, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
