"""Scenes from bare `.nurec` and `.ply` files with a clip around them."""

import gzip
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
from synthetic_clip import make_clip
from test_nurec_scene import WORLD_TO_NRE, make_state, pack
from test_scene_storage import random_gaussians

from neural_sim.clips.storage import write_clip
from neural_sim.errors import InputError
from neural_sim.gaussians import transform_gaussians
from neural_sim.rendering.sky import sample_sky, texel_directions
from neural_sim.scenes.bare_gaussians import import_gaussians, scene_from_gaussians
from neural_sim.scenes.describe import describe_scene
from neural_sim.scenes.gaussian_ply import write_ply
from neural_sim.scenes.storage import read_scene
from neural_sim.trajectory import Trajectory
from pipelines.cli import main


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "source")


def test_a_ply_with_its_sky(clip, tmp_path):
    gaussians = random_gaussians(30, 1, seed=0)
    write_ply(gaussians, tmp_path / "g.ply")
    sky = np.linspace(0, 1, 6 * 4 * 4 * 3, dtype=np.float16).reshape(6, 4, 4, 3)
    np.savez(tmp_path / "g.sky.npz", sky_cubemap=sky)
    scene = scene_from_gaussians(tmp_path / "g.ply", clip)
    torch.testing.assert_close(scene.background.means_m, gaussians.means_m)
    assert len(scene.road) == 0
    # Instant NuRec's face 4 looks along +z of the Gaussians' frame: up in the clip's world.
    assert torch.equal(sample_sky(scene.sky, texel_directions(4)[4]).mean((0, 1)), scene.sky[4].mean((0, 1)))
    np.testing.assert_allclose(np.sort(scene.sky[4].numpy(), axis=None), np.sort(sky[4].astype(np.float32), axis=None))
    assert scene.expert is clip.ego
    assert set(scene.cameras) == {"camera_front", "camera_tele"}
    assert scene.camera_times_us["camera_front"] is clip.cameras["camera_front"].t_us
    assert scene.road_map is clip.road_map
    assert scene.metadata["approximations"] == []
    distance = np.abs(scene.ground.vertices_m[:, :2] - clip.ego.planar[50, :2]).max(axis=1)
    assert distance.min() < 1.5


def test_a_nurec_volume(clip, tmp_path):
    (tmp_path / "v.nurec").write_bytes(pack(make_state()))
    car = replace(clip.tracks[0], track_id="car")
    scene = scene_from_gaussians(tmp_path / "v.nurec", replace(clip, tracks=(car,), road_map=None))
    assert len(scene.road) == 4
    assert set(scene.actors) == {"car"}
    assert scene.road_map.source == "derived"
    notes = " ".join(scene.metadata["approximations"])
    assert "1 actors without a track in the clip are not drawn: van" in notes
    assert "the map is a corridor" in notes


def test_a_volume_of_3dgrut_has_one_node(clip, tmp_path):
    """3dgrut calls its only node "gaussians"."""
    state = {
        key.replace(".background.", ".gaussians."): value
        for key, value in make_state().items()
        if key.startswith(".gaussians_nodes.background")
    }
    payload = msgpack.packb({"nre_data": {"version": "0.2.576", "model": "nre", "state_dict": state}})
    (tmp_path / "v.nurec").write_bytes(gzip.compress(payload))
    scene = scene_from_gaussians(tmp_path / "v.nurec", clip)
    assert len(scene.background) > 0
    assert "no sky beside the Gaussians; gray instead" in scene.metadata["approximations"]


@pytest.mark.parametrize("frame", ["rig", "camera"])
def test_gaussians_may_start_elsewhere(clip, tmp_path, frame):
    moved = replace(clip, ego=Trajectory(clip.ego.t_us, WORLD_TO_NRE @ clip.ego.T_world_rig))
    gaussians = random_gaussians(10, 0, seed=1)
    write_ply(gaussians, tmp_path / "g.ply")
    scene = scene_from_gaussians(tmp_path / "g.ply", moved, frame=frame)
    pose = moved.ego.T_world_rig[0]
    if frame == "camera":
        pose = pose @ clip.cameras["camera_front"].camera.T_rig_camera
    expected = transform_gaussians(gaussians, torch.from_numpy(pose).float())
    torch.testing.assert_close(scene.background.means_m, expected.means_m, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(scene.background.log_scales, gaussians.log_scales, atol=1e-5, rtol=0)


def test_the_command_makes_a_sound_scene(clip, tmp_path):
    write_clip(clip, tmp_path / "clip")
    write_ply(random_gaussians(30, 2, seed=0), tmp_path / "g.ply")
    out = tmp_path / "drive.usdz"
    assert main(["import", str(tmp_path / "g.ply"), "--clip", str(tmp_path / "clip"), "--out", str(out)]) == 0
    assert read_scene(out).scene_id == "drive"
    assert describe_scene(out)[1] == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("g.ply", None, "no such file; expected Gaussians as .nurec or .ply"),
        ("g.ply", b"ply\n", "not a little-endian binary PLY"),
        ("v.nurec", b"\x80\x04N.", "not whole gzip"),
        ("s.usdz", b"PK", "a whole scene .* needs no import"),
    ],
)
def test_files_that_are_none(clip, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        scene_from_gaussians(tmp_path / name, clip)


def test_frames_that_are_none(clip, tmp_path):
    write_ply(random_gaussians(3, 0, seed=0), tmp_path / "g.ply")
    with pytest.raises(InputError, match="frame is 'map', expected one of world, rig, camera"):
        scene_from_gaussians(tmp_path / "g.ply", clip, frame="map")
    with pytest.raises(InputError, match="has no camera"):
        scene_from_gaussians(tmp_path / "g.ply", replace(clip, cameras={}), frame="camera")
    write_clip(clip, tmp_path / "clip")
    with pytest.raises(InputError, match=r"must end in .usdz"):
        import_gaussians(tmp_path / "g.ply", tmp_path / "clip", tmp_path / "scene.ply")
