"""Contacts with other road users, and the gap to the nearest one."""

import numpy as np
import shapely
from jaxtyping import Bool, Float

from eval.boxes import gaps_m
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
    - `collision_at_fault`: front, or lateral while the ego drives (speed >= 0.1 m/s);
    - `collision_at_fault_road_user`: the same, obstacles (cones, barriers) not counted.

    A contact is left out when the expert's box touched the same actor in the log at the same time: that is a flaw of
    the recorded boxes, not of the driver. `min_distance_to_obstacle_m`: smallest gap between the ego box and any
    other, 0 in contact; invalid while there is no other road user. Left-out contacts do not enter it.

    Differs from AlpaSim: all contacts of a step count (there the last one overwrites the others), overlaps in the log
    are left out, and a standing ego hit from the side is not at fault.
    """
    gap_m = gaps_to_actors(context)
    contact = gap_m <= 0
    in_log = contact & context.contact_in_log & (not context.protocol.count_contacts_in_log)
    front, rear, lateral = _by_side(context, contact & ~in_log)
    driving = context.speed_mps >= context.protocol.standing_speed_mps
    at_fault = front | (lateral & driving[:, None])
    road_user = np.array([track.category != "obstacle" for track in context.actor_tracks], bool)
    nearest_m = np.where(in_log, np.inf, gap_m).min(axis=1, initial=np.inf)
    return {
        "collision_front": context.series(_any(front), "max"),
        "collision_rear": context.series(_any(rear), "max"),
        "collision_lateral": context.series(_any(lateral), "max"),
        "collision_any": context.series(_any(front | rear | lateral), "max"),
        "collision_at_fault": context.series(_any(at_fault), "max"),
        "collision_at_fault_road_user": context.series(_any(at_fault & road_user), "max"),
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
    inner_m = context.ego_half_m.min() + context.actor_half_m.min(axis=1, initial=np.inf)
    farthest_nearest_m = (apart_m - inner_m).min(axis=1, initial=np.inf)
    may_be_nearest = np.isfinite(apart_m) & (apart_m - reach_m <= np.maximum(farthest_nearest_m, 0.0)[:, None])
    step, n = np.nonzero(may_be_nearest)
    boxes = [context.actor_boxes[i] for i in n]
    gap_m[step, n] = gaps_m([context.ego_box] * len(n), context.ego_planar[step], boxes, actors[step, n])
    return gap_m


def _any(contact: Bool[np.ndarray, "t n"]) -> Bool[np.ndarray, "t"]:
    return np.asarray(contact.any(axis=1))


def _by_side(context: ScoringContext, contact: Bool[np.ndarray, "t n"]) -> tuple[Bool[np.ndarray, "t n"], ...]:
    """Which contacts are at the front, at the rear and at the side."""
    front, rear = np.zeros_like(contact), np.zeros_like(contact)
    for n in np.flatnonzero(contact.any(axis=0)):
        steps, box = np.flatnonzero(contact[:, n]), context.actor_boxes[n]
        cores = box.cores(context.record.actor_planar[steps, n])
        ego = context.ego_planar[steps]
        front[steps, n] = shapely.distance(context.ego_box.bumpers(ego), cores) <= box.radius_m
        rear[steps, n] = shapely.distance(context.ego_box.bumpers(ego, rear=True), cores) <= box.radius_m
    rear &= ~front
    lateral = contact & ~front & ~rear
    return front, rear, lateral
