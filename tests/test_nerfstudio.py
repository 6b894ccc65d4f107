import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_clip import make_clip, write_image

from neural_sim.clips.nerfstudio import export_nerfstudio
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.distortion import EquidistantFisheye, FTheta, RadialTangential
from neural_sim.errors import InputError


def read(root, tmp_path, **options):
    return ingest("nerfstudio", IngestOptions(root=root, **options), tmp_path / "clip")


@pytest.mark.parametrize(
    "lens", [None, RadialTangential((0.1, -0.02, 0.0), (0.001, 0.0)), EquidistantFisheye((0.1, 0, 0, 0))]
)
def test_export_and_back(tmp_path, lens):
    clip = make_clip(tmp_path / "source")
    front = clip.cameras["camera_front"]
    clip = replace(
        clip, cameras={**clip.cameras, "camera_front": replace(front, camera=replace(front.camera, distortion=lens))}
    )
    export_nerfstudio(clip, tmp_path / "ns")
    again = read(tmp_path / "ns", tmp_path, cameras=("camera_front", "camera_tele"))
    for name, frames in clip.cameras.items():
        found = again.cameras[name]
        np.testing.assert_array_equal(found.t_us, frames.t_us)
        assert found.camera.distortion == frames.camera.distortion
        np.testing.assert_allclose(found.camera.K, frames.camera.K)
        np.testing.assert_array_equal(found.load(3), frames.load(3))
    np.testing.assert_allclose(again.ego.poses_at(front.t_us), clip.ego.poses_at(front.t_us), atol=1e-9)


def test_exported_poses_are_opengl(tmp_path):
    clip = make_clip(tmp_path / "source")
    export_nerfstudio(clip, tmp_path / "ns")
    pose = np.array(json.loads((tmp_path / "ns" / "transforms.json").read_text())["frames"][0]["transform_matrix"])
    # A level camera that looks along +x: right is -y, up is +z, and the third axis points backwards.
    np.testing.assert_allclose(pose[:3, :3], np.array([[0, -1, 0], [0, 0, 1], [-1, 0, 0]]).T, atol=1e-12)


def test_a_lens_the_format_does_not_know_is_refused(tmp_path):
    clip = make_clip(tmp_path / "source")
    front = clip.cameras["camera_front"]
    lens = FTheta((0.0, 30.0), (), "angle_to_radius", 1.0)
    bent = replace(clip, cameras={"camera_front": replace(front, camera=replace(front.camera, distortion=lens))})
    with pytest.raises(InputError, match=r"camera camera_front: transforms.json has no lens 'ftheta'"):
        export_nerfstudio(bent, tmp_path / "ns")
    assert not (tmp_path / "ns").exists()


def write_foreign(root, **changes):
    """90 frames along +x of a forward-looking OpenGL camera, as nerfstudio's own tools write them."""
    frames = []
    for i in range(90):
        write_image(root / "images" / f"frame_{i:05d}.png", i)
        pose = np.eye(4)
        pose[:3, :3] = np.array([[0, -1, 0], [0, 0, 1], [-1, 0, 0]]).T
        pose[:3, 3] = (0.5 * i, 0.0, 1.5)
        frames.append({"file_path": f"images/frame_{i:05d}.png", "transform_matrix": pose.tolist()})
    value = {"w": 32, "h": 20, "fl_x": 30.0, "cx": 16.0, "cy": 10.0, "k1": 0.05, "frames": frames, **changes}
    (root / "transforms.json").write_text(json.dumps(value))
    return root


def test_a_foreign_file_gets_an_assumed_rig(tmp_path):
    clip = read(write_foreign(tmp_path / "ns"), tmp_path)
    frames = clip.cameras["camera"]
    assert frames.camera.distortion == RadialTangential((0.05, 0.0, 0.0))
    assert np.diff(frames.t_us).tolist() == [100_000] * 89
    np.testing.assert_allclose(
        clip.ego.T_world_rig[10], [[1, 0, 0, 3.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-9
    )
    assert clip.source["notes"]


def test_applied_transform_and_scale_are_undone(tmp_path):
    plain = read(write_foreign(tmp_path / "a"), tmp_path)
    moved = json.loads((tmp_path / "a" / "transforms.json").read_text())
    applied = np.array([[0, 1, 0, 3], [1, 0, 0, -2], [0, 0, -1, 1.0]])
    for frame in moved["frames"]:
        pose = np.vstack([applied, [0, 0, 0, 1]]) @ np.array(frame["transform_matrix"])
        pose[:3, 3] *= 0.25
        frame["transform_matrix"] = pose.tolist()
    root = write_foreign(tmp_path / "b", applied_transform=applied.tolist(), applied_scale=0.25, frames=moved["frames"])
    again = ingest("nerfstudio", IngestOptions(root=root), tmp_path / "other")
    np.testing.assert_allclose(again.ego.T_world_rig, plain.ego.T_world_rig, atol=1e-9)


def set_frame(**changes):
    return lambda value: value["frames"][4].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("frames"), "transforms.json: key 'frames' is missing"),
        (lambda v: v.pop("fl_x"), "camera camera: key 'fl_x' is missing"),
        (lambda v: v.update(camera_model="EQUIRECTANGULAR"), "camera_model is 'EQUIRECTANGULAR', expected one of"),
        (lambda v: v.update(applied_scale=0), "applied_scale is 0.0, expected a positive number"),
        (lambda v: v.update(w=64), "image is 32x20 but the calibration says 64x20"),
        (set_frame(file_path="../../x.png"), "frame 4: file_path .* leaves the dataset"),
        (set_frame(transform_matrix=[[1, 2], [3, 4]]), r"frame 4: transform_matrix has shape \[2, 2\]"),
        (set_frame(transform_matrix=(2 * np.eye(4)).tolist()), "pose 4 has no valid rotation"),
        (set_frame(camera="../x"), "frame 4: camera '../x' must be letters"),
        (set_frame(file_path="images/none.png"), "images/none.png.*file is missing"),
        (set_frame(t_us="now"), "frame 4: key 't_us' should be int"),
    ],
)
def test_bad_files(tmp_path, change, message):
    root = write_foreign(tmp_path / "ns")
    value = json.loads((root / "transforms.json").read_text())
    change(value)
    (root / "transforms.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)
    assert not (tmp_path / "clip").exists()
