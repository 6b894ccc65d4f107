"""The world: clips, scenes, cameras, rasterizers, reconstruction, vehicle dynamics, the closed loop."""
