"""3D Gaussians as tensors."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """A set of N Gaussians, pre-activation, in one frame.

    Attributes:
        means_m: float32 [N, 3], centres, m.
        quaternions_xyzw: float32 [N, 4], orientation, any non-zero norm.
        log_scales: float32 [N, 3], natural log of the standard deviations in m.
        opacity_logits: float32 [N], opacity is the sigmoid.
        sh: float32 [N, (degree + 1)^2, 3], spherical harmonics of the RGB colour; colour is 0.5 + SH, clamped at 0.
    """

    means_m: Float[Tensor, "n 3"]
    quaternions_xyzw: Float[Tensor, "n 4"]
    log_scales: Float[Tensor, "n 3"]
    opacity_logits: Float[Tensor, "n"]
    sh: Float[Tensor, "n k 3"]

    def __len__(self) -> int:
        return len(self.means_m)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return round(self.sh.shape[1] ** 0.5) - 1

    def tensors(self) -> dict[str, Tensor]:
        """The five tensors by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def to(self, device: torch.device | str) -> "Gaussians":
        """The same Gaussians on `device`."""
        return Gaussians(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @staticmethod
    def empty(sh_degree: int = 0) -> "Gaussians":
        """No Gaussians."""
        k = (sh_degree + 1) ** 2
        return Gaussians(torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, k, 3))

    @staticmethod
    def concatenate(parts: "list[Gaussians]") -> "Gaussians":
        """Join sets of the same frame and SH degree."""
        names = [item.name for item in fields(Gaussians)]
        return Gaussians(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def transform_gaussians(gaussians: Gaussians, T_target_source: Float[Tensor, "4 4"]) -> Gaussians:
    """Move Gaussians by a rigid transform. Differentiable in both arguments.

    Only the constant SH band is exact under rotation; higher bands keep their source-frame directions.
    """
    rotation, translation = T_target_source[:3, :3], T_target_source[:3, 3]
    means = gaussians.means_m @ rotation.T + translation
    quaternions = multiply_quaternions(quaternion_from_matrix(rotation), gaussians.quaternions_xyzw)
    return Gaussians(means, quaternions, gaussians.log_scales, gaussians.opacity_logits, gaussians.sh)


def quaternion_from_matrix(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "4"]:
    """Quaternion xyzw of a rotation matrix, by the largest of the four squared components."""
    m = rotation
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    squared = torch.stack([1 + 2 * m[0, 0] - trace, 1 + 2 * m[1, 1] - trace, 1 + 2 * m[2, 2] - trace, 1 + trace])
    candidates = torch.stack(
        [
            torch.stack([squared[0], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]]),
            torch.stack([m[0, 1] + m[1, 0], squared[1], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]]),
            torch.stack([m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squared[2], m[1, 0] - m[0, 1]]),
            torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], squared[3]]),
        ]
    )
    best = candidates[torch.argmax(squared)]
    return best / best.norm()


def multiply_quaternions(a: Float[Tensor, "*n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Hamilton product a * b of xyzw quaternions."""
    ax, ay, az, aw = a.unbind(-1)
    bx, by, bz, bw = b.unbind(-1)
    return torch.stack(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ],
        dim=-1,
    )
