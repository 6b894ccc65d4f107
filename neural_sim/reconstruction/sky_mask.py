"""Where an image shows nothing but sky, judged from the image alone and refuted by points known in space.

The border of the sky is one row for each column, the first whose gradient exceeds a threshold, and the threshold is the
one that best separates the colours above from those below: Y. Shen and Q. Wang, "Sky region detection in a single image
for autonomous ground robot navigation", Int. J. Advanced Robotic Systems 10 (2013), section 3. A mask only ever
makes things transparent, so it is conservative: what is doubtful is not sky, and a doubtful image has no mask.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_sim.reconstruction.views import View

# Thresholds on the gradient of 8-bit images that are tried, and the weight of the sky's spread against the ground's.
_THRESHOLDS = np.geomspace(5.0, 600.0, 40)
_SKY_WEIGHT = 2.0
# Added to every colour variance: a step of 8-bit images, below which two even regions are equally even.
_NOISE_VARIANCE = 1.0
# An image shows no sky if its mean border is nearer to the top than this share of its height, nor if less than the
# second share of its pixels is left.
_LOWEST_SHARE, _LEAST_SHARE = 1 / 30, 0.01
# Sky is at least this many grey levels brighter or bluer than the rest on average, and this far from it in its own
# deviations (no less than `_LEAST_DEVIATION` levels).
_BRIGHTER, _LEAST_DEVIATION, _APART_DEVIATIONS = 10.0, 6.0, 2.0
_MEANS_STEPS = 10
# A connected part of the mask that is narrower, in widths of the image, is a strip of wall between windows.
_LEAST_WIDTH_SHARE = 0.08
# Rays that rise less than this are not sky; neither are pixels this near to the border or to a known point, in widths.
_LEAST_RISE, _MARGIN_SHARE = 0.02, 0.01


def sky_mask(view: View, points_m: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "h w"] | None:
    """Pixels of the view that surely show sky; None if there are none or the image does not say.

    `points_m` are known to be on something that is not sky, world frame, m: each takes from the mask what is around and
    below it, wherever else the border was found.
    """
    height, width = view.image.shape[:2]
    shown = np.ones((height, width), bool) if view.usable is None else view.usable
    rising = _rising(view)
    border = find_sky_border(view.image, shown, rising)
    if border is None:
        return None
    margin = max(1, round(_MARGIN_SHARE * width))
    border = _raised(border, view, points_m, margin)
    mask = _sky_colored(view.image, (np.arange(height)[:, None] < border) & shown & rising, shown)
    if mask is None:
        return None
    window = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    mask = np.asarray(cv2.erode(mask.astype(np.uint8), window, borderType=cv2.BORDER_REPLICATE)) > 0
    mask = _wide_parts(mask)
    return mask if mask.mean() >= _LEAST_SHARE else None


def find_sky_border(
    image: UInt8[np.ndarray, "h w 3"], shown: Bool[np.ndarray, "h w"], rising: Bool[np.ndarray, "h w"]
) -> Int[np.ndarray, "w"] | None:
    """The first row of each column that is not sky; None if there is next to none above any border.

    Only `shown` pixels are judged, and only `rising` ones can be sky.
    """
    height = len(image)
    gradient = _gradient(image)
    gradient[cv2.dilate((~shown).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0] = 0.0
    limit = _last_shown(shown & rising)
    moments = _column_moments(image, shown)
    best, chosen = -np.inf, None
    for threshold in _THRESHOLDS:
        edge = gradient > threshold
        border = np.minimum(np.where(edge.any(axis=0), edge.argmax(axis=0), height), limit)
        energy = _energy(moments, border)
        if energy > best:
            best, chosen = energy, border
    return None if chosen is None or chosen.mean() < _LOWEST_SHARE * height else chosen


def _rising(view: View) -> Bool[np.ndarray, "h w"]:
    """Pixels whose rays point above the horizon."""
    height, width = view.image.shape[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = view.ray_directions(np.stack([x, y], axis=-1).reshape(-1, 2))
    with np.errstate(invalid="ignore"):
        return (rays[:, 2] > _LEAST_RISE * np.linalg.norm(rays, axis=1)).reshape(height, width)


def _gradient(image: np.ndarray) -> Float[np.ndarray, "h w"]:
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.magnitude(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))


def _last_shown(shown: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "w"]:
    """One past the last row of each column that may be sky; 0 without any."""
    return np.where(shown.any(axis=0), len(shown) - shown[::-1].argmax(axis=0), 0)


def _column_moments(image: np.ndarray, shown: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "rows w 13"]:
    """Number, sum and sum of products of the shown colours above each row, 0 to H, of each column."""
    colors = image.astype(np.float64)
    products = (colors[..., :, None] * colors[..., None, :]).reshape(*image.shape[:2], 9)
    terms = np.concatenate([np.ones((*image.shape[:2], 1)), colors, products], axis=-1) * shown[..., None]
    return np.concatenate([np.zeros((1, *terms.shape[1:])), terms.cumsum(axis=0)])


def _regions(moments: np.ndarray, border: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments [13] of what is above the border and of what is below."""
    above = moments[border, np.arange(len(border))].sum(axis=0)
    return above, moments[-1].sum(axis=0) - above


def _covariance(moments: Float[np.ndarray, "13"]) -> Float[np.ndarray, "3 3"]:
    mean = moments[1:4] / moments[0]
    return moments[4:].reshape(3, 3) / moments[0] - np.outer(mean, mean) + _NOISE_VARIANCE * np.eye(3)


def _energy(moments: np.ndarray, border: np.ndarray) -> float:
    """How even both regions are (equation 2 of the paper); minus infinity if one is empty."""
    regions = _regions(moments, border)
    if min(region[0] for region in regions) < 1:
        return -np.inf
    spread = 0.0
    for weight, region in zip((_SKY_WEIGHT, 1.0), regions, strict=True):
        covariance = _covariance(region)
        spread += weight * (np.linalg.det(covariance) + np.linalg.eigvalsh(covariance)[-1])
    return 1.0 / spread


def _sky_colored(
    image: np.ndarray, above: Bool[np.ndarray, "h w"], shown: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"] | None:
    """What of the pixels above the border has the colour of sky, None if that is like what is below.

    Walls without texture that reach the top of the image are above the border too. So the colours above are split in
    two (section 3.3 of the paper), and a half that is like what is below the border goes.
    """
    if not above.any() or not (shown & ~above).any():
        return None
    rest = image[shown & ~above].astype(np.float64).mean(axis=0)
    colors = image[above].astype(np.float64)
    brighter = _two_means(colors)
    mask = np.zeros_like(above)
    for half in (brighter, ~brighter):
        mask[above] |= half & _is_sky(colors[half], rest)
    return mask if mask.any() else None


def _wide_parts(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    _, labels, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    wide = figures[:, cv2.CC_STAT_WIDTH] >= _LEAST_WIDTH_SHARE * mask.shape[1]
    return mask & wide[labels]


def _is_sky(colors: Float[np.ndarray, "n 3"], rest: Float[np.ndarray, "3"]) -> bool:
    """Whether colours are brighter or bluer than the rest of an image, and farther from it than they are spread."""
    if len(colors) == 0:
        return False
    mean, deviation = colors.mean(axis=0), max(_LEAST_DEVIATION, float(np.sqrt(colors.var(axis=0).mean())))
    apart = float(np.linalg.norm(mean - rest)) > _APART_DEVIATIONS * deviation
    return apart and _sky_score(mean) - _sky_score(rest) > _BRIGHTER


def _sky_score(color: Float[np.ndarray, "3"]) -> float:
    """Brightness plus blueness, grey levels."""
    return float(color.mean() + max(color[2] - color[0], 0.0))


def _two_means(colors: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    """Which colours belong to the brighter of two clusters; Lloyd's algorithm from the darkest and brightest."""
    brightness = colors.mean(axis=1)
    low, high = (colors[np.argsort(brightness)[int(share * (len(colors) - 1))]] for share in (0.05, 0.95))
    brighter = np.ones(len(colors), bool)
    for _ in range(_MEANS_STEPS):
        brighter = ((colors - high) ** 2).sum(axis=1) <= ((colors - low) ** 2).sum(axis=1)
        if brighter.all() or not brighter.any():
            break
        low, high = colors[~brighter].mean(axis=0), colors[brighter].mean(axis=0)
    return brighter


def _raised(border: np.ndarray, view: View, points_m: np.ndarray, margin: int) -> Int[np.ndarray, "w"]:
    """The border at least `margin` above every point that the view shows, within `margin` columns of it."""
    pixels, _, inside = view.project(points_m)
    column, row = np.floor(pixels[inside]).astype(int).T
    highest = np.full(len(border), len(view.image))
    np.minimum.at(highest, column, row)
    window = np.lib.stride_tricks.sliding_window_view(np.pad(highest, margin, mode="edge"), 2 * margin + 1)
    return np.minimum(border, window.min(axis=1) - margin)
