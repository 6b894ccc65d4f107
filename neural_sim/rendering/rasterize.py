"""The one call from Gaussians to views, whatever computes it.

    views = rasterize(gaussians, T_camera_world, K, width_px, height_px)

Backends: "cpu" (numba, all cores), "gsplat" (CUDA), "reference" (dense torch, for tests), "auto" (gsplat for CUDA
tensors, else cpu). All draw the same image: see `neural_sim.rendering.reference` for the image formation and
`neural_sim.rendering.views` for its constants.

Gradients reach the five Gaussian tensors, all camera and actor poses and `means_px_offset`. For densification pass
zeros with `requires_grad` as `means_px_offset`; after `backward()` its `.grad` [V, N, 2] is the gradient of the loss
with respect to each projected centre in pixels, and `views.visible` says which Gaussians each view drew.

Lenses are linearised at each Gaussian's mean (docs/decisions.md says why). A mean beyond the lens' widest angle, or
where its polynomial folds back, is not drawn. Under a rolling shutter a Gaussian is drawn from the poses, its own and
the camera's, at the time when the line under its mean is read; its footprint is not sheared. The gradient includes how
that time moves with the mean and the poses.

A Gaussian with a non-finite parameter, a quaternion of norm below 1e-6, or a footprint beyond 1e6 px is dropped: it is
not visible, draws nothing and has zero gradient. Pixels are therefore always finite.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.distortion import Distortion
from neural_sim.gaussians import Gaussians
from neural_sim.rendering.view_batch import Actors, Shutter, ViewBatch, check_batch
from neural_sim.rendering.views import RasterizedViews

__all__ = ["Actors", "RasterizedViews", "Shutter", "choose_backend", "rasterize"]


def rasterize(
    gaussians: Gaussians,
    T_camera_world: Float[Tensor, "v 4 4"],
    K: Float[Tensor, "v 3 3"],
    width_px: int,
    height_px: int,
    *,
    backend: str = "auto",
    means_px_offset: Float[Tensor, "v n 2"] | None = None,
    lens: Distortion | None = None,
    shutter: Shutter | None = None,
    actors: Actors | None = None,
    antialias: bool = False,
) -> RasterizedViews:
    """Draw V views of `gaussians`, over black.

    `T_camera_world` maps world points (m) to camera axes x right, y down, z forward; `K` is in pixels with the origin
    at the corner of the first pixel. `means_px_offset` [V, N, 2] px is added to the projected centres. `lens` is shared
    by all views; None is a pinhole, and of `K` an f-theta lens uses the principal point alone. With a `shutter` the
    poses above are those of the first line read. With `antialias` a Gaussian smaller than a pixel is as much fainter as
    it is drawn wider.
    Raises `ValueError` on an unknown backend, on shapes that do not agree, and on what the backend cannot draw.
    """
    batch = ViewBatch(T_camera_world, K, width_px, height_px, means_px_offset, lens, shutter, actors, antialias)
    check_batch(gaussians, batch)
    if backend == "auto":
        backend = "gsplat" if gaussians.means_m.is_cuda else "cpu"
    if backend == "cpu":
        from neural_sim.rendering.cpu.function import rasterize_cpu as draw
    elif backend == "gsplat":
        from neural_sim.rendering.gsplat_backend import rasterize_gsplat as draw
    elif backend == "reference":
        from neural_sim.rendering.reference import rasterize_reference as draw
    else:
        raise ValueError(f"rasterize: backend {backend!r} is unknown; expected auto, cpu, gsplat or reference")
    return draw(gaussians, batch)


def choose_backend(device: torch.device | str) -> tuple[str, str]:
    """The backend to draw with on `device`, and the reason in words for the start-up banner.

    For a CUDA device this probes gsplat, which may compile its kernels; if gsplat cannot be used the answer is "cpu"
    with what is wrong, and the caller keeps its tensors on the CPU.
    """
    if torch.device(device).type != "cuda":
        return "cpu", f"device is {torch.device(device).type}: numba kernels on all cores"
    from neural_sim.rendering.gsplat_backend import probe_gsplat

    reason = probe_gsplat()
    if reason is None:
        return "gsplat", "device is cuda and gsplat is usable"
    return "cpu", f"device is cuda, but {reason}; drawing on the CPU is slower"
