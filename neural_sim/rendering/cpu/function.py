"""The CPU kernels as one differentiable torch function."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.gaussians import Gaussians
from neural_sim.rendering.cpu.binning import count_pairs, fill_lists, prefix_sums
from neural_sim.rendering.cpu.blending import blend
from neural_sim.rendering.cpu.blending_backward import blend_backward
from neural_sim.rendering.cpu.layout import RECORD, TILE
from neural_sim.rendering.cpu.projection import project
from neural_sim.rendering.cpu.projection_backward import project_backward
from neural_sim.rendering.cpu.projection_geometry import view_vector
from neural_sim.rendering.cpu.sorting import sort_by_depth
from neural_sim.rendering.views import OPACITY_FLOOR, RasterizedViews

Parameters = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _DrawnView:
    """One view with what its backward pass needs; `slots` is empty when no gradient is wanted."""

    pose: np.ndarray
    view: np.ndarray
    records: np.ndarray
    visible: np.ndarray
    lists: np.ndarray
    starts: np.ndarray
    slots: np.ndarray
    slot_range: np.ndarray
    images: tuple[np.ndarray, np.ndarray, np.ndarray]


def rasterize_cpu(
    gaussians: Gaussians,
    T_camera_world: Float[Tensor, "v 4 4"],
    K: Float[Tensor, "v 3 3"],
    width_px: int,
    height_px: int,
    means_px_offset: Float[Tensor, "v n 2"] | None = None,
) -> RasterizedViews:
    """Draw V views; arguments and result as in `neural_sim.rendering.rasterize.rasterize`."""
    tensors = [tensor.float() for tensor in gaussians.tensors().values()]
    offset = torch.zeros(len(K), 1, 2) if means_px_offset is None else means_px_offset.float()
    rgb, depth_sum, opacity, visible = _Rasterize.apply(
        *tensors, T_camera_world, offset, K.detach().double().numpy(), (width_px, height_px)
    )
    return RasterizedViews(rgb, depth_sum / opacity.clamp_min(OPACITY_FLOOR), opacity, visible)


class _Rasterize(torch.autograd.Function):
    """means, quaternions, log scales, logits, sh, poses, offsets -> rgb, depth sum, opacity, visible."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *tensors, poses, offset, intrinsics, size = inputs
        parameters = _as_arrays(tensors)
        poses_np, offset_np = poses.detach().double().numpy(), offset.detach().contiguous().numpy()
        with_gradient = any(ctx.needs_input_grad)
        drawn = [
            _draw(parameters, poses_np[v], intrinsics[v], offset_np[v], size, with_gradient)
            for v in range(len(poses_np))
        ]
        if with_gradient:
            ctx.parameters, ctx.drawn = parameters, drawn
            ctx.dtypes = (poses.dtype, offset.shape)
        visible = torch.from_numpy(np.stack([view.visible for view in drawn]))
        ctx.mark_non_differentiable(visible)
        rgb, depth_sum, opacity = (
            torch.from_numpy(np.stack(parts)) for parts in zip(*(v.images for v in drawn), strict=True)
        )
        return rgb, depth_sum, opacity, visible

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        arrays = [cotangent.detach().float().contiguous().numpy() for cotangent in cotangents[:3]]
        gradients = tuple(np.zeros_like(parameter) for parameter in ctx.parameters)
        pose_dtype, offset_shape = ctx.dtypes
        g_offsets = np.zeros((len(ctx.drawn), len(gradients[0]), 2), np.float32)
        g_poses = np.zeros((len(ctx.drawn), 4, 4))
        for v, view in enumerate(ctx.drawn):
            pairs = blend_backward(view.records, view.lists, view.starts, view.images, tuple(a[v] for a in arrays))
            g_poses[v, :3] = project_backward(
                ctx.parameters,
                gradients,
                view.pose,
                view.view,
                view.records,
                view.visible,
                pairs,
                view.slots,
                view.slot_range,
                g_offsets[v],
            )
        g_offset = torch.from_numpy(g_offsets) if offset_shape == g_offsets.shape else None
        return (*map(torch.from_numpy, gradients), torch.from_numpy(g_poses).to(pose_dtype), g_offset, None, None)


def _as_arrays(tensors: list[Tensor]) -> Parameters:
    means, quaternions, log_scales, logits, sh = (tensor.detach().contiguous().numpy() for tensor in tensors)
    return means, quaternions, log_scales, logits, sh


def _draw(
    parameters: Parameters,
    pose: np.ndarray,
    intrinsics: np.ndarray,
    offset: np.ndarray,
    size: tuple[int, int],
    with_gradient: bool,
) -> _DrawnView:
    width_px, height_px = size
    count, tiles_x, tiles_y = len(parameters[0]), -(-width_px // TILE), -(-height_px // TILE)
    view = view_vector(pose, intrinsics, width_px, height_px)
    records, visible = np.empty((count, RECORD), np.float32), np.empty(count, bool)
    boxes = np.empty((count, 4), np.int16)
    keys = project(parameters, offset, pose, view, records, boxes, visible)
    order = sort_by_depth(keys)
    counts = count_pairs(records, boxes, order, tiles_x, tiles_y)
    starts, positions, before = prefix_sums(counts)
    slots = np.empty(before[-1] if with_gradient else 0, np.int32)
    slot_range = np.zeros((count if with_gradient else 0, 2), np.int32)
    lists = fill_lists(records, boxes, order, tiles_x, positions, before, slots, slot_range)
    rgb = np.empty((height_px, width_px, 3), np.float32)
    depth_sum, opacity = np.empty((height_px, width_px), np.float32), np.empty((height_px, width_px), np.float32)
    blend(records, lists, starts, rgb, depth_sum, opacity)
    return _DrawnView(pose, view, records, visible, lists, starts, slots, slot_range, (rgb, depth_sum, opacity))
