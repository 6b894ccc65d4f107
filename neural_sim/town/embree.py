"""Embree's C interface, as far as the town needs it: triangle meshes, and rays in packets of 16.

embreex brings the library, but casts one ray at a time and copies every corner of a mesh in a Python loop. Rays of
neighbouring pixels in one packet are four times faster.
"""

import ctypes
import functools
import importlib.metadata
from collections.abc import Callable

import embreex.rtcore_scene  # noqa: F401  (loads what the library of Embree itself needs)
import numpy as np
from jaxtyping import Float
from numba import njit

# Build qualities of a scene.
MEDIUM, HIGH = 1, 2
PACKET = 16

_TRIANGLES, _INDICES, _VERTICES = 0, 0, 1
_UINT3, _FLOAT3 = 0x5003, 0x9003
# Rows of a packet of rays with their hits (RTCRayHit16): origin 0-2, nearest 3, direction 4-6, time 7, farthest 8,
# mask 9, id 10, flags 11, normal 12-14, barycentric 15-16, triangle 17, mesh 18, instances from 19.
_ROWS, _NEAREST, _TIME, _FARTHEST, _MASK, _FLAGS, _TRIANGLE, _MESH = 24, 3, 7, 8, 9, 11, 17, 18
_FAR_AWAY = np.float32(1e37)
_POINTER, _WORD, _SIZE = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t


def _arguments() -> np.ndarray:
    """RTCIntersectArguments or RTCOccludedArguments: coherent rays, all features, no callbacks."""
    arguments = np.zeros(16, np.uint32)
    arguments[0], arguments[1] = 1 << 16, 0xFFFFFFFF
    return arguments


COHERENT = _arguments()


def load_library() -> ctypes.CDLL:
    """The library that embreex installs. Raises `ImportError` where it brings none of version 4."""
    for file in importlib.metadata.files("embreex") or []:
        if "embree4" in file.name:
            return ctypes.CDLL(str(file.locate()))
    version = importlib.metadata.version("embreex")
    raise ImportError(
        f"embreex {version} brings no library of Embree 4; expected embreex >= 4.4: pip install -U embreex"
    )


_LIBRARY = load_library()


def _function(name: str, result: type | None, *arguments: type) -> Callable:
    function = getattr(_LIBRARY, name)
    function.restype, function.argtypes = result, arguments
    return function


_new_device = _function("rtcNewDevice", _POINTER, ctypes.c_char_p)
_device_error = _function("rtcGetDeviceError", ctypes.c_int, _POINTER)
_new_scene = _function("rtcNewScene", _POINTER, _POINTER)
_set_quality = _function("rtcSetSceneBuildQuality", None, _POINTER, ctypes.c_int)
_new_geometry = _function("rtcNewGeometry", _POINTER, _POINTER, ctypes.c_int)
_share_buffer = _function(
    "rtcSetSharedGeometryBuffer", None, _POINTER, ctypes.c_int, _WORD, ctypes.c_int, _POINTER, _SIZE, _SIZE, _SIZE
)
_commit_geometry = _function("rtcCommitGeometry", None, _POINTER)
_attach_geometry = _function("rtcAttachGeometry", _WORD, _POINTER, _POINTER)
_release_geometry = _function("rtcReleaseGeometry", None, _POINTER)
_commit_scene = _function("rtcCommitScene", None, _POINTER)
_intersect = _function("rtcIntersect16", None, _POINTER, _POINTER, _POINTER, _POINTER)
_occluded = _function("rtcOccluded16", None, _POINTER, _POINTER, _POINTER, _POINTER)
release_scene = _function("rtcReleaseScene", None, _POINTER)


@functools.cache
def _device() -> int:
    # One thread: pictures are drawn on one core, and threads would not survive a fork.
    return _new_device(b"threads=1")


def new_scene(triangles_m: Float[np.ndarray, "t 3 3"], quality: int) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """A scene of triangles, with the buffers that have to live as long; it is freed by `release_scene`."""
    count = len(triangles_m)
    # Embree reads 16 bytes at each corner of 12.
    corners = np.zeros(9 * count + 1, np.float32)
    corners[:-1] = triangles_m.reshape(-1)
    indices = np.arange(3 * count, dtype=np.uint32)
    scene, geometry = _new_scene(_device()), _new_geometry(_device(), _TRIANGLES)
    _set_quality(scene, quality)
    _share_buffer(geometry, _VERTICES, 0, _FLOAT3, corners.ctypes.data, 0, 12, 3 * count)
    _share_buffer(geometry, _INDICES, 0, _UINT3, indices.ctypes.data, 0, 12, count)
    _commit_geometry(geometry)
    _attach_geometry(scene, geometry)
    _release_geometry(geometry)
    _commit_scene(scene)
    error = _device_error(_device())
    if error:
        raise RuntimeError(f"Embree could not build a scene of {count} triangles: error {error}")
    return scene, (corners, indices)


def new_packet() -> Float[np.ndarray, "rows 16"]:
    """Memory for one packet and its mask of valid rays, float32, aligned as Embree wants it."""
    raw = np.zeros((_ROWS + 2) * PACKET, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + (_ROWS + 1) * PACKET].reshape(_ROWS + 1, PACKET)


def _caster(cast: Callable) -> Callable:
    @njit(error_model="numpy")
    def cast_packets(
        scene: int, origins: np.ndarray, directions: np.ndarray, packet: np.ndarray, arguments: np.ndarray
    ) -> np.ndarray:
        out, words = np.empty(len(origins), np.int32), packet.view(np.int32)
        valid = words[_ROWS]
        for start in range(0, len(origins), PACKET):
            count = min(PACKET, len(origins) - start)
            for k in range(PACKET):
                valid[k] = -1 if k < count else 0
            for k in range(count):
                for axis in range(3):
                    packet[axis, k], packet[4 + axis, k] = origins[start + k, axis], directions[start + k, axis]
                packet[_NEAREST, k], packet[_TIME, k], packet[_FARTHEST, k] = 0.0, 0.0, _FAR_AWAY
                words[_MASK, k], words[_FLAGS, k], words[_TRIANGLE, k], words[_MESH, k] = -1, 0, -1, -1
            cast(valid.ctypes, scene, packet.ctypes, arguments.ctypes)
            for k in range(count):
                # An occluded ray ends at minus infinity; nothing says at which triangle.
                out[start + k] = 0 if packet[_FARTHEST, k] < 0.0 else words[_TRIANGLE, k]
        return out

    return cast_packets


# Compiled kernels: triangle each ray meets first (`first_hits`), or 0 where it meets any (`any_hits`); -1 for none.
first_hits, any_hits = _caster(_intersect), _caster(_occluded)
