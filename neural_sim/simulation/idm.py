"""Vehicles that follow their logged paths and keep their distance, by the intelligent driver model."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from controllers.errors import require_positive
from neural_sim.frames import planar_from_pose, pose_from_planar
from neural_sim.rectangles import overlap
from neural_sim.road_users import EgoVehicle
from neural_sim.simulation.logged_paths import LoggedPaths, logged_paths
from neural_sim.simulation.traffic import ReplayedTraffic, TrafficStep

# A vehicle whose centre moves less than this in the log is parked and replayed.
PARKED_WITHIN_M = 2.0


@dataclass(frozen=True)
class IdmConfig:
    """The intelligent driver model (Treiber, Hennecke and Helbing 2000)."""

    acceleration_mps2: float = 2.0
    """Largest acceleration, m/s^2."""
    comfortable_braking_mps2: float = 2.5
    """Braking that a vehicle is content with, m/s^2."""
    hardest_braking_mps2: float = 8.0
    """Braking is never harder, m/s^2."""
    headway_s: float = 1.2
    """Time gap to the vehicle ahead, s."""
    standstill_gap_m: float = 2.0
    """Gap to a standing vehicle ahead, m."""
    catch_up_s: float = 2.0
    """Time in which a vehicle behind its log tries to make up for it, s."""
    extra_speed: float = 1.2
    """Fastest speed of a vehicle that catches up, as a multiple of its fastest logged speed."""
    view_m: float = 60.0
    """Distance along the path within which others are seen, m."""
    reach_into_path_m: float = 0.2
    """A road user counts as ahead when its box reaches this far into the swept path, m; logged cars pass that close."""

    def __post_init__(self) -> None:
        require_positive("simulation.idm", **vars(self))


class IdmTraffic:
    """Moving vehicles follow their logged paths and brake for whatever is on them; all others replay the log.

    Road users that a vehicle's own box touches in the log do not stop it. The free speed is that of the log at the same
    time, corrected towards the logged place, so without disturbance traffic stays with its log. A vehicle enters as
    logged and leaves at the end of its logged path. Boxes of driven vehicles stand upright. There is no randomness, and
    a rollout does not depend on the others of its batch.
    """

    def __init__(self, log: ReplayedTraffic, ego_vehicle: EgoVehicle, config: IdmConfig) -> None:
        self._log, self._ego, self._config = log, ego_vehicle, config
        self._step_s = float(np.diff(log.t_us[:2]).sum()) * 1e-6
        moving = [t.category == "vehicle" and t.is_moving(PARKED_WITHIN_M) for t in log.tracks]
        self._driven = np.flatnonzero(moving)
        self._paths: LoggedPaths = logged_paths([log.tracks[n] for n in self._driven], log.t_us)
        sizes = [track.size_m[:2] for track in log.tracks] + [(ego_vehicle.length_m, ego_vehicle.width_m)]
        self._half_size = 0.5 * np.array(sizes, float)
        self._ignored = self._touching_in_log()

    def start(self, logged: TrafficStep, step: int, batch_size: int) -> TrafficStep:
        """See `TrafficModel`. Memory: distance along the path (m) and speed (m/s) of each driven vehicle."""
        motion = np.concatenate([self._paths.logged_m[step], self._paths.logged_mps[step]])
        poses, present = (np.repeat(values, batch_size, axis=0) for values in (logged.T_world_actor, logged.present))
        return TrafficStep(poses, present, np.tile(motion, (batch_size, 1)))

    def advance(
        self, now: TrafficStep, step: int, ego_planar: Float[np.ndarray, "b 3"], ego_velocity: Float[np.ndarray, "b 3"]
    ) -> TrafficStep:
        """See `TrafficModel`; the speed changes by the model's acceleration, the distance by the mean speed."""
        paths, before = self._paths, step - 1
        along_m, speed_mps = np.split(now.memory, 2, axis=1)
        gap_m, closing_mps = self._ahead(now, along_m, speed_mps, ego_planar, ego_velocity)
        free_mps = paths.logged_mps[before] + (paths.logged_m[before] - along_m) / self._config.catch_up_s
        free_mps = np.clip(free_mps, 0.0, self._config.extra_speed * paths.fastest_mps)
        acceleration = idm_acceleration(speed_mps, free_mps, gap_m, closing_mps, self._config)
        later_mps = np.maximum(speed_mps + acceleration * self._step_s, 0.0)
        later_m = np.minimum(along_m + 0.5 * (speed_mps + later_mps) * self._step_s, paths.length_m)
        waiting = ~now.present[:, self._driven] & (self._log.t_us[before] < paths.start_us)
        later_m = np.where(waiting, paths.logged_m[step], later_m)
        later_mps = np.where(waiting, paths.logged_mps[step], later_mps)
        return self._placed(later_m, later_mps, now, step)

    def _placed(
        self, along_m: Float[np.ndarray, "b r"], speed_mps: Float[np.ndarray, "b r"], now: TrafficStep, step: int
    ) -> TrafficStep:
        logged = self._log.at(step)
        poses, present = (np.repeat(v, len(along_m), axis=0) for v in (logged.T_world_actor, logged.present))
        planar, z_m = self._paths.at(along_m)
        poses[:, self._driven] = pose_from_planar(planar, z_m)
        was_present = now.present[:, self._driven]
        on_the_way = was_present & (along_m < self._paths.length_m - 0.5)
        present[:, self._driven] |= on_the_way
        return TrafficStep(poses, present, np.concatenate([along_m, speed_mps], axis=1))

    def _ahead(
        self,
        now: TrafficStep,
        along_m: Float[np.ndarray, "b r"],
        speed_mps: Float[np.ndarray, "b r"],
        ego_planar: Float[np.ndarray, "b 3"],
        ego_velocity: Float[np.ndarray, "b 3"],
    ) -> tuple[Float[np.ndarray, "b r"], Float[np.ndarray, "b r"]]:
        """Gap to the next road user on each driven vehicle's path, m (inf: none), and how fast it closes, m/s."""
        others, others_mps = self._others(now, speed_mps, ego_planar, ego_velocity)
        driven = now.planar[:, self._driven]
        with np.errstate(invalid="ignore"):
            offset_m = others[:, None, :, :2] - driven[:, :, None, :2]
            seen = np.hypot(offset_m[..., 0], offset_m[..., 1]) < self._config.view_m
        seen &= ~self._ignored
        b, r, n = np.nonzero(seen)
        gap_m, forward_mps = self._gaps(along_m[b, r], r, others[b, n], others_mps[b, n], n)
        gaps, speeds = np.full(seen.shape, np.inf), np.zeros(seen.shape)
        gaps[b, r, n], speeds[b, r, n] = gap_m, forward_mps
        nearest = gaps.argmin(axis=2)[..., None]
        gap_m = np.take_along_axis(gaps, nearest, axis=2)[..., 0]
        return gap_m, speed_mps - np.take_along_axis(speeds, nearest, axis=2)[..., 0]

    def _touching_in_log(self) -> Bool[np.ndarray, "r m"]:
        """For each driven vehicle, itself and those whose logged box its own touches at some time: flaws of the boxes
        that it must not stop for. The ego, last, is never ignored."""
        ignored = np.zeros((len(self._driven), len(self._half_size)), bool)
        planar = np.where(self._log.present[..., None], planar_from_pose(self._log.T_world_actor), np.nan)
        for r, own in enumerate(self._driven):
            reach_m = np.linalg.norm(self._half_size[own]) + np.linalg.norm(self._half_size[:-1], axis=1)
            with np.errstate(invalid="ignore"):
                apart_m = np.linalg.norm(planar[..., :2] - planar[:, own, None, :2], axis=-1)
                t, n = np.nonzero(apart_m <= reach_m)
            own_half = np.broadcast_to(self._half_size[own], (len(t), 2))
            touching = overlap(planar[t, own], own_half, planar[t, n], self._half_size[n])
            ignored[r, n[touching]] = True
        return ignored

    def _others(
        self,
        now: TrafficStep,
        speed_mps: Float[np.ndarray, "b r"],
        ego_planar: Float[np.ndarray, "b 3"],
        ego_velocity: Float[np.ndarray, "b 3"],
    ) -> tuple[Float[np.ndarray, "b m 3"], Float[np.ndarray, "b m"]]:
        """Box centres (x, y, yaw) and speeds along their headings of all N road users and, last, of the ego."""
        yaw_rad = np.ascontiguousarray(ego_planar[:, 2])
        offset = self._ego.center_x_m * np.stack([np.cos(yaw_rad), np.sin(yaw_rad), np.zeros_like(yaw_rad)], axis=-1)
        others = np.concatenate([now.planar, (ego_planar + offset)[:, None]], axis=1)
        speeds = np.zeros(others.shape[:2])
        speeds[:, self._driven], speeds[:, -1] = speed_mps, ego_velocity[:, 0]
        return others, speeds

    def _gaps(
        self,
        along_m: Float[np.ndarray, "p"],
        row: np.ndarray,
        other: Float[np.ndarray, "p 3"],
        other_mps: Float[np.ndarray, "p"],
        index: np.ndarray,
    ) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
        """Gap along the path of driven vehicle `row` to the box of road user `index` (inf when it is not on the path
        ahead), and that user's speed along the path."""
        ahead_m, left_m, turned_rad = self._paths.project_ahead(row, along_m, other, self._config.view_m)
        half_l, half_w = self._half_size[index].T
        cosine, sine = np.abs(np.cos(turned_rad)), np.abs(np.sin(turned_rad))
        own_half_l, own_half_w = self._half_size[self._driven[row]].T
        gap_m = ahead_m - own_half_l - (cosine * half_l + sine * half_w)
        reach_m = own_half_w + sine * half_l + cosine * half_w - np.abs(left_m)
        on_path = (ahead_m > 0) & (reach_m > self._config.reach_into_path_m)
        return np.where(on_path, gap_m, np.inf), other_mps * np.cos(turned_rad)


def idm_acceleration(
    speed_mps: Float[np.ndarray, "*n"],
    free_mps: Float[np.ndarray, "*n"],
    gap_m: Float[np.ndarray, "*n"],
    closing_mps: Float[np.ndarray, "*n"],
    config: IdmConfig,
) -> Float[np.ndarray, "*n"]:
    """a (1 - (v / v0)^4 - (s* / s)^2) with s* = s0 + max(0, v T + v dv / (2 sqrt(a b))), m/s^2.

    Above the free speed v0 the first two terms become -b (1 - (v0 / v)^4), so that a vehicle slows down comfortably.
    Bounded by the hardest braking; a gap of zero or less brakes with it.
    """
    a, b = config.acceleration_mps2, config.comfortable_braking_mps2
    slower = speed_mps <= free_mps
    ratio = np.where(slower, speed_mps, free_mps) / np.maximum(np.where(slower, free_mps, speed_mps), 1e-3)
    free = np.where(slower, a, -b) * (1 - ratio**4)
    wanted_m = config.standstill_gap_m + np.maximum(
        0.0, speed_mps * config.headway_s + speed_mps * closing_mps / (2 * np.sqrt(a * b))
    )
    interaction = -a * (wanted_m / np.maximum(gap_m, 0.1)) ** 2
    return np.clip(free + interaction, -config.hardest_braking_mps2, a)
