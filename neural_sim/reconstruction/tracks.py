"""Feature tracks: where the same corner appears in consecutive images."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_sim.cameras import Camera

MIN_CORNER_DISTANCE_PX = 6.0
MAX_FORWARD_BACKWARD_PX = 0.5
_FLOW = {
    "winSize": (15, 15),
    "maxLevel": 4,
    "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03),
}


# Corners keep this distance from pixels that do not show the world: half a flow window.
_MARGIN_PX = 8
_DERIVATIVE_STEP = 1e-5


@dataclass(frozen=True)
class Bearings:
    """Observations through lenses as directions, each with its lens linearised there.

    Attributes:
        ray: float64 [M, 3], unit direction in the camera frame.
        px_by_ray: float64 [M, 2, 3], derivative of the image position with respect to the direction, px.
    """

    ray: Float[np.ndarray, "m 3"]
    px_by_ray: Float[np.ndarray, "m 2 3"]


def bearings_of(camera: Camera, xy_px: Float[np.ndarray, "m 2"]) -> Bearings:
    """Directions of image positions that the lens of `camera` reaches."""
    ray, _ = camera.unproject(xy_px)
    steps = _DERIVATIVE_STEP * np.eye(3)
    moved = [camera.project(ray + step)[0] - camera.project(ray - step)[0] for step in steps]
    return Bearings(ray, np.stack(moved, axis=-1) / (2 * _DERIVATIVE_STEP))


@dataclass(frozen=True)
class FeatureTracks:
    """Observations of corners, sorted by track, then by image.

    Attributes:
        track: int64 [M], track number, 0 .. T-1 without gaps.
        image: int64 [M], index into the image sequence.
        xy_px: float64 [M, 2], position; pixel centres lie at +0.5.
        bearings: of all observations; None where all cameras are pinholes.
    """

    track: Int[np.ndarray, "m"]
    image: Int[np.ndarray, "m"]
    xy_px: Float[np.ndarray, "m 2"]
    bearings: Bearings | None = None

    def __len__(self) -> int:
        return int(self.track[-1]) + 1 if len(self.track) else 0

    def keep(self, wanted: Bool[np.ndarray, "m"], min_length: int = 3) -> "FeatureTracks":
        """The wanted observations of tracks that still have `min_length` of them, renumbered."""
        length = np.bincount(self.track[wanted], minlength=len(self))
        wanted = wanted & (length[self.track] >= min_length)
        _, track = np.unique(self.track[wanted], return_inverse=True)
        sights = self.bearings and Bearings(self.bearings.ray[wanted], self.bearings.px_by_ray[wanted])
        return FeatureTracks(track.astype(np.int64), self.image[wanted], self.xy_px[wanted], sights)

    @staticmethod
    def join(parts: "Sequence[FeatureTracks]", image_counts: Sequence[int]) -> "FeatureTracks":
        """The tracks of several image sequences; the images are numbered on from one sequence to the next.

        All or none have bearings.
        """
        first_track = np.cumsum([0, *(len(part) for part in parts)])
        first_image = np.cumsum([0, *image_counts])
        return FeatureTracks(
            np.concatenate([part.track + first for part, first in zip(parts, first_track[:-1], strict=True)]),
            np.concatenate([part.image + first for part, first in zip(parts, first_image[:-1], strict=True)]),
            np.concatenate([part.xy_px for part in parts]),
            _joined([part.bearings for part in parts]),
        )


def _joined(parts: Sequence[Bearings | None]) -> Bearings | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return Bearings(np.concatenate([each.ray for each in known]), np.concatenate([each.px_by_ray for each in known]))


def track_features(
    images: Sequence[UInt8[np.ndarray, "h w"]],
    max_corners: int,
    min_length: int = 3,
    usable: Bool[np.ndarray, "h w"] | None = None,
) -> FeatureTracks:
    """Follow corners through gray images by pyramidal Lucas-Kanade.

    Corners near pixels that are not `usable` are left out. Lost features are replaced by new corners away from the live
    ones. A step counts when following it back returns within `MAX_FORWARD_BACKWARD_PX` of its start. Tracks shorter
    than `min_length` are dropped.
    """
    points = np.zeros((0, 2), np.float32)
    track = np.zeros(0, np.int64)
    next_track = 0
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    free = _away_from(usable, images[0].shape if images else (0, 0))
    for index, image in enumerate(images):
        if len(points):
            points, good = _follow(images[index - 1], image, points)
            points, track = points[good], track[good]
            kept = free[tuple(np.round(points).astype(int).T[::-1])] > 0
            points, track = points[kept], track[kept]
        fresh = _new_corners(image, points, max_corners - len(points), free)
        points = np.concatenate([points, fresh])
        track = np.concatenate([track, next_track + np.arange(len(fresh))])
        next_track += len(fresh)
        found.append((track, np.full(len(track), index), points + 0.5))
    tracks, image_index, xy = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((image_index, tracks))
    whole = FeatureTracks(tracks[order], image_index[order], xy[order].astype(np.float64))
    return whole.keep(np.ones(len(tracks), bool), min_length)


def _follow(previous: np.ndarray, image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ahead, ok_ahead, _ = cv2.calcOpticalFlowPyrLK(previous, image, points, None, **_FLOW)  # pyright: ignore
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(image, previous, ahead, None, **_FLOW)  # pyright: ignore
    height, width = image.shape
    inside = (ahead >= 0).all(axis=1) & (ahead[:, 0] <= width - 1) & (ahead[:, 1] <= height - 1)
    returned = np.linalg.norm(back - points, axis=1) < MAX_FORWARD_BACKWARD_PX
    return ahead, inside & returned & (ok_ahead.ravel() == 1) & (ok_back.ravel() == 1)


def _away_from(usable: Bool[np.ndarray, "h w"] | None, shape: tuple[int, ...]) -> UInt8[np.ndarray, "h w"]:
    """255 where corners may lie: on usable pixels and `_MARGIN_PX` away from others; everywhere without any."""
    if usable is None:
        return np.full(shape, 255, np.uint8)
    window = np.ones((2 * _MARGIN_PX + 1, 2 * _MARGIN_PX + 1), np.uint8)
    return np.asarray(cv2.erode(255 * usable.astype(np.uint8), window, borderValue=255))


def _new_corners(image: np.ndarray, live: np.ndarray, wanted: int, free: np.ndarray) -> np.ndarray:
    if wanted <= 0:
        return np.zeros((0, 2), np.float32)
    mask = free.copy()
    for x, y in np.round(live).astype(int):
        cv2.circle(mask, (int(x), int(y)), int(MIN_CORNER_DISTANCE_PX), 0, -1)
    corners = cv2.goodFeaturesToTrack(image, wanted, 0.002, MIN_CORNER_DISTANCE_PX, mask=mask, blockSize=5)
    return np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2).astype(np.float32)
