"""OpenUSD `ParticleField3DGaussianSplat` (USD 26) as text: Gaussians post-activation, z up, m."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from neural_sim.artifacts import atomic_file
from neural_sim.gaussians import Gaussians

_HEAD = """#usda 1.0
(
    defaultPrim = "World"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "World"
{
    def ParticleField3DGaussianSplat "Gaussians"
    {
"""


def write_usda(gaussians: Gaussians, path: Path) -> None:
    """Write `gaussians` as a USD text layer, atomically.

    Scales are standard deviations in m, opacities 0..1, orientations unit quaternions (real part first, as USD writes
    them), harmonics coefficient by coefficient with RGB fastest.
    """
    degree = gaussians.sh_degree
    bands = (degree + 1) ** 2
    quaternions = torch.nn.functional.normalize(gaussians.quaternions_xyzw.detach().cpu(), dim=1)[:, [3, 0, 1, 2]]
    opacities = torch.sigmoid(gaussians.opacity_logits.detach().cpu()).clamp(0, 1).numpy()
    with atomic_file(path) as partial, partial.open("w") as file:
        file.write(_HEAD)
        for line in _attribute("point3f[] positions", gaussians.means_m.detach().cpu().numpy()):
            file.write(line)
        for line in _attribute("quatf[] orientations", quaternions.numpy()):
            file.write(line)
        for line in _attribute("float3[] scales", gaussians.log_scales.detach().cpu().exp().numpy()):
            file.write(line)
        file.write(f"        float[] opacities = [{', '.join(f'{value:.9g}' for value in opacities)}]\n")
        sh = gaussians.sh.detach().cpu().numpy().reshape(-1, 3)
        name = "float3[] radiance:sphericalHarmonicsCoefficients"
        for line in _attribute(name, sh, f" (\n            elementSize = {bands}\n        )"):
            file.write(line)
        file.write(f"        uniform int radiance:sphericalHarmonicsDegree = {degree}\n    }}\n}}\n")


def _attribute(name: str, rows: np.ndarray, metadata: str = "") -> Iterator[str]:
    """The text of one array attribute, in pieces."""
    yield f"        {name} = ["
    for start in range(0, len(rows), 10_000):
        part = rows[start : start + 10_000]
        text = ", ".join("(" + ", ".join(f"{value:.9g}" for value in row) + ")" for row in part)
        yield text if start == 0 else f", {text}"
    yield f"]{metadata}\n"
