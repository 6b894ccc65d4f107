"""What cameras and driver report: events of the record, flags of the score, and rollouts that AlpaSim would drop."""

import numpy as np
import pytest
from eval_records import make_record, straight
from synthetic_scene import CAMERAS, START_US, STEP_US, make_scene

from eval.protocol import EvaluationProtocol
from eval.reported import reject_black_images
from eval.scorers import score_rollout
from neural_sim.errors import InputError
from neural_sim.rendering.renderer import RenderedImage
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.record import SimulationEvent
from neural_sim.simulation.simulator import Simulator


class Flicker:
    """Gray images, black in one rollout while the camera is in one stretch of the road."""

    name = "flicker"

    def render(self, requests):
        return [self._image(request, row % 2) for row, request in enumerate(requests)]

    def _image(self, request, rollout):
        camera = request.camera
        dark = rollout == 1 and 30.0 < request.T_world_camera_close[0, 3] < 34.0
        rgb = np.full((camera.height_px, camera.width_px, 3), 10 / 255 if dark else 0.5, np.float32)
        return RenderedImage(rgb, rgb[..., 0], np.ones_like(rgb[..., 0]))


def drive(monitor=None):
    scene = make_scene(speed_mps=8.0)
    simulator = Simulator(scene, Flicker(), SimulationConfig(), ImageFormat(CAMERAS[:1], 1, 100_000, 16, 12))
    simulator.reset([0, 1])
    plan = np.zeros((2, 64, 3))
    plan[..., 0] = 0.8 * np.arange(1, 65)
    while not simulator.is_done and len(simulator.save_state().entries) < 60:
        simulator.step(plan, monitor)
    return scene, simulator.records()


def test_black_images_are_events_of_their_rollout_and_a_flag_of_its_score():
    scene, (bright, dark) = drive()
    assert bright.events == ()
    assert {event.kind for event in dark.events} == {"image_is_black"}
    assert len(dark.events) == 5
    assert CAMERAS[0] in dark.events[0].detail
    series = score_rollout(dark, scene, policy="ego").series["img_is_black"]
    assert series.values.sum() == 5
    assert not score_rollout(bright, scene, policy="ego").series["img_is_black"].values.any()


def test_the_monitor_of_a_driver_is_heard_and_changes_nothing():
    scene, (quiet, objecting) = drive(np.array([False, True]))
    _, (_, alone) = drive()
    flag = "safety_monitor_triggered"
    assert score_rollout(objecting, scene, policy="ego").series[flag].values.any()
    assert not score_rollout(quiet, scene, policy="ego").series[flag].values.any()
    assert np.array_equal(objecting.T_world_rig, alone.T_world_rig)
    with pytest.raises(InputError, match=r"safety monitor: found flags of shape \[3\], expected \[2\]"):
        drive(np.zeros(3, bool))


def test_the_alpasim_preset_rejects_a_rollout_with_a_black_image_after_warm_up():
    scene, (bright, dark) = drive()
    alpasim = EvaluationProtocol(preset="alpasim")
    reject_black_images(score_rollout(bright, scene, policy="ego"), alpasim)
    score = score_rollout(dark, scene, policy="ego")
    reject_black_images(score, EvaluationProtocol())
    with pytest.raises(InputError, match=r"5 of its 60 images are black, the first at \d+ us"):
        reject_black_images(score, alpasim)


def test_black_images_of_the_warm_up_do_not_count():
    scene = make_scene()
    event = SimulationEvent(START_US + STEP_US, "image_is_black", "no pixel of front exceeds 10 of 255")
    record = make_record(scene, straight(30), warmup_steps=10, events=[event])
    score = score_rollout(record, scene, policy="ego")
    assert score.series["img_is_black"].values[1] == 1
    reject_black_images(score, EvaluationProtocol(preset="alpasim"))
