"""Driving against, beside or between the lanes, and the rules that lanes carry."""

import numpy as np
import shapely
from jaxtyping import Float, Int

from eval.context import ScoringContext
from eval.results import Series
from neural_sim.frames import wrap_angle

WRONG_WAY_RAD = np.deg2rad(120.0)


def score_lanes(context: ScoringContext) -> dict[str, Series]:
    """Where the car is among the lanes. A lane is its centre line, half its width to each side, with flat ends.

    - `wrong_lane`: the centre of the ego box lies in at least one lane, and every lane it lies in points more than
      120 degrees away from the car's heading (wrapped); maximum over time. Invalid in no lane. AlpaSim asks for any one
      such lane, which every crossing lane of a junction is, and does not wrap the angle.
    - `min_distance_to_lane_boundary_m`: gap between the ego box (shrunk, rounded) and the boundary of the union of
      all lanes, 0 unless the union holds the box; minimum over time, m.
    - `lane_offset_m`: distance of the box centre from the centre line of the best aligned lane it lies in; maximum,
      m. Invalid in no lane. Not in AlpaSim.

    All are invalid on a derived map, whose one lane is the recorded path itself.
    """
    steps, lanes = context.lanes_at
    turned = np.abs(wrap_angle(context.ego_planar[steps, 2] - _lane_headings(context, steps, lanes)))
    best = np.full(len(context.t_us), np.inf)
    np.minimum.at(best, steps, turned)
    in_lane = np.isfinite(best)
    centres = shapely.points(context.ego_planar[steps, :2])
    offset_m = shapely.distance(context.shared.lane_lines[lanes], centres) if len(steps) else np.zeros(0)
    aligned_m = np.full(len(best), np.inf)
    np.minimum.at(aligned_m, steps, np.where(turned <= best[steps] + 1e-9, offset_m, np.inf))
    has_lanes = np.full(len(best), context.shared.has_lanes)
    gap_m = _boundary_gap_m(context) if context.shared.has_lanes else np.zeros(len(best))
    return {
        "wrong_lane": context.series(best > WRONG_WAY_RAD, "max", in_lane),
        "min_distance_to_lane_boundary_m": context.series(gap_m, "min", has_lanes),
        "lane_offset_m": context.series(aligned_m, "max", in_lane),
    }


def score_speed_limit(context: ScoringContext) -> dict[str, Series]:
    """`speed_over_limit_mps`: how far the speed exceeds the limit, m/s, 0 within it; maximum over time.

    The limit is the highest of the lanes that hold the centre of the ego box. Invalid where none of them has one: a
    map without limits never counts as keeping them. Not in AlpaSim.
    """
    steps, lanes = context.lanes_at
    limit_mps = np.full(len(context.t_us), np.nan)
    if len(steps):
        np.fmax.at(limit_mps, steps, context.shared.lane_limits_mps[lanes])
    known = np.isfinite(limit_mps)
    over_mps = np.maximum(context.speed_mps - np.where(known, limit_mps, np.inf), 0.0)
    return {"speed_over_limit_mps": context.series(over_mps, "max", known)}


def _lane_headings(
    context: ScoringContext, steps: Int[np.ndarray, "k"], lanes: Int[np.ndarray, "k"]
) -> Float[np.ndarray, "k"]:
    """Heading of each lane at the place nearest to the ego box's centre, rad."""
    if not len(steps):
        return np.zeros(0)
    lines = context.shared.lane_lines[lanes]
    at_m = shapely.line_locate_point(lines, shapely.points(context.ego_planar[steps, :2]))
    length_m = shapely.length(lines)
    behind = shapely.get_coordinates(shapely.line_interpolate_point(lines, np.maximum(at_m - 0.25, 0.0)))
    ahead = shapely.get_coordinates(shapely.line_interpolate_point(lines, np.minimum(at_m + 0.25, length_m)))
    return np.arctan2(ahead[:, 1] - behind[:, 1], ahead[:, 0] - behind[:, 0])


def _boundary_gap_m(context: ScoringContext) -> Float[np.ndarray, "t"]:
    inside = np.flatnonzero(shapely.covers(context.shared.lane_union, context.outlines))
    gap_m = np.zeros(len(context.t_us))
    if inside.size:
        cores = context.ego_box.cores(context.ego_planar[inside])
        (first, _), apart_m = context.shared.lane_boundary.query_nearest(cores, all_matches=False, return_distance=True)
        gap_m[inside[first]] = np.maximum(apart_m - context.ego_box.radius_m, 0.0)
    return gap_m
