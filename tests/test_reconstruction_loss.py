import numpy as np
import pytest
import torch

from neural_sim.reconstruction.loss import gaussian_window, psnr_db, ssim, ssim_by_convolution


def ssim_by_sums(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM straight from its definition: weighted moments in every zero-padded 11x11 window."""
    window = np.outer(gaussian_window(), gaussian_window()).astype(np.float64)
    padded_x, padded_y = (np.pad(value, ((5, 5), (5, 5), (0, 0))) for value in (x, y))
    values = []
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for c in range(x.shape[2]):
                a, b = padded_x[i : i + 11, j : j + 11, c], padded_y[i : i + 11, j : j + 11, c]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                variance_a = (window * a * a).sum() - mean_a**2
                variance_b = (window * b * b).sum() - mean_b**2
                covariance = (window * a * b).sum() - mean_a * mean_b
                top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
                values.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4)))
    return float(np.mean(values))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(14, 17, 3, generator=generator)
    return (target + 0.2 * torch.randn(14, 17, 3, generator=generator)).clamp(0, 1), target


def test_ssim_equals_its_definition(images):
    expected = ssim_by_sums(*(image.double().numpy() for image in images))
    assert float(ssim(*images)) == pytest.approx(expected, abs=2e-5)
    assert float(ssim_by_convolution(*images)) == pytest.approx(expected, abs=2e-5)


def test_ssim_of_equal_images_is_one(images):
    assert float(ssim(images[1], images[1])) == pytest.approx(1.0, abs=1e-5)


def test_written_out_gradient_equals_autograd(images):
    image, target = images
    by_hand, by_torch = image.clone().requires_grad_(), image.clone().requires_grad_()
    (3 * ssim(by_hand, target)).backward()
    (3 * ssim_by_convolution(by_torch, target)).backward()
    assert by_hand.grad is not None
    assert by_torch.grad is not None
    assert torch.allclose(by_hand.grad, by_torch.grad, rtol=1e-3, atol=1e-3 * float(by_torch.grad.abs().max()))


def test_psnr():
    black = torch.zeros(2, 2, 3)
    assert psnr_db(black, black + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(black, black) == float("inf")
