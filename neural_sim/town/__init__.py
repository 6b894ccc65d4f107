"""A synthetic street with known truth, rendered as meshes."""
