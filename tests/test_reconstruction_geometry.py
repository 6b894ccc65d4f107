import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstruction_clip import make_clip, texture

from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose, pose_from_planar
from neural_sim.reconstruction.actors import in_box, moving_tracks, pixels_on_boxes
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.ground import fit_to_points, ground_from_path, road_grid, surface_normals
from neural_sim.reconstruction.initial_points import color_from_views, thin_out
from neural_sim.reconstruction.preparation import prepare
from neural_sim.reconstruction.tracks import FeatureTracks, track_features
from neural_sim.reconstruction.triangulation import not_isolated, triangulate
from neural_sim.reconstruction.views import View, is_held_out
from neural_sim.trajectory import Trajectory

K = np.array([[300.0, 0.0, 200.0], [0.0, 310.0, 90.0], [0.0, 0.0, 1.0]])


def forward_cameras(count: int, step_m: float = 0.8) -> np.ndarray:
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = R_RIG_FORWARD_CAMERA
    poses[:, :3, 3] = np.stack([step_m * np.arange(count), np.zeros(count), np.full(count, 1.5)], axis=-1)
    return invert_pose(poses)


def every(matrix: np.ndarray, count: int) -> np.ndarray:
    return np.tile(matrix, (count, 1, 1))


def observe(points: np.ndarray, T: np.ndarray) -> FeatureTracks:
    local = np.einsum("vij,pj->pvi", T[:, :3, :3], points) + T[:, :3, 3]
    pixels = local @ K.T
    track, image = np.meshgrid(np.arange(len(points)), np.arange(len(T)), indexing="ij")
    return FeatureTracks(track.ravel(), image.ravel(), (pixels[..., :2] / pixels[..., 2:]).reshape(-1, 2))


def test_triangulation_is_exact_without_noise():
    points = np.random.default_rng(0).uniform((15, -8, 0), (30, 8, 5), (40, 3))
    points[:, 1] += np.sign(points[:, 1]) * 2
    T = forward_cameras(8)
    found = triangulate(observe(points, T), every(K, 8), T)
    np.testing.assert_allclose(found.points_m, points[found.track], atol=1e-3)
    assert len(found.track) == 40


def test_triangulation_gates():
    rng = np.random.default_rng(1)
    good = rng.uniform((15, 3, 0), (30, 8, 5), (30, 3))
    ahead = np.array([[100.0, 0.05, 1.5]])  # at the point of expansion: no parallax
    tracks = observe(np.concatenate([good, ahead, good[:1]]), forward_cameras(8))
    tracks.xy_px[tracks.track == 31] += rng.normal(0, 8, (8, 2))  # no two rays agree
    found = triangulate(tracks, every(K, 8), forward_cameras(8))
    assert set(found.track) == set(range(30))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 0.4), st.integers(0, 1000))
def test_reprojection_noise_leaves_points_near(noise_px, seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform((12, 4, 0), (20, 8, 5), (25, 3))
    T = forward_cameras(8)
    tracks = observe(points, T)
    noisy = FeatureTracks(tracks.track, tracks.image, tracks.xy_px + rng.normal(0, noise_px, tracks.xy_px.shape))
    found = triangulate(noisy, every(K, 8), T)
    assert len(found.track) >= 24
    assert np.linalg.norm(found.points_m - points[found.track], axis=1).max() < 4 * noise_px


def test_no_tracks_give_no_points():
    nothing = FeatureTracks(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))
    assert len(triangulate(nothing, every(K, 3), forward_cameras(3)).points_m) == 0


def test_isolated_point_is_found():
    cloud = np.random.default_rng(0).uniform(0, 5, (100, 3))
    keep = not_isolated(np.concatenate([cloud, [[60.0, 0, 0]]]))
    assert not keep[-1]
    assert keep[:-1].all()


def test_tracks_follow_a_known_shift():
    wide = (255 * texture(5).mean(axis=2)).astype(np.uint8)
    images = [np.ascontiguousarray(wide[20:120, 10 + 3 * i : 130 + 3 * i]) for i in range(4)]
    tracks = track_features(images, max_corners=60, min_length=4)
    assert len(tracks) > 20
    xy = tracks.xy_px.reshape(-1, 4, 2)
    np.testing.assert_allclose(np.diff(xy[..., 0], axis=1), -3.0, atol=0.15)
    np.testing.assert_allclose(np.diff(xy[..., 1], axis=1), 0.0, atol=0.15)


def test_dropping_observations_renumbers_tracks():
    tracks = FeatureTracks(np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2, 3]), np.zeros((7, 2)))
    kept = tracks.keep(np.array([False, True, True, True, True, True, True]))
    assert len(kept) == 1
    assert kept.image.tolist() == [0, 1, 2, 3]


def hill(count: int = 60) -> Trajectory:
    """Uphill at 5 percent, turning left."""
    planar = np.stack([np.arange(count), 0.004 * np.arange(count) ** 2, np.arctan(0.008 * np.arange(count))], axis=-1)
    poses = pose_from_planar(planar, 0.05 * np.arange(count))
    pitch = np.eye(4)
    angle = np.arctan(0.05)
    pitch[:3, :3] = [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
    return Trajectory(100_000 * np.arange(count), poses @ pitch)


def test_ground_passes_through_the_rig_and_follows_the_slope():
    ego = hill()
    surface = ground_from_path(ego, half_width_m=6.0)
    xyz = ego.T_world_rig[:, :3, 3]
    np.testing.assert_allclose(surface.height_at(xyz[:, :2]), xyz[:, 2], atol=0.06)
    left = xyz + 5 * ego.T_world_rig[:, :3, 1]
    np.testing.assert_allclose(surface.height_at(left[:, :2]), left[:, 2], atol=0.12)
    assert surface.contains(left[:, :2]).all()
    assert not surface.contains(left[:, :2] + 3 * ego.T_world_rig[:, :2, 1]).any()
    ahead = xyz[-1] + 20 * ego.T_world_rig[-1, :3, 0]
    assert surface.contains(ahead[None, :2]).all()
    assert surface.height_at(ahead[None, :2])[0] == pytest.approx(ahead[2], abs=0.25)


def test_ground_mesh_faces_up_and_covers_the_ribbon():
    mesh = ground_from_path(hill(), half_width_m=6.0).mesh()
    a, b, c = (mesh.vertices_m[mesh.faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    assert (normals[:, 2] > 0).all()
    length_m = hill().path_length_m + 40
    assert 0.5 * normals[:, 2].sum() == pytest.approx(12 * length_m, rel=0.15)


def test_surface_moves_to_the_measured_road():
    surface = ground_from_path(hill(), half_width_m=6.0)
    xyz = hill().T_world_rig[:, :3, 3]
    measured = xyz - np.array([0, 0, 0.2]) + np.random.default_rng(0).normal(0, 0.03, xyz.shape)
    shifted = fit_to_points(surface, np.concatenate([measured, xyz + np.array([0, 0, 3])]))
    np.testing.assert_allclose(shifted.height_m, surface.height_m - 0.2, atol=0.03)
    assert fit_to_points(surface, measured[:40]) is surface


def test_road_grid_lies_on_the_surface():
    surface = ground_from_path(hill(), half_width_m=6.0)
    points = road_grid(surface, spacing_m=0.5)
    assert len(points) == pytest.approx(12 * (hill().path_length_m + 40) / 0.25, rel=0.1)
    np.testing.assert_allclose(points[:, 2], surface.height_at(points[:, :2]))
    np.testing.assert_allclose(surface_normals(surface, points[:, :2])[:, 2], 1 / np.sqrt(1 + 0.05**2), atol=0.01)


def test_colors_come_from_the_pixel_a_point_projects_to(tmp_path):
    camera = make_clip(tmp_path, frames=1).cameras["front"].camera
    image = np.zeros((camera.height_px, camera.width_px, 3), np.uint8)
    image[10, 20] = (255, 102, 0)
    pose = np.eye(4)
    pose[:3, :3] = R_RIG_FORWARD_CAMERA
    view = View(camera, 0, 0, pose, image, held_out=False)
    ray = view.ray_directions(np.array([[20.5, 10.5]]))
    colored = color_from_views(np.concatenate([7.0 * ray, -7.0 * ray]), [view])
    np.testing.assert_allclose(colored.points_m, 7.0 * ray)
    np.testing.assert_allclose(colored.colors, [[1.0, 0.4, 0.0]])


def test_prepared_points_lie_on_the_walls_and_the_road(tmp_path):
    config = ReconstructionConfig(image_width_px=320, track_corners=600, dense_points_per_frame=0, far_points=0)
    prepared = prepare(make_clip(tmp_path, frames=13, width_px=320), config, seed=0)
    x, y, z = prepared.static.points_m.T
    near = x < 25
    off_surface = np.minimum(np.abs(np.abs(y) - 5.0), np.abs(z))
    assert near.sum() > 200
    # One pixel is 0.06 m at the median distance of 12 m.
    assert np.median(off_surface[near]) < 0.2
    assert abs(np.median(prepared.surface.height_m)) < 0.1
    assert [view.frame_index for view in prepared.held_out] == [4, 12]


def test_boxes_cover_their_pixels(tmp_path):
    clip = make_clip(tmp_path, frames=8, moving_box=True)
    frames, track = clip.cameras["front"], clip.tracks[0]
    pose = clip.ego.T_world_rig[3] @ frames.camera.T_rig_camera
    view = View(frames.camera, 3, int(frames.t_us[3]), pose, frames.load(3), held_out=False)
    center, _, _ = view.project(track.trajectory.T_world_rig[3, None, :3, 3])
    assert pixels_on_boxes(view, np.concatenate([center, [[1.0, 1.0]]]), [track]).tolist() == [True, False]
    assert moving_tracks(clip.tracks) == (track,)
    assert in_box(np.array([[1.1, 0, 0], [1.3, 0, 0]]), track.size_m).tolist() == [True, False]


def test_voxels_keep_one_point_each():
    assert thin_out(np.array([[0.01, 0, 0], [0.02, 0, 0], [0.2, 0, 0]])).tolist() == [[0.01, 0, 0], [0.2, 0, 0]]


def test_split_is_every_eighth_frame():
    assert [i for i in range(24) if is_held_out(i, 8)] == [4, 12, 20]
    assert [i for i in range(8) if is_held_out(i, 3)] == [1, 4, 7]
