"""The closed loop: B rollouts of one scene, driven by plans."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from controllers.choice import make_controller
from controllers.interface import ControlCommand, Controller, VehicleState
from controllers.lateral import cross_track
from controllers.plan_delay import PlanDelay
from controllers.reference import WorldPlan, nearest_point, replace_rows, travelled_at
from neural_sim.clips.clip import navigation_at
from neural_sim.errors import InputError
from neural_sim.frames import wrap_angle
from neural_sim.rendering.renderer import Renderer
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.camera_rig import CameraRig, Frame
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.ego_noise import ego_pose_errors, estimated_pose
from neural_sim.simulation.expert import ExpertPath
from neural_sim.simulation.expert_query import expert_query_plans
from neural_sim.simulation.ground import ExpertGround
from neural_sim.simulation.history import events_of, observe, rollout_records
from neural_sim.simulation.idm import IdmTraffic
from neural_sim.simulation.observation import ImageFormat, Observation
from neural_sim.simulation.plans import (
    ODD_PLAN_DETAILS,
    checked_plans,
    drivable_rows,
    odd_plans,
    placed_plan,
    rejection_detail,
)
from neural_sim.simulation.record import RolloutRecord, SimulationEvent
from neural_sim.simulation.reports import black_image_events, safety_monitor_events
from neural_sim.simulation.route import COMMAND_TEXTS, Command, command_of, make_route
from neural_sim.simulation.scene_checks import scene_events
from neural_sim.simulation.state import SimulatorState, StepEntry, StepInfo
from neural_sim.simulation.traffic import TrafficModelFactory, TrafficStep, replay_traffic
from neural_sim.simulation.vehicle import planar_pose, rig_acceleration, rig_velocity, step_vehicle
from neural_sim.simulation.warmup import replay_log


class Simulator:
    """Drives B rollouts of one scene in lock step.

    Each step takes one plan per rollout, queues it, lets the controller follow the plan that is due, moves the
    vehicles and the traffic, settles the ego on the ground and renders the next images. The
    results of a rollout depend on the scene, the
    configuration, its seed and its plans, and not on the other rollouts of the batch.
    """

    def __init__(
        self,
        scene: Scene,
        renderer: Renderer,
        config: SimulationConfig,
        images: ImageFormat,
        traffic: TrafficModelFactory | None = None,
    ) -> None:
        """`traffic` makes a model of other road users from their log, in place of `config.traffic`."""
        self.scene, self.config, self.images = scene, config, images
        self._frame_stride = config.frame_stride(images)
        self._expert = ExpertPath(scene.expert)
        self._ground = ExpertGround(scene.expert)
        self._rig = CameraRig(scene.cameras, renderer, self._ground, images, config.control_step_us)
        self._vehicle = config.vehicle_of(scene.ego_vehicle)
        self.controller: Controller = make_controller(self._vehicle, config.controller, config.control_step_us)
        self._start_us = self._first_time_us()
        self._times_us = self._step_times_us()
        self._log = replay_traffic(scene.tracks, self._times_us, config.min_traffic_duration_s)
        if traffic is not None:
            self._traffic = traffic(self._log, scene.ego_vehicle)
        else:
            reactive = config.traffic == "idm"
            self._traffic = IdmTraffic(self._log, scene.ego_vehicle, config.idm) if reactive else self._log
        self._scene_events = scene_events(scene, self._log, self._start_us)
        self._route = make_route(scene.expert, scene.road_map, config.route)
        self._current: SimulatorState | None = None

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Start one rollout per seed: replay the warm-up and return the first observation.

        Until the hand-over all rollouts are alike but for the ego noise, so these images are rendered once.
        """
        if len(seeds) == 0 or min(seeds) < 0:
            raise InputError(f"seeds: found {list(seeds)}, expected at least one, none negative")
        config, batch_size = self.config, len(seeds)
        errors = ego_pose_errors(config.ego_noise, seeds, len(self._times_us), config.control_step_us * 1e-6)
        replayed = list(replay_log(self._expert, self.controller, self._vehicle, config, self._start_us))
        states = [_repeat_state(vehicle, batch_size) for vehicle, _, _ in replayed]
        traffic: list[TrafficStep] = [self._log.at(k) for k in range(len(states))]
        traffic[-1] = self._traffic.start(traffic[-1], len(states) - 1, batch_size)
        entries = tuple(self._entry(k, states[k], errors, traffic[k]) for k in range(len(states)))
        frames = self._warmup_frames(entries)
        _, delay, command = replayed[-1]
        self._current = SimulatorState(
            scene_id=self.scene.scene_id,
            seeds=tuple(int(seed) for seed in seeds),
            pose_errors=errors,
            vehicle=states[-1],
            delay=replace(delay, entries=tuple((t, _repeat_plan(plan, batch_size)) for t, plan in delay.entries)),
            command=_repeat_command(command, batch_size),
            entries=entries,
            plans=(None,) * (len(entries) - 1),
            frames=frames,
            events=(
                *((b, event) for b in range(batch_size) for event in self._scene_events),
                *black_image_events(frames[-1], entries[-1].t_us),
            ),
        )
        return self.observation()

    def step(
        self, plans: Float[np.ndarray, "b 64 3"], safety_monitor: Bool[np.ndarray, "b"] | None = None
    ) -> tuple[Observation, StepInfo]:
        """Hand over one plan per rollout, (x, y, yaw) at 0.1 s to 6.4 s in the rig frame now, and move on by one step.

        `safety_monitor`: where the driver's own monitor objects; it becomes an event and changes nothing.
        Raises `InputError` when an array has another shape or the simulation is over. A plan that is not finite or
        jumps is rejected with an event; that rollout keeps its previous plan.
        """
        state = self._state
        if self.is_done:
            raise InputError(f"scene {state.scene_id}: the simulation ended at {self.t_us} us; call reset")
        plans = checked_plans(plans, len(state.seeds))
        delay, accepted = self._queue(state, plans)
        followed = delay.at(self.t_us)
        command = self.controller.command(state.vehicle, followed, self.t_us, state.command)
        step_s = self.config.control_step_us * 1e-6
        vehicle = step_vehicle(state.vehicle, command, step_s, self._vehicle, self.config.limits)
        now, step = state.now, len(state.entries)
        traffic = self._traffic.advance(now.traffic, step, now.planar, now.velocity)
        entry = self._entry(step, vehicle, state.pose_errors, traffic)
        frame = self._render(now, entry)
        events = safety_monitor_events(safety_monitor, len(state.seeds), now.t_us)
        events += self._events(state, plans, accepted, command, entry)
        events += black_image_events(frame, entry.t_us)
        handed_over = plans.astype(np.float32)
        handed_over.flags.writeable = False
        self._current = replace(
            state,
            vehicle=vehicle,
            delay=delay,
            command=command,
            entries=(*state.entries, entry),
            plans=(*state.plans, handed_over),
            frames=(*state.frames[1:], frame),
            events=(*state.events, *events),
        )
        return self.observation(), self._info(entry, followed, accepted, events)

    def observation(self) -> Observation:
        """The observation at the present time; `reset` and `step` return the same."""
        step_us = self.config.control_step_us
        return observe(self._state, self.images, step_us, self._navigation(), self.waypoints())

    def waypoints(self) -> Float[np.ndarray, "b 20 2"]:
        """The route ahead of each rollout: 20 points over 80 m in its true rig frame, m; NaN after the route's end."""
        return self._route.waypoints(self._state.now.planar)

    def commands(self) -> tuple[Command, ...]:
        """LEFT, RIGHT, STRAIGHT or UNKNOWN for each rollout, from its waypoints."""
        return command_of(self.waypoints(), self.config.route)

    def save_state(self) -> SimulatorState:
        """The state now. It is immutable: later steps do not change it, and it can be restored any number of times."""
        return self._state

    def restore_state(self, state: SimulatorState) -> Observation:
        """Go back to a saved state and return its observation. Raises `InputError` for a state of another scene."""
        if state.scene_id != self.scene.scene_id or state.pose_errors.shape[1] != len(self._times_us):
            raise InputError(
                f"saved state of scene {state.scene_id} with {state.pose_errors.shape[1]} steps does not fit the "
                f"simulation of scene {self.scene.scene_id} with {len(self._times_us)} steps"
            )
        self._current = state
        return self.observation()

    def records(self, rollout_indices: Sequence[int] | None = None) -> list[RolloutRecord]:
        """What happened so far, one record per rollout, numbered by `rollout_indices` (0 to B - 1 if not given)."""
        indices = range(len(self._state.seeds)) if rollout_indices is None else rollout_indices
        if len(indices) != len(self._state.seeds):
            raise InputError(f"rollout indices: found {len(indices)}, expected {len(self._state.seeds)}")
        return rollout_records(self._state, self._log.track_ids, indices)

    def expert_query(self) -> Float[np.ndarray, "b 64 3"]:
        """Plans that lead each rollout from its true state back to the expert; see `expert_query_plans`.

        (x, y, yaw) 0.1 s to 6.4 s from now, world frame, m and rad, yaw not wrapped.
        """
        return expert_query_plans(self._state.vehicle, self._expert, self.controller, self.config, self.t_us)

    def nearest_expert_time(self, around_us: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
        """When the expert was nearest to each rollout, us, searched within 3 s of `around_us`."""
        return self._expert.nearest_time(self._state.now.planar[:, :2], around_us)

    def expert_future(self, t_us: int | None = None) -> tuple[Float[np.ndarray, "64 3"], Bool[np.ndarray, "64"]]:
        """The expert's (x, y, yaw) 0.1 s to 6.4 s after `t_us` (now if not given) and whether the log has them.

        World frame, m and rad, yaw not wrapped. Beyond the end of the log the expert drives straight on, mask false.
        """
        return self._expert.future(self.t_us if t_us is None else t_us)

    @property
    def t_us(self) -> int:
        """The present, us."""
        return self._state.now.t_us

    @property
    def is_done(self) -> bool:
        """Whether the last step of the simulation has been reached."""
        return len(self._state.entries) == len(self._times_us)

    @property
    def num_steps(self) -> int:
        """How many steps the policy drives from the hand-over to the end."""
        return len(self._times_us) - 1 - self.config.warmup_steps

    @property
    def handover_us(self) -> int:
        """When the policy takes over, us."""
        return int(self._times_us[self.config.warmup_steps])

    @property
    def end_us(self) -> int:
        """Time of the last step, us."""
        return int(self._times_us[-1])

    @property
    def ego_planar(self) -> Float[np.ndarray, "b 3"]:
        """True rig poses (x, y, yaw in [-pi, pi)) now, world frame, m and rad."""
        return _wrapped(self._state.now.planar)

    @property
    def _state(self) -> SimulatorState:
        if self._current is None:
            raise InputError(f"scene {self.scene.scene_id}: the simulation has not started; call reset first")
        return self._current

    def _first_time_us(self) -> int:
        """When the log has both a pose and an image of every used camera."""
        times = self.scene.camera_times_us
        first = [int(times[c.name][0]) for c in self._rig.cameras if c.name in times and len(times[c.name])]
        return max(self.scene.expert.start_us, *first) if first else self.scene.expert.start_us

    def _step_times_us(self) -> np.ndarray:
        end_us = min(self.scene.expert.end_us, self._start_us + self.config.duration_us)
        times_us = np.arange(self._start_us, end_us + 1, self.config.control_step_us, dtype=np.int64)
        if len(times_us) < self.config.warmup_steps + 2:
            raise InputError(
                f"scene {self.scene.scene_id}: its log covers {(end_us - self._start_us) * 1e-6:.3g} s, expected more "
                f"than the warm-up of {self.config.warmup_us * 1e-6:.3g} s; shorten simulation.warmup_us"
            )
        return times_us

    def _navigation(self) -> tuple[str, ...]:
        """Recorded instructions, or those of the route where there are none and the configuration asks for them."""
        if self.scene.navigation or not self.config.navigation_from_route:
            return (navigation_at(self.scene.navigation, self.t_us),) * len(self._state.seeds)
        return tuple(COMMAND_TEXTS[command] for command in self.commands())

    def _entry(
        self, step: int, vehicle: VehicleState, errors: Float[np.ndarray, "b t 3"], traffic: TrafficStep
    ) -> StepEntry:
        planar = planar_pose(vehicle)
        return StepEntry(
            t_us=int(self._times_us[step]),
            is_warmup=step < self.config.warmup_steps,
            planar=planar,
            estimated=estimated_pose(planar, errors[:, step]),
            T_world_rig=self._ground.settle(planar),
            velocity=rig_velocity(vehicle, self._vehicle),
            acceleration_mps2=rig_acceleration(vehicle, self._vehicle),
            steering_rad=vehicle.steering_rad.copy(),
            traffic=traffic,
        )

    def _queue(self, state: SimulatorState, plans: Float[np.ndarray, "b 64 3"]) -> tuple[PlanDelay, np.ndarray]:
        """The plan queue with the new plans, and which of them were accepted."""
        accepted = drivable_rows(plans, self.config.max_plan_step_m)
        plan = placed_plan(np.where(accepted[:, None, None], plans, 0.0), state.now.planar, self.t_us)
        if not accepted.all():
            plan = replace_rows(plan, state.delay.newest, accepted)
        return state.delay.push(self.t_us, plan), accepted

    def _events(
        self,
        state: SimulatorState,
        plans: Float[np.ndarray, "b 64 3"],
        accepted: np.ndarray,
        command: ControlCommand,
        entry: StepEntry,
    ) -> list[tuple[int, SimulationEvent]]:
        limit_mps = self.config.max_speed_mps
        events: list[tuple[int, SimulationEvent]] = []
        for b in np.flatnonzero(~accepted):
            detail = rejection_detail(plans[b], self.config.max_plan_step_m)
            events.append((int(b), SimulationEvent(state.now.t_us, "plan_rejected", detail)))
        events += [(b, SimulationEvent(state.now.t_us, "solver_failed", reason)) for b, reason in command.failures]
        events += self._odd_plan_events(state, plans)
        speed_mps = entry.velocity[:, 0]
        for b in np.flatnonzero((speed_mps > limit_mps) & (state.now.velocity[:, 0] <= limit_mps)):
            detail = f"{speed_mps[b]:.4g} m/s exceeds {limit_mps:g} m/s"
            events.append((int(b), SimulationEvent(entry.t_us, "speed_out_of_bounds", detail)))
        return events

    def _odd_plan_events(
        self, state: SimulatorState, plans: Float[np.ndarray, "b 64 3"]
    ) -> list[tuple[int, SimulationEvent]]:
        """Told when it begins, not at every step that it lasts."""
        odd = odd_plans(plans, state.now.velocity[:, 0])
        before = state.plans[-1]
        events: list[tuple[int, SimulationEvent]] = []
        for kind, rows in odd.items():
            if before is not None and rows.any():
                rows = rows & ~odd_plans(before.astype(float), state.entries[-2].velocity[:, 0])[kind]
            events += [
                (int(b), SimulationEvent(state.now.t_us, kind, ODD_PLAN_DETAILS[kind])) for b in np.flatnonzero(rows)
            ]
        return events

    def _info(
        self,
        entry: StepEntry,
        followed: WorldPlan,
        accepted: np.ndarray,
        events: Sequence[tuple[int, SimulationEvent]],
    ) -> StepInfo:
        x_m, y_m = entry.planar[:, 0], entry.planar[:, 1]
        here = nearest_point(followed, x_m, y_m)
        return StepInfo(
            t_us=entry.t_us,
            events=tuple(events_of(events, b) for b in range(len(entry.planar))),
            ego_planar=_wrapped(entry.planar),
            plan_accepted=accepted,
            cross_track_m=cross_track(here, x_m, y_m),
            along_track_m=here.travelled_m - travelled_at(followed, np.array([entry.t_us]))[:, 0],
        )

    def _render(self, before: StepEntry, now: StepEntry) -> Frame:
        actors, earlier = (entry.traffic.actors(self._log.track_ids, len(now.planar)) for entry in (now, before))
        return self._rig.render(now.t_us, before.planar, now.planar, now.T_world_rig, actors, earlier)

    def _warmup_frames(self, entries: Sequence[StepEntry]) -> tuple[Frame, ...]:
        """The frames needed from the hand-over on, rendered for one rollout and shared by all."""
        oldest = len(entries) - 1 - (self.images.num_frames - 1) * self._frame_stride
        batch_size = len(entries[-1].planar)
        frames: list[Frame] = []
        for k in range(oldest, len(entries)):
            before, now = entries[max(k - 1, 0)], entries[k]
            actors, earlier = (e.traffic.actors(self._log.track_ids, batch_size)[:1] for e in (now, before))
            frame = self._rig.render(now.t_us, before.planar[:1], now.planar[:1], now.T_world_rig[:1], actors, earlier)
            frames.append({c: np.broadcast_to(i, (batch_size, *i.shape[1:])) for c, i in frame.items()})
        return tuple(frames)


def _repeat_state(vehicle: VehicleState, batch_size: int) -> VehicleState:
    return VehicleState(*(np.repeat(value, batch_size) for value in vars(vehicle).values()))


def _repeat_command(command: ControlCommand, batch_size: int) -> ControlCommand:
    """The answer to one vehicle as the answer to a batch of its copies."""
    memory = None if command.memory is None else np.repeat(command.memory, batch_size, axis=0)
    return ControlCommand(
        np.repeat(command.steering_rad, batch_size), np.repeat(command.acceleration_mps2, batch_size), memory
    )


def _repeat_plan(plan: WorldPlan, batch_size: int) -> WorldPlan:
    columns = (plan.x_m, plan.y_m, plan.yaw_rad, plan.travelled_m, plan.slid_m)
    rows = (np.repeat(values, batch_size, axis=0) for values in columns)
    return WorldPlan(np.repeat(plan.start_us, batch_size), plan.step_us, *rows)


def _wrapped(planar: Float[np.ndarray, "b 3"]) -> Float[np.ndarray, "b 3"]:
    result = planar.copy()
    result[:, 2] = wrap_angle(result[:, 2])
    return result
