"""Leaving the drivable area."""

import shapely

from eval.context import ScoringContext
from eval.results import Series
from neural_sim.errors import InputError


def score_offroad(context: ScoringContext) -> dict[str, Series]:
    """`offroad`: some part of the ego box lies outside the union of the drivable areas.

    The box is shrunk by 2 % with rounded corners, as for collisions, so that the tips of the corners may overhang.
    Standing exactly on the edge is on the road. On a derived map the drivable area is the corridor around the expert
    path, so the flag then means "left the corridor"; reports mark such scenes.

    Differs from AlpaSim, which asks for a crossed road edge and so misses a car that is wholly outside.
    Raises `InputError` when the scene has no drivable area: a missing map is never counted as staying on the road.
    """
    drivable = context.scene.road_map.drivable
    if shapely.is_empty(drivable):
        raise InputError(
            f"scene {context.scene.scene_id}: the map has no drivable area, so off-road cannot be judged; "
            "derive a corridor from the expert path with `neural_sim.road_map.corridor_map`"
        )
    on_road = shapely.covers(drivable, context.outlines)
    return {"offroad": context.series(~on_road, "max")}
