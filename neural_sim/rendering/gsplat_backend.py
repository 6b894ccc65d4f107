"""The CUDA rasterizer: gsplat 1.5 behind the interface of `neural_sim.rendering.rasterize`.

gsplat is imported inside the functions: its first import on a machine compiles CUDA kernels for some minutes.
"""

import functools

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neural_sim.gaussians import Gaussians
from neural_sim.rendering.views import BLUR_PX2, NEAR_M, QUATERNION_NORM_MIN, RasterizedViews


@functools.cache
def probe_gsplat() -> str | None:
    """Why gsplat cannot be used here, or None if it can. The first call may compile gsplat's kernels."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        from gsplat import rasterization  # noqa: F401  # pyright: ignore[reportMissingImports]
        from gsplat.cuda._backend import _C  # pyright: ignore[reportMissingImports]
    except Exception as error:  # a failed kernel build raises whatever the build tools raise
        return f"gsplat does not import ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if _C is None:
        return "gsplat found no CUDA toolkit to build its kernels (nvcc is missing)"
    return None


def rasterize_gsplat(
    gaussians: Gaussians,
    T_camera_world: Float[Tensor, "v 4 4"],
    K: Float[Tensor, "v 3 3"],
    width_px: int,
    height_px: int,
    means_px_offset: Float[Tensor, "v n 2"] | None = None,
) -> RasterizedViews:
    """Draw V views on CUDA; arguments and result as in `neural_sim.rendering.rasterize.rasterize`.

    gsplat takes no offset of the projected centres, so `means_px_offset` must be zero: it only receives its gradient,
    on `backward()`. Raises `ValueError` if it is not zero.
    """
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    sound = _replace_unsound(gaussians)
    colors, alphas, meta = rasterization(
        means=sound.means_m,
        quats=sound.quaternions_xyzw[:, [3, 0, 1, 2]],  # gsplat has w first
        scales=torch.exp(sound.log_scales),
        opacities=torch.sigmoid(sound.opacity_logits),
        colors=sound.sh,
        viewmats=T_camera_world.float(),
        Ks=K.float(),
        width=width_px,
        height=height_px,
        near_plane=NEAR_M,
        eps2d=BLUR_PX2,
        sh_degree=gaussians.sh_degree,
        packed=False,
        render_mode="RGB+ED",
    )
    if means_px_offset is not None:
        _hand_gradient_to(means_px_offset, meta["means2d"])
    # Radii are [V, N] in older releases and one per axis, [V, N, 2], in newer ones.
    radii = meta["radii"]
    visible = (radii > 0).all(-1) if radii.ndim == 3 else radii > 0
    return RasterizedViews(colors[..., :3], colors[..., 3], alphas[..., 0], visible)


def _is_sound(gaussians: Gaussians) -> Bool[Tensor, "n"]:
    """Whether all parameters, and the scales they stand for, are finite and the quaternion has a direction."""
    flat = [tensor.reshape(len(gaussians), -1) for tensor in gaussians.tensors().values()]
    flat.append(torch.exp(gaussians.log_scales))
    finite = torch.cat(flat, dim=-1).isfinite().all(-1)
    return finite & (gaussians.quaternions_xyzw.norm(dim=-1) > QUATERNION_NORM_MIN)


def _replace_unsound(gaussians: Gaussians) -> Gaussians:
    """Float32 Gaussians in which unsound ones are transparent and finite, with zero gradient."""
    sound = _is_sound(gaussians)
    defaults = {"opacity_logits": -30.0, "quaternions_xyzw": 1.0}
    tensors = {}
    for name, tensor in gaussians.tensors().items():
        mask = sound.reshape(-1, *[1] * (tensor.ndim - 1))
        tensors[name] = torch.where(mask, tensor.float(), defaults.get(name, 0.0))
    return Gaussians(**tensors)


def _hand_gradient_to(offset: Tensor, means_px: Tensor) -> None:
    """Add the gradient of the projected centres to `offset.grad` when `backward()` reaches them."""
    if bool(offset.detach().any()):
        raise ValueError("rasterize: the gsplat backend needs means_px_offset to be zero; use it for gradients only")
    if not (offset.requires_grad and means_px.requires_grad):
        return

    def add(gradient: Tensor) -> None:
        offset.grad = gradient.clone() if offset.grad is None else offset.grad + gradient

    means_px.register_hook(add)
