"""Camera images become patches: one function for training and closed loop."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vla.errors import PolicyError


@dataclass(frozen=True)
class ImageSettings:
    """How the vision encoder wants its patches.

    Attributes:
        patch_px: side of a patch, px.
        merge: patches merged per token along each side.
        temporal_patch: repeats of a still image along time.
        mean, std: normalisation of each channel after scaling to [0, 1].
    """

    patch_px: int = 16
    merge: int = 2
    temporal_patch: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def multiple_px(self) -> int:
        """Image width and height must be multiples of this, px."""
        return self.patch_px * self.merge

    def tokens_per_image(self, width_px: int, height_px: int) -> int:
        """Prompt tokens that one image takes."""
        return (width_px // self.multiple_px) * (height_px // self.multiple_px)


def preprocess_images(
    images: UInt8[Tensor, "*n h w 3"], settings: ImageSettings
) -> tuple[Float[Tensor, "p d"], Int[Tensor, "m 3"]]:
    """Normalise images and cut them into patches in the order of Qwen2-VL and Qwen3-VL; nothing is resized.

    `images`: uint8 RGB, any leading shape, all of one size. Returns patches of all images in order (p = m h w / s^2
    and d = 3 * temporal_patch * s^2 for a patch side s) and the grid (1, h / s, w / s) of each of the m images.
    Raises `PolicyError` when a side is not a multiple of `settings.multiple_px`.
    """
    height_px, width_px = images.shape[-3:-1]
    if height_px % settings.multiple_px or width_px % settings.multiple_px:
        raise PolicyError(
            f"image size: found {width_px}x{height_px} px, expected both sides to be multiples of "
            f"{settings.multiple_px} px; render or crop at such a size, nothing is resized here"
        )
    mean = torch.tensor(settings.mean, device=images.device)
    std = torch.tensor(settings.std, device=images.device)
    pixels = (images.reshape(-1, height_px, width_px, 3) * (1.0 / 255.0) - mean) / std
    rows, columns = height_px // settings.patch_px, width_px // settings.patch_px
    m, s = settings.merge, settings.patch_px
    # [image, row block, row in block, y, column block, column in block, x, channel]
    blocks = pixels.reshape(-1, rows // m, m, s, columns // m, m, s, 3)
    ordered = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6)
    repeated = torch.stack([ordered] * settings.temporal_patch, dim=6)
    patches = repeated.reshape(-1, 3 * settings.temporal_patch * s * s)
    grid = torch.tensor([[1, rows, columns]], device=images.device).expand(pixels.shape[0], 3)
    return patches, grid
