"""How well a scene reproduces its views."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_sim.reconstruction.drawing import Target
from neural_sim.reconstruction.loss import psnr_db, ssim
from neural_sim.reconstruction.views import View


@torch.no_grad()
def measure_quality(views: Sequence[View], draw_view: Callable[[View], tuple[Tensor, Target]]) -> dict[str, Any]:
    """Mean PSNR (dB) and SSIM over `views` with the figures of each, as plain JSON values.

    `draw_view` gives the drawn image and what it should be. Images are clipped to 0..1 and compared on their usable
    pixels as they are: no exposure is fitted.
    """
    frames = []
    for view in views:
        image, target = draw_view(view)
        image, wanted = image.clamp(0, 1), target.pixels()
        similarity = float(ssim(image, wanted, target.usable))
        figures = {"psnr_db": psnr_db(image, wanted, target.usable), "ssim": similarity}
        frames.append({"camera": view.camera.name, "index": view.frame_index, **figures})
    means = {name: float(np.mean([frame[name] for frame in frames])) for name in ("psnr_db", "ssim")}
    return {**means, "frames": frames}
