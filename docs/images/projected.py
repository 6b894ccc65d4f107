"""Makes `projected.png`: boxes and lanes of generated drives drawn into their images, and one drive from above.

Run `python docs/images/projected.py` from the top of the repository. Everything in the picture is generated.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from neural_sim.drawing.birds_eye import draw_drive
from neural_sim.drawing.contact_sheet import SheetRow, draw_contact_sheet
from neural_sim.drawing.overlay import draw_overlay
from neural_sim.town.config import WIDE_CAMERA, TownConfig
from neural_sim.town.town import Town, build_town

SEEDS_AND_SECONDS = ((3, (2.0, 7.0, 12.0)), (11, (3.0, 8.0, 14.0)))
WIDTH_PX, HEIGHT_PX = 640, 384
PICTURE = Path(__file__).with_name("projected.png")


def main() -> None:
    """Draw and save the picture."""
    towns = [build_town(_config(seed)) for seed, _ in SEEDS_AND_SECONDS]
    rows = [_row(town, seed, seconds) for town, (seed, seconds) in zip(towns, SEEDS_AND_SECONDS, strict=True)]
    sheet = Image.fromarray(draw_contact_sheet(rows, 420))
    town = towns[0]
    above = Image.fromarray(draw_drive(town.expert, town.ego_vehicle, town.tracks, town.road_map))
    above = above.resize((sheet.width, round(above.height * sheet.width / above.width)), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (sheet.width, sheet.height + above.height))
    picture.paste(sheet, (0, 0))
    picture.paste(above, (0, sheet.height))
    picture.quantize(256, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


def _config(seed: int) -> TownConfig:
    return replace(TownConfig(), seed=seed, image_width_px=WIDTH_PX, image_height_px=HEIGHT_PX)


def _row(town: Town, seed: int, seconds: tuple[float, ...]) -> SheetRow:
    camera, images = town.cameras[WIDE_CAMERA], []
    for moment_s in seconds:
        t_us = round(moment_s * 1e6)
        rendered = town.renderer.render([town.request(camera, t_us)])[0]
        pose = town.expert.poses_at(np.array([t_us]))[0]
        pixels = np.round(rendered.rgb * 255).astype(np.uint8)
        images.append(draw_overlay(pixels, camera, pose, t_us, town.tracks, town.road_map))
    return SheetRow(f"town, seed {seed}: boxes and lane borders of the clip", images, [f"{s:.1f} s" for s in seconds])


if __name__ == "__main__":
    main()
