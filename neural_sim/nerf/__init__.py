"""Clips as a NeRF: nerfstudio's nerfacto as a `Renderer`, to see how policies transfer to another world.

nerfstudio (extra `[nerf]`) is imported where a model is built, never with the package.
"""
