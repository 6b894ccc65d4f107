"""Reconstruction through lenses, rolling shutters and past the recording car itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from reconstruction_clip import STEP_US, make_clip
from test_reconstruction import SMALL, all_tensors

from neural_sim.cameras import Camera
from neural_sim.clips.clip import Clip
from neural_sim.distortion import Distortion, EquidistantFisheye, FTheta, RadialTangential
from neural_sim.ego_mask import EgoMask
from neural_sim.errors import InputError
from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose, pose_from_planar
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.drawing import draw, make_target
from neural_sim.reconstruction.loss import psnr_db, ssim, ssim_by_convolution
from neural_sim.reconstruction.model import SceneModel
from neural_sim.reconstruction.off_log import conflict_share, hole_share
from neural_sim.reconstruction.placement import placed_actors
from neural_sim.reconstruction.pose_refinement import PoseCorrection
from neural_sim.reconstruction.reconstruct import reconstruct
from neural_sim.reconstruction.structure import _rig_images
from neural_sim.reconstruction.tracks import FeatureTracks, bearings_of, track_features
from neural_sim.reconstruction.triangulation import project_tracks, triangulate
from neural_sim.reconstruction.views import View, load_views, usable_pixels
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.rendering.splat_renderer import SplatRenderer
from neural_sim.road_users import EgoVehicle
from neural_sim.scenes.recorded_views import drive_request, recorded_request
from neural_sim.scenes.scene import Scene
from neural_sim.trajectory import Trajectory

# The corners of the image lie beyond what it covers.
FISHEYE = EquidistantFisheye((0.05, -0.01, 0.0, 0.0), max_angle_rad=1.1)
OPENCV = RadialTangential((-0.2, 0.05, 0.0), (0.001, -0.002))
BENT = FTheta((0.0, 64.0, 1.0, -2.0), (), "angle_to_radius", max_angle_rad=1.3)
LENSES = pytest.mark.parametrize("lens", [None, OPENCV, FISHEYE, BENT], ids=["pinhole", "opencv", "fisheye", "f-theta"])
SHUTTER_US = 80_000
ENOUGH = replace(SMALL, iterations=100)
BONNET = EgoMask((((0.0, 52.0), (128.0, 52.0), (128.0, 64.0), (0.0, 64.0)),))


def make_view(lens: Distortion | None, direction: str = "top-to-bottom", shutter_us: int = SHUTTER_US) -> View:
    """A view from a car that drives 10 m/s and turns by 0.4 rad/s."""
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3], T_rig_camera[2, 3] = R_RIG_FORWARD_CAMERA, 1.5
    camera = Camera("front", 128, 64, 64.0, 64.0, 64.0, 29.0, T_rig_camera, shutter_us, lens, direction)
    planar = np.array([[-1.0, 0.0, -0.04], [1.0, 0.1, 0.04]])
    ego = Trajectory(np.array([-100_000, 100_000]), pose_from_planar(planar))
    view = View(camera, 0, 0, np.eye(4), np.zeros((64, 128, 3), np.uint8), False)
    return view.along(ego)


def hit_points(view: View, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Random image positions, and points that they show."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform((0, 0), (128, 64), (count, 2))
    usable = usable_pixels(view.camera, 128, 64)
    column, row = np.floor(pixels).astype(int).T
    pixels = pixels if usable is None else pixels[usable[row, column]]
    depth = rng.uniform(4, 40, (len(pixels), 1))
    return pixels, view.ray_origins(pixels) + depth * view.ray_directions(pixels)


@LENSES
@pytest.mark.parametrize("direction", ["top-to-bottom", "bottom-to-top", "left-to-right", "right-to-left"])
def test_views_project_where_their_rays_go(lens, direction):
    view = make_view(lens, direction)
    pixels, points = hit_points(view)
    assert len(pixels) > 200
    found, depth, inside = view.project(points)
    # Rays know their line to half a pixel, in which the car turns by a quarter of a milliradian.
    np.testing.assert_allclose(found, pixels, atol=0.15)
    assert (depth > 3).all()
    assert inside[np.all((pixels > 1) & (pixels < [127, 63]), axis=1)].mean() > 0.95
    assert not view.project(view.T_world_camera[:3, 3] - 5 * view.T_world_camera[:3, 2:3].T)[2].any()


@LENSES
def test_triangulation_through_a_lens(lens):
    camera = make_view(lens, shutter_us=0).camera.resized(512, 256)
    poses = np.tile(np.eye(4), (8, 1, 1))
    poses[:, :3, :3] = R_RIG_FORWARD_CAMERA
    poses[:, 0, 3] = 0.8 * np.arange(8)
    points = np.random.default_rng(0).uniform((14, 4, -1), (25, 9, 2), (40, 3))
    local = np.einsum("vji,pvj->pvi", poses[:, :3, :3], points[:, None] - poses[:, :3, 3])
    xy_px, seen = camera.project(local)
    assert seen.all()
    track, image = np.meshgrid(np.arange(40), np.arange(8), indexing="ij")
    xy_px = xy_px.reshape(-1, 2)
    tracks = FeatureTracks(track.ravel(), image.ravel(), xy_px, bearings_of(camera, xy_px))
    K, T = np.tile(camera.K, (8, 1, 1)), invert_pose(poses)
    found = triangulate(tracks, K, T)
    assert len(found.track) == 40
    np.testing.assert_allclose(found.points_m, points[found.track], atol=1e-3)
    # Near its observation the miss of a point is that of its projection.
    moved = points + np.array([0.02, -0.01, 0.015])
    residual, jacobian, _ = project_tracks(tracks, K, T, moved)
    shifted_px, _ = camera.project(local + np.einsum("vji,pj->pvi", poses[:, :3, :3], moved - points))
    np.testing.assert_allclose(residual, shifted_px.reshape(-1, 2) - xy_px, atol=0.01)
    by_x = (project_tracks(tracks, K, T, moved + np.array([1e-5, 0, 0]))[0] - residual) / 1e-5
    np.testing.assert_allclose(jacobian[..., 0], by_x, atol=1e-3)


@pytest.fixture(scope="module")
def bent_clip(tmp_path_factory) -> Clip:
    """A drive seen through a fisheye whose rows are read one after another, with a car ahead."""
    whole = replace(FISHEYE, max_angle_rad=1.5)
    folder = tmp_path_factory.mktemp("bent")
    return make_clip(folder, moving_box=True, distortion=whole, shutter_us=SHUTTER_US, fx_px=64.0, fy_px=64.0)


@pytest.fixture(scope="module")
def bent_scene(bent_clip) -> Scene:
    return reconstruct(bent_clip, ENOUGH, seed=3)


def with_camera(clip: Clip, **changes) -> Clip:
    frames = clip.cameras["front"]
    return replace(clip, cameras={"front": replace(frames, camera=replace(frames.camera, **changes))})


def test_the_true_camera_reconstructs_better(bent_clip, bent_scene):
    truth = bent_scene.metadata["quality"]["held_out"]
    wrong = {
        "pinhole": with_camera(bent_clip, distortion=None),
        "global shutter": with_camera(bent_clip, shutter_us=0),
    }
    found = {name: reconstruct(clip, ENOUGH, seed=3).metadata["quality"]["held_out"] for name, clip in wrong.items()}
    assert truth["psnr_db"] > 20.5
    assert truth["psnr_db"] > found["pinhole"]["psnr_db"] + 2
    assert truth["psnr_db"] > found["global shutter"]["psnr_db"] + 0.5
    assert truth["ssim"] > max(each["ssim"] for each in found.values())


def test_features_are_placed_at_the_times_of_their_rows():
    t_us = STEP_US * np.arange(-1, 11)
    ego = Trajectory(t_us, pose_from_planar(np.stack([8e-6 * t_us, 0 * t_us, 3e-7 * t_us], axis=-1)))
    clip = Clip("turning", {}, {}, ego, EgoVehicle())
    views = [replace(make_view(FISHEYE), t_us=STEP_US * index).along(ego) for index in range(10)]
    points = np.random.default_rng(0).uniform((8, 3, 0), (14, 6, 3), (60, 3))
    seen = [view.project(points) for view in views]
    xy_px, inside = (np.stack([each[k] for each in seen], axis=1) for k in (0, 2))
    track, image = np.meshgrid(np.arange(60), np.arange(10), indexing="ij")
    xy_px = xy_px.reshape(-1, 2)
    bearings = bearings_of(views[0].camera, xy_px)
    tracks = FeatureTracks(track.ravel(), image.ravel(), xy_px, bearings).keep(inside.ravel())
    error_m = []
    for shutter_us in (SHUTTER_US, 0):
        cameras = [replace(view.camera, shutter_us=shutter_us) for view in views]
        images, sighted = _rig_images(clip, views, cameras, tracks)
        found = triangulate(sighted, images.K, images.T_camera_world(PoseCorrection.none(np.array([0]))), 20.0)
        kept = np.flatnonzero(inside.sum(axis=1) >= 3)[found.track]
        error_m.append(np.median(np.linalg.norm(found.points_m - points[kept], axis=1)))
    assert error_m[0] < 0.05
    assert error_m[1] > 5 * error_m[0]


def test_the_simulator_draws_recorded_views_as_training_did(bent_clip, bent_scene):
    measured = bent_scene.metadata["quality"]["held_out"]["frames"]
    camera = bent_scene.cameras["front"].resized(96, 48)
    views = {view.frame_index: view for view in load_views(bent_clip, bent_clip.cameras["front"], SMALL)[0]}
    requests = [recorded_request(bent_scene, camera, views[frame["index"]].t_us) for frame in measured]
    assert all(request.T_world_actors_open for request in requests)
    for frame, image in zip(measured, SplatRenderer(bent_scene).render(requests), strict=True):
        view = views[frame["index"]]
        target = make_target(view, drive_request(bent_scene.expert, (), view.camera, view.t_us))
        rgb = torch.from_numpy(image.rgb)
        # Training fits the sky without bounds, and a scene keeps it within 0..1.
        assert psnr_db(rgb, target.pixels(), target.usable) == pytest.approx(frame["psnr_db"], abs=0.03)
        assert float(ssim(rgb, target.pixels(), target.usable)) == pytest.approx(frame["ssim"], abs=1e-3)


def test_harmonics_of_a_turned_car_are_the_same_in_training_and_in_the_simulator(bent_scene):
    car = bent_scene.actors["lead"]
    lit = replace(car, sh=torch.rand(car.sh.shape, generator=torch.Generator().manual_seed(0)))
    track = bent_scene.tracks[0]
    turn = pose_from_planar(np.array([0.0, 0.0, 2.0]))
    turned = replace(track, trajectory=replace(track.trajectory, T_world_rig=track.trajectory.T_world_rig @ turn))
    scene = replace(bent_scene, actors={"lead": lit}, tracks=(turned,))
    parts = [scene.background, scene.road, lit]
    owner = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    model = SceneModel(Gaussians.concatenate(parts), owner, scene.sky, 1)
    camera = scene.cameras["front"].resized(96, 48)
    request = recorded_request(scene, camera, 2_000_000)
    view = View(camera, 0, 2_000_000, np.eye(4), np.zeros((48, 96, 3), np.uint8), False)
    actors = placed_actors(model, scene.tracks, request, None)
    with torch.no_grad():
        drawn, _ = draw(model.gaussians(), model.sky, make_target(view, request), "cpu", actors)
    (image,) = SplatRenderer(scene).render([request])
    np.testing.assert_allclose(drawn.clamp(0, 1).numpy(), image.rgb, atol=2e-4)


def paint_bonnet(clip: Clip, folder, color) -> Clip:
    """The clip with the lower rows of its images painted, and a mask that says so."""
    frames = clip.cameras["front"]
    paths = []
    for path in frames.paths:
        pixels = np.asarray(Image.open(path)).copy()
        pixels[52:] = color
        paths.append(folder / path.name)
        Image.fromarray(pixels).save(paths[-1])
    masked = replace(frames, camera=replace(frames.camera, ego_mask=BONNET), paths=tuple(paths))
    return replace(clip, cameras={"front": masked})


def pinkness(scene: Scene) -> float:
    """Largest excess of red and blue over green that any visible Gaussian of the static world has."""
    colors = torch.cat([part.sh[:, 0] * 0.28209479 + 0.5 for part in (scene.background, scene.road)])
    opacity = torch.cat([torch.sigmoid(part.opacity_logits) for part in (scene.background, scene.road)])
    return float((colors[:, [0, 2]].amin(dim=1) - colors[:, 1])[opacity > 0.3].max())


def test_the_own_car_leaves_no_ghost(tmp_path):
    clip = make_clip(tmp_path / "clean")
    for name in ("pink", "noise"):
        (tmp_path / name).mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 128, 3), dtype=np.uint8)
    pink = paint_bonnet(clip, tmp_path / "pink", (255, 0, 255))
    masked, other = (reconstruct(each, SMALL, seed=0) for each in (pink, paint_bonnet(clip, tmp_path / "noise", noise)))
    for name, tensor in all_tensors(masked).items():
        assert torch.equal(tensor, all_tensors(other)[name]), name
    assert masked.metadata["quality"] == other.metadata["quality"]
    ghost, clean = (reconstruct(each, SMALL, seed=0) for each in (with_camera(pink, ego_mask=None), clip))
    assert pinkness(ghost) > 0.5
    assert pinkness(masked) < pinkness(clean) + 0.1
    quality = [scene.metadata["quality"]["held_out"]["psnr_db"] for scene in (masked, clean)]
    assert quality[0] == pytest.approx(quality[1], abs=1.5)


def test_a_mask_over_everything_is_refused(tmp_path):
    whole = EgoMask((((-1.0, -1.0), (129.0, -1.0), (129.0, 65.0), (-1.0, 65.0)),))
    with pytest.raises(InputError, match="camera front: ego mask and lens leave no pixel of the image; mend the mask"):
        reconstruct(make_clip(tmp_path, frames=8, ego_mask=whole), SMALL, seed=0)


def test_reduced_pixels_with_any_part_of_the_own_car_are_left_out():
    camera = make_view(None, shutter_us=0).camera
    assert usable_pixels(camera, 96, 48) is None
    usable = usable_pixels(replace(camera, ego_mask=BONNET), 32, 10)
    assert usable is not None
    # Rows of 6.4 px; the bonnet starts at 52.
    assert usable.all(axis=1).tolist() == [True] * 8 + [False] * 2


def test_corners_keep_away_from_the_own_car():
    image = np.random.default_rng(0).integers(0, 256, (80, 120), dtype=np.uint8)
    usable = np.ones((80, 120), bool)
    usable[50:] = False
    tracks = track_features([image] * 4, 200, usable=usable)
    assert len(tracks) > 20
    assert tracks.xy_px[:, 1].max() <= 42.5
    assert track_features([image] * 4, 200).xy_px[:, 1].max() > 60


def test_similarity_ignores_unusable_pixels():
    generator = torch.Generator().manual_seed(0)
    image, target = (torch.rand(24, 30, 3, generator=generator) for _ in range(2))
    usable = torch.ones(24, 30, dtype=torch.bool)
    usable[15:, 5:] = False
    image.requires_grad_()
    shown = image.detach()
    by_hand, by_torch = ssim(image, target, usable), ssim_by_convolution(image, target, usable)
    assert float(by_hand.detach()) == pytest.approx(float(by_torch.detach()), abs=1e-5)
    gradients = [torch.autograd.grad(value, image)[0] for value in (by_hand, by_torch)]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)
    assert (gradients[0][~usable] == 0).all()
    other = torch.where(usable[..., None], target, 1 - target)
    assert float(ssim(shown, other, usable)) == float(by_hand.detach())
    assert psnr_db(shown, other, usable) == psnr_db(shown, target, usable)
    mean_square = float(((shown - target)[usable] ** 2).mean())
    assert psnr_db(shown, target, usable) == pytest.approx(-10 * np.log10(mean_square), abs=1e-4)


def test_off_log_judges_what_the_lens_sees():
    camera = replace(make_view(FISHEYE, shutter_us=0).camera, ego_mask=BONNET)
    request = RenderRequest(camera, camera.T_rig_camera, camera.T_rig_camera, {}, 0)
    usable = usable_pixels(camera, 128, 64)
    assert usable is not None
    image = RenderedImage(
        np.zeros((64, 128, 3), np.float32), np.full((64, 128), 10.0, np.float32), usable.astype(np.float32)
    )
    near = replace(image, depth_m=np.where(usable, 10.0, 1.0).astype(np.float32), opacity=np.ones_like(image.opacity))
    # Depth is distance from the camera, the same everywhere: no part of the sphere lies before another.
    assert conflict_share(request, image, request, near) == 0.0
    floating = replace(near, depth_m=np.full((64, 128), 5.0, np.float32))
    assert conflict_share(request, image, request, floating) == 1.0
    assert hole_share(image, np.where(usable[..., None], [0.0, 0.0, -1.0], 0.0)) == 0.0


def test_gsplat_is_refused_for_lenses_and_rolling_shutters(tmp_path):
    clip = make_clip(tmp_path, frames=8)
    for changes in ({"distortion": OPENCV}, {"shutter_us": 30_000}):
        with pytest.raises(InputError, match="on gsplat takes pinhole cameras with global shutters only"):
            reconstruct(with_camera(clip, **changes), replace(SMALL, backend="gsplat"), seed=0)
