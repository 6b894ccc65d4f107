"""Time the CPU rasterizer on a road-like scene: against gsplat's torch projection, as it grows, through every lens.

    python benchmarks/rasterize.py --json rasterize.json        # everything, some minutes
    python benchmarks/rasterize.py --only gsplat --gsplat DIR   # pip install --no-deps --target DIR gsplat==1.5.3

Writes flat {"figure": number}; times are medians over `--repeats` calls, in ms, after one call that compiles. Calls
that are compared take turns, so that a busy machine slows both. `forward_ms/100k_320x192` is a complete forward pass,
`forward_backward_ms/...` that and the gradient of all parameters. `gsplat_...` is the torch reference projection of
gsplat alone (covariances, means, conics): no sorting, no blending. `share_of_peak/...` is the arithmetic of blending,
as counted, over the time of the whole forward pass and the machine's measured multiply-add rate;
`share_of_bandwidth/...` the bytes that must move at least once, over the measured copy rate.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numba
import numpy as np
import torch
from numba import njit, prange

from neural_sim.distortion import Distortion, EquidistantFisheye, FTheta, RadialTangential
from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose
from neural_sim.gaussians import Gaussians
from neural_sim.rendering.rasterize import RasterizedViews, Shutter, rasterize

BASE = (100_000, 320, 192)
COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SIZES_PX = ((160, 96), (320, 192), (640, 360), (960, 544), (1920, 1080))
LENSES: dict[str, Distortion] = {
    "opencv": RadialTangential((-0.1, 0.02, 0.0), (0.001, -0.001)),
    "fisheye": EquidistantFisheye((0.01, -0.002, 0.0, 0.0)),
    "ftheta": FTheta((0.0, 160.0, 0.0, -5.0), (), "angle_to_radius", 1.5),
}
# Operations of `blend_row` on one pixel, a multiply-add being two.
BLEND_OPERATIONS = 31
CHAINS, CHAIN, ROUNDS = 128, 32, 20_000
SECTIONS = ("gsplat", "growth", "lenses", "limits")
SH_DEGREES = (0, 1, 3)


def road_scene(count: int, sh_degree: int = 0, seed: int = 0) -> Gaussians:
    """Half flat discs on a road of 100 m, half blobs of 5 to 40 cm in the facades beside it; world frame, z up."""
    random = np.random.default_rng(seed)
    on_road = count // 2
    beside = count - on_road
    road = np.stack([random.uniform(2, 100, on_road), random.uniform(-20, 20, on_road), np.zeros(on_road)], axis=1)
    offset_m = random.choice([-1, 1], beside) * (8 + np.abs(random.normal(0, 6, beside)))
    facade = np.stack([random.uniform(2, 120, beside), offset_m, random.uniform(0, 10, beside)], axis=1)
    disc = np.concatenate([random.uniform(0.1, 0.4, (on_road, 2)), np.full((on_road, 1), 0.01)], axis=1)
    scales = np.concatenate([disc, random.uniform(0.05, 0.4, (beside, 3))])
    quaternions = random.normal(size=(count, 4))
    quaternions[:on_road] = [0, 0, 0, 1]
    tensors = (
        np.concatenate([road, facade]),
        quaternions,
        np.log(scales),
        random.normal(1, 1.5, count),
        random.normal(0, 0.3, (count, (sh_degree + 1) ** 2, 3)),
    )
    return Gaussians(*(torch.tensor(tensor, dtype=torch.float32) for tensor in tensors))


def forward_camera(width_px: int, height_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A camera 1.5 m above the road that looks along it with 90 degrees: T_camera_world [1, 4, 4] and K [1, 3, 3]."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R_RIG_FORWARD_CAMERA, [0.0, 0.0, 1.5]
    K = np.array([[width_px / 2, 0, width_px / 2], [0, width_px / 2, height_px / 2], [0, 0, 1]])
    return torch.from_numpy(invert_pose(pose))[None].float(), torch.from_numpy(K)[None].float()


def median_ms(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median duration of each call, ms; the calls take turns, after one turn that compiles and warms caches."""
    durations: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn:
                durations[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in durations.items()}


def with_gradients(gaussians: Gaussians) -> Gaussians:
    """A copy whose tensors are leaves."""
    return Gaussians(**{name: tensor.clone().requires_grad_() for name, tensor in gaussians.tensors().items()})


def passes(
    draw: Callable[[Gaussians], torch.Tensor], scene: Gaussians
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward pass of `draw`, which returns a scalar, and forward with backward."""
    leaves = with_gradients(scene)

    def forward() -> None:
        with torch.no_grad():
            draw(scene)

    def both() -> None:
        for tensor in leaves.tensors().values():
            tensor.grad = None
        draw(leaves).backward()

    return forward, both


def total(views: RasterizedViews) -> torch.Tensor:
    """A scalar of all that was drawn."""
    return views.rgb.sum() + views.opacity.sum()


def case_name(count: int, width_px: int, height_px: int) -> str:
    """As figures are named."""
    return f"{count // 1000}k_{width_px}x{height_px}"


def time_case(count: int, width_px: int, height_px: int, repeats: int, **options: object) -> dict[str, float]:
    """Forward, and forward with backward, ms."""
    scene, (pose, K) = road_scene(count), forward_camera(width_px, height_px)
    forward, both = passes(
        lambda g: total(rasterize(g, pose, K, width_px, height_px, backend="cpu", **options)),  # type: ignore[arg-type]
        scene,
    )
    return median_ms({"forward_ms": forward, "forward_backward_ms": both}, repeats)


def compare_with_gsplat(repeats: int, sh_degree: int) -> dict[str, float]:
    """Our complete passes beside gsplat's torch projection alone, on the same Gaussians, threads and turns."""
    try:
        from gsplat.cuda import _torch_impl  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("gsplat is not installed: no comparison; see --help for how to give it with --gsplat")
        return {}
    count, width_px, height_px = BASE
    scene, (pose, K) = road_scene(count, sh_degree), forward_camera(width_px, height_px)

    def project(g: Gaussians) -> torch.Tensor:
        quaternions_wxyz = g.quaternions_xyzw[:, [3, 0, 1, 2]]
        covariances, _ = _torch_impl._quat_scale_to_covar_preci(quaternions_wxyz, torch.exp(g.log_scales), True, False)
        _, means_px, depths_m, conics, _ = _torch_impl._fully_fused_projection(
            g.means_m, covariances, pose, K, width_px, height_px
        )
        return means_px.sum() + depths_m.sum() + conics.sum()

    ours = passes(lambda g: total(rasterize(g, pose, K, width_px, height_px, backend="cpu")), scene)
    theirs = passes(project, scene)
    names = ("forward_ms", "forward_backward_ms", "gsplat_projection_forward_ms", "gsplat_projection_both_ms")
    times = median_ms(dict(zip(names, (*ours, *theirs), strict=True)), repeats)
    case = f"{case_name(*BASE)}_sh{sh_degree}"
    figures = {f"{name}/{case}": value for name, value in times.items()}
    figures[f"forward_over_gsplat_projection/{case}"] = times[names[0]] / times[names[2]]
    figures[f"forward_backward_over_gsplat_projection/{case}"] = times[names[1]] / times[names[3]]
    return figures


def merged(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """All figures in one."""
    return {name: value for part in parts for name, value in part.items()}


def growth(repeats: int) -> dict[str, float]:
    """Times over the number of Gaussians and over the image size, and the memory of the largest case."""
    figures = {}
    count, width_px, height_px = BASE
    cases = [(n, width_px, height_px) for n in COUNTS] + [(count, *size) for size in SIZES_PX if size != BASE[1:]]
    for case in [*cases, (COUNTS[-1], *SIZES_PX[-1])]:
        figures |= {f"{name}/{case_name(*case)}": value for name, value in time_case(*case, repeats).items()}
    figures["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return figures


def lenses(repeats: int) -> dict[str, float]:
    """Times through each lens and with a rolling shutter."""
    pose, _ = forward_camera(*BASE[1:])
    close = pose.clone()
    close[0, 2, 3] -= 0.5
    options = {name: {"lens": lens} for name, lens in LENSES.items()}
    options |= {"rolling": {"shutter": Shutter(close)}, "antialias": {"antialias": True}}
    figures = {}
    for name, option in options.items():
        times = time_case(*BASE, repeats, **option)
        figures |= {f"{kind}/{case_name(*BASE)}_{name}": value for kind, value in times.items()}
    return figures


@njit(parallel=True, fastmath={"contract"})
def multiply_add(rounds: int, pieces: int) -> float:
    """`CHAINS * CHAIN` float32 multiply-adds a round and piece, in eight independent AVX-512 registers of a thread."""
    sums = np.zeros(pieces, np.float32)
    for piece in prange(pieces):
        values = np.full(CHAINS, np.float32(piece), np.float32)
        factor, addend = np.float32(0.999), np.float32(0.001)
        for _ in range(rounds):
            for lane in range(CHAINS):
                value = values[lane]
                for _ in range(CHAIN):
                    value = value * factor + addend
                values[lane] = value
        sums[piece] = values.sum()
    return sums.sum()


@njit(parallel=True)
def copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copy by all threads."""
    for i in prange(len(source)):
        target[i] = source[i]


def limits(repeats: int, threads: int) -> dict[str, float]:
    """Measured rates of the machine, and the shares of them that the base case reaches."""
    count, width_px, height_px = BASE
    scene, (pose, K) = road_scene(count), forward_camera(width_px, height_px)
    rows, pairs, visible = count_work(scene, pose, K, width_px, height_px)
    source = np.ones(2**25, np.float32)
    target = np.empty_like(source)
    times = median_ms(
        {
            "forward": lambda: rasterize(scene, pose, K, width_px, height_px, backend="cpu"),
            "arithmetic": lambda: multiply_add(ROUNDS, threads),
            "copy": lambda: copy(source, target),
        },
        repeats,
    )
    gflops = 2 * CHAINS * CHAIN * ROUNDS * threads / times["arithmetic"] / 1e6
    gigabytes_per_s = 2 * source.nbytes / times["copy"] / 1e6
    parameters = sum(tensor[0].numel() * 4 for tensor in scene.tensors().values())
    # Parameters read, records written and gathered by each tile, keys and lists, and the images.
    moved = count * parameters + 64 * (visible + pairs) + 16 * visible + 8 * pairs + 20 * width_px * height_px
    case = case_name(*BASE)
    return {
        "peak_gflops": gflops,
        "copy_gb_per_s": gigabytes_per_s,
        f"blended_pixels/{case}": 16.0 * rows,
        f"tile_pairs/{case}": float(pairs),
        f"visible/{case}": float(visible),
        f"share_of_peak/{case}": BLEND_OPERATIONS * 16 * rows / times["forward"] / 1e6 / gflops,
        f"share_of_bandwidth/{case}": moved / times["forward"] / 1e6 / gigabytes_per_s,
    }


def count_work(
    scene: Gaussians, pose: torch.Tensor, K: torch.Tensor, width_px: int, height_px: int
) -> tuple[int, int, int]:
    """Rows of 16 pixels that the forward pass blends, pairs of tile and splat, and visible Gaussians."""
    from neural_sim.rendering.cpu import function
    from neural_sim.rendering.cpu.view_vector import view_vector

    parameters = function._as_arrays(list(scene.tensors().values()))
    view = view_vector(K[0].double().numpy(), width_px, height_px, None, None, False)
    knots, offset, owners = pose.double().numpy()[None], np.zeros((1, 2), np.float32), np.empty(0, np.int32)
    drawn = function._draw(parameters, owners, knots, view, offset, (width_px, height_px), False)
    rows = count_rows(drawn.records, drawn.lists, drawn.starts, -(-width_px // 16))
    return int(rows), len(drawn.lists), int(drawn.visible.sum())


def count_rows(records: np.ndarray, lists: np.ndarray, starts: np.ndarray, tiles_x: int) -> int:
    """Replay `blend_tile` batch by batch and count its calls of `blend_row`."""
    from neural_sim.rendering.cpu.blending import blend_tile, find_live_rows, row_range
    from neural_sim.rendering.cpu.layout import BATCH, MEAN_Y, REACH_Y, TILE

    rows, live = 0, np.empty((2, TILE + 1), np.int64)
    for tile in range(len(starts) - 1):
        members = lists[starts[tile] : starts[tile + 1]]
        left, top = tile % tiles_x * TILE, tile // tiles_x * TILE
        pixels = np.zeros((TILE, 5 * TILE), np.float32)
        pixels[:, :TILE] = 1.0
        for first in range(0, len(members), BATCH):
            if find_live_rows(pixels, live) == 0:
                break
            batch = members[first : first + BATCH]
            for i in batch:
                low, high = row_range(records[i, MEAN_Y], records[i, REACH_Y], top)
                rows += live[1, high] - live[1, low]
            blend_tile(records, batch, left, top, pixels)
    return int(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls per case")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="threads to use")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="sections to run; all by default")
    parser.add_argument("--gsplat", type=Path, help="folder that gsplat 1.5.3 was installed to with pip --target")
    arguments = parser.parse_args()
    numba.set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    if arguments.gsplat:
        sys.path.append(str(arguments.gsplat))
    sections: dict[str, Callable[[], dict[str, float]]] = {
        "gsplat": lambda: merged(compare_with_gsplat(arguments.repeats, degree) for degree in SH_DEGREES),
        "growth": lambda: growth(arguments.repeats),
        "lenses": lambda: lenses(arguments.repeats),
        "limits": lambda: limits(arguments.repeats, arguments.threads),
    }
    figures: dict[str, float] = {"threads": arguments.threads}
    for name in arguments.only or SECTIONS:
        found = sections[name]()
        print("\n".join(f"{figure}: {value:.3g}" for figure, value in found.items()), flush=True)
        figures |= found
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
