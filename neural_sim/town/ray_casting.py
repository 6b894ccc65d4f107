"""Nearest hits of rays on a mesh, by Embree."""

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Int

from neural_sim.town.mesh import Mesh


class RayScene:
    """A mesh that rays can be cast at. A mesh without triangles is never hit."""

    def __init__(self, mesh: Mesh) -> None:
        self._scene = None
        if len(mesh.triangles_m):
            self._scene = EmbreeScene()
            vertices = np.ascontiguousarray(mesh.triangles_m.reshape(-1, 3), np.float32)
            TriangleMesh(self._scene, vertices, np.arange(len(vertices), dtype=np.int32).reshape(-1, 3))

    def first_hit(
        self, origins_m: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> Int[np.ndarray, "n"]:
        """Index of the first triangle each ray meets, -1 for none. Float32 rays in the frame of the mesh."""
        if self._scene is None or not len(origins_m):
            return np.full(len(origins_m), -1, np.int32)
        return self._scene.run(origins_m, directions, query="INTERSECT")

    def is_occluded(
        self, origins_m: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, "n"]:
        """Whether anything lies along each ray. Float32 rays in the frame of the mesh."""
        if self._scene is None or not len(origins_m):
            return np.zeros(len(origins_m), bool)
        return self._scene.run(origins_m, directions, query="OCCLUDED") != -1
