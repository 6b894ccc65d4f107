"""How soon the car would hit somebody if nobody changed course."""

import numpy as np
from jaxtyping import Float

from eval.context import ScoringContext
from eval.results import Series
from neural_sim.rectangles import contact_time_s

HORIZON_S = 3.0
CRITICAL_S = 1.0


def score_time_to_collision(context: ScoringContext) -> dict[str, Series]:
    """Time to collision under constant velocity. AlpaSim has no such metric; the names are ours.

    - `time_to_collision_s`: shortest time until the ego box touches another box when both go straight on at their
      present velocities and neither turns; at most 3 s, 0 in contact; minimum over time. Boxes are shrunk by 2 % with
      square corners. Others count only while their centre is ahead of the ego's rear bumper: who drives up from behind
      is not the ego's doing. Contacts that the log has too (see `score_collision`) are left out. Invalid while no other
      road user is present.
    - `time_to_collision_critical`: 1 where it is below 1 s while the ego drives (speed >= 0.1 m/s), as in NAVSIM's
      sub-score TTC; maximum over time.

    Velocities of others are differences of their places over up to two steps around the time.
    """
    soonest_s = np.full(len(context.t_us), HORIZON_S)
    actors = context.record.actor_planar
    present = np.isfinite(actors[..., 0])
    ego, ego_mps = context.ego_planar, context.world_velocity_mps
    velocity_mps = context.actor_velocity_mps
    step, actor = np.nonzero(_may_meet(context))
    half_m = context.actor_half_m
    time_s = contact_time_s(
        ego[step],
        np.broadcast_to(context.ego_half_m, (len(step), 2)),
        actors[step, actor],
        half_m[actor],
        velocity_mps[step, actor] - ego_mps[step],
    )
    time_s = np.where(context.contact_in_log[step, actor], np.inf, time_s)
    np.minimum.at(soonest_s, step, time_s)
    driving = context.speed_mps >= context.protocol.standing_speed_mps
    met = np.asarray(present.any(axis=1))
    return {
        "time_to_collision_s": context.series(soonest_s, "min", met),
        "time_to_collision_critical": context.series((soonest_s < CRITICAL_S) & driving, "max"),
    }


def _may_meet(context: ScoringContext) -> Float[np.ndarray, "t n"]:
    """Pairs of step and actor that can touch within the horizon and are not behind."""
    actors, ego = context.record.actor_planar, context.ego_planar
    offset = actors[..., :2] - ego[:, None, :2]
    ahead_m = offset[..., 0] * np.cos(ego[:, 2, None]) + offset[..., 1] * np.sin(ego[:, 2, None])
    closing_mps = np.linalg.norm(context.actor_velocity_mps - context.world_velocity_mps[:, None], axis=-1)
    reach_m = np.linalg.norm(context.ego_half_m) + np.linalg.norm(context.actor_half_m, axis=-1)
    with np.errstate(invalid="ignore"):
        near = np.hypot(offset[..., 0], offset[..., 1]) <= reach_m + HORIZON_S * closing_mps
        return near & (ahead_m > -context.ego_half_m[0])
