"""The one call from Gaussians to views, whatever computes it.

    views = rasterize(gaussians, T_camera_world, K, width_px, height_px)

Backends: "cpu" (numba, all cores), "gsplat" (CUDA), "reference" (dense torch, for tests), "auto" (gsplat for CUDA
tensors, else cpu). All draw the same image: see `neural_sim.rendering.reference` for the image formation and
`neural_sim.rendering.views` for its constants.

Gradients reach the five Gaussian tensors, `T_camera_world` and `means_px_offset`. For densification pass zeros with
`requires_grad` as `means_px_offset`; after `backward()` its `.grad` [V, N, 2] is the gradient of the loss with respect
to each projected centre in pixels, and `views.visible` says which Gaussians each view drew.

A Gaussian with a non-finite parameter, a quaternion of norm below 1e-6, or a footprint beyond 1e6 px is dropped: it is
not visible, draws nothing and has zero gradient. Pixels are therefore always finite.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.gaussians import Gaussians
from neural_sim.rendering.views import RasterizedViews

__all__ = ["RasterizedViews", "choose_backend", "rasterize"]


def rasterize(
    gaussians: Gaussians,
    T_camera_world: Float[Tensor, "v 4 4"],
    K: Float[Tensor, "v 3 3"],
    width_px: int,
    height_px: int,
    *,
    backend: str = "auto",
    means_px_offset: Float[Tensor, "v n 2"] | None = None,
) -> RasterizedViews:
    """Draw V pinhole views of `gaussians`, over black.

    `T_camera_world` maps world points (m) to camera axes x right, y down, z forward; `K` is in pixels with the origin
    at the corner of the first pixel. `means_px_offset` [V, N, 2] px is added to the projected centres.
    Raises `ValueError` on an unknown backend or on shapes that do not agree.
    """
    _check_shapes(gaussians, T_camera_world, K, width_px, height_px, means_px_offset)
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
    return draw(gaussians, T_camera_world, K, width_px, height_px, means_px_offset)


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


def _check_shapes(
    gaussians: Gaussians,
    T_camera_world: Tensor,
    K: Tensor,
    width_px: int,
    height_px: int,
    means_px_offset: Tensor | None,
) -> None:
    views, count = len(T_camera_world), len(gaussians)
    if T_camera_world.shape != (views, 4, 4) or K.shape != (views, 3, 3) or views == 0:
        raise ValueError(
            f"rasterize: T_camera_world {tuple(T_camera_world.shape)} and K {tuple(K.shape)}; "
            "expected [V, 4, 4] and [V, 3, 3] with V > 0"
        )
    if width_px <= 0 or height_px <= 0:
        raise ValueError(f"rasterize: image of {width_px}x{height_px} px; expected positive sizes")
    if gaussians.sh.shape[1:] not in ((1, 3), (4, 3), (9, 3), (16, 3)):
        raise ValueError(f"rasterize: sh {tuple(gaussians.sh.shape)}; expected [N, 1|4|9|16, 3]")
    if means_px_offset is not None and means_px_offset.shape != (views, count, 2):
        raise ValueError(f"rasterize: means_px_offset {tuple(means_px_offset.shape)}; expected {(views, count, 2)}")
