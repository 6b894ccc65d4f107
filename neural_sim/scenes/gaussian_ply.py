"""Gaussians as PLY in the convention of 3D Gaussian splatting, with an optional sky beside them.

Values are pre-activation, quaternions wxyz, higher harmonics (`f_rest_*`) channel by channel. The sky is a
`<stem>.sky.npz` as Instant NuRec writes it: `sky_cubemap` [6, S, S, 3] in layout "axes" of `sky_layouts`.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from neural_sim.artifacts import atomic_file
from neural_sim.clips.array_errors import NPY_ERRORS
from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians

_TYPES = {
    "float": "<f4",
    "float32": "<f4",
    "double": "<f8",
    "float64": "<f8",
    "uchar": "u1",
    "uint8": "u1",
    "int": "<i4",
}
_MAX_HEADER_BYTES = 65_536
_REST_COUNTS = (0, 9, 24, 45)


def write_ply(gaussians: Gaussians, path: Path) -> None:
    """Write `gaussians` as little-endian binary PLY, atomically."""
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in gaussians.tensors().items()}
    rest = tensors["sh"][:, 1:].transpose(0, 2, 1).reshape(len(gaussians), -1)
    columns = {
        **_named(("x", "y", "z"), tensors["means_m"]),
        **_named(("nx", "ny", "nz"), np.zeros((len(gaussians), 3))),
        **_named([f"f_dc_{i}" for i in range(3)], tensors["sh"][:, 0]),
        **_named([f"f_rest_{i}" for i in range(rest.shape[1])], rest),
        "opacity": tensors["opacity_logits"],
        **_named([f"scale_{i}" for i in range(3)], tensors["log_scales"]),
        **_named([f"rot_{i}" for i in range(4)], tensors["quaternions_xyzw"][:, [3, 0, 1, 2]]),
    }
    rows = np.empty(len(gaussians), np.dtype([(name, "<f4") for name in columns]))
    for name, column in columns.items():
        rows[name] = column
    properties = "".join(f"property float {name}\n" for name in columns)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    with atomic_file(path) as partial:
        partial.write_bytes(header.encode() + rows.tobytes())


def read_ply(path: Path) -> Gaussians:
    """Inverse of `write_ply`; also reads what other tools write in the convention.

    Raises `InputError` naming the file when it is missing, truncated, of another layout, or not finite.
    """
    rows = _vertices(path)
    fields = rows.dtype.names or ()
    rest_count = sum(name.startswith("f_rest_") for name in fields)
    wanted = [*"xyz", "opacity", *(f"f_dc_{i}" for i in range(3)), *(f"scale_{i}" for i in range(3))]
    wanted += [*(f"rot_{i}" for i in range(4)), *(f"f_rest_{i}" for i in range(rest_count))]
    missing = [name for name in wanted if name not in fields]
    if missing or rest_count not in _REST_COUNTS:
        raise InputError(
            f"{path}: {', '.join(missing[:4]) or f'{rest_count} f_rest'}: not Gaussians in the 3DGS convention, "
            "expected x, f_dc_*, f_rest_* (0, 9, 24 or 45), opacity, scale_*, rot_*"
        )

    def stack(names: list[str]) -> Float[torch.Tensor, "n c"]:
        values = np.stack([rows[name] for name in names], axis=-1).astype(np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {names[0]} has NaN or infinite values; export the Gaussians again")
        return torch.from_numpy(values)

    constant = stack([f"f_dc_{i}" for i in range(3)])[:, None]
    bands = rest_count // 3
    rest = stack([f"f_rest_{i}" for i in range(rest_count)]) if rest_count else torch.zeros(len(rows), 0)
    sh = torch.cat([constant, rest.reshape(len(rows), 3, bands).transpose(1, 2)], dim=1)
    quaternion_wxyz = stack([f"rot_{i}" for i in range(4)])
    return Gaussians(
        means_m=stack(["x", "y", "z"]),
        quaternions_xyzw=quaternion_wxyz[:, [1, 2, 3, 0]].contiguous(),
        log_scales=stack([f"scale_{i}" for i in range(3)]),
        opacity_logits=stack(["opacity"])[:, 0],
        sh=sh.contiguous(),
    )


def read_sky(path: Path) -> Float[torch.Tensor, "6 s s 3"] | None:
    """The sky beside the PLY at `path` (`<stem>.sky.npz`) as stored, 0..1, or None.

    Raises `InputError` when it is malformed.
    """
    path = path.with_name(f"{path.stem}.sky.npz")
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            sky = arrays["sky_cubemap"].astype(np.float32)
    except (*NPY_ERRORS, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: no sky_cubemap in a whole .npz ({error}); export the sky again") from error
    if sky.ndim != 4 or sky.shape[0] != 6 or sky.shape[1] != sky.shape[2] or sky.shape[3] != 3:
        raise InputError(f"{path}: sky_cubemap is {list(sky.shape)}, expected [6, S, S, 3]; export the sky again")
    if not np.isfinite(sky).all():
        raise InputError(f"{path}: sky_cubemap has NaN or infinite values; export the sky again")
    return torch.from_numpy(sky).clamp(0, 1)


def _vertices(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
        end = head.find(b"end_header\n")
        lines = head[:end].decode("ascii", "replace").split("\n")
        if end < 0 or lines[:2] != ["ply", "format binary_little_endian 1.0"]:
            raise InputError(f"{path}: not a little-endian binary PLY; export the Gaussians again")
        count, dtype = _layout(lines, path)
        expected = count * dtype.itemsize
        if path.stat().st_size - end - len(b"end_header\n") < expected:
            raise InputError(f"{path}: {count} Gaussians need {expected} bytes, but the file ends before")
        file.seek(end + len(b"end_header\n"))
        return np.frombuffer(file.read(expected), dtype)


def _layout(lines: list[str], path: Path) -> tuple[int, np.dtype]:
    """Number and type of the vertices, which must be the first element."""
    elements = [line.split() for line in lines if line.startswith("element ")]
    if not elements or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdigit():
        raise InputError(f"{path}: the first element of the PLY should be vertex; export the Gaussians again")
    properties = []
    for line in lines[lines.index(" ".join(elements[0])) + 1 :]:
        words = line.split()
        if words[:1] == ["element"]:
            break
        if words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in _TYPES:
                raise InputError(f"{path}: vertex property {line!r} is not a plain number; export the Gaussians again")
            properties.append((words[2], _TYPES[words[1]]))
    return int(elements[0][-1]), np.dtype(properties)


def _named(names: list[str] | tuple[str, ...], columns: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, columns.T, strict=True))
