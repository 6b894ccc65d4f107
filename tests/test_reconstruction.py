import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reconstruction_clip import make_clip

from neural_sim.clips.kitti_odometry import ingest_kitti_odometry
from neural_sim.clips.options import IngestOptions
from neural_sim.errors import InputError
from neural_sim.reconstruction import optimisation
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.optimisation import view_at
from neural_sim.reconstruction.reconstruct import reconstruct
from neural_sim.scenes.scene import Scene

KITTI = Path(__file__).parents[2] / "shared" / "data" / "kitti_odometry"
# 17.9 dB measured after one pass over the images; the mean of all images gives 13.6.
REAL_DRIVE_PSNR_DB = 17.0

SMALL = ReconstructionConfig(
    image_width_px=96,
    iterations=60,
    max_gaussians=4000,
    sky_size_px=8,
    track_corners=400,
    dense_points_per_frame=60,
    far_points=200,
    road_spacing_m=0.5,
    densify_every=20,
    checkpoint_every=25,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("corridor"), moving_box=True)


@pytest.fixture(scope="module")
def scene(clip):
    return reconstruct(clip, SMALL, seed=3)


def all_tensors(scene: Scene) -> dict[str, torch.Tensor]:
    parts = {"background": scene.background, "road": scene.road, **scene.actors}
    tensors = {f"{part}.{name}": t for part, set_ in parts.items() for name, t in set_.tensors().items()}
    return {**tensors, "sky": scene.sky}


def assert_same_scene(a: Scene, b: Scene) -> None:
    ours, theirs = all_tensors(a), all_tensors(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert a.metadata == b.metadata


def test_held_out_quality_improves_and_is_good(clip):
    settings = (replace(SMALL, iterations=count) for count in (1, 120))
    before, after = (reconstruct(clip, each, seed=3).metadata["quality"]["held_out"] for each in settings)
    assert after["psnr_db"] > before["psnr_db"] + 4
    assert after["psnr_db"] > 22
    assert after["ssim"] > before["ssim"]


@pytest.mark.shared_data
@pytest.mark.skipif(not KITTI.is_dir(), reason="no KITTI drive in ../shared/data")
def test_real_drive_is_reconstructed(tmp_path):
    options = IngestOptions(root=KITTI, sequence="00", start_s=2.0, duration_s=8.2, scale=0.25)
    clip = ingest_kitti_odometry(options, tmp_path / "clip")
    config = replace(SMALL, image_width_px=200, iterations=90, max_gaussians=12_000, dense_points_per_frame=200)
    quality = reconstruct(clip, config, seed=0).metadata["quality"]["held_out"]
    assert quality["psnr_db"] > REAL_DRIVE_PSNR_DB


def test_split_is_recorded(scene):
    quality = scene.metadata["quality"]
    assert [frame["index"] for frame in quality["held_out"]["frames"]] == [4, 12, 20]
    assert [frame["index"] for frame in quality["train"]["frames"]] == [i for i in range(24) if i % 8 != 4]
    assert quality["image_size_px"] == [96, 48]


def test_held_out_pixels_change_nothing_but_the_measure(clip, scene, tmp_path):
    frames = clip.cameras["front"]
    paths = list(frames.paths)
    paths[12] = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)).save(paths[12])
    other = reconstruct(replace(clip, cameras={"front": replace(frames, paths=tuple(paths))}), SMALL, seed=3)
    for name, tensor in all_tensors(scene).items():
        assert torch.equal(tensor, all_tensors(other)[name]), name
    assert other.metadata["quality"]["train"] == scene.metadata["quality"]["train"]
    assert other.metadata["quality"]["held_out"]["psnr_db"] < scene.metadata["quality"]["held_out"]["psnr_db"]


def test_resumed_run_is_bit_identical(clip, scene, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    whole_step = optimisation._step

    def step_until_37(model, world, config, share, index, target):
        if round(share * SMALL.iterations) == 37:
            raise Killed
        return whole_step(model, world, config, share, index, target)

    with monkeypatch.context() as patch:
        patch.setattr(optimisation, "_step", step_until_37)
        with pytest.raises(Killed):
            reconstruct(clip, SMALL, seed=3, work_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["reconstruction.safetensors"]
    iterations = []

    def counted_step(model, world, config, share, index, target):
        iterations.append(round(share * SMALL.iterations))
        return whole_step(model, world, config, share, index, target)

    monkeypatch.setattr(optimisation, "_step", counted_step)
    resumed = reconstruct(clip, SMALL, seed=3, work_dir=tmp_path)
    assert iterations == list(range(25, 60))
    assert_same_scene(resumed, scene)


def test_time_budget_ends_the_work_and_its_schedules(clip):
    seen = []

    def watch(done, measure):
        seen.append((done, measure()["psnr_db"] if done == 1 else None))

    config = replace(SMALL, iterations=100_000, time_budget_s=4.0)
    started_s = time.monotonic()
    scene = reconstruct(clip, config, seed=3, watch=watch)
    assert time.monotonic() - started_s < 15
    done = scene.metadata["quality"]["iterations"]
    assert 1 <= done < 100_000
    assert [count for count, _ in seen] == list(range(1, done + 1))
    assert 5 < seen[0][1] < 40


def test_foreign_checkpoint_is_ignored_with_a_warning(clip, tmp_path, caplog):
    short = replace(SMALL, iterations=2, checkpoint_every=1)
    reconstruct(clip, short, seed=3, work_dir=tmp_path)
    with caplog.at_level(logging.WARNING, "roadloop"):
        other = reconstruct(clip, short, seed=4, work_dir=tmp_path)
    assert "belongs to other settings, images or another seed" in caplog.text
    assert_same_scene(other, reconstruct(clip, short, seed=4))
    (tmp_path / "reconstruction.safetensors").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING, "roadloop"):
        reconstruct(clip, short, seed=4, work_dir=tmp_path)
    assert "does not read" in caplog.text


def test_moving_car_gets_a_node_that_follows_its_track(clip, scene):
    node = scene.actors["lead"]
    half = 0.5 * 1.2 * torch.tensor(clip.tracks[0].size_m)
    assert len(node) > 100
    assert (node.means_m.abs() <= half + 1e-5).all()
    # The box is the only red thing, and the static parts must not have kept a ghost of it.
    color = node.sh[:, 0] * 0.28209479 + 0.5
    weight = torch.sigmoid(node.opacity_logits)[:, None]
    red, green, blue = (color * weight).sum(0) / weight.sum()
    assert red > green + 0.2
    assert red > blue + 0.2


def test_wrong_track_is_mended_by_the_images(clip):
    """Boxes that sway by 25 cm to the side, as a bad tracker's do."""
    true = clip.tracks[0].trajectory
    T = true.T_world_rig.copy()
    T[:, 1, 3] += 0.25 * np.sin(2 * np.pi * np.arange(len(T)) / 24)
    swaying = replace(clip, tracks=(replace(clip.tracks[0], trajectory=replace(true, T_world_rig=T)),))
    config = replace(SMALL, iterations=250)
    as_given, mended = (reconstruct(swaying, replace(config, refine_actors=on), seed=0) for on in (False, True))
    error_m = [
        np.std(scene.tracks[0].trajectory.T_world_rig[:, 1, 3] - true.T_world_rig[:, 1, 3])
        for scene in (as_given, mended)
    ]
    assert error_m[0] == pytest.approx(0.177, abs=0.005)
    assert error_m[1] < 0.75 * error_m[0]
    quality = [scene.metadata["quality"]["held_out"]["psnr_db"] for scene in (as_given, mended)]
    assert quality[1] > quality[0] + 0.3


def test_scene_carries_the_clip(clip, scene):
    assert scene.scene_id == "corridor"
    np.testing.assert_allclose(scene.expert.T_world_rig, clip.ego.T_world_rig, atol=0.02)
    assert np.array_equal(scene.expert.t_us, clip.ego.t_us)
    assert scene.road_map.source == "derived"
    assert scene.cameras["front"] is clip.cameras["front"].camera
    assert len(scene.background) + len(scene.road) + len(scene.actors["lead"]) <= SMALL.max_gaussians
    assert scene.metadata["reconstruction"]["image_width_px"] == 96


def test_road_is_flat_and_on_the_ground(scene):
    assert len(scene.road) > 100
    assert (scene.road.means_m[:, 2].abs() < 0.35).all()
    assert torch.allclose(torch.exp(scene.road.log_scales[:, 2]), torch.tensor(0.01))
    assert np.abs(scene.ground.vertices_m[:, 2]).max() < 0.03


def test_views_are_shuffled_per_epoch_and_all_shown():
    epochs = [[view_at(10 * e + i, 10, seed=1) for i in range(10)] for e in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [view_at(i, 10, seed=2) for i in range(10)] != epochs[0]


def with_frames(clip, count: int):
    frames = clip.cameras["front"]
    return replace(clip, cameras={"front": replace(frames, t_us=frames.t_us[:count], paths=frames.paths[:count])})


def test_bad_clips_are_named(clip):
    with pytest.raises(InputError, match="has no camera; reconstruction needs images"):
        reconstruct(replace(clip, cameras={}), SMALL, seed=0)
    with pytest.raises(InputError, match="camera front has 7 frames; expected at least 8"):
        reconstruct(with_frames(clip, 7), SMALL, seed=0)
    parked = replace(clip.ego, T_world_rig=np.repeat(clip.ego.T_world_rig[:1], 24, axis=0))
    with pytest.raises(InputError, match=r"the ego poses move 0\.00 m; expected at least 1\.0 m"):
        reconstruct(replace(clip, ego=parked), SMALL, seed=0)
    moved = clip.ego.T_world_rig.copy()
    moved[:, 0, 3] += 5e5
    with pytest.raises(InputError, match="subtract a local origin"):
        reconstruct(replace(clip, ego=replace(clip.ego, T_world_rig=moved)), SMALL, seed=0)


def test_black_frame_is_left_out_with_a_warning(clip, tmp_path, caplog):
    frames = clip.cameras["front"]
    black: Path = tmp_path / "black.png"
    Image.new("RGB", (128, 64)).save(black)
    paths = (*frames.paths[:5], black, *frames.paths[6:])
    dark = replace(clip, cameras={"front": replace(frames, paths=paths)})
    with caplog.at_level(logging.WARNING, "roadloop"):
        scene = reconstruct(dark, replace(SMALL, iterations=1), seed=0)
    assert "frame 5" in caplog.text
    assert str(black) in caplog.text
    assert 5 not in [frame["index"] for frame in scene.metadata["quality"]["train"]["frames"]]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("iterations", 0, "iterations is 0; expected at least 1"),
        ("holdout_every", 1, "holdout_every is 1; expected at least 2"),
        ("sh_degree", 4, "sh_degree is 4; expected 0, 1, 2 or 3"),
        ("far_distance_m", (90.0, 80.0), "expected 0 < nearest < farthest"),
        ("ssim_weight", 1.5, "ssim_weight is 1.5; expected a share"),
    ],
)
def test_config_rejects_bad_values(field, value, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **{field: value})
