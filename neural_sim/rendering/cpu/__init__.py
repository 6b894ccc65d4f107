"""The CPU rasterizer: numba kernels over all cores. Importing this package imports numba."""
