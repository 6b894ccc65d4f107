"""Pictures for people: overlays by projection, the drive from above, contact sheets, and what `inspect` draws."""

from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch
from PIL import Image
from synthetic_clip import make_camera, make_clip
from synthetic_scene import front_camera, make_scene, make_track

from neural_sim.clips.storage import write_clip
from neural_sim.drawing.birds_eye import COLOR_EGO, draw_drive
from neural_sim.drawing.contact_sheet import SheetRow, draw_contact_sheet
from neural_sim.drawing.overlay import CATEGORY_COLORS, COLOR_LANE_BORDER, box_edges, draw_overlay, lane_borders
from neural_sim.drawing.top_view import COLOR_ROAD
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_planar
from neural_sim.gaussians import Gaussians
from neural_sim.road_map import Lane, RoadMap
from neural_sim.road_users import EgoVehicle
from neural_sim.scenes.recorded_views import recorded_request
from neural_sim.scenes.storage import write_scene
from pipelines.pictures import draw_pictures

NOW_US = 5_000_000


def painted(image, color):
    return (image == np.array(color, np.uint8)).all(axis=-1)


def test_a_box_ahead_is_framed_where_it_projects():
    """A car 20 m ahead, 2 m wide: its near face spans 2 * f / 17.75 px around the middle."""
    camera = front_camera("front", np.deg2rad(60.0), 640, 400)
    car = make_track("car", (20.0, 0.0, 0.0), size_m=(4.5, 2.0, 1.5))
    image = draw_overlay(np.zeros((400, 640, 3), np.uint8), camera, np.eye(4), NOW_US, [car])
    rows, columns = np.nonzero(painted(image, CATEGORY_COLORS["vehicle"]))
    depth_m = 20.0 - 2.25 - 1.5
    half_width_px = 1.0 * camera.fx_px / depth_m
    assert columns.min() == pytest.approx(320 - half_width_px, abs=1.5)
    assert columns.max() == pytest.approx(320 + half_width_px, abs=1.5)
    assert rows.max() == pytest.approx(200 + 1.5 * camera.fy_px / depth_m, abs=1.5)


@pytest.mark.parametrize("planar", [(-20.0, 0.0, 0.0), (20.0, 300.0, 0.0)], ids=["behind", "beside"])
def test_what_is_out_of_sight_is_not_drawn(planar):
    camera = front_camera("front", np.deg2rad(60.0), 640, 400)
    image = draw_overlay(np.zeros((400, 640, 3), np.uint8), camera, np.eye(4), NOW_US, [make_track("car", planar)])
    assert not image.any()


def test_absent_road_users_are_not_drawn():
    camera = front_camera("front", np.deg2rad(60.0), 640, 400)
    later = make_track("car", (20.0, 0.0, 0.0), start_s=5.0)
    assert not draw_overlay(np.zeros((400, 640, 3), np.uint8), camera, np.eye(4), NOW_US, [later]).any()


def test_box_edges_are_twelve_with_the_lengths_of_the_box():
    edges = box_edges(pose_from_planar(np.array([1.0, 2.0, 0.7]), 3.0), (4.0, 2.0, 1.5))
    lengths = sorted(round(float(np.linalg.norm(edge[-1] - edge[0])), 6) for edge in edges)
    assert lengths == [1.5] * 4 + [2.0] * 4 + [4.0] * 4


def test_lane_borders_are_half_a_width_aside():
    lane = Lane("a", np.array([[-200.0, 5.0, 1.0], [200.0, 5.0, 1.0]]), 3.5)
    left, right = lane_borders([lane], np.zeros(3))
    np.testing.assert_allclose(left[:, 1:], [[6.75, 1.0]] * len(left))
    np.testing.assert_allclose(right[:, 1:], [[3.25, 1.0]] * len(right))
    assert np.abs(left[:, 0]).max() <= 50.0


def test_lane_borders_meet_the_vanishing_point():
    camera = front_camera("front", np.deg2rad(60.0), 640, 400)
    lane = Lane("a", np.array([[-10.0, 0.0, 0.0], [60.0, 0.0, 0.0]]), 3.0)
    road_map = RoadMap((lane,), (), (shapely.box(-10, -3, 60, 3),), "recorded")
    image = draw_overlay(np.zeros((400, 640, 3), np.uint8), camera, np.eye(4), NOW_US, (), road_map)
    rows, columns = np.nonzero(painted(image, COLOR_LANE_BORDER))
    # The far end lies 48.5 m from the camera, 1.5 m below it and 1.5 m aside.
    assert rows.min() == pytest.approx(200 + 1.5 * camera.fy_px / 48.5, abs=1.5)
    assert columns.mean() == pytest.approx(320, abs=1.0)


def test_the_drive_from_above_has_x_to_the_right_and_y_up():
    scene = make_scene(curvature=0.02, duration_s=10.0, tracks=[make_track("car", (10.0, -8.0, 0.0))])
    picture = draw_drive(scene.expert, EgoVehicle(), scene.tracks, scene.road_map)
    car = painted(picture, CATEGORY_COLORS["vehicle"])
    car[:40] = False  # the legend
    rows, columns = np.nonzero(car)
    path_rows, path_columns = np.nonzero(painted(picture, COLOR_EGO)[40:])
    assert columns.mean() < path_columns.max()
    assert rows.mean() > path_rows.mean() + 40  # the car is on the right of a drive that turns left
    assert painted(picture, COLOR_ROAD).any()


def test_a_contact_sheet_keeps_aspects_and_order():
    red, blue = np.full((10, 20, 3), (255, 0, 0), np.uint8), np.full((20, 20, 3), (0, 0, 255), np.uint8)
    sheet = draw_contact_sheet([SheetRow("a", [red, blue], ["1", "2"]), SheetRow("b", [red], ["3"])], 100)
    assert sheet.shape[1] == 2 * 104 + 4
    assert painted(sheet, (255, 0, 0)).sum() == 2 * 100 * 50
    assert painted(sheet, (0, 0, 255)).sum() == 100 * 100


def test_pictures_of_a_clip(tmp_path):
    write_clip(make_clip(tmp_path / "source"), tmp_path / "clip")
    written = draw_pictures(tmp_path / "clip")
    assert [path.name for path in written] == ["birds_eye.png", "contact_sheet.jpg"]
    with Image.open(written[1]) as sheet:
        assert sheet.size[0] == 5 * 304 + 4
    assert draw_pictures(tmp_path / "clip", tmp_path / "elsewhere")[0] == tmp_path / "elsewhere" / "birds_eye.png"


def test_pictures_of_a_scene_lie_beside_it(tmp_path):
    scene = make_scene(duration_s=9.0)
    write_scene(scene, tmp_path / "s.usdz")
    assert [path.name for path in draw_pictures(tmp_path / "s.usdz")] == ["s.birds_eye.png"]
    ball = Gaussians(
        torch.tensor([[30.0, 0.0, 1.5]]), torch.tensor([[0.0, 0, 0, 1]]), torch.zeros(1, 3), torch.ones(1),
        torch.ones(1, 1, 3),
    )  # fmt: skip
    write_scene(replace(scene, background=ball), tmp_path / "s.usdz")
    assert [path.name for path in draw_pictures(tmp_path / "s.usdz")] == ["s.birds_eye.png", "s.contact_sheet.jpg"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    write_clip(make_clip(tmp_path / "source"), tmp_path / "clip")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"birds_eye.png: the picture cannot be written .* choose a folder with --pic"):
        draw_pictures(tmp_path / "clip", tmp_path / "file")


def test_a_recorded_view_spans_the_shutter_and_places_those_present():
    scene = make_scene(
        speed_mps=10.0, tracks=[make_track("car", (9.0, 2.0, 0.0)), make_track("late", (0, 0, 0), start_s=8)]
    )
    camera = replace(make_camera("front"), shutter_us=20_000)
    request = recorded_request(scene, camera, NOW_US + 1_000_000)
    opened, closed = request.T_world_camera_open[:3, 3], request.T_world_camera_close[:3, 3]
    np.testing.assert_allclose(closed - opened, [0.2, 0, 0], atol=1e-9)
    np.testing.assert_allclose((opened + closed) / 2, [10 + 1.5, 0.1, 1.4], atol=1e-9)
    assert set(request.T_world_actors) == {"car"}
