"""What decides in a rollout: the policy guided by the expert (RoaD), its alternatives, or the recording itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float

from neural_sim.errors import InputError
from neural_sim.frames import planar_to_local
from neural_sim.road_users import EgoVehicle
from neural_sim.simulation.observation import PLAN_STEPS, Observation
from neural_sim.simulation.simulator import Simulator
from pipelines.guidance import GuidanceConfig, GuidedPlans, choose_plans, given_plans
from pipelines.perturbation import SmoothErrors, shifted
from vla.policy import Policy


class Strategy(Protocol):
    """Chooses the plans of one batch of rollouts, step by step."""

    def decide(self, simulator: Simulator, observation: Observation) -> GuidedPlans:
        """The plans to execute and to learn at the present time of the simulator, rig frame."""
        ...


def make_strategy(config: GuidanceConfig, policy: Policy | None, vehicle: EgoVehicle, seeds: Sequence[int]) -> Strategy:
    """The strategy that `config.strategy` names, for rollouts with these seeds.

    Raises `InputError` when it asks a policy and none is given.
    """
    if config.strategy == "expert":
        return ReplayStrategy(config)
    if config.strategy == "perturb":
        return PerturbedStrategy(config, seeds)
    if policy is None:
        raise InputError(f"guidance strategy {config.strategy!r} asks a policy; pass --policy")
    sampled = SampledStrategy(config, policy, vehicle, seeds)
    return QueriedStrategy(sampled) if config.strategy == "dagger" else sampled


class ExpertView:
    """The expert continuation as each rollout sees it, by time or by path position."""

    def __init__(self, config: GuidanceConfig) -> None:
        self._config = config
        self._reached_us: np.ndarray | None = None

    def ahead(self, simulator: Simulator) -> tuple[Float[np.ndarray, "b 64 3"], Bool[np.ndarray, "b 64"]]:
        """The next 6.4 s of the expert in each rollout's true rig frame, m and rad, and which steps were recorded."""
        ego = simulator.ego_planar
        futures = [simulator.expert_future(int(t_us)) for t_us in self._expert_times_us(simulator)]
        world = np.stack([planar for planar, _ in futures])
        return planar_to_local(world, ego[:, None]), np.stack([valid for _, valid in futures])

    def _expert_times_us(self, simulator: Simulator) -> np.ndarray:
        now_us = np.full(len(simulator.ego_planar), simulator.t_us)
        if self._config.progress == "time":
            return now_us
        around_us = now_us if self._reached_us is None else self._reached_us
        self._reached_us = simulator.nearest_expert_time(around_us)
        return self._reached_us


class SampledStrategy:
    """Sample K plans, take the closest to the expert, recover when it is far (equations 4 to 8)."""

    def __init__(self, config: GuidanceConfig, policy: Policy, vehicle: EgoVehicle, seeds: Sequence[int]) -> None:
        self._config, self._policy, self._vehicle = config, policy, vehicle
        self._expert = ExpertView(config)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def decide(self, simulator: Simulator, observation: Observation) -> GuidedPlans:
        """Algorithm 1, lines 6 to 10."""
        config = self._config
        samples = self._policy.sample(observation, config.samples_per_step, config.temperature, self._generators)
        candidates = checked_candidates(samples.poses, len(self._generators), config.samples_per_step, simulator)
        expert, valid = self._expert.ahead(simulator)
        time_left_s = (simulator.scene.expert.end_us - simulator.t_us) * 1e-6
        guided = choose_plans(candidates, expert, valid, time_left_s, self._vehicle, config)
        return (
            guided if samples.safety_monitor is None else replace(guided, safety_monitor=samples.safety_monitor.numpy())
        )


class QueriedStrategy:
    """DAgger: the policy's own plan is executed, the privileged planner's answer is learned."""

    def __init__(self, sampled: SampledStrategy) -> None:
        self._sampled = sampled

    def decide(self, simulator: Simulator, observation: Observation) -> GuidedPlans:
        """The policy's plan, with the way back to the expert as the target."""
        return replace(self._sampled.decide(simulator, observation), targets=expert_answers(simulator))


class ReplayStrategy:
    """The recorded drive, re-rendered: the paper's control arm and the ceiling of an evaluation."""

    def __init__(self, config: GuidanceConfig) -> None:
        self._expert = ExpertView(config)

    def decide(self, simulator: Simulator, observation: Observation) -> GuidedPlans:
        """The expert continuation."""
        expert, _ = self._expert.ahead(simulator)
        return given_plans(expert, expert)


class PerturbedStrategy:
    """The recorded drive with smooth random errors is executed, the way back is learned."""

    def __init__(self, config: GuidanceConfig, seeds: Sequence[int]) -> None:
        sigma_m = (config.perturb_longitudinal_m, config.perturb_lateral_m)
        self._errors = SmoothErrors(seeds, sigma_m, round(config.perturb_period_s * 1e6))

    def decide(self, simulator: Simulator, observation: Observation) -> GuidedPlans:
        """The expert continuation, shifted by the errors of each rollout."""
        world, _ = simulator.expert_future()
        plans = shifted(world, self._errors.ahead(simulator.t_us - simulator.handover_us))
        return given_plans(planar_to_local(plans, simulator.ego_planar[:, None]), expert_answers(simulator))


def checked_candidates(
    poses: Float[torch.Tensor, "b k 64 3"], batch_size: int, num_samples: int, simulator: Simulator
) -> Float[np.ndarray, "b k 64 3"]:
    """What a policy sampled, as float64. Raises `InputError` for another shape or a plan that is not finite."""
    expected = (batch_size, num_samples, PLAN_STEPS, 3)
    where = f"scene {simulator.scene.scene_id}, {(simulator.t_us - simulator.handover_us) * 1e-6:.1f} s after hand-over"
    if tuple(poses.shape) != expected:
        raise InputError(
            f"{where}: the policy returned plans of shape {tuple(poses.shape)}, expected {expected} (rollouts, "
            "samples, 0.1 s steps to 6.4 s, (x, y, yaw)); correct its sample method"
        )
    candidates = poses.detach().double().cpu().numpy()
    finite = np.isfinite(candidates).all(axis=(2, 3))
    if not finite.all():
        raise InputError(
            f"{where}: {int((~finite).sum())} of {finite.size} plans of the policy are not finite; its weights have "
            "diverged, take an earlier checkpoint"
        )
    return candidates


def expert_answers(simulator: Simulator) -> Float[np.ndarray, "b 64 3"]:
    """The privileged planner's way back to the expert, in each rollout's true rig frame, m and rad."""
    return planar_to_local(simulator.expert_query(), simulator.ego_planar[:, None])
