"""Real spherical harmonics of degree 0 to 3, in the order and signs that splat files use."""

import torch
from jaxtyping import Float
from torch import Tensor

SH_0 = 0.28209479177387814
SH_1 = 0.4886025119029199
SH_2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
SH_3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


def sh_basis(directions: Float[Tensor, "n 3"], degree: int) -> Float[Tensor, "n k"]:
    """Basis values [N, (degree + 1)^2] in unit `directions`. Differentiable; `degree` is 0 to 3."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_0)]
    if degree >= 1:
        basis += [-SH_1 * y, SH_1 * z, -SH_1 * x]
    if degree >= 2:
        a, b, c = SH_2
        basis += [a * x * y, -a * y * z, b * (3 * z * z - 1), -a * x * z, c * (x * x - y * y)]
    if degree >= 3:
        a, b, c, d, e = SH_3
        basis += [
            -a * y * (3 * x * x - y * y),
            b * x * y * z,
            c * y * (1 - 5 * z * z),
            d * z * (5 * z * z - 3),
            c * x * (1 - 5 * z * z),
            e * z * (x * x - y * y),
            -a * x * (x * x - 3 * y * y),
        ]
    return torch.stack(basis, dim=-1)


def sh_color(sh: Float[Tensor, "n k 3"], directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Colour [N, 3] = max(0, 0.5 + SH) seen along unit `directions` from the camera. Differentiable."""
    degree = round(sh.shape[1] ** 0.5) - 1
    return (0.5 + torch.einsum("nk,nkc->nc", sh_basis(directions, degree), sh)).clamp_min(0.0)
