"""The ground mesh as binary PLY."""

import numpy as np
from jaxtyping import Float

from neural_sim.scenes.scene import GroundMesh


def encode_ply(ground: GroundMesh, origin_m: Float[np.ndarray, "3"]) -> bytes:
    """Little-endian binary PLY of triangles; vertices are shifted by `-origin_m` (m)."""
    vertices = (ground.vertices_m.astype(np.float64) - origin_m).astype("<f4")
    faces = np.zeros(len(ground.faces), np.dtype([("count", "u1"), ("indices", "<i4", (3,))]))
    faces["count"], faces["indices"] = 3, ground.faces
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    return header.encode() + vertices.tobytes() + faces.tobytes()
