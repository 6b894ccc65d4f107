"""What a navigator would say along the drive."""

import numpy as np

from neural_sim.clips.clip import NavigationStep
from neural_sim.town.network import Network
from neural_sim.trajectory import Trajectory

BEND_PER_M = 0.008
BEND_PREVIEW_M = 15.0
TURN_PREVIEW_M = 60.0
ROUND_TO_M = 10
SIDES = {1: "left", -1: "right"}


def navigation_along(network: Network, expert: Trajectory) -> tuple[NavigationStep, ...]:
    """Instructions of a drive: turns and the end of a lane with their distance, bends, else straight on."""
    s_m = network.main.to_road(expert.planar[:, :2])[:, 0]
    s_m = np.maximum.accumulate(s_m)
    texts = [instruction(network, float(s)) for s in s_m]
    starts = [0] + [i for i in range(1, len(texts)) if texts[i] != texts[i - 1]]
    return tuple(NavigationStep(int(expert.t_us[i]), texts[i]) for i in starts)


def instruction(network: Network, s_m: float) -> str:
    """What holds at `s_m` of the main street, m."""
    for junction in network.junctions:
        place = junction.place
        if place.start_m - TURN_PREVIEW_M < s_m < place.end_m - 2.0:
            what = f"turn {SIDES[place.turn]}" if place.turn else "go straight on at the junction"
            return what + _in_metres(place.start_m - s_m)
    if network.merge_m is not None and network.plan.ego_in_ending_lane:
        start, end = network.merge_m
        if start - TURN_PREVIEW_M < s_m < end:
            return "merge left" + _in_metres(start - s_m)
    ahead = float(network.main.curvature_at(s_m + BEND_PREVIEW_M))
    return "go straight on" if abs(ahead) < BEND_PER_M else f"follow the road to the {SIDES[int(np.sign(ahead))]}"


def _in_metres(distance_m: float) -> str:
    rounded = round(distance_m / ROUND_TO_M) * ROUND_TO_M
    return f" in {rounded} m" if rounded > 0 else ""
