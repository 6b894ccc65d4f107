"""Reconstructed worlds: the scene and its NuRec-layout `.usdz` file."""
