"""The CPU rasterizer: numba kernels over all cores. Importing its modules imports numba, compiled at first use.

The threads are OpenMP's, which do not survive a fork: start worker processes that render with "spawn".
"""

from neural_sim.rendering.cpu.cache import discard_stale_kernels

discard_stale_kernels()
