"""NVIDIA's scene files in: fixtures are built from the layout, tensor by tensor."""

import gzip
import json
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from synthetic_scene import make_scene, make_track

from neural_sim.distortion import EquidistantFisheye, FTheta, RadialTangential
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_planar
from neural_sim.gaussians import Gaussians
from neural_sim.scenes.archive import member_names, read_members, write_archive
from neural_sim.scenes.nurec_scene import read_nurec_scene, volume_transforms
from neural_sim.scenes.nurec_volume import decode_volume
from neural_sim.scenes.storage import read_scene, world_origin, write_scene

NODE = ".gaussians_nodes."


def tensor(state, key, array):
    state[key], state[f"{key}.shape"] = array.tobytes(), list(array.shape)


def node(state, name, count, seed=0, fourier=0, degree=3):
    rng = np.random.default_rng(seed)
    shapes = {"positions": 3, "rotations": 4, "scales": 3, "densities": 1, "features_specular": 45}
    for key, width in shapes.items():
        tensor(state, f"{NODE}{name}.{key}", rng.normal(size=(count, width)).astype("<f2"))
    albedo = (count, fourier, 3) if fourier else (count, 3)
    tensor(state, f"{NODE}{name}.features_albedo", rng.normal(size=albedo).astype("<f2"))
    tensor(state, f"{NODE}{name}.extra_signal", np.zeros((count, 0), "<f2"))
    tensor(state, f"{NODE}{name}.n_active_features", np.array(degree, "<i8"))


def pack(state):
    return gzip.compress(msgpack.packb({"nre_data": {"version": "0.2.576", "model": "nre", "state_dict": state}}))


def make_state():
    state = {"._extra_state": {"obj_track_ids": {"background": [], "dynamic_rigids": ["van", "car"]}}}
    node(state, "background", 5, 1, fourier=5)
    node(state, "road", 4, 2)
    node(state, "dynamic_rigids", 6, 3)
    tensor(state, f"{NODE}dynamic_rigids.gaussian_cuboid_ids", np.array([1, 0, 1, 1, 0, 1], "<i4"))
    sky = np.linspace(0, 1, 6 * 4 * 4 * 3).reshape(1, 6, 4, 4, 3)
    tensor(state, ".background.textures", sky.astype("<f2"))
    tensor(state, ".post_processings.0.ppisp.exposure_params", np.zeros(3, "<f4"))
    return state


def stored(state, key):
    return np.frombuffer(state[key], "<f2").reshape(state[f"{key}.shape"]).astype(np.float32)


def test_values_are_pre_activation_and_quaternions_wxyz():
    state = make_state()
    road = decode_volume(pack(state), "x").static["road"]
    np.testing.assert_array_equal(road.log_scales, stored(state, f"{NODE}road.scales"))
    np.testing.assert_array_equal(road.opacity_logits, stored(state, f"{NODE}road.densities")[:, 0])
    np.testing.assert_array_equal(road.quaternions_xyzw[:, 3], stored(state, f"{NODE}road.rotations")[:, 0])
    np.testing.assert_array_equal(road.quaternions_xyzw[:, :3], stored(state, f"{NODE}road.rotations")[:, 1:])


def test_higher_harmonics_are_coefficient_major():
    state = make_state()
    road = decode_volume(pack(state), "x").static["road"]
    specular = stored(state, f"{NODE}road.features_specular")
    assert road.sh_degree == 3
    np.testing.assert_array_equal(road.sh[2, 1], specular[2, 0:3])
    np.testing.assert_array_equal(road.sh[2, 15], specular[2, 42:45])


def test_active_degree_cuts_the_harmonics():
    state = make_state()
    tensor(state, f"{NODE}road.n_active_features", np.array(1, "<i8"))
    assert decode_volume(pack(state), "x").static["road"].sh_degree == 1


def test_fourier_colours_use_the_constant_term_and_say_so():
    state = make_state()
    volume = decode_volume(pack(state), "x")
    albedo = stored(state, f"{NODE}background.features_albedo")
    np.testing.assert_array_equal(volume.static["background"].sh[:, 0], albedo[:, 0])
    assert any("background: colours change in time by 5 Fourier terms" in note for note in volume.approximations)
    assert any("PPISP" in note for note in volume.approximations)


def test_rigid_actors_are_told_apart_by_cuboid_ids():
    state = make_state()
    actors = decode_volume(pack(state), "x").actors
    positions = stored(state, f"{NODE}dynamic_rigids.positions")
    np.testing.assert_array_equal(actors["van"].means_m, positions[[1, 4]])
    np.testing.assert_array_equal(actors["car"].means_m, positions[[0, 2, 3, 5]])


def test_deformables_are_rigid_and_listed():
    state = make_state()
    node(state, "dynamic_deformables", 2, 4)
    tensor(state, f"{NODE}dynamic_deformables.gaussian_cuboid_ids", np.array([0, 0], "<i4"))
    state["._extra_state"]["obj_track_ids"]["dynamic_deformables"] = ["walker"]
    volume = decode_volume(pack(state), "x")
    assert len(volume.actors["walker"]) == 2
    assert any("dynamic_deformables: deformed by a network" in note for note in volume.approximations)


def cut_bytes(state):
    state[f"{NODE}road.scales"] = state[f"{NODE}road.scales"][:-2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_bytes, r"tensor .gaussians_nodes.road.scales has 22 bytes for shape \[4, 3\]"),
        (lambda s: s.pop(f"{NODE}road.densities"), "road.densities or its shape is missing"),
        (lambda s: tensor(s, f"{NODE}road.positions", np.full((4, 3), np.nan, "<f2")), "positions has NaN or infinite"),
        (lambda s: tensor(s, f"{NODE}road.scales", np.zeros((3, 3), "<f2")), r"scales is \[3, 3\], expected \[4, 3\]"),
        (lambda s: s.update({f"{NODE}road.scales.shape": [2**40, 2**40]}), "bytes for shape"),
        (lambda s: s["._extra_state"].update(obj_track_ids={}), "cuboid ids 0 to 1 for 0 track ids"),
        (lambda s: s.pop(f"{NODE}dynamic_rigids.gaussian_cuboid_ids"), "gaussian_cuboid_ids is missing or not 6"),
        (lambda s: tensor(s, ".background.textures", np.zeros((6, 4, 4, 3), "<f2")), r"expected \[1, 6, S, S, 3\]"),
    ],
)
def test_bad_payloads(change, message):
    state = make_state()
    change(state)
    with pytest.raises(InputError, match=message):
        decode_volume(pack(state), "x")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04", gzip.compress(b"\xc1"), gzip.compress(msgpack.packb([1]))],
    ids=["empty", "pickle", "no message", "no mapping"],
)
def test_payloads_that_are_none(content):
    with pytest.raises(InputError, match=r"x: (not whole gzip|no nre_data.state_dict)"):
        decode_volume(content, "x")


@pytest.fixture
def written(tmp_path):
    """A scene written by roadloop, its own members taken out: what another tool's archive looks like."""
    tracks = [make_track("car", (20.0, 3.0, 0.1), 5.0), make_track("van", (40.0, -3.0, 0.0))]
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(30, 3, generator=generator) * 20
    quaternions = torch.randn(30, 4, generator=generator)
    rest = torch.randn(30, 3, generator=generator) * 0.3, torch.zeros(30), torch.randn(30, 4, 3, generator=generator)
    gaussians = Gaussians(means, quaternions, *rest)
    scene = replace(make_scene(tracks=tracks), background=gaussians, road=gaussians, actors={"car": gaussians})
    path = tmp_path / "scene.usdz"
    write_scene(scene, path)
    return scene, path


def rewrite(path, change=lambda name, content: content):
    names = [name for name in member_names(path) if not name.startswith("roadloop")]
    members = read_members(path, names, "")
    changed = ((name, change(name, members[name])) for name in names)
    write_archive(path, [(name, content) for name, content in changed if content is not None])


def edit_rig(change):
    def edit(name, content):
        if name != "rig_trajectories.json":
            return content
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return edit


def test_what_we_write_comes_back_to_half_precision(written):
    scene, path = written
    rewrite(path)
    again = read_scene(path)
    origin = world_origin(scene.expert)
    np.testing.assert_allclose(again.expert.T_world_rig[:, :3, 3], scene.expert.T_world_rig[:, :3, 3] - origin)
    expected = scene.background.means_m.double() - torch.from_numpy(origin)
    np.testing.assert_allclose(again.background.means_m, expected, atol=0.07)
    np.testing.assert_allclose(again.actors["car"].means_m, scene.actors["car"].means_m, atol=0.04)
    np.testing.assert_allclose(again.background.sh, scene.background.sh, atol=2e-3)
    assert {track.track_id: track.category for track in again.tracks} == {"car": "vehicle", "van": "vehicle"}
    assert again.cameras["camera_front_wide_120fov"].shutter_us == 30_000
    np.testing.assert_allclose(again.sky, scene.sky, atol=1e-3)
    assert any("corridor" in note for note in again.metadata["approximations"])
    assert again.ego_vehicle.rear_axle_to_rear_bumper_m == pytest.approx(scene.ego_vehicle.rear_axle_to_rear_bumper_m)


WORLD_TO_NRE = pose_from_planar(np.array([5.0, -3.0, 0.5]), 2.0)


@pytest.mark.parametrize("tracks_frame", ["world", "nre"])
def test_world_to_nre_moves_poses_and_tracks_only_if_asked(written, tracks_frame):
    _, path = written
    rewrite(path)
    before = read_nurec_scene(path)
    rewrite(path, edit_rig(lambda value: value["world_to_nre"].update(matrix=WORLD_TO_NRE.tolist())))
    after = read_nurec_scene(path, tracks_frame=tracks_frame)
    np.testing.assert_allclose(after.expert.T_world_rig, WORLD_TO_NRE @ before.expert.T_world_rig, atol=1e-9)
    np.testing.assert_array_equal(after.background.means_m, before.background.means_m)
    moved = WORLD_TO_NRE if tracks_frame == "world" else np.eye(4)
    poses = before.tracks[0].trajectory.T_world_rig
    np.testing.assert_allclose(after.tracks[0].trajectory.T_world_rig, moved @ poses, atol=1e-9)


def test_volume_transform_is_read_as_3dgrut_writes_it(written):
    """Rows of a column-vector matrix, with scale 2: p' = M p, and log(2) is added to the log scales."""
    _, path = written
    rewrite(path)
    before = read_nurec_scene(path).background
    rotation = Rotation.from_euler("z", 0.7).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 2 * rotation, (1.0, 2.0, 3.0)
    rows = ", ".join("(" + ", ".join(f"{value:.17g}" for value in row) + ")" for row in matrix)
    identity = b"( (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1) )"
    rewrite(path, lambda name, content: content.replace(identity, f"( {rows} )".encode()))
    after = read_nurec_scene(path)
    expected = before.means_m.double() @ torch.from_numpy(2 * rotation).T + torch.tensor([1.0, 2.0, 3.0])
    np.testing.assert_allclose(after.background.means_m, expected, atol=1e-3)
    np.testing.assert_allclose(after.background.log_scales, before.log_scales + np.log(2), atol=1e-5)
    assert any("view-dependent colours keep" in note for note in after.metadata["approximations"])


def test_partitions_have_transforms_of_their_own():
    layer = "".join(
        f'def Volume "gauss"\n{{\n matrix4d xformOp:transform = ( (1, 0, 0, {i}), (0, 1, 0, 0), (0, 0, 1, 0), '
        f"(0, 0, 0, 1) )\n asset filePath = @./part{i}.nurec@\n}}\n"
        for i in (1, 2)
    )
    transforms = volume_transforms([layer])
    assert {name: matrix[0, 3] for name, matrix in transforms.items()} == {"part1.nurec": 1.0, "part2.nurec": 2.0}


FTHETA = {
    "type": "ftheta",
    "parameters": {
        "resolution": [64, 40],
        "shutter_type": "ROLLING_LEFT_TO_RIGHT",
        "principal_point": [31.0, 19.5],
        "reference_poly": "PIXELDIST_TO_ANGLE",
        "pixeldist_to_angle_poly": [0.0, 0.03, 0.0, 1e-6, 0.0, 0.0],
        "angle_to_pixeldist_poly": [0.0, 33.0, 0.0, -1.0, 0.0, 0.0],
        "max_angle": 1.2,
        "linear_cde": [1.0, 0.0, 0.0],
    },
}


def test_ftheta_with_rolling_shutter_is_kept(written):
    _, path = written
    rewrite(path, edit_rig(lambda v: [c.update(camera_model=FTHETA) for c in v["camera_calibrations"].values()]))
    camera = read_nurec_scene(path).cameras["camera_front_wide_120fov"]
    assert isinstance(camera.distortion, FTheta)
    assert camera.distortion.reference == "radius_to_angle"
    assert (camera.shutter_us, camera.shutter_direction) == (30_000, "left-to-right")
    # Integer coordinates are pixel centres there; here they are at one half.
    ray, _ = camera.unproject(np.array([31.5, 20.0]))
    np.testing.assert_allclose(ray, [0, 0, 1], atol=1e-12)
    ray, _ = camera.unproject(np.array([41.5, 20.0]))
    assert np.arctan2(ray[0], ray[2]) == pytest.approx(0.3 + 1e-3)


def test_a_pickled_checkpoint_is_refused_with_the_reason(written):
    _, path = written
    names = [name for name in member_names(path) if not name.startswith("roadloop") and not name.endswith(".nurec")]
    members = read_members(path, names, "")
    write_archive(path, [*members.items(), ("checkpoint.ckpt", b"\x80\x04N.")])
    with pytest.raises(InputError, match=r"checkpoint.ckpt, a Python pickle that could run anything"):
        read_scene(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["rig_trajectories"].append({}), "2 rig trajectories, expected one"),
        (lambda v: v["world_to_nre"].update(matrix=(2 * np.eye(4)).tolist()), "world_to_nre: not a rotation"),
        (lambda v: v["rig_trajectories"][0]["T_rig_worlds"].pop(), r"T_rig_worlds has shape \[200, 4, 4\]"),
        (lambda v: v["rig_trajectories"][0].update(rig_bbox={"centroid": [9, 0, 0], "dim": [4, 2, 1]}), "no rear axle"),
        (lambda v: [c["camera_model"].update(type="lidar") for c in v["camera_calibrations"].values()], "'lidar' is n"),
        (
            lambda v: [c["camera_model"]["parameters"].update(shutter_type="ROLLING_UP") for c in
                       v["camera_calibrations"].values()],
            "shutter type 'ROLLING_UP' is not known",
        ),
    ],
)  # fmt: skip
def test_bad_rigs(written, change, message):
    _, path = written
    rewrite(path, edit_rig(change))
    with pytest.raises(InputError, match=message):
        read_nurec_scene(path)


def test_missing_members_are_named(written):
    _, path = written
    rewrite(path, lambda name, content: None if name == "mesh_ground.ply" else content)
    with pytest.raises(InputError, match=r"member mesh_ground.ply is missing; expected a NuRec scene"):
        read_nurec_scene(path)
    with pytest.raises(InputError, match="tracks_frame is 'map', expected one of world, nre"):
        read_nurec_scene(path, tracks_frame="map")


@pytest.mark.parametrize(
    "lens",
    [
        None,
        RadialTangential((0.1, -0.02, 0.003, 0.2, 0.0, 0.001), (0.001, -0.002)),
        EquidistantFisheye((0.1, -0.01, 0.002, 0.0), 1.4),
        FTheta(
            (0.0, 33.0, 0.0, -1.0, 0.0, 0.0),
            (0.0, 0.03, 0.0, 1e-6, 0.0, 0.0),
            "radius_to_angle",
            1.2,
            (1.0, 0.01, -0.01),
        ),
    ],
    ids=["pinhole", "opencv", "fisheye", "f-theta"],
)
def test_every_lens_goes_out_and_comes_back(tmp_path, lens):
    scene = make_scene()
    cameras = {
        name: replace(camera, distortion=lens, shutter_direction="right-to-left", cx_px=30.25)
        for name, camera in scene.cameras.items()
    }
    write_scene(replace(scene, cameras=cameras), tmp_path / "s.usdz")
    rewrite(tmp_path / "s.usdz")
    for name, camera in read_scene(tmp_path / "s.usdz").cameras.items():
        assert camera.distortion == lens
        assert (camera.cx_px, camera.shutter_us) == (30.25, 30_000)
        assert camera.shutter_direction == "right-to-left"
        np.testing.assert_allclose(camera.T_rig_camera, cameras[name].T_rig_camera)
