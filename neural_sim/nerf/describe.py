"""What is in the file of a NeRF, for `roadloop inspect`."""

from pathlib import Path

from neural_sim.errors import InputError
from neural_sim.nerf.storage import read_nerf


def describe_nerf(path: Path) -> tuple[list[str], list[str]]:
    """Facts about the NeRF at `path` and the problems found; nerfstudio is not needed."""
    try:
        world = read_nerf(path)
    except InputError as error:
        return [f"NeRF {path.name}, not readable"], [str(error)]
    config, quality = world.config, world.metadata.get("quality", {})
    held_out = quality.get("held_out", {})
    count = sum(array.size for array in world.weights.values())
    facts = [
        f"NeRF of {world.clip_id}, {path.stat().st_size / 1e6:.1f} MB, {count} weights",
        f"{world.num_images} training images, {config.iterations} steps of {config.rays_per_step} rays",
        f"unit {world.unit_m:.1f} m around {', '.join(f'{value:.1f}' for value in world.center_m)} m",
    ]
    if held_out:
        size = "x".join(str(length) for length in quality.get("image_size_px", ()))
        facts.append(f"held-out {held_out['psnr_db']:.2f} dB, SSIM {held_out['ssim']:.3f} at {size} px")
    return facts, []
