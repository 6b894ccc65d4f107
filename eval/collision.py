"""Contacts with other road users, and the gap to the nearest one."""

import numpy as np
import shapely
from jaxtyping import Bool, Float

from eval.boxes import RoundedBox
from eval.context import ScoringContext
from eval.results import Series


def score_collision(context: ScoringContext) -> dict[str, Series]:
    """Collision flags and the gap to the nearest road user. Ground plane only: heights are not compared.

    Every box is shrunk by 2 % and its corners are rounded (radius 0.25 of the shorter side); touching counts.
    The bumper is the part of the ego outline within one corner radius of its front or rear end. At each step, for
    each other box in contact with the ego box:

    - `collision_front`: it meets the front bumper;
    - `collision_rear`: else it meets the rear bumper;
    - `collision_lateral`: else;
    - `collision_any`: any of the three;
    - `collision_at_fault`: front, or lateral while the ego drives (speed >= 0.1 m/s).

    A contact is left out when the expert's box touched the same actor in the log at the same time: that is a flaw of
    the recorded boxes, not of the driver. `min_distance_to_obstacle_m`: smallest gap between the ego box and any
    other, 0 in contact; invalid while there is no other road user. Left-out contacts do not enter it.

    Differs from AlpaSim: all contacts of a step count (there the last one overwrites the others), overlaps in the log
    are left out, and a standing ego hit from the side is not at fault.
    """
    gap_m = gaps_to_actors(context)
    contact = gap_m <= 0
    in_log = contact & overlaps_in_log(context, contact)
    front, rear, lateral = _by_side(context, contact & ~in_log)
    at_fault = front | (lateral & (context.speed_mps >= context.protocol.standing_speed_mps))
    nearest_m = np.where(in_log, np.inf, gap_m).min(axis=1, initial=np.inf)
    return {
        "collision_front": context.series(front, "max"),
        "collision_rear": context.series(rear, "max"),
        "collision_lateral": context.series(lateral, "max"),
        "collision_any": context.series(front | rear | lateral, "max"),
        "collision_at_fault": context.series(at_fault, "max"),
        "min_distance_to_obstacle_m": context.series(nearest_m, "min", np.isfinite(nearest_m)),
    }


def gaps_to_actors(context: ScoringContext) -> Float[np.ndarray, "t n"]:
    """Gap between ego box and each actor's box, m; 0 in contact, inf while absent.

    Actors that cannot be the nearest at a step have inf there as well: their exact gap is never needed.
    """
    actors = context.record.actor_planar
    gap_m = np.full(actors.shape[:2], np.inf)
    reach_m = context.ego_box.reach_m + np.array([box.reach_m for box in context.actor_boxes])
    apart_m = np.linalg.norm(actors[..., :2] - context.ego_planar[:, None, :2], axis=-1)
    apart_m = np.where(np.isfinite(apart_m), apart_m, np.inf)
    may_be_nearest = apart_m - reach_m <= apart_m.min(axis=1, initial=np.inf)[:, None]
    may_be_nearest &= np.isfinite(apart_m)
    for n, box in enumerate(context.actor_boxes):
        steps = np.flatnonzero(may_be_nearest[:, n])
        gap_m[steps, n] = _gap(context.ego_box, context.ego_planar[steps], box, actors[steps, n])
    return gap_m


def overlaps_in_log(context: ScoringContext, contact: Bool[np.ndarray, "t n"]) -> Bool[np.ndarray, "t n"]:
    """Where in `contact` the expert's box touched the same actor's recorded box at the same time; else false."""
    overlap = np.zeros_like(contact)
    for n, (track, box) in enumerate(zip(context.actor_tracks, context.actor_boxes, strict=True)):
        recorded = (context.t_us >= track.trajectory.start_us) & (context.t_us <= track.trajectory.end_us)
        steps = np.flatnonzero(contact[:, n] & recorded & context.is_within_log)
        if steps.size:
            logged = track.trajectory.planar_at(context.t_us[steps])
            overlap[steps, n] = _gap(context.ego_box, context.expert_planar[steps], box, logged) <= 0
    return overlap


def _by_side(context: ScoringContext, contact: Bool[np.ndarray, "t n"]) -> tuple[Bool[np.ndarray, "t"], ...]:
    """Front, rear and lateral flags over all contacts of a step."""
    front, rear = np.zeros_like(contact), np.zeros_like(contact)
    for n in np.flatnonzero(contact.any(axis=0)):
        steps, box = np.flatnonzero(contact[:, n]), context.actor_boxes[n]
        cores = box.cores(context.record.actor_planar[steps, n])
        ego = context.ego_planar[steps]
        front[steps, n] = shapely.distance(context.ego_box.bumpers(ego), cores) <= box.radius_m
        rear[steps, n] = shapely.distance(context.ego_box.bumpers(ego, rear=True), cores) <= box.radius_m
    rear &= ~front
    lateral = contact & ~front & ~rear
    return tuple(np.any(side, axis=1) for side in (front, rear, lateral))


def _gap(
    first: RoundedBox,
    first_planar: Float[np.ndarray, "t 3"],
    second: RoundedBox,
    second_planar: Float[np.ndarray, "t 3"],
) -> Float[np.ndarray, "t"]:
    apart_m = shapely.distance(first.cores(first_planar), second.cores(second_planar))
    return np.maximum(apart_m - first.radius_m - second.radius_m, 0.0)
