"""The town's lidar: a turning scanner on the roof, by the same ray casting as the pictures."""

import numpy as np
from jaxtyping import Float

from neural_sim.frames import invert_pose
from neural_sim.town.materials import REFLECTIVITY
from neural_sim.town.mesh import Mesh, merge
from neural_sim.town.ray_casting import RayScene
from neural_sim.town.shading import Surfaces, plane_depths, surfaces_of

POSITION_M = (1.2, 0.0, 1.85)
BEAMS_RAD = np.deg2rad(np.linspace(-24.0, 6.0, 32))
COLUMNS = 720
MAX_RANGE_M = 100.0
RANGE_NOISE_M = 0.02


class LidarScanner:
    """Scans one static world."""

    def __init__(self, static: Mesh, surfaces: Surfaces, rays: RayScene) -> None:
        """`surfaces`, `rays`: tables and ray caster of `static`, which the renderer has already."""
        self._static, self._surfaces, self._rays = static, surfaces, rays

    def scan(
        self, T_world_rig: Float[np.ndarray, "4 4"], movers: list[Mesh], rng: np.random.Generator
    ) -> Float[np.ndarray, "n 4"]:
        """One sweep, float32 [N, 4] (x, y, z, intensity 0..1) in the rig frame, m, taken at one instant.

        `movers`: meshes of all road users, world frame; `rng`: of the range noise.
        """
        origin = T_world_rig @ np.array([*POSITION_M, 1.0])
        directions = _beams() @ T_world_rig[:3, :3].T
        origins = np.repeat(origin[None, :3], len(directions), axis=0)
        mover_mesh = merge(movers)
        hits = []
        for mesh, surfaces, rays in (
            (self._static, self._surfaces, self._rays),
            (mover_mesh, surfaces_of(mover_mesh), RayScene(mover_mesh)),
        ):
            triangle = rays.first_hit(origins.astype(np.float32), directions.astype(np.float32))
            depth = np.full(len(triangle), np.inf)
            found = triangle >= 0
            depth[found] = plane_depths(surfaces, triangle[found], origins[found], directions[found])
            shine = np.zeros(len(triangle))
            shine[found] = REFLECTIVITY[mesh.material[triangle[found]]]
            hits.append((depth, shine))
        range_m = np.minimum(hits[0][0], hits[1][0])
        shine = np.where(hits[0][0] <= hits[1][0], hits[0][1], hits[1][1])
        kept = range_m < MAX_RANGE_M
        noisy_m = range_m[kept] + RANGE_NOISE_M * rng.standard_normal(int(kept.sum()))
        points = origins[kept] + noisy_m[:, None] * directions[kept]
        T_rig_world = invert_pose(T_world_rig)
        local = points @ T_rig_world[:3, :3].T + T_rig_world[:3, 3]
        return np.column_stack([local, shine[kept]]).astype(np.float32)


def _beams() -> Float[np.ndarray, "n 3"]:
    """Unit directions of all beams of one turn, rig axes."""
    turn, tilt = np.meshgrid(np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False), BEAMS_RAD, indexing="ij")
    level = np.cos(tilt)
    return np.stack([level * np.cos(turn), level * np.sin(turn), np.sin(tilt)], axis=-1).reshape(-1, 3)
