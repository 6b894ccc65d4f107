"""The CPU kernels as one differentiable torch function."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_sim.gaussians import Gaussians
from neural_sim.rendering.cpu.binning import fill_lists, prefix_sums
from neural_sim.rendering.cpu.blending import blend
from neural_sim.rendering.cpu.blending_backward import blend_backward
from neural_sim.rendering.cpu.layout import RECORD, TILE, aligned_scratch
from neural_sim.rendering.cpu.projection import project
from neural_sim.rendering.cpu.projection_backward import project_backward
from neural_sim.rendering.cpu.sorting import sort_lists
from neural_sim.rendering.cpu.view_vector import view_vector
from neural_sim.rendering.motion import frame_poses
from neural_sim.rendering.view_batch import ViewBatch
from neural_sim.rendering.views import OPACITY_FLOOR, RasterizedViews

Parameters = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _DrawnView:
    """One view with what its backward pass needs; `pairs` to `times` are empty when no gradient is wanted."""

    knots: np.ndarray
    view: np.ndarray
    records: np.ndarray
    visible: np.ndarray
    lists: np.ndarray
    starts: np.ndarray
    images: tuple[np.ndarray, np.ndarray, np.ndarray]
    pairs: np.ndarray
    pair_range: np.ndarray
    times: np.ndarray


def rasterize_cpu(gaussians: Gaussians, batch: ViewBatch) -> RasterizedViews:
    """Draw V views; arguments and result as in `neural_sim.rendering.rasterize.rasterize`."""
    tensors = [tensor.float() for tensor in gaussians.tensors().values()]
    offset = torch.zeros(len(batch), 1, 2) if batch.means_px_offset is None else batch.means_px_offset.float()
    direction = batch.shutter.direction if batch.shutter else None
    views = [
        view_vector(K, batch.width_px, batch.height_px, batch.lens, direction, batch.antialias)
        for K in batch.K.detach().double().numpy()
    ]
    owners = np.empty(0, np.int32) if batch.actors is None else batch.actors.owner.int().numpy()
    rgb, depth_sum, opacity, visible = _Rasterize.apply(
        *tensors, frame_poses(batch), offset, owners, views, (batch.width_px, batch.height_px)
    )
    return RasterizedViews(rgb, depth_sum / opacity.clamp_min(OPACITY_FLOOR), opacity, visible)


class _Rasterize(torch.autograd.Function):
    """means, quaternions, log scales, logits, sh, frame poses, offsets -> rgb, depth sum, opacity, visible."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *tensors, knots, offset, owners, views, size = inputs
        parameters = _as_arrays(tensors)
        knots_np, offset_np = knots.detach().contiguous().numpy(), offset.detach().contiguous().numpy()
        with_gradient = any(ctx.needs_input_grad)
        drawn = [
            _draw(parameters, owners, knots_np[v], views[v], offset_np[v], size, with_gradient)
            for v in range(len(views))
        ]
        if with_gradient:
            ctx.parameters, ctx.owners, ctx.drawn, ctx.offset_shape = parameters, owners, drawn, offset.shape
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
        g_offsets = np.zeros((len(ctx.drawn), len(gradients[0]), 2), np.float32)
        g_knots = np.zeros((len(ctx.drawn), *ctx.drawn[0].knots.shape))
        for v, view in enumerate(ctx.drawn):
            pair_gradients = blend_backward(
                view.records, view.lists, view.starts, view.pairs, view.images, tuple(a[v] for a in arrays)
            )
            g_knots[v, :, :, :3] = project_backward(
                ctx.parameters,
                gradients,
                ctx.owners,
                view.knots,
                view.view,
                view.times,
                view.records,
                view.visible,
                pair_gradients,
                view.pair_range,
                g_offsets[v],
            )
        g_offset = torch.from_numpy(g_offsets) if ctx.offset_shape == g_offsets.shape else None
        return (*map(torch.from_numpy, gradients), torch.from_numpy(g_knots), g_offset, None, None, None)


def _as_arrays(tensors: list[Tensor]) -> Parameters:
    means, quaternions, log_scales, logits, sh = (tensor.detach().contiguous().numpy() for tensor in tensors)
    return means, quaternions, log_scales, logits, sh


def _draw(
    parameters: Parameters,
    owners: np.ndarray,
    knots: np.ndarray,
    view: np.ndarray,
    offset: np.ndarray,
    size: tuple[int, int],
    with_gradient: bool,
) -> _DrawnView:
    width_px, height_px = size
    count, tiles_x = len(parameters[0]), -(-width_px // TILE)
    records, visible = aligned_scratch(count, RECORD), np.empty(count, bool)
    boxes, times = np.empty((count, 4), np.int16), np.empty(count if with_gradient and len(knots) > 1 else 0)
    spans = np.empty(count, np.uint64)
    keys, found, counts = project(parameters, offset, owners, knots, view, records, boxes, spans, visible, times)
    starts, positions, before = prefix_sums(counts)
    pair_range = np.empty((count if with_gradient else 0, 2), np.int32)
    pair_owners = np.empty(before[-1] if with_gradient else 0, np.int32)
    keys = fill_lists(keys, found, records, boxes, spans, tiles_x, positions, before, pair_range, pair_owners)
    lists, pairs = sort_lists(keys, starts, pair_owners)
    rgb = np.empty((height_px, width_px, 3), np.float32)
    depth_sum, opacity = np.empty((height_px, width_px), np.float32), np.empty((height_px, width_px), np.float32)
    blend(records, lists, starts, rgb, depth_sum, opacity)
    images = (rgb, depth_sum, opacity)
    return _DrawnView(knots, view, records, visible, lists, starts, images, pairs, pair_range, times)
