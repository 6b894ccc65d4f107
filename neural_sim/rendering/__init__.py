"""From Gaussians to images: rasterizers for CPU and CUDA, and the renderer the simulator calls."""
