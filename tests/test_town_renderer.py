"""Pictures of the town: geometry, textures, determinism."""

import dataclasses
import importlib.metadata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_sim.errors import InputError
from neural_sim.frames import invert_pose, pose_from_planar
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.town import embree, materials
from neural_sim.town.cars import PAINTS, car_mesh
from neural_sim.town.config import TELE_CAMERA, WIDE_CAMERA, TownConfig
from neural_sim.town.materials import DASH_PERIOD_M, MARKING_WIDTH_M
from neural_sim.town.mesh import cylinder, loft, merge, quad, uniform
from neural_sim.town.ray_casting import RayScene
from neural_sim.town.renderer import TownRenderer
from neural_sim.town.shading import surfaces_of
from neural_sim.town.street import street_mesh
from neural_sim.town.texture import band, noise, stripes
from neural_sim.town.town import build_town

CONFIG = TownConfig(
    seed=7, duration_s=6.0, sensor_noise=0.0, street="bends", lead_car=True, parked_cars=6, oncoming_cars=1,
    crossing_pedestrians=0,
)  # fmt: skip
NOW_US = 2_000_000


@pytest.fixture(scope="module")
def town():
    return build_town(CONFIG)


@pytest.fixture(scope="module")
def camera(town):
    return town.cameras[WIDE_CAMERA]


def project(camera, T_world_camera, points_m):
    """Pixels [N, 2] and depths [N] of world points [N, 3]."""
    pose = invert_pose(T_world_camera)
    local = points_m @ pose[:3, :3].T + pose[:3, 3]
    x = camera.fx_px * local[:, 0] / local[:, 2] + camera.cx_px
    y = camera.fy_px * local[:, 1] / local[:, 2] + camera.cy_px
    return np.stack([x, y], axis=-1), local[:, 2]


def without_actors(request):
    return dataclasses.replace(request, T_world_actors={})


def test_depth_of_the_road_is_exact(town, camera):
    request = without_actors(town.request(camera, NOW_US))
    image = town.renderer.render([request])[0]
    rows, columns = np.mgrid[camera.height_px - 40 : camera.height_px, 120:200]
    # A level camera at height h meets the ground plane at depth h * fy / (y - cy).
    expected = request.T_world_camera_open[2, 3] * camera.fy_px / (rows + 0.5 - camera.cy_px)
    np.testing.assert_allclose(image.depth_m[rows, columns], expected, rtol=1e-6)
    assert (image.opacity[rows, columns] == 1.0).all()


def test_sky_has_no_depth_and_no_opacity(town, camera):
    image = town.renderer.render([town.request(camera, NOW_US)])[0]
    assert image.rgb.shape == (192, 320, 3)
    assert image.rgb.dtype == image.depth_m.dtype == image.opacity.dtype == np.float32
    sky = image.opacity == 0
    assert 0.05 < sky.mean() < 0.6
    assert (image.depth_m[sky] == 0).all()
    assert (image.depth_m[image.opacity == 1] > 0).all()
    edge = (image.opacity > 0) & (image.opacity < 1)
    assert edge.any()
    assert (image.depth_m[edge] > 0).all()


def test_small_actor_appears_where_its_centre_projects(town, camera):
    cube = loft(_cube_rings(0.5), materials.PLAIN, (0.8, 0.0, 0.8))
    renderer = TownRenderer(street_mesh(town.network, town.layout), {"cube": cube}, town.weather, 0.0)
    request = without_actors(town.request(camera, NOW_US))
    empty = renderer.render([request])[0]
    for x, y, z in ((10.0, 0.5, 0.9), (14.0, -3.0, 1.5), (18.0, 2.0, 0.6)):
        centre = town.expert.poses_at(np.array([NOW_US]))[0] @ pose_from_planar(np.array([x, y, 0.3]), z)
        image = renderer.render([dataclasses.replace(request, T_world_actors={"cube": centre})])[0]
        weight = np.abs(image.depth_m - empty.depth_m) > 0.2
        weight = weight * np.clip(image.rgb[..., 0] - image.rgb[..., 1], 0.0, None)
        rows, columns = np.mgrid[: camera.height_px, : camera.width_px] + 0.5
        seen = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        expected, _ = project(camera, request.T_world_camera_open, centre[None, :3, 3])
        assert np.linalg.norm(seen - expected[0]) < 1.0


def _cube_rings(side_m):
    ring = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]]) * side_m / 2
    half = np.array([side_m / 2, 0.0, 0.0])
    return np.stack([ring - half, ring + half])


def test_silhouette_of_the_lead_car_fills_its_projected_box(town, camera):
    request = town.request(camera, NOW_US)
    lead = next(track for track in town.tracks if track.track_id == "lead")
    alone = dataclasses.replace(request, T_world_actors={"lead": request.T_world_actors["lead"]})
    with_lead, empty = (r.depth_m for r in town.renderer.render([alone, without_actors(request)]))
    rows, columns = np.nonzero(with_lead != empty)
    signs = np.array(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5])).reshape(3, 8).T
    pose = request.T_world_actors["lead"]
    corners = (signs * lead.size_m) @ pose[:3, :3].T + pose[:3, 3]
    pixels, _ = project(camera, request.T_world_camera_open, corners)
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    seen_low, seen_high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1
    assert len(rows) > 30
    # The body is rounded, so it may stay inside its box, but never leave it by more than the pixel raster.
    assert (seen_low >= low - 1).all()
    assert (seen_high <= high + 1).all()
    assert (np.abs(seen_low - low) < 2.5).all()
    assert (np.abs(seen_high - high) < 2.5).all()


def test_corner_of_a_dash_is_where_the_road_says(town, camera):
    sharp = camera.resized(1280, 768)
    request = without_actors(town.request(sharp, NOW_US))
    image = town.renderer.render([request])[0]
    s_camera = town.network.main.to_road(request.T_world_camera_open[None, :2, 3])[0, 0]
    corner_s = np.ceil((s_camera + 4.0) / DASH_PERIOD_M) * DASH_PERIOD_M
    for side in (1.0, -1.0):
        corner = (corner_s, side * MARKING_WIDTH_M / 2)
        inside = town.network.main.to_world(corner[0] + 0.12, corner[1] - side * 0.05)
        beside = town.network.main.to_world(corner[0] + 0.12, corner[1] + side * 0.06)
        before = town.network.main.to_world(corner[0] - 0.16, corner[1] - side * 0.05)
        points = np.stack([inside, beside, before]) * [1.0, 1.0, 0.0]
        pixels, _ = project(sharp, request.T_world_camera_open, points)
        columns, rows = np.floor(pixels).astype(int).T
        bright = image.rgb[rows, columns].mean(axis=-1)
        assert bright[0] > bright[1] + 0.15
        assert bright[0] > bright[2] + 0.15


def test_textures_stand_still_in_the_world(town, camera):
    """The same points of the road have the same colour from two places, as reconstruction needs."""
    sharp = camera.resized(1280, 768)
    first, second = (without_actors(town.request(sharp, t_us)) for t_us in (NOW_US, NOW_US + 200_000))
    images = town.renderer.render([first, second])
    rows, columns = np.mgrid[470:620:5, 300:980:11].reshape(2, -1)
    depth = images[0].depth_m[rows, columns][:, None]
    x, y = (columns + 0.5 - sharp.cx_px) / sharp.fx_px, (rows + 0.5 - sharp.cy_px) / sharp.fy_px
    local = depth * np.stack([x, y, np.ones_like(x)], axis=-1)
    world = local @ first.T_world_camera_open[:3, :3].T + first.T_world_camera_open[:3, 3]
    pixels, _ = project(sharp, second.T_world_camera_open, world)
    inside = (pixels > 2).all(axis=1) & (pixels[:, 0] < 1278) & (pixels[:, 1] < 766)
    again = np.floor(pixels[inside]).astype(int)
    seen, expected = images[1].rgb[again[:, 1], again[:, 0]], images[0].rgb[rows[inside], columns[inside]]
    assert inside.sum() > 300
    assert np.median(np.abs(seen - expected)) < 0.012
    assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.95


def test_ground_has_texture_to_match(town, camera):
    image = town.renderer.render([without_actors(town.request(camera, NOW_US))])[0]
    road = image.rgb[150:190, 130:190].mean(axis=-1)
    assert road.std() > 0.025
    assert np.abs(np.diff(road, axis=1)).mean() > 0.008


def test_same_request_same_bytes_in_any_batch(town, camera):
    requests = [town.request(camera.resized(80, 48), t_us) for t_us in (0, NOW_US)]
    together = town.renderer.render(requests)
    fresh = build_town(CONFIG).renderer
    for request, image in zip(reversed(requests), reversed(together), strict=True):
        again = fresh.render([request])[0]
        assert again.rgb.tobytes() == image.rgb.tobytes()
        assert again.depth_m.tobytes() == image.depth_m.tobytes()
    other = build_town(dataclasses.replace(CONFIG, seed=8)).renderer
    assert other.render([without_actors(requests[0])])[0].rgb.tobytes() != together[0].rgb.tobytes()


def test_sensor_noise_depends_on_seed_camera_and_time_only(town, camera):
    noisy = build_town(dataclasses.replace(CONFIG, sensor_noise=0.01)).renderer
    request = town.request(camera.resized(80, 48), NOW_US)
    later = dataclasses.replace(request, t_us=NOW_US + 1)
    clean = town.renderer.render([request])[0].rgb
    first, again, other = (image.rgb for image in noisy.render([request, request, later]))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    middle = (clean > 0.1) & (clean < 0.9)
    assert np.std((first - clean)[middle]) == pytest.approx(0.01, rel=0.1)


def test_each_row_has_the_pose_of_its_own_exposure(town, camera):
    small = camera.resized(80, 48)
    start = town.request(small, NOW_US)
    end = town.request(small, NOW_US + 400_000)
    rolling = dataclasses.replace(without_actors(start), T_world_camera_close=end.T_world_camera_open)
    first, last, image = town.renderer.render(
        [
            without_actors(start),
            RenderRequest(small, end.T_world_camera_open, end.T_world_camera_open, {}, NOW_US),
            rolling,
        ]
    )
    whole = image.opacity[0] == first.opacity[0]
    np.testing.assert_allclose(image.depth_m[0][whole], first.depth_m[0][whole], rtol=1e-6)
    np.testing.assert_allclose(image.depth_m[-1], last.depth_m[-1], rtol=1e-6)
    assert not np.array_equal(image.rgb[24], first.rgb[24])


def test_actors_beside_the_view_change_nothing(town, camera):
    request = town.request(camera.resized(80, 48), NOW_US)
    lead = request.T_world_actors["lead"]
    behind = pose_from_planar(town.expert.planar_at(np.array([NOW_US]))[0] - [15.0, 0.0, 0.0], 0.75)
    with_both = dataclasses.replace(request, T_world_actors={"lead": lead, "parked_0": behind})
    with_lead = dataclasses.replace(request, T_world_actors={"lead": lead})
    first, second = town.renderer.render([with_both, with_lead])
    np.testing.assert_array_equal(first.rgb, second.rgb)


@pytest.mark.parametrize("t_us", [0, 1_234_567, 2_000_000, 6_000_000])
def test_request_has_the_recorded_poses(town, camera, t_us):
    request = town.request(camera, t_us)
    at = np.array([t_us])
    np.testing.assert_allclose(
        request.T_world_camera_open, town.expert.poses_at(at)[0] @ camera.T_rig_camera, atol=1e-9
    )
    for track in town.tracks:
        expected = track.trajectory.poses_at(at)[0]
        np.testing.assert_allclose(request.T_world_actors[track.track_id], expected, atol=1e-9)


def test_unknown_actor_is_refused(town, camera):
    request = dataclasses.replace(town.request(camera, 0), T_world_actors={"tram": np.eye(4)})
    with pytest.raises(InputError, match=r"road users \['tram'\] are not of this town"):
        town.renderer.render([request])


def test_tele_camera_sees_a_quarter_of_the_field(town):
    tele = town.cameras[TELE_CAMERA]
    assert np.rad2deg(2 * np.arctan(tele.width_px / 2 / tele.fx_px)) == pytest.approx(30.0)
    image = town.renderer.render([town.request(tele.resized(80, 48), NOW_US)])[0]
    assert image.opacity[30:].min() == 1.0


@pytest.mark.parametrize("size", [(4.4, 1.8, 1.5), (3.9, 1.7, 1.68), (4.8, 1.85, 1.42)])
def test_car_fills_exactly_its_box(size):
    points = car_mesh(size, PAINTS[0]).triangles_m.reshape(-1, 3)
    np.testing.assert_allclose(points.max(axis=0), np.array(size) / 2, atol=1e-9)
    np.testing.assert_allclose(points.min(axis=0), -np.array(size) / 2, atol=1e-9)


def test_ray_scene_hits_a_known_quad_and_misses_beside_it():
    corners = np.array([[5.0, -1, -1], [5.0, 1, -1], [5.0, 1, 1], [5.0, -1, 1]])
    scene = RayScene(quad(corners, np.zeros((4, 2)), materials.PLAIN, (1.0, 1.0, 1.0)))
    origins = np.array([[0.0, 0, 0], [0, 2, 0], [6, 0, 0]], np.float32)
    directions = np.array([[1.0, 0.1, 0.05], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
    hit = scene.first_hit(origins, directions)
    assert hit[0] >= 0
    np.testing.assert_array_equal(hit[1:], [-1, -1])
    np.testing.assert_array_equal(scene.is_occluded(origins, directions[1]), [True, False, False])
    empty = RayScene(merge([]))
    np.testing.assert_array_equal(empty.first_hit(origins, directions), [-1, -1, -1])
    np.testing.assert_array_equal(empty.is_occluded(origins, directions[1]), [False, False, False])


def slow_depths(triangles_m, origin, direction):
    """Ray parameter at which one ray meets each triangle, inf for none: three linear equations each."""
    depths = np.full(len(triangles_m), np.inf)
    for i, (a, b, c) in enumerate(triangles_m):
        share_b, share_c, depth = np.linalg.solve(np.stack([b - a, c - a, -direction], axis=1), origin - a)
        if min(share_b, share_c, 1.0 - share_b - share_c, depth) >= 0.0:
            depths[i] = depth
    return depths


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("count", [1, 16, 37])
def test_ray_scene_agrees_with_a_slow_reference(count, lasting):
    rng = np.random.default_rng(count)
    triangles = rng.uniform(-3, 3, (40, 1, 3)) + rng.normal(0, 1.5, (40, 3, 3))
    scene = RayScene(uniform(triangles, np.zeros((40, 3, 2)), materials.PLAIN, (1.0, 1.0, 1.0)), lasting)
    origins = rng.uniform(-4, 4, (count, 3)).astype(np.float32)
    directions = rng.normal(0, 1, (count, 3)).astype(np.float32)

    def expected(directions):
        pairs = zip(origins.astype(float), directions.astype(float), strict=True)
        return np.array([slow_depths(triangles, origin, direction) for origin, direction in pairs])

    depths = expected(directions)
    nearest = np.where(np.isfinite(depths.min(axis=1)), depths.argmin(axis=1), -1)
    np.testing.assert_array_equal(scene.first_hit(origins, directions), nearest)
    parallel = expected(np.broadcast_to(directions[0], origins.shape))
    np.testing.assert_array_equal(scene.is_occluded(origins, directions[0]), np.isfinite(parallel).any(axis=1))


def test_an_embreex_without_embree_4_is_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(ImportError, match=r"embreex \S+ brings no library of Embree 4; expected embreex >= 4.4"):
        embree.load_library()


def test_scenes_that_come_and_go_leave_the_others_alone():
    corners = np.array([[5.0, -1, -1], [5.0, 1, -1], [5.0, 1, 1], [5.0, -1, 1]])
    near, far = (
        RayScene(quad(corners + np.array([x, 0, 0]), np.zeros((4, 2)), materials.PLAIN, (1.0, 1.0, 1.0)))
        for x in (0.0, 9.0)
    )
    origins = np.array([[7.0, 0.3, 0.2]], np.float32)
    ahead = np.array([1.0, 0.0, 0.0], np.float32)
    del near
    for _ in range(20):
        RayScene(quad(corners, np.zeros((4, 2)), materials.PLAIN, (1.0, 1.0, 1.0)))
    assert far.is_occluded(origins, ahead)[0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_texture_map_of_a_triangle_meets_its_corners(seed):
    rng = np.random.default_rng(seed)
    mesh = cylinder(rng.normal(0, 3, 3), rng.normal(0, 3, 3) + 10.0, 0.5, 7, materials.PLAIN, (0.5, 0.5, 0.5))
    table = surfaces_of(mesh)
    offset = mesh.triangles_m - table.anchor_m[:, None]
    u = table.uv[:, None, 0] + np.einsum("tk,tck->tc", table.gradient_u, offset)
    v = table.uv[:, None, 1] + np.einsum("tk,tck->tc", table.gradient_v, offset)
    np.testing.assert_allclose(np.stack([u, v], axis=-1), mesh.uv, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(table.normal, axis=-1), 1.0)


def test_merged_meshes_keep_their_surfaces_apart():
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    part = quad(corners, np.zeros((4, 2)), materials.PLAIN, (1.0, 1.0, 1.0))
    both = merge([merge([part, part]), part])
    np.testing.assert_array_equal(both.surface, [0, 0, 1, 1, 2, 2])


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-50, 50), period=st.floats(0.5, 9), share=st.floats(0.05, 0.95), width=st.floats(0.01, 20))
def test_stripes_are_the_mean_over_the_pixel(x, period, share, width):
    samples = x + width * ((np.arange(20_000) + 0.5) / 20_000 - 0.5)
    expected = (np.mod(samples, period) < share * period).mean()
    assert stripes(x, period, share * period, width) == pytest.approx(expected, abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-5, 5), low=st.floats(-3, 0), high=st.floats(0, 3), width=st.floats(0.01, 20))
def test_band_is_the_mean_over_the_pixel(x, low, high, width):
    samples = x + width * ((np.arange(20_000) + 0.5) / 20_000 - 0.5)
    expected = ((samples >= low) & (samples < high)).mean()
    assert band(x, low, high, width) == pytest.approx(expected, abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-500, 500), y=st.floats(-500, 500))
def test_noise_is_bounded_and_continuous(x, y):
    value = noise(x, y, 3)
    assert -1.0 <= value <= 1.0
    assert abs(noise(x + 1e-6, y, 3) - value) < 1e-4
