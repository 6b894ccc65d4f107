"""How well a scene reproduces its views."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.drawing import draw, make_target
from neural_sim.reconstruction.loss import psnr_db, ssim
from neural_sim.reconstruction.views import View


@torch.no_grad()
def measure_quality(
    views: Sequence[View], gaussians_at: Callable[[int], Gaussians], sky: torch.Tensor, backend: str
) -> dict[str, Any]:
    """Mean PSNR (dB) and SSIM over `views` with the figures of each, as plain JSON values.

    `gaussians_at(t_us)` gives the world's Gaussians at a time. Images are clipped to 0..1 and compared as they are:
    no exposure is fitted.
    """
    frames = []
    for view in views:
        target = make_target(view).to(str(sky.device))
        image, _ = draw(gaussians_at(view.t_us), sky, target, backend)
        image, wanted = image.clamp(0, 1), target.pixels()
        figures = {"psnr_db": psnr_db(image, wanted), "ssim": float(ssim(image, wanted))}
        frames.append({"camera": view.camera.name, "index": view.frame_index, **figures})
    means = {name: float(np.mean([frame[name] for frame in frames])) for name in ("psnr_db", "ssim")}
    return {**means, "frames": frames}
