"""Projection and unprojection of every lens, against each other, OpenCV and hand-made points."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_clip import make_camera

from neural_sim.cameras import Camera, require_pinhole
from neural_sim.distortion import EquidistantFisheye, FTheta, RadialTangential
from neural_sim.errors import InputError

# Argoverse 2 ring_front_center, a rational model, a strong fisheye, and an f-theta lens in the manner of a 120 degree
# camera at 1920 pixels.
ARGOVERSE = RadialTangential((-0.2407, -0.2122, 0.3259))
RATIONAL = RadialTangential((0.6, 0.1, 0.02, 0.65, 0.13, 0.001), (0.001, -0.002))
FISHEYE = EquidistantFisheye((-0.03, 0.005, -0.002, 0.0003), 1.5)
FORWARD = (0.0, 930.0, 12.0, -40.0, 8.0)
FTHETA = FTheta(FORWARD, (), "angle_to_radius", 1.3, (1.001, -0.002, 0.003))
BACKWARD = FTheta((), (0.0, 1 / 930.0, -1e-9, 2e-11), "radius_to_angle", 1.3, (0.999, 0.001, 0.0))
LENSES = [None, ARGOVERSE, RATIONAL, FISHEYE, FTHETA, BACKWARD]


def make(lens):
    return Camera("front", 1920, 1080, 930.0, 925.0, 961.2, 538.7, np.eye(4), distortion=lens)


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: getattr(lens, "model", "pinhole"))
@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1919), st.floats(0, 1079))
def test_pixel_to_ray_and_back(lens, x, y):
    camera = make(lens)
    ray, reached = camera.unproject(np.array([x, y]))
    if not reached:
        return
    assert np.linalg.norm(ray) == pytest.approx(1.0)
    pixel, visible = camera.project(3.7 * ray)
    assert visible
    np.testing.assert_allclose(pixel, [x, y], atol=1e-5)


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: getattr(lens, "model", "pinhole"))
@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.9), st.floats(-np.pi, np.pi), st.floats(0.1, 100))
def test_ray_to_pixel_and_back(lens, angle, turn, distance):
    camera = make(lens)
    point = distance * np.array([np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn), np.cos(angle)])
    pixel, visible = camera.project(point)
    if not visible:
        return
    ray, reached = camera.unproject(pixel)
    assert reached
    np.testing.assert_allclose(ray, point / distance, atol=1e-7)


def test_all_image_corners_are_reached_by_the_test_lenses():
    """So that the round trips above are not empty."""
    corners = np.array([[0.0, 0.0], [1920.0, 0.0], [0.0, 1080.0], [1920.0, 1080.0]])
    for lens in (RATIONAL, FISHEYE, FTHETA, BACKWARD):
        assert make(lens).unproject(corners)[1].all()


def test_perspective_lens_agrees_with_opencv():
    points = np.random.default_rng(0).uniform([-1, -0.6, 1], [1, 0.6, 1.5], (50, 3))
    for lens in (ARGOVERSE, RATIONAL):
        camera = make(lens)
        k, p = lens.radial, lens.tangential
        coefficients = np.array([k[0], k[1], *p, *k[2:]])
        expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.K, coefficients)[0][:, 0]
        found, visible = camera.project(points)
        np.testing.assert_allclose(found[visible], expected[visible], atol=1e-6)
        assert visible.sum() > 40


def test_fisheye_agrees_with_opencv():
    camera = make(FISHEYE)
    points = np.random.default_rng(0).uniform([-2, -2, 1], [2, 2, 1.5], (50, 3))
    arguments = (np.zeros(3), np.zeros(3), camera.K, np.array(FISHEYE.coefficients))
    expected = cv2.fisheye.projectPoints(points[:, None], *arguments)[0][:, 0]
    np.testing.assert_allclose(camera.project(points)[0], expected, atol=1e-6)


def test_ftheta_by_hand():
    lens = FTheta((0.0, 100.0), (), "angle_to_radius", 1.0, (2.0, 0.5, 0.25))
    camera = replace(make(lens), cx_px=10.0, cy_px=20.0)
    angle = 0.3
    right, down = np.array([np.sin(angle), 0, np.cos(angle)]), np.array([0, np.sin(angle), np.cos(angle)])
    np.testing.assert_allclose(camera.project(right)[0], [10 + 2.0 * 30, 20 + 0.25 * 30])
    np.testing.assert_allclose(camera.project(down)[0], [10 + 0.5 * 30, 20 + 30])
    assert not camera.project(np.array([np.sin(1.1), 0, np.cos(1.1)]))[1]


def test_a_fisheye_sees_behind_its_image_plane():
    lens = FTheta((0.0, 100.0), (), "angle_to_radius", 2.0)
    ray = np.array([np.sin(1.8), 0.0, np.cos(1.8)])
    pixel, visible = make(lens).project(ray)
    assert visible
    np.testing.assert_allclose(make(lens).unproject(pixel)[0], ray, atol=1e-9)


def test_a_folding_lens_covers_only_what_it_maps_once():
    lens = RadialTangential((-0.3, 0.0, 0.0))
    # r (1 - 0.3 r^2) grows until r = 1 / sqrt(0.9).
    assert lens.max_tangent == pytest.approx(1 / np.sqrt(0.9), abs=3e-3)
    assert not make(lens).project(np.array([1.3, 0.0, 1.0]))[1]
    assert not make(lens).unproject(np.array([961.2 + 930 * 0.9, 538.7]))[1]


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: getattr(lens, "model", "pinhole"))
def test_resizing_scales_the_pixels(lens):
    camera = make(lens)
    small = camera.resized(480, 540)
    points = np.random.default_rng(1).uniform([-0.5, -0.5, 1], [0.5, 0.5, 2], (20, 3))
    np.testing.assert_allclose(small.project(points)[0], camera.project(points)[0] * [0.25, 0.5], atol=1e-6)
    pixels = small.project(points)[0]
    np.testing.assert_allclose(small.unproject(pixels)[0], camera.unproject(pixels * [4, 2])[0], atol=1e-7)


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: getattr(lens, "model", "pinhole"))
def test_json_round_trip(lens):
    camera = replace(make(lens), shutter_us=30_000, shutter_direction="left-to-right")
    again = Camera.from_json(camera.to_json())
    assert again.distortion == lens
    assert again.to_json() == camera.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "spherical"}, "model 'spherical' is not supported; expected one of 'pinhole', 'opencv', "),
        ({"model": "ftheta", "distortion": {"linear": [1, 0, 0]}}, "distortion of model 'ftheta' is incomplete"),
        ({"model": "opencv", "distortion": {"radial": [1.0]}}, r"radial is \(1.0,\), expected 3 or 6 numbers"),
        ({"model": "opencv", "distortion": {"radial": [0.0, 0.0, "x"]}}, "expected finite numbers"),
        ({"model": "fisheye", "distortion": {"coefficients": [0.0] * 4, "max_angle_rad": 9}}, "expected an angle in"),
        ({"model": "opencv", "distortion": 3}, "should be an object, found int"),
        ({"shutter_direction": "diagonal"}, "shutter_direction is 'diagonal', expected one of top-to-bottom"),
    ],
)
def test_bad_calibrations(change, message):
    with pytest.raises(InputError, match=f"camera front: .*{message}|{message}"):
        Camera.from_json({**make(None).to_json(), **change})


def test_renderers_that_draw_pinholes_refuse_other_lenses_by_name():
    require_pinhole(make_camera("front"), "the town")
    with pytest.raises(InputError, match="front: the town draws pinhole cameras only, and this lens is 'ftheta'"):
        require_pinhole(make(FTHETA), "the town")
