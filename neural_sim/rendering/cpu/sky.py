"""Sky behind drawn views, on the CPU: ray, cubemap lookup, blending and clipping in one pass."""

import math

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.layout import INLINE, JIT, ONE, PARALLEL, ZERO


@njit(**JIT)
def face_coordinates(x: float, y: float, z: float) -> tuple[int, float, float]:
    """Face and (s, t) of a direction; orientation as in `neural_sim.rendering.sky`."""
    ax, ay, az = abs(x), abs(y), abs(z)
    if ax >= ay and ax >= az:
        return (0, -y / ax, -z / ax) if x >= 0.0 else (1, y / ax, -z / ax)
    if ay >= az:
        return (2, x / ay, -z / ay) if y >= 0.0 else (3, -x / ay, -z / ay)
    return (4, -y / az, x / az) if z >= 0.0 else (5, -y / az, -x / az)


@njit(**JIT)
def texel_and_fraction(coordinate: float, size: int) -> tuple[int, int, float]:
    """Two neighbouring texels and the weight of the second for a coordinate in -1..1."""
    position = min(max((coordinate + 1.0) * 0.5 * size - 0.5, 0.0), size - 1.0)
    first = min(math.floor(position), max(size - 2, 0))
    return first, min(first + 1, size - 1), position - first


@njit(**INLINE)
def bilinear(sky: np.ndarray, face: int, s: float, t: float, channel: int) -> float:
    """One channel of the cubemap at (s, t) of a face."""
    left, right, a = texel_and_fraction(s, sky.shape[1])
    top, bottom, b = texel_and_fraction(t, sky.shape[1])
    upper = sky[face, top, left, channel] * (1.0 - a) + sky[face, top, right, channel] * a
    lower = sky[face, bottom, left, channel] * (1.0 - a) + sky[face, bottom, right, channel] * a
    return upper * (1.0 - b) + lower * b


# Few, since each has a sky of its own to add to; fixed, so that sums do not depend on the number of threads.
_SKY_PIECES = 4


@njit(**PARALLEL)
def look_up(sky: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Colours float32 [N, 3] of `sky` [6, S, S, 3] along `rays` [N, 3] of any length; black along zero."""
    colors = np.empty((len(rays), 3), np.float32)
    for n in prange(len(rays)):
        x, y, z = rays[n, 0], rays[n, 1], rays[n, 2]
        if x == ZERO and y == ZERO and z == ZERO:
            colors[n] = ZERO
            continue
        face, s, t = face_coordinates(x, y, z)
        for channel in range(3):
            colors[n, channel] = bilinear(sky, face, s, t, channel)
    return colors


@njit(**PARALLEL)
def spread(gradient: np.ndarray, rays: np.ndarray, size: int) -> np.ndarray:
    """Gradient [6, S, S, 3] of the sky from that of its colours [N, 3] along `rays` [N, 3]."""
    pieces = np.zeros((_SKY_PIECES, 6, size, size, 3), np.float32)
    for piece in prange(_SKY_PIECES):
        into = pieces[piece]
        for n in range(piece * len(rays) // _SKY_PIECES, (piece + 1) * len(rays) // _SKY_PIECES):
            x, y, z = rays[n, 0], rays[n, 1], rays[n, 2]
            if x == ZERO and y == ZERO and z == ZERO:
                continue
            face, s, t = face_coordinates(x, y, z)
            left, right, a = texel_and_fraction(s, size)
            top, bottom, b = texel_and_fraction(t, size)
            for channel in range(3):
                g = gradient[n, channel]
                into[face, top, left, channel] += g * (1.0 - a) * (1.0 - b)
                into[face, top, right, channel] += g * a * (1.0 - b)
                into[face, bottom, left, channel] += g * (1.0 - a) * b
                into[face, bottom, right, channel] += g * a * b
    return pieces[0] + pieces[1] + pieces[2] + pieces[3]


@njit(**PARALLEL)
def pinhole_directions(intrinsics: np.ndarray, rotation: np.ndarray, width: int, height: int) -> np.ndarray:
    """Unit rays float32 [H, W, 3] through the pixel centres; `rotation` [3, 3] from the camera."""
    rays = np.empty((height, width, 3), np.float32)
    for i in prange(height):
        v = (i + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
        for j in range(width):
            u = (j + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
            scale = 1.0 / math.sqrt(u * u + v * v + 1.0)
            rays[i, j, 0], rays[i, j, 1], rays[i, j, 2] = turned(rotation, u * scale, v * scale, scale)
    return rays


@njit(**JIT)
def blend_pixel(
    image: np.ndarray, i: int, j: int, rgb: np.ndarray, opacity: np.ndarray, sky: np.ndarray, ray: tuple
) -> None:
    """Write pixel (i, j): rgb + (1 - opacity) times the sky along world-frame `ray`, clipped; no sky along zero."""
    x, y, z = ray
    rest = ONE - opacity[i, j]
    if x == 0.0 and y == 0.0 and z == 0.0:
        rest, z = ZERO, 1.0
    face, s, t = face_coordinates(x, y, z)
    for channel in range(3):
        value = rgb[i, j, channel] + rest * np.float32(bilinear(sky, face, s, t, channel))
        image[i, j, channel] = min(max(value, ZERO), ONE)


@njit(**JIT)
def turned(rotation: np.ndarray, u: float, v: float, w: float) -> tuple[float, float, float]:
    """`rotation` [3, 3] or [4, 4] times (u, v, w)."""
    return (
        rotation[0, 0] * u + rotation[0, 1] * v + rotation[0, 2] * w,
        rotation[1, 0] * u + rotation[1, 1] * v + rotation[1, 2] * w,
        rotation[2, 0] * u + rotation[2, 1] * v + rotation[2, 2] * w,
    )


@njit(**PARALLEL)
def add_sky(
    rgb: np.ndarray, opacity: np.ndarray, sky: np.ndarray, intrinsics: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """Image [H, W, 3] = rgb + (1 - opacity) sky, clipped to 0..1, of a pinhole camera.

    `sky` float32 [6, S, S, 3], `intrinsics` [3, 3] px, `rotation` [3, 3] camera to world.
    """
    height, width = opacity.shape
    image = np.empty((height, width, 3), np.float32)
    for i in prange(height):
        v = (i + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
        for j in range(width):
            u = (j + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
            blend_pixel(image, i, j, rgb, opacity, sky, turned(rotation, u, v, 1.0))
    return image


@njit(**PARALLEL)
def add_sky_along(
    rgb: np.ndarray, opacity: np.ndarray, sky: np.ndarray, rays: np.ndarray, poses: np.ndarray, by_rows: bool
) -> np.ndarray:
    """As `add_sky`, through any lens and shutter: `rays` [H, W, 3] in the camera frame, zero where there is no sky,
    and `poses` [L, 4, 4] camera to world of every row or column, or [1, 4, 4] for all of them.
    """
    height, width = opacity.shape
    image = np.empty((height, width, 3), np.float32)
    for i in prange(height):
        for j in range(width):
            # The loop's index is unsigned, and numba makes a float of it beside a signed one.
            line = np.int64(i) if by_rows else j
            line = line if len(poses) > 1 else 0
            u, v, w = float(rays[i, j, 0]), float(rays[i, j, 1]), float(rays[i, j, 2])
            blend_pixel(image, i, j, rgb, opacity, sky, turned(poses[line], u, v, w))
    return image
