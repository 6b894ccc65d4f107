from dataclasses import replace

import pytest
import torch
from synthetic_clip import make_clip
from synthetic_scene import make_scene, make_track

from neural_sim.clips.describe import describe_clip
from neural_sim.clips.storage import write_clip
from neural_sim.gaussians import Gaussians
from neural_sim.scenes.describe import describe_scene
from neural_sim.scenes.storage import write_scene


def gaussians(count, opacity_logit=0.0):
    return Gaussians(
        torch.zeros(count, 3),
        torch.tensor([[0.0, 0.0, 0.0, 1.0]]).repeat(count, 1),
        torch.zeros(count, 3),
        torch.full((count,), opacity_logit),
        torch.zeros(count, 4, 3),
    )


def test_a_sound_clip(tmp_path):
    write_clip(make_clip(tmp_path / "source"), tmp_path / "clip")
    facts, problems = describe_clip(tmp_path / "clip")
    assert problems == []
    assert facts == [
        "clip synthetic-1",
        "source: dataset synthetic, seed 3",
        "drive: 9.90 s, 69.3 m, 7.0 to 7.0 m/s, 100 poses",
        "camera camera_front: 10 frames, 32x20, 1.00 Hz, 56 degrees wide",
        "camera camera_tele: 10 frames, 32x20, 1.00 Hz, 56 degrees wide",
        "road users: 1 pedestrian, 1 vehicle; 1 moving",
        "map: recorded, 2 lanes, 1 road edges, 749 m2 drivable",
        "lidar sweeps: 1; navigation steps: 2",
        "for reconstruct: ready",
        "for pretrain: ready",
    ]


def test_gaps_are_counted(tmp_path):
    clip = make_clip(tmp_path / "source")
    front = clip.cameras["camera_front"]
    kept = [0, 1, 2, 5, 6, 7, 9]
    sparse = replace(front, t_us=front.t_us[kept], paths=tuple(front.paths[i] for i in kept))
    write_clip(replace(clip, cameras={"camera_front": sparse}), tmp_path / "clip")
    facts, _ = describe_clip(tmp_path / "clip")
    assert facts[3] == "camera camera_front: 7 frames, 32x20, 1.00 Hz, 56 degrees wide, 2 gaps up to 3.00 s"


def test_what_a_clip_lacks_for_each_stage(tmp_path):
    bare = replace(make_clip(tmp_path / "source"), cameras={}, tracks=(), road_map=None)
    write_clip(bare, tmp_path / "clip")
    facts, problems = describe_clip(tmp_path / "clip")
    assert problems == []
    assert facts[-3:] == [
        "for reconstruct: needs images, and the clip has none",
        "for pretrain: needs images, and the clip has none",
        "for evaluate: no recorded map, so off-road is judged against a corridor around the drive; no road users, so "
        "there is nobody to collide with",
    ]
    write_clip(make_clip(tmp_path / "short", steps=50), tmp_path / "clip")
    assert "for pretrain: needs 8.0 s, the clip has 4.9 s" in describe_clip(tmp_path / "clip")[0]


def test_a_damaged_clip(tmp_path):
    write_clip(make_clip(tmp_path / "source"), tmp_path / "clip")
    image = tmp_path / "clip" / "frames" / "camera_front" / "1001000.png"
    image.write_bytes(image.read_bytes()[:200])
    facts, problems = describe_clip(tmp_path / "clip")
    assert facts[0] == "clip synthetic-1"
    assert len(problems) == 1
    assert "frame 1" in problems[0]
    assert "does not decode" in problems[0]
    image.unlink()
    facts, problems = describe_clip(tmp_path / "clip")
    assert facts == ["clip clip, not readable"]
    assert "1001000.png: the image file is missing" in problems[0]


@pytest.fixture
def scene():
    return replace(
        make_scene(speed_mps=8.0, tracks=[make_track("car", (20.0, 3.0, 0.0), 5.0)]),
        background=gaussians(5),
        road=gaussians(2),
        actors={"car": gaussians(3)},
        metadata={"psnr_db": 21.5},
    )


def test_a_sound_scene(scene, tmp_path):
    write_scene(scene, tmp_path / "s.usdz")
    facts, problems = describe_scene(tmp_path / "s.usdz")
    assert problems == []
    assert facts[0].startswith("scene synthetic-c0-v8, 0.")
    assert facts[1:] == [
        "Gaussians: 5 background, 2 road, 3 in 1 actors",
        "spherical harmonics degree 1; sky 4 px a face",
        "drive: 20.00 s, 160.0 m, 8.0 to 8.0 m/s, 201 poses",
        "camera camera_front_wide_120fov: 64x40, 201 recorded frames, 10.00 Hz",
        "camera camera_front_tele_30fov: 64x40, 201 recorded frames, 10.00 Hz",
        "road users: 1 vehicle; 1 moving",
        "map: derived, 1 lanes, 1 road edges, 1440 m2 drivable",
        "ground: 4 vertices, 2 triangles",
        "psnr_db: 21.5",
        "for rollout: ready",
        "for evaluate: no recorded map, so off-road is judged against a corridor around the drive",
    ]


def test_scene_problems(scene, tmp_path):
    broken = replace(
        scene,
        background=replace(gaussians(2), quaternions_xyzw=torch.zeros(2, 4)),
        road=gaussians(2, opacity_logit=-20.0),
        ground=replace(scene.ground, faces=scene.ground.faces[:0]),
    )
    write_scene(broken, tmp_path / "s.usdz")
    assert describe_scene(tmp_path / "s.usdz")[1] == [
        "background: some quaternions have zero norm; reconstruct the scene again",
        "road: every Gaussian is transparent; reconstruct the scene again",
        "the ground has no triangles, so cars have nothing to stand on; reconstruct it again",
    ]


def test_an_empty_short_scene(tmp_path):
    write_scene(make_scene(duration_s=5.0), tmp_path / "s.usdz")
    assert describe_scene(tmp_path / "s.usdz")[1] == [
        "the scene has no static Gaussians; reconstruct it again",
        "the expert drives 5.00 s, but 8.00 s are required for one example; reconstruct a longer clip",
    ]


def test_a_scene_that_does_not_read(tmp_path):
    (tmp_path / "s.usdz").write_bytes(b"no zip")
    facts, problems = describe_scene(tmp_path / "s.usdz")
    assert facts == ["scene s.usdz, not readable"]
    assert "not a whole .usdz (zip) file" in problems[0]
