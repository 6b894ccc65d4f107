"""NeRFs: the hash grid against its definition, files, compositing; with nerfstudio also training and closed loop."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from reconstruction_clip import make_clip
from synthetic_scene import CAMERAS, make_scene

import pipelines.evaluate as stage
import pipelines.reconstruct_nerf as nerf_stage
from neural_sim.cameras import Camera
from neural_sim.clips.storage import write_clip
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_planar
from neural_sim.gaussians import Gaussians
from neural_sim.nerf import installation
from neural_sim.nerf.config import NerfConfig
from neural_sim.nerf.describe import describe_nerf
from neural_sim.nerf.drawing import camera_rays
from neural_sim.nerf.hash_grid import encode
from neural_sim.nerf.renderer import NerfRenderer, in_front
from neural_sim.nerf.storage import nerf_path, read_nerf, write_nerf
from neural_sim.nerf.training import covered_by, train_nerf, training_pixels
from neural_sim.nerf.world import NerfWorld
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.views import load_views
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.scenes.storage import write_scene
from neural_sim.simulation.config import SimulationConfig
from pipelines import evaluation_units
from pipelines.config import EvaluationConfig
from pipelines.evaluate import evaluate
from pipelines.inspect import inspect
from pipelines.reconstruct_nerf import reconstruct_nerf
from pipelines.worlds import cached_scene
from vla.baselines import ConstantVelocityPolicy
from vla.config import PolicyConfig

TINY = NerfConfig(
    image_width_px=64, iterations=30, rays_per_step=256, hash_levels=4, log2_hash_size=12, finest_cells=128,
    hidden_width=16, proposal_samples=(16, 8), nerf_samples=8, appearance_size=2, chunk_rays=500,
)  # fmt: skip


def has_nerfstudio():
    try:
        installation.require_nerfstudio()
    except InputError:
        return False
    return True


needs_nerfstudio = pytest.mark.skipif(not has_nerfstudio(), reason="needs the extra nerf")


def reference(position, table, scaling, size):
    """Features of one position in one level, by the definition."""
    cell, inside = np.floor(position * scaling).astype(np.int64), position * scaling - np.floor(position * scaling)
    total = np.zeros(2)
    for corner in np.ndindex(2, 2, 2):
        at = cell + corner
        row = (int(at[0]) ^ (int(at[1]) * 2654435761) ^ (int(at[2]) * 805459861)) % size
        total += np.prod(np.where(corner, inside, 1 - inside)) * table[row]
    return total


def test_hash_grid_is_its_definition_with_its_gradient():
    rng = np.random.default_rng(0)
    positions, scalings, size = rng.random((20, 3)).astype(np.float32), np.array([16.0, 45.0, 333.0]), 64
    table = torch.tensor(rng.normal(size=(3 * size, 2)), dtype=torch.float32, requires_grad=True)
    found = encode(torch.from_numpy(positions), table, torch.from_numpy(scalings))
    rows = table.detach().numpy()
    wanted = [
        np.concatenate([reference(p, rows[i * size : (i + 1) * size], s, size) for i, s in enumerate(scalings)])
        for p in positions.astype(float)
    ]
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-4)
    upstream = torch.from_numpy(rng.normal(size=found.shape)).float()
    (found * upstream).sum().backward()
    assert table.grad is not None
    # The features are linear in the table, so the derivative along a direction is the value of that direction.
    along = torch.from_numpy(rng.normal(size=table.shape)).float()
    change = (encode(torch.from_numpy(positions), along, torch.from_numpy(scalings)) * upstream).sum()
    assert float((table.grad * along).sum()) == pytest.approx(float(change), rel=1e-4)


@needs_nerfstudio
def test_hash_grid_agrees_with_nerfstudios():
    from nerfstudio.field_components.encodings import HashEncoding

    torch.manual_seed(0)
    grid = HashEncoding(num_levels=5, log2_hashmap_size=12, max_res=500, implementation="torch", hash_init_scale=1.0)
    positions = torch.rand(300, 3)
    slow = grid(positions)
    fast = encode(positions, grid.hash_table, grid.scalings)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=0)
    weights = torch.randn_like(slow)
    gradients = [torch.autograd.grad((found * weights).sum(), grid.hash_table)[0] for found in (fast, slow)]
    torch.testing.assert_close(*gradients, atol=2e-5, rtol=1e-5)


def made_world(**changes):
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "table": np.zeros((4 << 12, 2), np.float32)}
    quality = {"held_out": {"psnr_db": 20.0, "ssim": 0.5}, "image_size_px": [64, 32]}
    world = NerfWorld("corridor", TINY, 20, np.array([1.0, 2.0, 3.0]), 12.5, weights, {"quality": quality})
    return replace(world, **changes)


def test_a_file_is_read_as_it_was_written(tmp_path):
    path, again = tmp_path / "a.nerf.safetensors", tmp_path / "b.nerf.safetensors"
    for each in (path, again):
        write_nerf(made_world(), each)
    assert path.read_bytes() == again.read_bytes()
    found = read_nerf(path)
    assert (found.clip_id, found.config, found.num_images, found.unit_m) == ("corridor", TINY, 20, 12.5)
    np.testing.assert_array_equal(found.weights["a"], made_world().weights["a"])
    assert found.center_m.tolist() == [1, 2, 3]
    facts, problems = describe_nerf(path)
    assert problems == []
    assert facts[-1] == "held-out 20.00 dB, SSIM 0.500 at 64x32 px"
    assert inspect(path).kind == "NeRF"


def test_bad_files_are_named(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "a.nerf.safetensors"
    with pytest.raises(InputError, match="no such NeRF; make one with `roadloop reconstruct --method nerf`"):
        read_nerf(path)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0 no safetensors")
    with pytest.raises(InputError, match="not whole safetensors"):
        read_nerf(path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(InputError, match="holds no NeRF of ours"):
        read_nerf(path)
    write_nerf(made_world(), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "not whole safetensors" in describe_nerf(path)[1][0]


def with_record(path, **changes):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    write_nerf(made_world(), path)
    with safe_open(path, framework="numpy") as archive:
        record, arrays = (
            json.loads(archive.metadata()["roadloop_nerf"]),
            {name: archive.get_tensor(name) for name in ("a", "table")},
        )
    save_file(arrays, path, metadata={"roadloop_nerf": json.dumps(record | changes)})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 9}, "format_version is 9, expected 1"),
        ({"unit_m": 0.0}, "unit_m 0.0"),
        ({"num_images": 0}, "num_images 0"),
        ({"center_m": [1, 2]}, r"center_m is \[1.0, 2.0\]"),
        ({"config": {"iterations": 0}}, "iterations is 0; expected at least 1"),
        ({"config": {"speed": 1}}, "unknown settings speed"),
        ({"config": {"iterations": "many"}}, "setting iterations is 'many'"),
        ({"config": {"hash_levels": 30, "log2_hash_size": 24}}, "which the file cannot hold"),
    ],
)
def test_bad_records_are_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_nerf(with_record(tmp_path / "a.nerf.safetensors", **changes))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "a.nerf.safetensors"
    write_nerf(made_world(weights={"a": np.array([np.nan], np.float32), **made_world().weights}), path)
    # The later entry of a name wins, so `a` is finite here; spoil it under a name of its own.
    write_nerf(made_world(weights={**made_world().weights, "b": np.array([np.nan], np.float32)}), path)
    with pytest.raises(InputError, match="array b has NaN"):
        read_nerf(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "nerf: iterations is 0; expected at least 1"),
        ({"near_m": 3.0, "far_m": 2.0}, "near_m is 3.0; expected more than zero and less than far_m, 2.0"),
        ({"final_learning_rate": 1.0}, "final_learning_rate is 1.0; expected more than zero and at most the first"),
        ({"holdout_every": 1}, "holdout_every is 1; expected at least 2"),
        ({"log2_hash_size": 40}, "log2_hash_size is 40; expected a number from 4 to 24"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        NerfConfig(**changes)


def test_without_nerfstudio_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name == "nerfacc" else object())
    with pytest.raises(InputError, match="needs nerfstudio, and nerfacc cannot be found; install the extra `nerf`"):
        reconstruct_nerf([tmp_path / "clip"], out=tmp_path / "out", config=TINY)
    assert not (tmp_path / "out").exists()


def image(rgb, depth_m, opacity):
    return RenderedImage(
        np.full((1, 1, 3), rgb, np.float32), np.full((1, 1), depth_m, np.float32), np.full((1, 1), opacity, np.float32)
    )


def test_a_road_user_is_drawn_before_what_is_farther_and_hidden_by_what_is_nearer():
    wall, car = image(0.8, 20.0, 1.0), image(0.3, 10.0, 0.6)  # colour over black: six tenths of 0.5
    shown = in_front(car, wall)
    assert shown.rgb[0, 0] == pytest.approx([0.3 + 0.4 * 0.8] * 3)
    assert shown.depth_m[0, 0] == 10.0
    assert in_front(image(0.2, 10.0, 0.4), wall).depth_m[0, 0] == 20.0
    assert shown.opacity[0, 0] == pytest.approx(1.0)
    hidden = in_front(image(0.25, 23.0, 0.5), wall)  # 23 > 1.1 * 20 + 0.5
    assert hidden.rgb[0, 0] == pytest.approx([0.8] * 3)
    assert hidden.depth_m[0, 0] == 20.0
    assert in_front(image(0.25, 22.0, 0.5), wall).rgb[0, 0, 0] == pytest.approx(0.65)
    nothing = in_front(image(0.0, 0.0, 0.0), wall)
    assert nothing.rgb[0, 0] == pytest.approx([0.8] * 3)


def test_rays_pass_through_the_pixel_centres():
    camera = Camera("front", 4, 2, 2.0, 2.0, 2.0, 1.0, np.eye(4))
    turned = pose_from_planar(np.array([[5.0, 6.0, np.pi / 2]]))[0]
    rays = camera_rays(camera, turned).reshape(2, 4, 3)
    # Pixel (3, 0) has its centre at (3.5, 0.5): (0.75, -0.25, 1), then a quarter turn about z.
    assert rays[0, 3] == pytest.approx([0.25, 0.75, 1.0])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clip"), frames=16, width_px=64, moving_box=True)


def test_pixels_of_moving_road_users_are_not_trained_on(clip):
    views = load_views(clip, clip.cameras["front"], ReconstructionConfig(image_width_px=64))[0][:3]
    pixels = training_pixels(views, clip.tracks)
    covered = sum(int(covered_by(view, clip.tracks).sum()) for view in views)
    assert covered > 20
    assert len(pixels.rgb) == 3 * 64 * 32 - covered
    view, keep = views[1], ~covered_by(views[1], clip.tracks)
    np.testing.assert_array_equal(pixels.rgb[pixels.view == 1], view.image.reshape(-1, 3)[keep])
    np.testing.assert_allclose(pixels.position_m[1], view.T_world_camera[:3, 3])
    assert len(training_pixels(views, ()).rgb) == 3 * 64 * 32


@pytest.fixture(scope="module")
def world(clip):
    return train_nerf(clip, TINY, seed=0)


@needs_nerfstudio
def test_training_improves_and_repeats(clip, world):
    again = train_nerf(clip, TINY, seed=0)
    assert all(np.array_equal(world.weights[name], again.weights[name]) for name in world.weights)
    assert world.metadata["quality"] == again.metadata["quality"]
    before = train_nerf(clip, replace(TINY, iterations=1), seed=0)
    untrained, trained = (each.metadata["quality"]["held_out"]["psnr_db"] for each in (before, world))
    assert trained > untrained + 0.5
    assert [frame["index"] for frame in world.metadata["quality"]["held_out"]["frames"]] == [4, 12]
    assert np.random.default_rng(0).random() == pytest.approx(0.6369616873214543)


@needs_nerfstudio
def test_a_file_draws_as_the_world_it_was_written_from(clip, world, tmp_path):
    write_nerf(world, tmp_path / "a.nerf.safetensors")
    camera = clip.cameras["front"].camera.resized(33, 17)
    pose = clip.ego.T_world_rig[3] @ camera.T_rig_camera
    request = RenderRequest(camera, pose, pose, {}, 0)
    scene = make_scene()
    first, second = (
        NerfRenderer(scene, each).render([request])[0] for each in (world, read_nerf(tmp_path / "a.nerf.safetensors"))
    )
    np.testing.assert_array_equal(first.rgb, second.rgb)
    assert first.rgb.shape == (17, 33, 3)
    assert first.rgb.dtype == first.depth_m.dtype == np.float32
    assert 0 <= first.rgb.min() <= first.rgb.max() <= 1
    assert (first.depth_m > 0).all()
    misfit = replace(world, config=replace(TINY, hidden_width=8))
    with pytest.raises(InputError, match="NeRF of corridor: weights do not fit"):
        NerfRenderer(scene, misfit)


@needs_nerfstudio
def test_road_users_of_the_scene_stand_in_the_nerf(clip, world):
    red = torch.tensor([[[5.0, -5.0, -5.0]]])
    car = Gaussians(
        torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.full((1, 3), -0.7), torch.full((1,), 9.0), red
    )
    scene = replace(make_scene(), actors={"car": car})
    camera = clip.cameras["front"].camera
    pose = clip.ego.T_world_rig[3] @ camera.T_rig_camera
    ahead = np.eye(4)
    ahead[:3, 3] = pose[:3, 3] + 3.0 * pose[:3, 2]
    renderer = NerfRenderer(scene, world)
    without, placed = renderer.render(
        [RenderRequest(camera, pose, pose, {}, 0), RenderRequest(camera, pose, pose, {"car": ahead}, 0)]
    )
    row, column = int(camera.cy_px), int(camera.cx_px)
    assert placed.rgb[row, column] == pytest.approx([1, 0, 0], abs=0.02)
    assert placed.depth_m[row, column] == pytest.approx(3.0, abs=0.1)
    np.testing.assert_array_equal(placed.rgb[0, 0], without.rgb[0, 0])


@needs_nerfstudio
def test_the_stage_keeps_what_is_there_and_leaves_nothing_when_it_breaks(clip, tmp_path, monkeypatch):
    folder, out = tmp_path / "corridor", tmp_path / "scenes"
    write_clip(clip, folder)

    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nerf_stage, "write_nerf", broken)
        with pytest.raises(KeyboardInterrupt):
            reconstruct_nerf([folder], out=out, config=replace(TINY, iterations=2))
    assert not list(out.glob("*.safetensors"))
    (path,) = reconstruct_nerf([folder], out=out, config=replace(TINY, iterations=2))
    assert path == out / "corridor.nerf.safetensors"
    written = path.stat().st_mtime_ns
    assert reconstruct_nerf([folder], out=out, config=replace(TINY, iterations=2)) == [path]
    assert path.stat().st_mtime_ns == written
    with pytest.raises(InputError, match="iterations"):
        reconstruct_nerf([folder], out=out, config=replace(TINY, iterations=3))


SIGHT = PolicyConfig(cameras=CAMERAS[:1], num_frames=1, image_width_px=32, image_height_px=32)
ONCE = EvaluationConfig(
    rollouts_per_scene=1, renderer="nerf", baselines=("expert",), videos=False, open_loop=False
)  # fmt: skip


@pytest.fixture
def scripted(monkeypatch):
    """A policy without network that still gets its pictures, and units one after the other in this process."""
    monkeypatch.setattr(evaluation_units, "read_policy_config", lambda _: SIGHT)
    monkeypatch.setattr(evaluation_units, "cached_policy", lambda *_: ConstantVelocityPolicy())
    monkeypatch.setattr(stage, "policy_hash", lambda folder: f"hash of {folder.name}")
    monkeypatch.setattr(stage, "run_units", lambda work, units, *_: ((unit, work(unit)) for unit in units))


def corridor_scene(folder):
    scene = folder / "corridor.usdz"
    write_scene(replace(make_scene(duration_s=6.0), scene_id="corridor"), scene)
    return scene


@needs_nerfstudio
def test_two_seconds_of_closed_loop_in_a_nerf(world, tmp_path, scripted):
    scene, (policy, report) = corridor_scene(tmp_path), (tmp_path / "straight", tmp_path / "report")
    write_nerf(world, nerf_path(scene))
    policy.mkdir()
    seen = SimulationConfig(duration_us=3_800_000)
    evaluate([policy], [scene], out=report, config=ONCE, simulation=seen, device="cpu", workers=1)
    summary = json.loads((report / "summary.json").read_text())
    assert summary["failures"] == []
    assert summary["conditions"]["renderer"] == "nerf"
    assert list(summary["conditions"]["nerfs"]) == ["corridor"]
    assert summary["policies"]["straight"]["dist_traveled_m"]["mean"] == pytest.approx(2.0 * 8, abs=1.5)
    assert summary["policies"]["straight"]["img_is_black"]["mean"] == 0
    other = replace(world, config=replace(TINY, iterations=31))
    write_nerf(other, nerf_path(scene))
    cached_scene.cache_clear()
    with pytest.raises(InputError, match="nerfs"):
        evaluate([policy], [scene], out=report, config=ONCE, simulation=seen, device="cpu", workers=1)


@needs_nerfstudio
def test_a_scene_without_its_nerf_is_refused_before_anything_is_driven(tmp_path, scripted):
    scene, policy = corridor_scene(tmp_path), tmp_path / "straight"
    policy.mkdir()
    with pytest.raises(InputError, match=r"corridor.nerf.safetensors: no such NeRF; make one with"):
        evaluate([policy], [scene], out=tmp_path / "report", config=ONCE, simulation=SimulationConfig(), device="cpu")
    write_nerf(made_world(clip_id="elsewhere"), nerf_path(scene))
    with pytest.raises(InputError, match="a NeRF of the clip 'elsewhere', expected one of 'corridor'"):
        evaluate([policy], [scene], out=tmp_path / "report", config=ONCE, simulation=SimulationConfig(), device="cpu")
