"""Image similarity: SSIM with its gradient, and PSNR."""

import cv2
import numba
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

WINDOW_PX = 11
WINDOW_SIGMA_PX = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def gaussian_window() -> Float[np.ndarray, "w"]:
    """The normalised one-dimensional SSIM window, sigma `WINDOW_SIGMA_PX`."""
    offset = np.arange(WINDOW_PX) - WINDOW_PX // 2
    weight = np.exp(-0.5 * (offset / WINDOW_SIGMA_PX) ** 2)
    return (weight / weight.sum()).astype(np.float32)


def mean_over(values: Float[Tensor, "h w c"], usable: Bool[Tensor, "h w"] | None) -> Float[Tensor, ""]:
    """Mean over the usable pixels and all channels; over all pixels with None. Differentiable."""
    if usable is None:
        return torch.mean(values)
    return torch.where(usable[..., None], values, 0.0).sum() / (usable.sum() * values.shape[-1]).clamp_min(1)


def sky_opacity(opacity: Float[Tensor, "h w"], sky: Bool[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Mean opacity over the pixels that show sky, where nothing should be; 0 without any. Differentiable."""
    return torch.where(sky, opacity, 0.0).sum() / sky.sum().clamp_min(1)


def ssim(
    image: Float[Tensor, "h w c"], target: Float[Tensor, "h w c"], usable: Bool[Tensor, "h w"] | None = None
) -> Float[Tensor, ""]:
    """Mean structural similarity (Wang et al. 2004) of images in 0..1, as splatting papers measure it.

    An 11x11 Gaussian window, zero padding, mean over the `usable` pixels and channels; other pixels are zero in both
    images, like what lies around them. Differentiable in `image` only. On the CPU the gradient is written out and the
    windows run in OpenCV, ten times faster than torch convolutions.
    """
    if image.is_cuda:
        return ssim_by_convolution(image, target, usable)
    result = _Ssim.apply(_shown(image, usable), _shown(target, usable), usable)
    assert isinstance(result, Tensor)
    return result


def _shown(image: Tensor, usable: Tensor | None) -> Tensor:
    return image if usable is None else torch.where(usable[..., None], image, 0.0)


def ssim_by_convolution(
    image: Float[Tensor, "h w c"], target: Float[Tensor, "h w c"], usable: Bool[Tensor, "h w"] | None = None
) -> Float[Tensor, ""]:
    """`ssim` by torch convolutions, differentiable by autograd, on any device."""
    image, target = _shown(image, usable), _shown(target, usable)
    x, y = (value.permute(2, 0, 1)[:, None] for value in (image, target))
    window = torch.from_numpy(gaussian_window()).to(x)
    column, row = window.view(1, 1, -1, 1), window.view(1, 1, 1, -1)
    half = WINDOW_PX // 2

    def blur(value: Tensor) -> Tensor:
        down = torch.nn.functional.conv2d(value, column, padding=(half, 0))
        return torch.nn.functional.conv2d(down, row, padding=(0, half))

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    similarity = luminance * (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return mean_over(similarity[:, 0].permute(1, 2, 0), usable)


def psnr_db(
    image: Float[Tensor, "h w c"], target: Float[Tensor, "h w c"], usable: Bool[Tensor, "h w"] | None = None
) -> float:
    """Peak signal-to-noise ratio of the usable pixels of images in 0..1, dB; infinite for equal images."""
    mse = float(mean_over((image - target) ** 2, usable))
    return float("inf") if mse == 0 else float(-10 * np.log10(mse))


class _Ssim(torch.autograd.Function):
    """SSIM on the CPU; the backward pass uses that the zero-padded window is its own adjoint."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, image: Tensor, target: Tensor, usable: Tensor | None
    ) -> Tensor:
        x = np.ascontiguousarray(image.detach().numpy(), np.float32)
        y = np.ascontiguousarray(target.detach().numpy(), np.float32)
        moments = [_blur(value) for value in (x, y, x * x, y * y, x * y)]
        similarity = np.empty_like(x)
        partials = [np.empty_like(x) for _ in range(3)]
        _similarity_and_partials(*(m.reshape(-1) for m in (*moments, similarity, *partials)))
        count = x.size
        if usable is not None:
            outside = ~usable.numpy()
            count = max(1, (outside.size - int(outside.sum())) * x.shape[-1])
            for values in (similarity, *partials):
                values[outside] = 0.0
        by_mean, by_square, by_product = (_blur(partial) for partial in partials)
        gradient = (by_mean + 2 * x * by_square + y * by_product) / count
        ctx.save_for_backward(torch.from_numpy(gradient))
        mean = similarity.mean(dtype=np.float64) * (similarity.size / count)
        return torch.tensor(mean, dtype=torch.float32)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return grad_outputs[0] * gradient, None, None


def _blur(value: np.ndarray) -> np.ndarray:
    window = gaussian_window()
    blurred = cv2.sepFilter2D(value, cv2.CV_32F, window, window, borderType=cv2.BORDER_CONSTANT)
    return blurred.reshape(value.shape)


@numba.njit(cache=True)
def _similarity_and_partials(  # noqa: ANN202 - compiled
    mean_x: np.ndarray,
    mean_y: np.ndarray,
    square_x: np.ndarray,
    square_y: np.ndarray,
    product: np.ndarray,
    similarity: np.ndarray,
    by_mean: np.ndarray,
    by_square: np.ndarray,
    by_product: np.ndarray,
):
    """Fill SSIM and its derivatives with respect to the blurred x, x^2 and xy, per pixel."""
    c1, c2 = np.float32(_C1), np.float32(_C2)
    two = np.float32(2.0)
    for i in range(mean_x.size):
        mx, my = mean_x[i], mean_y[i]
        a1 = two * mx * my + c1
        a2 = two * (product[i] - mx * my) + c2
        b1 = mx * mx + my * my + c1
        b2 = square_x[i] - mx * mx + square_y[i] - my * my + c2
        s = a1 * a2 / (b1 * b2)
        similarity[i] = s
        by_square[i] = -s / b2
        by_product[i] = two * a1 / (b1 * b2)
        by_mean[i] = two * my * a2 / (b1 * b2) - two * mx * s / b1 + two * mx * s / b2 - by_product[i] * my
