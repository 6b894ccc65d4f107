"""The closed loop of policy, guidance and simulator for a batch of rollouts of one scene."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_sim.road_users import EgoVehicle
from neural_sim.simulation.observation import Observation
from neural_sim.simulation.record import RolloutRecord
from neural_sim.simulation.simulator import Simulator
from pipelines.guidance import GuidanceConfig, GuidedPlans
from pipelines.strategies import make_strategy
from vla.policy import Policy


@dataclass(frozen=True)
class DriveStep:
    """One decision for B rollouts: what the policy saw and which plans were executed.

    The observation has no images where `drive` was told not to keep them.
    """

    observation: Observation
    guided: GuidedPlans


@dataclass(frozen=True)
class Drive:
    """B finished rollouts of one scene.

    Attributes:
        records: what happened, one per rollout.
        steps: the decisions, in order of time.
    """

    records: list[RolloutRecord]
    steps: list[DriveStep]

    def frames(self, rollout: int, camera: str) -> UInt8[np.ndarray, "t h w 3"]:
        """The newest image of `camera` at every decision of one rollout."""
        return np.stack([step.observation.images[camera][rollout, -1] for step in self.steps])

    def decision_times_us(self) -> Int[np.ndarray, "t"]:
        """Time of every decision, us."""
        return np.array([step.observation.t_us[0] for step in self.steps])

    def recovered(self, rollout: int) -> Bool[np.ndarray, "t"]:
        """Whether each executed plan of one rollout was blended towards the expert."""
        return np.array([step.guided.recovered[rollout] for step in self.steps])

    def chosen_distance_m(self, rollout: int) -> Float[np.ndarray, "t"]:
        """d^g of the chosen candidate at every decision of one rollout, m; NaN without candidates."""
        chosen = [
            step.guided.distances_m[rollout, step.guided.chosen[rollout]] if step.guided.distances_m.size else np.nan
            for step in self.steps
        ]
        return np.array(chosen)


def rollout_seed(seed: int, scene_id: str, rollout_index: int) -> int:
    """Seed of one rollout; depends on nothing but the run's seed, the scene's name and the rollout's index."""
    entropy = [seed, zlib.crc32(scene_id.encode()), rollout_index]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])


def drive(
    simulator: Simulator,
    policy: Policy | None,
    rollout_indices: Sequence[int],
    seed: int,
    guidance: GuidanceConfig,
    vehicle: EgoVehicle,
    keep_images: Callable[[int], bool] = lambda t_us: True,
) -> Drive:
    """Drive one batch of rollouts to the end of the recording (Algorithm 1, lines 4 to 12).

    `policy` may be None for strategies that do not ask one. `keep_images`: whether the images of the decision at a time
    (us) are remembered; a long drive with large images does not fit into memory otherwise.
    """
    seeds = [rollout_seed(seed, simulator.scene.scene_id, index) for index in rollout_indices]
    strategy = make_strategy(guidance, policy, vehicle, seeds)
    observation = simulator.reset(seeds)
    steps: list[DriveStep] = []
    while not simulator.is_done:
        guided = strategy.decide(simulator, observation)
        kept = observation if keep_images(simulator.t_us) else replace(observation, images={}, image_times_us={})
        steps.append(DriveStep(kept, guided))
        observation, _ = simulator.step(guided.plans, guided.safety_monitor)
    return Drive(simulator.records(rollout_indices), steps)
