"""What every rasterizer returns, and the constants of image formation they share."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

BLUR_PX2 = 0.3  # added to the diagonal of the projected covariance: no splat falls between pixels
NEAR_M = 0.2
ALPHA_MIN = 1.0 / 255.0
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4
COVARIANCE_MAX_PX2 = 1e12  # larger footprints are fog without shape and overflow float32
QUATERNION_NORM_MIN = 1e-6
JACOBIAN_MARGIN = 0.3  # share of half the field of view by which the linearisation may leave the image
OPACITY_FLOOR = 1e-10  # keeps the expected depth finite where nothing was drawn


@dataclass(frozen=True)
class RasterizedViews:
    """V views of one set of N Gaussians, differentiable torch tensors on the device of the Gaussians.

    Attributes:
        rgb: float32 [V, H, W, 3], composited colour over black, >= 0 (not yet clipped at 1, no sky).
        depth_m: float32 [V, H, W], expected depth, 0 where nothing was drawn, m: along the optical axis, or
            the distance from the camera for the wide lenses "fisheye" and "ftheta".
        opacity: float32 [V, H, W], 0..1; what is left is sky.
        visible: bool [V, N], whether the footprint with alpha >= 1/255 reaches the image.
    """

    rgb: Float[Tensor, "v h w 3"]
    depth_m: Float[Tensor, "v h w"]
    opacity: Float[Tensor, "v h w"]
    visible: Bool[Tensor, "v n"]
