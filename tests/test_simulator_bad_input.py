"""Bad plans and bad scenes: documented behaviour and an event in the record, never an exception in a batch."""

from dataclasses import replace

import numpy as np
import pytest
import shapely
from synthetic_scene import CAMERAS, START_US, STEP_US, make_scene, make_track

from eval.scorers import score_rollout
from neural_sim.frames import planar_to_local
from neural_sim.road_map import RoadMap
from neural_sim.road_users import Track
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.simulator import Simulator
from neural_sim.trajectory import Trajectory

IMAGES = ImageFormat(CAMERAS, num_frames=1, frame_interval_us=STEP_US, width_px=8, height_px=6)
KINDS = ("tracking", "mpc", "pure_pursuit")


def simulator_of(scene, rollouts: int = 2, kind: str = "tracking") -> Simulator:
    config = SimulationConfig()
    simulator = Simulator(
        scene, BlankRenderer(), replace(config, controller=replace(config.controller, kind=kind)), IMAGES
    )
    simulator.reset(range(rollouts))
    return simulator


def expert_plans(simulator: Simulator) -> np.ndarray:
    future, _ = simulator.expert_future()
    return planar_to_local(future[None], simulator.ego_planar[:, None])


def kinds(simulator: Simulator, rollout: int) -> list[str]:
    return [event.kind for event in simulator.records()[rollout].events]


def no_number(plan):
    plan[:] = np.nan


def jump(plan):
    plan[30:, 0] += 100.0


def stand(plan):
    plan[:] = 0.0


def reverse(plan):
    plan[:, :2] *= -1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("spoil", "event"),
    [
        (no_number, "plan_rejected"),
        (jump, "plan_rejected"),
        (stand, "plan_stands_still"),
        (reverse, "plan_backwards"),
    ],
)
def test_a_bad_plan_is_told_and_its_neighbour_drives_on(kind, spoil, event):
    mixed, clean = simulator_of(make_scene(curvature=0.02), 2, kind), simulator_of(make_scene(curvature=0.02), 2, kind)
    for step in range(15):
        plans = expert_plans(mixed)
        if step >= 5:
            spoil(plans[1])
        mixed.step(plans)
        clean.step(expert_plans(clean))
    expected = 10 if event == "plan_rejected" else 1
    assert kinds(mixed, 1) == [event] * expected
    assert kinds(mixed, 0) == []
    assert np.array_equal(mixed.ego_planar[0], clean.ego_planar[0])
    assert np.isfinite(mixed.ego_planar).all()


@pytest.mark.parametrize("length", [0, 1, 20, 63])
def test_plans_that_are_too_short_are_rejected(length):
    simulator = simulator_of(make_scene())
    _, info = simulator.step(expert_plans(simulator)[:, :length])
    assert not info.plan_accepted.any()
    assert info.events[0][0].detail == f"{64 - length} of 64 poses are not finite, the first at step {length}"


def test_a_rollout_without_one_good_plan_keeps_to_the_log_and_then_stops():
    simulator = simulator_of(make_scene(), 1)
    while not simulator.is_done:
        simulator.step(np.full((1, 64, 3), np.nan))
    record = simulator.records()[0]
    assert len(record.events) == simulator.num_steps
    assert record.velocity[-1, 0] == 0.0
    assert record.T_world_rig[60, 0, 3] == pytest.approx(8.0 * 6.0, abs=0.5)
    score = score_rollout(record, make_scene(), policy="broken")
    assert score.event_counts == {"plan_rejected": simulator.num_steps}
    assert not score.series["open_loop_collision"].valid.any()


@pytest.mark.parametrize("kind", KINDS)
def test_speeds_above_forty_are_told(kind):
    simulator = simulator_of(make_scene(speed_mps=38.0), 1, kind)
    plan = np.zeros((1, 64, 3))
    plan[0, :, 0] = 6.0 * np.arange(1, 65)
    for _ in range(40):
        simulator.step(plan)
    assert "speed_out_of_bounds" in kinds(simulator, 0)
    assert np.isfinite(simulator.ego_planar).all()


def test_gaps_in_tracks_are_bridged_and_told():
    whole = make_track("holes", (20.0, 4.0, 0.0), speed_mps=5.0)
    kept = (np.arange(201) < 40) | (np.arange(201) > 75)
    trajectory = Trajectory(whole.trajectory.t_us[kept], whole.trajectory.T_world_rig[kept])
    scene = make_scene(tracks=[Track("holes", "vehicle", whole.size_m, trajectory), make_track("car", (9, 9, 0))])
    simulator = simulator_of(scene, 1)
    simulator.step(expert_plans(simulator))
    record = simulator.records()[0]
    (event,) = record.events
    assert (event.t_us, event.kind) == (START_US, "track_gap")
    assert event.detail == "1 tracks have gaps, the longest 3.7 s in track holes; interpolated"
    while not simulator.is_done:
        simulator.step(expert_plans(simulator))
    np.testing.assert_allclose(simulator.records()[0].actor_planar[55, 0], [20 + 5.0 * 5.5, 4, 0], atol=1e-9)


def test_self_intersecting_areas_are_repaired_and_told():
    # An hourglass around the road, narrow at x = 40 m, beside a sound area.
    bow = shapely.Polygon([(-20, -6), (100, 6), (100, -6), (-20, 6)])
    sound = shapely.box(30, -6, 200, 6)
    scene = replace(make_scene(), road_map=RoadMap((), (), (bow, sound), "recorded"))
    simulator = simulator_of(scene, 2)
    for _ in range(12):
        simulator.step(expert_plans(simulator))
    record = simulator.records()[1]
    (event,) = record.events
    assert event.kind == "map_repaired"
    assert event.detail.startswith("1 of 2 drivable areas are not valid (the first: Self-intersection")
    assert not score_rollout(record, scene, policy="expert").series["offroad"].values.any()
