"""Nearest hits of rays on a mesh, by Embree."""

import weakref

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.town import embree
from neural_sim.town.mesh import Mesh


class RayScene:
    """A mesh that rays can be cast at. A mesh without triangles is never hit."""

    def __init__(self, mesh: Mesh, lasting: bool = False) -> None:
        """`lasting`: the mesh stays for many pictures, so that a slower build pays."""
        self._scene = None
        if len(mesh.triangles_m):
            self._scene, buffers = embree.new_scene(mesh.triangles_m, embree.HIGH if lasting else embree.MEDIUM)
            # Embree reads the buffers as long as the scene lives.
            weakref.finalize(self, _release, self._scene, buffers)

    def first_hit(
        self, origins_m: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> Int[np.ndarray, "n"]:
        """Index of the first triangle each ray meets, -1 for none. Float32 rays in the frame of the mesh."""
        if self._scene is None:
            return np.full(len(origins_m), -1, np.int32)
        return embree.first_hits(self._scene, origins_m, directions, embree.new_packet(), embree.COHERENT)

    def is_occluded(
        self, origins_m: Float[np.ndarray, "n 3"], direction: Float[np.ndarray, "3"]
    ) -> Bool[np.ndarray, "n"]:
        """Whether anything lies along each of the parallel rays. Float32, in the frame of the mesh."""
        if self._scene is None:
            return np.zeros(len(origins_m), bool)
        directions = np.broadcast_to(direction, origins_m.shape)
        return embree.any_hits(self._scene, origins_m, directions, embree.new_packet(), embree.COHERENT) >= 0


def _release(scene: int, buffers: tuple[np.ndarray, ...]) -> None:
    embree.release_scene(scene)
