"""The scene renderer: actors where their boxes are, sky behind, one image per request in order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neural_sim.cameras import Camera
from neural_sim.distortion import Distortion, EquidistantFisheye, FTheta, RadialTangential
from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose, pose_from_planar
from neural_sim.gaussians import Gaussians
from neural_sim.rendering.rasterize import rasterize
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.rendering.sky import view_directions
from neural_sim.rendering.splat_renderer import SplatRenderer, compose
from neural_sim.road_map import RoadMap
from neural_sim.road_users import EgoVehicle
from neural_sim.scenes.scene import GroundMesh, Scene
from neural_sim.trajectory import Trajectory

BLUE_SKY = (0.2, 0.4, 0.9)


def blob(center: tuple[float, float, float], color: tuple[float, float, float], sh_degree: int = 0) -> Gaussians:
    """One opaque ball of 0.5 m with a plain colour."""
    sh = torch.zeros(1, (sh_degree + 1) ** 2, 3)
    sh[0, 0] = (torch.tensor(color) - 0.5) / 0.28209479
    orientation = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    return Gaussians(torch.tensor([center]), orientation, torch.full((1, 3), -0.7), torch.full((1,), 20.0), sh)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A green ball 20 m ahead and 6 m to the left, a red car, and a blue sky."""
    sky = torch.tensor(BLUE_SKY).expand(6, 4, 4, 3).contiguous()
    return Scene(
        scene_id="balls",
        background=blob((20.0, 6.0, 1.5), (0.0, 1.0, 0.0), sh_degree=1),
        road=Gaussians.empty(0),
        actors={"car": blob((0.0, 0.0, 0.0), (1.0, 0.0, 0.0))},
        sky=sky,
        expert=Trajectory(np.array([0]), np.eye(4)[None]),
        tracks=(),
        road_map=RoadMap.__new__(RoadMap),
        ground=GroundMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)),
        cameras={},
        camera_times_us={},
        ego_vehicle=EgoVehicle(),
        navigation=(),
        metadata={},
    )


def request(
    actors: dict[str, np.ndarray], width_px: int = 40, shutter_us: int = 0, close_x_m: float = 0.0
) -> RenderRequest:
    camera = Camera("front", width_px, 30, 40.0, 40.0, width_px / 2, 15.0, np.eye(4), shutter_us)
    pose = pose_from_planar(np.zeros(3), 1.5)
    pose[:3, :3] = R_RIG_FORWARD_CAMERA
    close = pose.copy()
    close[0, 3] += close_x_m
    return RenderRequest(camera, pose, close, actors, 0)


def box_at(x_m: float, y_m: float) -> np.ndarray:
    return pose_from_planar(np.array([x_m, y_m, 0.3]), 1.5)


def redness_center(rgb: np.ndarray) -> float:
    """Mean column of red pixels, or NaN without any."""
    columns = np.nonzero((rgb[..., 0] > 0.8) & (rgb[..., 2] < 0.3))[1]
    return float(columns.mean()) + 0.5 if len(columns) else float("nan")


def test_actor_is_drawn_where_its_box_is(scene: Scene) -> None:
    ahead, left = SplatRenderer(scene).render(
        [request({"car": box_at(10.0, 0.0)}), request({"car": box_at(10.0, 2.0)})]
    )
    assert redness_center(ahead.rgb) == pytest.approx(20.0, abs=0.1)
    assert redness_center(left.rgb) == pytest.approx(20.0 - 40.0 * 2.0 / 10.0, abs=0.6)
    assert ahead.depth_m[15, 20] == pytest.approx(10.0, abs=0.05)
    assert ahead.opacity[15, 20] > 0.9


def test_actor_without_pose_and_pose_without_gaussians_are_not_drawn(scene: Scene) -> None:
    none, unknown = SplatRenderer(scene).render([request({}), request({"bus": box_at(10.0, 0.0)})])
    assert np.isnan(redness_center(none.rgb))
    assert np.array_equal(none.rgb, unknown.rgb)
    # The static ball is there all the same, 6 m left at 20 m: column 20 - 40 * 6 / 20.
    assert none.rgb[15, 8, 1] > 0.85


def test_sky_fills_what_splats_leave(scene: Scene) -> None:
    image = SplatRenderer(scene).render([request({})])[0]
    assert image.opacity[2, 30] == 0
    np.testing.assert_allclose(image.rgb[2, 30], BLUE_SKY, atol=1e-6)
    assert image.rgb.dtype == np.float32
    assert image.rgb.min() >= 0
    assert image.rgb.max() <= 1


def test_images_come_in_order_whatever_the_batches(scene: Scene) -> None:
    requests = [
        request({"car": box_at(10.0, 0.0)}),
        request({"car": box_at(10.0, 2.0)}, width_px=24),
        request({"car": box_at(10.0, 0.0)}, close_x_m=1.0),
        request({"car": box_at(10.0, 2.0)}),
    ]
    renderer = SplatRenderer(scene)
    together = renderer.render(requests)
    for alone, image in zip(requests, together, strict=True):
        assert np.array_equal(renderer.render([alone])[0].rgb, image.rgb)
        assert image.rgb.shape[1] == alone.camera.width_px


def test_rolling_shutter_draws_each_row_from_its_own_pose(scene: Scene) -> None:
    # The camera comes 2 m nearer while it reads 30 rows; the car's centre is on the row in the middle.
    renderer = SplatRenderer(scene)
    actors = {"car": box_at(10.0, 0.0)}
    rolling = renderer.render([request(actors, shutter_us=30_000, close_x_m=2.0)])[0]
    assert rolling.depth_m[15, 20] == pytest.approx(9.0, abs=0.05)
    still = renderer.render([request(actors, shutter_us=0, close_x_m=2.0)])[0]
    assert still.depth_m[15, 20] == pytest.approx(10.0, abs=0.05)
    # A car that keeps its distance stands still in the image.
    asked = request(actors, shutter_us=30_000, close_x_m=2.0)
    followed = replace(asked, T_world_actors_open=actors, T_world_actors_close={"car": box_at(12.0, 0.0)})
    assert renderer.render([followed])[0].depth_m[15, 20] == pytest.approx(10.0, abs=0.05)


def test_rows_shear_a_scene_that_passes_by(scene: Scene) -> None:
    # Turning right by 0.2 rad per image, upper rows see the ball further right than lower rows do.
    asked = request({}, shutter_us=30_000)
    close = asked.T_world_camera_close.copy()
    close[:3, :3] = pose_from_planar(np.array([0.0, 0.0, -0.2]))[:3, :3] @ close[:3, :3]
    early, late = (blob((20.0, 0.0, 1.5 + 20.0 * (15 - row) / 40.0), (0.0, 1.0, 0.0)) for row in (3, 27))
    drawn = SplatRenderer(replace(scene, background=early, road=late)).render(
        [replace(asked, T_world_camera_close=close)]
    )[0]
    columns = [
        float((drawn.opacity[rows] * np.arange(40)).sum() / drawn.opacity[rows].sum())
        for rows in (slice(0, 8), slice(22, 30))
    ]
    # A turn to the right moves what is ahead to the left: 40 px focal times the angle at the row's time.
    expected = [19.5 - 40.0 * np.tan(0.2 * (row - 0.5) / 29) for row in (3, 27)]
    np.testing.assert_allclose(columns, expected, atol=0.4)


@pytest.mark.parametrize(
    "lens",
    [
        RadialTangential((-0.2, 0.03, 0.0), (0.001, 0.0)),
        EquidistantFisheye((0.01, 0.0, 0.0, 0.0), 0.55),
        FTheta((0.0, 40.0, 0.0, -1.0), (), "angle_to_radius", 1.2),
    ],
)
def test_sky_and_splats_go_through_the_same_lens(scene: Scene, lens: Distortion) -> None:
    # Where the lens reaches no ray the picture is black.
    asked = request({})
    asked = replace(asked, camera=replace(asked.camera, distortion=lens))
    image = SplatRenderer(scene).render([asked])[0]
    ball = np.array([20.0, 6.0, 1.5])
    pixel, seen = asked.camera.project(invert_pose(asked.T_world_camera_open)[:3, :3] @ (ball - [0.0, 0.0, 1.5]))
    assert seen
    column, row = np.floor(pixel).astype(int)
    assert image.rgb[row, column, 1] > 0.8
    _, reached = asked.camera.unproject(np.array([[0.5, 0.5], [20.5, 2.5]]))
    corner, top = image.rgb[0, 0], image.rgb[2, 20]
    np.testing.assert_allclose(corner, BLUE_SKY if reached[0] else (0, 0, 0), atol=1e-6)
    np.testing.assert_allclose(top, BLUE_SKY if reached[1] else (0, 0, 0), atol=1e-6)


def test_compose_equals_renderer(scene: Scene) -> None:
    asked = request({})
    image = SplatRenderer(scene).render([asked])[0]
    pose = torch.from_numpy(asked.T_world_camera_open)[None].float()
    K = torch.from_numpy(asked.camera.K)[None].float()
    world_to_camera = torch.from_numpy(invert_pose(asked.T_world_camera_open))[None].float()
    views = rasterize(scene.background, world_to_camera, K, 40, 30)
    composed = compose(views, scene.sky, view_directions(K, pose, 40, 30))[0].clamp(0, 1)
    np.testing.assert_allclose(image.rgb, composed.numpy(), atol=1e-5)


def test_name_and_backend(scene: Scene) -> None:
    renderer = SplatRenderer(scene, "cpu")
    assert renderer.name == "splat"
    assert renderer.backend == "cpu"
    assert renderer.render([]) == []
