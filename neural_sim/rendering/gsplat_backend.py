"""The CUDA rasterizer: gsplat 1.5 behind the interface of `neural_sim.rendering.rasterize`.

gsplat is imported inside the functions: its first import on a machine compiles CUDA kernels for some minutes.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neural_sim.distortion import EquidistantFisheye, FTheta, RadialTangential
from neural_sim.gaussians import Gaussians, multiply_quaternions, quaternion_from_matrix
from neural_sim.rendering.harmonics import sh_color
from neural_sim.rendering.lenses import is_perspective
from neural_sim.rendering.view_batch import Actors, ViewBatch
from neural_sim.rendering.views import BLUR_PX2, NEAR_M, OPACITY_FLOOR, QUATERNION_NORM_MIN, RasterizedViews

FTHETA_COEFFICIENTS = 6


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


def refuse_unsupported(batch: ViewBatch) -> None:
    """Raise `ValueError` naming what of a batch gsplat 1.5 cannot draw; needs no gsplat."""
    lens, needs_rays = batch.lens, batch.lens is not None or batch.shutter is not None
    refused = {
        "actors that move while the shutter is open": batch.actors is not None
        and batch.actors.T_world_actor_close is not None,
        "anti-aliasing through a lens or a rolling shutter": batch.antialias and needs_rays,
        "gradients of projected centres (means_px_offset) through a lens or a rolling shutter": needs_rays
        and batch.means_px_offset is not None
        and batch.means_px_offset.requires_grad,
        "rays beyond 90 degrees": isinstance(lens, EquidistantFisheye | FTheta) and lens.limit_rad > math.pi / 2,
        f"f-theta polynomials of more than {FTHETA_COEFFICIENTS} coefficients": isinstance(lens, FTheta)
        and max(len(lens.angle_to_radius_px), len(lens.radius_px_to_angle)) > FTHETA_COEFFICIENTS,
        "an f-theta lens with one polynomial of its two": isinstance(lens, FTheta)
        and not (lens.angle_to_radius_px and lens.radius_px_to_angle),
    }
    for feature, wanted in refused.items():
        if wanted:
            raise ValueError(f"rasterize: the gsplat backend does not draw {feature}; use the backend 'cpu'")


def rasterize_gsplat(gaussians: Gaussians, batch: ViewBatch) -> RasterizedViews:
    """Draw V views on CUDA; arguments and result as in `neural_sim.rendering.rasterize.rasterize`.

    Lenses and rolling shutters go through gsplat's unscented transform and its response along rays, so images agree
    with the other backends only as far as splats are small. gsplat takes no offset of the projected centres, so
    `means_px_offset` must be zero: it only receives its gradient, on `backward()`. Raises `ValueError` if it is not
    zero, and naming what gsplat cannot draw.
    """
    refuse_unsupported(batch)
    if batch.actors is None:
        return _draw_views(_replace_unsound(gaussians), batch, gaussians.sh, gaussians.sh_degree)
    views = [_draw_placed(gaussians, batch, batch.actors, v) for v in range(len(batch))]
    names = ("rgb", "depth_m", "opacity", "visible")
    return RasterizedViews(*(torch.cat([getattr(view, name) for view in views]) for name in names))


def _draw_placed(gaussians: Gaussians, batch: ViewBatch, actors: Actors, v: int) -> RasterizedViews:
    """One view with its actors at their poses; colours are computed here, since harmonics turn with the actors."""
    poses = actors.T_world_actor[v].float()
    identity = torch.eye(4, device=poses.device)
    hidden = ~poses.isfinite().all(-1).all(-1)
    placed = torch.cat([identity[None], torch.where(hidden[:, None, None], identity, poses)])
    owner, shown = actors.owner, torch.cat([hidden.new_zeros(1), hidden]).logical_not()
    rotation = placed[owner, :3, :3]
    means = torch.einsum("nij,nj->ni", rotation, gaussians.means_m) + placed[owner, :3, 3]
    turns = torch.stack([quaternion_from_matrix(pose[:3, :3]) for pose in placed])
    world = Gaussians(
        means,
        multiply_quaternions(turns[owner], gaussians.quaternions_xyzw),
        gaussians.log_scales,
        torch.where(shown[owner], gaussians.opacity_logits, -30.0),
        gaussians.sh,
    )
    T_camera_world = batch.T_camera_world[v].float()
    rays = means + T_camera_world[:3, :3].T @ T_camera_world[:3, 3]
    directions = torch.nn.functional.normalize(torch.einsum("nji,nj->ni", rotation, rays), dim=-1)
    one = slice(v, v + 1)
    offset = None if batch.means_px_offset is None else batch.means_px_offset[one]
    shutter = batch.shutter and replace(batch.shutter, T_camera_world_close=batch.shutter.T_camera_world_close[one])
    view = replace(
        batch, T_camera_world=batch.T_camera_world[one], K=batch.K[one], means_px_offset=offset, shutter=shutter
    )
    return _draw_views(_replace_unsound(world), view, sh_color(gaussians.sh, directions), None)


def _draw_views(sound: Gaussians, batch: ViewBatch, colors: Tensor, sh_degree: int | None) -> RasterizedViews:
    """Views of sound Gaussians in the world frame, with harmonics or colours [N, 3] (`sh_degree` None)."""
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    lens_arguments = _lens_arguments(batch)
    _require_arguments(rasterization, lens_arguments)
    draw = functools.partial(
        rasterization,
        means=sound.means_m,
        quats=sound.quaternions_xyzw[:, [3, 0, 1, 2]],  # gsplat has w first
        scales=torch.exp(sound.log_scales),
        opacities=torch.sigmoid(sound.opacity_logits),
        viewmats=batch.T_camera_world.float(),
        Ks=batch.K.float(),
        width=batch.width_px,
        height=batch.height_px,
        near_plane=NEAR_M,
        eps2d=BLUR_PX2,
        packed=False,
        rasterize_mode="antialiased" if batch.antialias else "classic",
        **lens_arguments,
    )
    colors = torch.nan_to_num(colors.float())
    if not lens_arguments:
        image, alphas, meta = draw(colors=colors, sh_degree=sh_degree, render_mode="RGB+ED")
        rgb, depth_m = image[..., :3], image[..., 3]
    else:
        # The release aborts the process for other than three channels, so depth is drawn as a colour of its own.
        rgb, alphas, meta = draw(colors=colors, sh_degree=sh_degree, render_mode="RGB")
        depth_sum = draw(colors=_depth_colors(sound, batch), sh_degree=None, render_mode="RGB")[0]
        depth_m = depth_sum[..., 0] / alphas[..., 0].clamp_min(OPACITY_FLOOR)
    if batch.means_px_offset is not None:
        _hand_gradient_to(batch.means_px_offset, meta["means2d"])
    # Radii are [V, N] in older releases and one per axis, [V, N, 2], in newer ones.
    radii = meta["radii"]
    visible = (radii > 0).all(-1) if radii.ndim == 3 else radii > 0
    return RasterizedViews(rgb, depth_m, alphas[..., 0], visible)


def _depth_colors(sound: Gaussians, batch: ViewBatch) -> Float[Tensor, "v n 3"]:
    """Depth of every Gaussian from every view, three times over, m."""
    points = torch.einsum("vij,nj->vni", batch.T_camera_world[:, :3, :3].float(), sound.means_m)
    points = points + batch.T_camera_world[:, None, :3, 3].float()
    depth_m = points[..., 2] if is_perspective(batch.lens) else points.norm(dim=-1)
    return depth_m[..., None].expand(-1, -1, 3)


def _lens_arguments(batch: ViewBatch) -> dict[str, Any]:
    """What gsplat's `rasterization` takes for the lens and the shutter; empty for a pinhole with a global one."""
    if batch.lens is None and batch.shutter is None:
        return {}
    arguments: dict[str, Any] = {"with_ut": True, "with_eval3d": True}
    if batch.shutter is not None:
        from gsplat import RollingShutterType  # pyright: ignore[reportMissingImports]

        name = f"ROLLING_{batch.shutter.direction.upper().replace('-', '_')}"
        arguments["rolling_shutter"] = RollingShutterType[name]
        arguments["viewmats_rs"] = batch.shutter.T_camera_world_close.float()
    lens, like = batch.lens, batch.T_camera_world.float()
    if isinstance(lens, RadialTangential):
        radial = (*lens.radial, 0.0, 0.0, 0.0)[:6]
        arguments |= {"radial_coeffs": _repeated(radial, like), "tangential_coeffs": _repeated(lens.tangential, like)}
    elif isinstance(lens, EquidistantFisheye):
        arguments |= {"camera_model": "fisheye", "radial_coeffs": _repeated(lens.coefficients, like)}
    elif isinstance(lens, FTheta):
        arguments |= {"camera_model": "ftheta", "ftheta_coeffs": _ftheta_parameters(lens)}
    return arguments


def _repeated(values: tuple[float, ...], like: Float[Tensor, "v 4 4"]) -> Float[Tensor, "v k"]:
    return torch.tensor(values, device=like.device).repeat(len(like), 1)


def _ftheta_parameters(lens: FTheta) -> Any:
    from gsplat import (  # pyright: ignore[reportMissingImports]
        FThetaCameraDistortionParameters,
        FThetaPolynomialType,
    )

    def padded(values: tuple[float, ...]) -> tuple[float, ...]:
        return (*values, *[0.0] * (FTHETA_COEFFICIENTS - len(values)))

    kinds = {"angle_to_radius": "ANGLE_TO_PIXELDIST", "radius_to_angle": "PIXELDIST_TO_ANGLE"}
    return FThetaCameraDistortionParameters(
        reference_poly=FThetaPolynomialType[kinds[lens.reference]],
        pixeldist_to_angle_poly=padded(lens.radius_px_to_angle),
        angle_to_pixeldist_poly=padded(lens.angle_to_radius_px),
        max_angle=lens.limit_rad,
        linear_cde=lens.linear,
    )


def _require_arguments(rasterization: Callable, arguments: dict[str, Any]) -> None:
    """Raise `ValueError` naming the lens arguments that the installed gsplat does not know."""
    missing = sorted(set(arguments) - set(inspect.signature(rasterization).parameters))
    if missing:
        raise ValueError(
            f"rasterize: the installed gsplat has no {', '.join(missing)}, which this lens or shutter needs; "
            "install gsplat 1.5.3 or use the backend 'cpu'"
        )


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
