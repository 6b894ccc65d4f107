"""Reactive traffic: the model's formula, the vehicles on their paths, and the hook for other models."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_scene import CAMERAS, START_US, STEP_US, make_scene, make_track

from controllers.errors import ControlError
from neural_sim.errors import InputError
from neural_sim.frames import planar_to_local
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.idm import IdmConfig, idm_acceleration
from neural_sim.simulation.logged_paths import logged_paths
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.simulator import Simulator
from neural_sim.simulation.traffic import TrafficStep

CONFIG = replace(SimulationConfig(), traffic="idm")
IMAGES = ImageFormat(CAMERAS, num_frames=1, frame_interval_us=STEP_US, width_px=8, height_px=6)
FOLLOWER = make_track("follower", (-20, 0, 0), speed_mps=8.0)
SIDE = make_track("side", (0, 6, 0), speed_mps=7.0)
PARKED = make_track("parked", (90, 7, 0))
LATE = make_track("late", (30, -6, 0), speed_mps=5.0, start_s=6.0, duration_s=8.0)


def simulator_of(tracks, seeds=(0,), config=CONFIG, **scene_options) -> Simulator:
    simulator = Simulator(
        make_scene(tracks=tracks, half_width_m=10.0, **scene_options), BlankRenderer(), config, IMAGES
    )
    simulator.reset(seeds)
    return simulator


def drive(simulator: Simulator, stop=()) -> None:
    """To the end with the expert's plans; rows in `stop` are told to stand still."""
    while not simulator.is_done:
        future, _ = simulator.expert_future()
        plans = planar_to_local(future[None], simulator.ego_planar[:, None])
        plans[list(stop)] = 0.0
        simulator.step(plans)


def test_formula_by_hand():
    config = IdmConfig(acceleration_mps2=2.0, comfortable_braking_mps2=2.0, headway_s=1.0, standstill_gap_m=2.0)
    values = [(0.0, 10.0, np.inf, 0.0), (10.0, 10.0, np.inf, 0.0), (5.0, 10.0, 7.0, 0.0), (5.0, 10.0, 12.0, 2.0)]
    found = idm_acceleration(*np.array(values).T, config)
    # s* = 2 + 5 * 1 + 5 * 2 / (2 * 2) = 9.5 in the last case.
    expected = [2.0, 0.0, 2 * (1 - 0.5**4 - 1.0), 2 * (1 - 0.5**4 - (9.5 / 12) ** 2)]
    np.testing.assert_allclose(found, expected)
    assert idm_acceleration(*np.array([[10.0], [5.0], [np.inf], [0.0]]), config)[0] == pytest.approx(-2 * (1 - 0.5**4))
    assert idm_acceleration(*np.array([[10.0], [10.0], [-1.0], [9.0]]), config)[0] == -config.hardest_braking_mps2


def test_undisturbed_traffic_stays_with_its_log():
    simulator = simulator_of([SIDE, PARKED, LATE])
    drive(simulator)
    record = simulator.records()[0]
    for n, track in enumerate((SIDE, PARKED, LATE)):
        present = np.isfinite(record.actor_planar[:, n, 0])
        logged = track.trajectory.planar_at(record.t_us[present])
        assert np.abs(record.actor_planar[present, n] - logged).max() < 0.7
    entered = np.isfinite(record.actor_planar[:, 2, 0])
    assert entered.argmax() == 60
    assert not entered[-1]


def test_a_vehicle_stops_behind_a_standing_ego_and_replay_runs_into_it():
    reactive, replayed = simulator_of([FOLLOWER]), simulator_of([FOLLOWER], config=SimulationConfig())
    for simulator in (reactive, replayed):
        drive(simulator, stop=[0])
    record = reactive.records()[0]
    rear_bumper = record.T_world_rig[-1, 0, 3] - 1.3
    gap_m = rear_bumper - (record.actor_planar[:, 0, 0] + 2.25)
    assert gap_m[-1] == pytest.approx(2.0, abs=0.3)
    assert gap_m.min() > 1.5
    assert replayed.records()[0].actor_planar[-1, 0, 0] == pytest.approx(140.0)


def test_rollouts_react_by_themselves_and_to_the_bit():
    together = simulator_of([FOLLOWER, SIDE], seeds=(3, 4))
    drive(together, stop=[1])
    records = together.records()
    assert records[0].actor_planar[-1, 0, 0] > records[1].actor_planar[-1, 0, 0] + 50
    alone = simulator_of([FOLLOWER, SIDE], seeds=(4,))
    drive(alone, stop=[0])
    assert np.array_equal(alone.records()[0].actor_planar, records[1].actor_planar)
    assert np.array_equal(alone.records()[0].T_world_rig, records[1].T_world_rig)


def test_a_saved_state_holds_the_traffic():
    simulator = simulator_of([FOLLOWER])
    for _ in range(20):
        simulator.step(np.zeros((1, 64, 3)))
    saved = simulator.save_state()
    drive(simulator, stop=[0])
    first = simulator.records()[0].actor_planar
    simulator.restore_state(saved)
    drive(simulator, stop=[0])
    assert np.array_equal(simulator.records()[0].actor_planar, first)


def test_boxes_that_touch_in_the_log_do_not_stop_a_vehicle():
    # The parked car reaches 0.4 m into the path of the other in the log.
    simulator = simulator_of([SIDE, make_track("grazing", (70, 7.5, 0))])
    drive(simulator)
    assert simulator.records()[0].actor_planar[-1, 0, 0] == pytest.approx(7.0 * 20, abs=1.0)


def test_standing_jitter_is_no_path():
    jitter = make_track("jitter", (5, 0, 0))
    jitter.trajectory.T_world_rig[:, 0, 3] += 0.02 * np.resize([0, 1], len(jitter.trajectory.t_us))
    t_us = START_US + STEP_US * np.arange(201)
    assert logged_paths([jitter], t_us).length_m[0] < 0.05
    moving = logged_paths([SIDE], t_us)
    assert moving.length_m[0] == pytest.approx(140.0)
    np.testing.assert_allclose(moving.logged_mps[:, 0], 7.0, atol=0.01)


def test_a_model_of_ones_own_moves_the_traffic():
    class Frozen:
        """Nobody moves after the hand-over."""

        def __init__(self, log, ego_vehicle):
            self.tracks = log.tracks

        def start(self, logged, step, batch_size):
            return logged

        def advance(self, now, step, ego_planar, ego_velocity):
            return TrafficStep(now.T_world_actor, now.present, now.memory)

    simulator = Simulator(make_scene(tracks=[SIDE]), BlankRenderer(), SimulationConfig(), IMAGES, traffic=Frozen)
    simulator.reset([0])
    drive(simulator)
    x = simulator.records()[0].actor_planar[:, 0, 0]
    assert x[17] == pytest.approx(7.0 * 1.7)
    assert (x[17:] == x[17]).all()


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"simulation.traffic is 'cat', expected replay or idm"):
        SimulationConfig(traffic="cat")  # type: ignore[arg-type]
    with pytest.raises(ControlError, match=r"simulation.idm.headway_s is 0, expected a positive number"):
        IdmConfig(headway_s=0)
