"""What the optimisation changes: all Gaussians of a scene with their owners, the sky and the exposures."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation
from torch import Tensor

from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.adam import RowAdam
from neural_sim.reconstruction.initial_points import ColoredPoints
from neural_sim.rendering.harmonics import SH_0

BACKGROUND, ROAD, FIRST_ACTOR = 0, 1, 2

_INITIAL_OPACITY = 0.4
_ROAD_OPACITY = 0.8
ROAD_THICKNESS_M = 0.01
# Distances for step sizes are kept in this range, m.
_DISTANCE_RANGE_M = (2.0, 200.0)
_ACTOR_DISTANCE_M = 5.0


class SceneModel:
    """Trainable state. Gaussians of all parts share one set of tensors, so that one image is one rasterizer call.

    Attributes:
        tensors: the five tensors of `Gaussians` as leaves, by name; actors in their box frames, the rest in the world.
        owner: int64 [N], `BACKGROUND`, `ROAD`, or `FIRST_ACTOR` + index of the moving track.
        distance_m: float32 [N], distance from the nearest camera, m: steps and sizes are relative to it.
        score: float32 [N], summed pull on the projected centres since the last densification, in image widths.
        sky: leaf float32 [6, S, S, 3].
        exposure: leaf float32 [V, 2, 3]: log gain and offset per channel of each training view.
        actor_offsets: leaf float32 [K, 6]: corrections of the actors' poses, see `ActorKnots`.
        adam: optimiser state for the Gaussians, the sky, the exposures and the actors' poses.
    """

    def __init__(self, gaussians: Gaussians, owner: Tensor, sky: Tensor, view_count: int, knot_count: int = 0) -> None:
        self.tensors = {name: tensor.detach().requires_grad_() for name, tensor in gaussians.tensors().items()}
        self.owner = owner
        self.distance_m = torch.full((len(owner),), 10.0, device=owner.device)
        self.score = torch.zeros(len(owner), device=owner.device)
        self.sky = sky.detach().requires_grad_()
        self.exposure = torch.zeros(view_count, 2, 3, device=owner.device, requires_grad=True)
        self.actor_offsets = torch.zeros(knot_count, 6, device=owner.device, requires_grad=True)
        self.adam = {
            "gaussians": RowAdam(self.tensors),
            "sky": RowAdam({"sky": self.sky.flatten(0, 2)}),
            "exposure": RowAdam({"exposure": self.exposure}),
            "actor_offsets": RowAdam({"actor_offsets": self.actor_offsets}),
        }

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def device(self) -> torch.device:
        """Where all tensors live."""
        return self.owner.device

    def gaussians(self) -> Gaussians:
        """The leaves as Gaussians, each in the frame of its owner."""
        return Gaussians(**self.tensors)

    def group_owners(self) -> None:
        """Put the Gaussians of each moving road user together, which the rasterizer draws faster."""
        frame = self.owner.clamp_min(FIRST_ACTOR - 1)
        if bool((torch.diff(frame) < 0).any()):
            self.select(torch.argsort(frame, stable=True))

    @torch.no_grad()
    def measure_distances(self, camera_centers_m: Float[np.ndarray, "v 3"]) -> None:
        """Set `distance_m` from the nearest of `camera_centers_m` (world, m)."""
        means = self.tensors["means_m"].detach().cpu().numpy()
        distance, _ = KDTree(camera_centers_m).query(np.nan_to_num(means))
        distance_m = torch.from_numpy(np.clip(distance, *_DISTANCE_RANGE_M).astype(np.float32)).to(self.device)
        self.distance_m = torch.where(self.owner >= FIRST_ACTOR, _ACTOR_DISTANCE_M, distance_m)

    def select(self, rows: Tensor) -> None:
        """Keep only `rows`, a mask or indices, in that order."""
        self.tensors = {name: tensor.detach()[rows].requires_grad_() for name, tensor in self.tensors.items()}
        self.owner, self.distance_m, self.score = self.owner[rows], self.distance_m[rows], self.score[rows]
        self.adam["gaussians"].select(rows)

    def append(self, gaussians: Mapping[str, Tensor], owner: Tensor, distance_m: Tensor) -> None:
        """Add Gaussians (raw tensors by name, each in its owner's frame)."""
        self.tensors = {
            name: torch.cat([tensor.detach(), gaussians[name]]).requires_grad_()
            for name, tensor in self.tensors.items()
        }
        self.owner = torch.cat([self.owner, owner])
        self.distance_m = torch.cat([self.distance_m, distance_m])
        self.score = torch.cat([self.score, self.score.new_zeros(len(owner))])
        self.adam["gaussians"].append(len(owner))

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next iteration depends on, for a checkpoint."""
        state = {f"gaussians.{name}": tensor.detach() for name, tensor in self.tensors.items()}
        state |= {"owner": self.owner, "distance_m": self.distance_m, "score": self.score}
        for name in ("sky", "exposure", "actor_offsets"):
            state[name] = getattr(self, name).detach()
        for name, adam in self.adam.items():
            state |= adam.state(f"adam.{name}")
        return {name: tensor.contiguous() for name, tensor in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned. Raises `KeyError` when a tensor is missing."""
        self.tensors = {name: state[f"gaussians.{name}"].requires_grad_() for name in self.tensors}
        self.owner, self.distance_m, self.score = state["owner"], state["distance_m"], state["score"]
        self.sky, self.exposure = state["sky"].requires_grad_(), state["exposure"].requires_grad_()
        self.actor_offsets = state["actor_offsets"].requires_grad_()
        for name, adam in self.adam.items():
            adam.load(f"adam.{name}", state)


def gaussians_from_points(
    points: ColoredPoints, sh_degree: int, camera_centers_m: Float[np.ndarray, "v 3"]
) -> Gaussians:
    """Round Gaussians as large as the mean distance to the three nearest points, but small from every camera."""
    if len(points) == 0:
        return Gaussians.empty(sh_degree)
    distance, _ = KDTree(camera_centers_m).query(points.points_m)
    scale = np.clip(_spacing(points.points_m), 0.001 * distance, 0.02 * distance)
    log_scales = np.repeat(np.log(np.maximum(scale, 1e-3))[:, None], 3, axis=1)
    return _assemble(points, np.tile([0.0, 0.0, 0.0, 1.0], (len(points), 1)), log_scales, _INITIAL_OPACITY, sh_degree)


def road_gaussians(
    points: ColoredPoints,
    normals: Float[np.ndarray, "n 3"],
    yaw_rad: Float[np.ndarray, "n"],
    spacing_m: float,
    sh_degree: int,
) -> Gaussians:
    """Flat discs on the road: z along the normal, x along the road's direction, sized to close the grid."""
    if len(points) == 0:
        return Gaussians.empty(sh_degree)
    tilt = np.column_stack([-normals[:, 1], normals[:, 0], np.zeros(len(normals)), 1.0 + normals[:, 2]])
    quaternions = (Rotation.from_quat(tilt) * Rotation.from_euler("z", yaw_rad[:, None])).as_quat()
    log_scales = np.tile(np.log([0.6 * spacing_m, 0.6 * spacing_m, ROAD_THICKNESS_M]), (len(points), 1))
    return _assemble(points, quaternions, log_scales, _ROAD_OPACITY, sh_degree)


def actor_gaussians(points: ColoredPoints, sh_degree: int) -> Gaussians:
    """Round Gaussians in the box frame, as large as the spacing of the points."""
    if len(points) == 0:
        return Gaussians.empty(sh_degree)
    log_scales = np.repeat(np.log(np.clip(_spacing(points.points_m), 0.01, 0.2))[:, None], 3, axis=1)
    return _assemble(points, np.tile([0.0, 0.0, 0.0, 1.0], (len(points), 1)), log_scales, _INITIAL_OPACITY, sh_degree)


def _spacing(points_m: np.ndarray) -> Float[np.ndarray, "n"]:
    if len(points_m) < 2:
        return np.full(len(points_m), 0.1)
    distance, _ = KDTree(points_m).query(points_m, k=min(4, len(points_m)))
    return np.asarray(distance[:, 1:].mean(axis=1))


def _assemble(
    points: ColoredPoints, quaternions: np.ndarray, log_scales: np.ndarray, opacity: float, sh_degree: int
) -> Gaussians:
    sh = np.zeros((len(points), (sh_degree + 1) ** 2, 3))
    sh[:, 0] = (points.colors - 0.5) / SH_0
    logits = np.full(len(points), np.log(opacity / (1 - opacity)))
    arrays = (points.points_m, quaternions, log_scales, logits, sh)
    return Gaussians(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))


def rotate(quaternions_xyzw: Float[Tensor, "n 4"], vectors: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Vectors turned by quaternions of any non-zero norm."""
    unit = torch.nn.functional.normalize(quaternions_xyzw, dim=-1)
    axis, w = unit[:, :3], unit[:, 3:]
    twice = 2 * torch.linalg.cross(axis, vectors)
    return vectors + w * twice + torch.linalg.cross(axis, twice)
