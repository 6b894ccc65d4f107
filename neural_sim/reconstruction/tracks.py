"""Feature tracks: where the same corner appears in consecutive images."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

MIN_CORNER_DISTANCE_PX = 6.0
MAX_FORWARD_BACKWARD_PX = 0.5
_FLOW = {
    "winSize": (15, 15),
    "maxLevel": 4,
    "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03),
}


@dataclass(frozen=True)
class FeatureTracks:
    """Observations of corners, sorted by track, then by image.

    Attributes:
        track: int64 [M], track number, 0 .. T-1 without gaps.
        image: int64 [M], index into the image sequence.
        xy_px: float64 [M, 2], position; pixel centres lie at +0.5.
    """

    track: Int[np.ndarray, "m"]
    image: Int[np.ndarray, "m"]
    xy_px: Float[np.ndarray, "m 2"]

    def __len__(self) -> int:
        return int(self.track[-1]) + 1 if len(self.track) else 0

    def keep(self, wanted: Bool[np.ndarray, "m"], min_length: int = 3) -> "FeatureTracks":
        """The wanted observations of tracks that still have `min_length` of them, renumbered."""
        length = np.bincount(self.track[wanted], minlength=len(self))
        wanted = wanted & (length[self.track] >= min_length)
        _, track = np.unique(self.track[wanted], return_inverse=True)
        return FeatureTracks(track.astype(np.int64), self.image[wanted], self.xy_px[wanted])

    @staticmethod
    def join(parts: "Sequence[FeatureTracks]", image_counts: Sequence[int]) -> "FeatureTracks":
        """The tracks of several image sequences; the images are numbered on from one sequence to the next."""
        first_track = np.cumsum([0, *(len(part) for part in parts)])
        first_image = np.cumsum([0, *image_counts])
        return FeatureTracks(
            np.concatenate([part.track + first for part, first in zip(parts, first_track[:-1], strict=True)]),
            np.concatenate([part.image + first for part, first in zip(parts, first_image[:-1], strict=True)]),
            np.concatenate([part.xy_px for part in parts]),
        )


def track_features(images: Sequence[UInt8[np.ndarray, "h w"]], max_corners: int, min_length: int = 3) -> FeatureTracks:
    """Follow corners through gray images by pyramidal Lucas-Kanade.

    Lost features are replaced by new corners away from the live ones. A step counts when following it back returns
    within `MAX_FORWARD_BACKWARD_PX` of its start. Tracks shorter than `min_length` are dropped.
    """
    points = np.zeros((0, 2), np.float32)
    track = np.zeros(0, np.int64)
    next_track = 0
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for index, image in enumerate(images):
        if len(points):
            points, good = _follow(images[index - 1], image, points)
            points, track = points[good], track[good]
        fresh = _new_corners(image, points, max_corners - len(points))
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


def _new_corners(image: np.ndarray, live: np.ndarray, wanted: int) -> np.ndarray:
    if wanted <= 0:
        return np.zeros((0, 2), np.float32)
    mask = np.full(image.shape, 255, np.uint8)
    for x, y in np.round(live).astype(int):
        cv2.circle(mask, (int(x), int(y)), int(MIN_CORNER_DISTANCE_PX), 0, -1)
    corners = cv2.goodFeaturesToTrack(image, wanted, 0.002, MIN_CORNER_DISTANCE_PX, mask=mask, blockSize=5)
    return np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2).astype(np.float32)
