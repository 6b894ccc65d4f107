import gzip
import io
import json
import zipfile
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
import trimesh
import yaml
from safetensors.numpy import load, save
from synthetic_clip import make_map
from synthetic_scene import make_scene, make_track

from neural_sim.clips.clip import NavigationStep
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_translation_quaternion
from neural_sim.gaussians import Gaussians
from neural_sim.scenes.archive import write_archive
from neural_sim.scenes.sky_layouts import sky_to_layout
from neural_sim.scenes.storage import ARRAYS, GAUSSIANS, RECORD, read_scene, world_origin, write_scene

MEMBERS = [
    "default.usda",
    "volume.nurec",
    "gauss.usda",
    "metadata.yaml",
    "rig_trajectories.json",
    "sequence_tracks.json",
    *(f"clipgt/{table}.parquet" for table in ("clip", "lane", "association", "road_boundary", "intersection_area")),
    "clipgt/traffic_sign.parquet",
    "clipgt/wait_line.parquet",
    "map.xodr",
    "mesh.ply",
    "mesh_ground.ply",
    "roadloop.json",
    "roadloop/arrays.safetensors",
    "roadloop/gaussians.safetensors",
]


def random_gaussians(count, sh_degree, seed, spread_m=50.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    bands = (sh_degree + 1) ** 2
    return Gaussians(draw(count, 3) * spread_m, draw(count, 4), draw(count, 3) - 3, draw(count), draw(count, bands, 3))


@pytest.fixture
def scene():
    moving, parked = make_track("car/1", (20.0, 3.0, 0.1), 5.0), make_track("van", (40.0, -3.0, 0.0))
    walker = make_track("w", (15.0, 6.0, 0.5), 1.0, category="pedestrian", size_m=(0.6, 0.5, 1.7))
    return replace(
        make_scene(curvature=0.01, tracks=(moving, parked, walker), slope=0.02),
        background=random_gaussians(40, 2, 1),
        road=random_gaussians(7, 0, 2),
        actors={"van": random_gaussians(5, 1, 3, 1.0), "car/1": random_gaussians(3, 0, 4, 1.0)},
        sky=torch.rand(6, 4, 4, 3, generator=torch.Generator().manual_seed(5)),
        road_map=make_map(),
        navigation=(NavigationStep(5_000_000, "go straight"),),
        metadata={"psnr_db": 21.5, "source": {"dataset": "synthetic"}},
    )


@pytest.fixture
def path(scene, tmp_path):
    write_scene(scene, tmp_path / "scene.usdz")
    return tmp_path / "scene.usdz"


def member(path, name):
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def rewrite(path, changes, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (members | changes).items():
            if content is not None:
                archive.writestr(name, content)


def edit_record(path, change):
    record = json.loads(member(path, RECORD))
    change(record)
    rewrite(path, {RECORD: json.dumps(record).encode()})


def state_dict(path):
    return msgpack.unpackb(gzip.decompress(member(path, "volume.nurec")))["nre_data"]["state_dict"]


def tensor(state, key, dtype: type[np.float16 | np.int32] = np.float16):
    return np.frombuffer(state[key], dtype).reshape(state[f"{key}.shape"])


def assert_same_gaussians(back, gaussians):
    for name, expected in gaussians.tensors().items():
        found = getattr(back, name)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected), name


def test_round_trip_is_exact(scene, path):
    back = read_scene(path)
    for name in ("scene_id", "ego_vehicle", "navigation", "metadata"):
        assert getattr(back, name) == getattr(scene, name)
    assert_same_gaussians(back.background, scene.background)
    assert_same_gaussians(back.road, scene.road)
    assert list(back.actors) == ["van", "car/1"]
    for name, actor in scene.actors.items():
        assert_same_gaussians(back.actors[name], actor)
    assert torch.equal(back.sky, scene.sky)
    np.testing.assert_array_equal(back.expert.t_us, scene.expert.t_us)
    np.testing.assert_array_equal(back.expert.T_world_rig, scene.expert.T_world_rig)
    np.testing.assert_array_equal(back.ground.vertices_m, scene.ground.vertices_m)
    np.testing.assert_array_equal(back.ground.faces, scene.ground.faces)
    assert list(back.cameras) == list(scene.cameras)
    for name, camera in scene.cameras.items():
        assert back.cameras[name].to_json() == camera.to_json()
        np.testing.assert_array_equal(back.camera_times_us[name], scene.camera_times_us[name])


def test_tracks_and_map_round_trip_exactly(scene, path):
    back = read_scene(path)
    for found, expected in zip(back.tracks, scene.tracks, strict=True):
        assert (found.track_id, found.category, found.size_m) == (
            expected.track_id,
            expected.category,
            expected.size_m,
        )
        np.testing.assert_array_equal(found.trajectory.t_us, expected.trajectory.t_us)
        np.testing.assert_array_equal(found.trajectory.T_world_rig, expected.trajectory.T_world_rig)
    assert back.road_map.drivable_areas == scene.road_map.drivable_areas
    np.testing.assert_array_equal(back.road_map.lanes[0].centerline_m, scene.road_map.lanes[0].centerline_m)


def test_a_scene_without_gaussians_and_tracks(tmp_path):
    write_scene(make_scene(), tmp_path / "empty.usdz")
    back = read_scene(tmp_path / "empty.usdz")
    assert len(back.background) == len(back.road) == len(back.actors) == len(back.tracks) == 0


def test_two_writes_are_byte_identical(scene, path, tmp_path):
    write_scene(scene, tmp_path / "again.usdz")
    write_scene(read_scene(path), tmp_path / "reread.usdz")
    assert path.read_bytes() == (tmp_path / "again.usdz").read_bytes() == (tmp_path / "reread.usdz").read_bytes()


def test_archive_is_stored_in_order_and_aligned(path):
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    assert [info.filename for info in infos] == MEMBERS
    data = path.read_bytes()
    for info in infos:
        assert info.compress_type == zipfile.ZIP_STORED
        name_length = int.from_bytes(data[info.header_offset + 26 : info.header_offset + 28], "little")
        extra_length = int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
        assert (info.header_offset + 30 + name_length + extra_length) % 64 == 0


def test_payload_is_half_precision_with_the_layouts_shapes(scene, path):
    state = state_dict(path)
    for node, count in (("background", 40), ("road", 7), ("dynamic_rigids", 8)):
        prefix = f".gaussians_nodes.{node}"
        shapes = {"positions": 3, "rotations": 4, "scales": 3, "densities": 1, "features_albedo": 3}
        for key, width in {**shapes, "features_specular": 45, "extra_signal": 0}.items():
            assert state[f"{prefix}.{key}.shape"] == [count, width]
            assert len(state[f"{prefix}.{key}"]) == 2 * count * width
    assert np.frombuffer(state[".gaussians_nodes.background.n_active_features"], np.int64).tolist() == [2]
    assert state[".gaussians_nodes.background.n_active_features.shape"] == []
    assert state[".background.textures.shape"] == [1, 6, 4, 4, 3]
    stored = sky_to_layout(scene.sky, "nurec").numpy()
    np.testing.assert_allclose(tensor(state, ".background.textures")[0], stored, atol=1e-3)


def test_payload_is_pre_activation_wxyz_and_coefficient_major(scene, path):
    state, background = state_dict(path), scene.background
    origin_m = world_origin(scene.expert)
    prefix = ".gaussians_nodes.background"

    def same(key, expected):
        np.testing.assert_array_equal(tensor(state, f"{prefix}.{key}"), np.asarray(expected).astype(np.float16))

    same("positions", background.means_m.numpy() - origin_m)
    same("rotations", np.roll(background.quaternions_xyzw.numpy(), 1, axis=1))
    same("scales", background.log_scales)
    same("densities", background.opacity_logits[:, None])
    same("features_albedo", background.sh[:, 0])
    specular = tensor(state, f"{prefix}.features_specular").reshape(-1, 15, 3)
    np.testing.assert_array_equal(specular[:, :8], background.sh[:, 1:].numpy().astype(np.float16))
    assert (specular[:, 8:] == 0).all()


def test_payload_actors_stay_in_their_boxes(scene, path):
    state = state_dict(path)
    ids = tensor(state, ".gaussians_nodes.dynamic_rigids.gaussian_cuboid_ids", np.int32)
    assert ids.tolist() == [0] * 5 + [1] * 3
    assert state["._extra_state"]["obj_track_ids"] == {"background": [], "road": [], "dynamic_rigids": ["van", "car/1"]}
    positions = tensor(state, ".gaussians_nodes.dynamic_rigids.positions")
    np.testing.assert_allclose(positions[:5], scene.actors["van"].means_m, atol=2e-3)


def test_values_beyond_half_precision_are_clamped(scene, tmp_path):
    road = replace(scene.road, opacity_logits=torch.full((7,), 1e6))
    write_scene(replace(scene, road=road), tmp_path / "s.usdz")
    densities = tensor(state_dict(tmp_path / "s.usdz"), ".gaussians_nodes.road.densities")
    assert (densities == 65504).all()
    assert (read_scene(tmp_path / "s.usdz").road.opacity_logits == 1e6).all()


def test_rig_trajectories_use_the_mapping_names_of_the_layout(scene, path):
    value = json.loads(member(path, "rig_trajectories.json"))
    (trajectory,) = value["rig_trajectories"]
    origin_m = world_origin(scene.expert)
    poses = np.array(trajectory["T_rig_worlds"])
    np.testing.assert_allclose(poses[:, :3, 3] + origin_m, scene.expert.T_world_rig[:, :3, 3], atol=1e-9)
    np.testing.assert_array_equal(poses[:, :3, :3], scene.expert.T_world_rig[:, :3, :3])
    assert value["world_to_nre"]["matrix"] == np.eye(4).tolist()
    name = "camera_front_wide_120fov"
    calibration = value["camera_calibrations"][f"{name}@{scene.scene_id}"]
    assert calibration["logical_sensor_name"] == name
    np.testing.assert_array_equal(calibration["T_sensor_rig"], scene.cameras[name].T_rig_camera)
    exposure = trajectory["cameras_frame_timestamps_us"][f"{name}@{scene.scene_id}"][0]
    assert exposure == [5_000_000 - 15_000, 5_000_000 + 15_000]
    vehicle = scene.ego_vehicle
    centroid = trajectory["rig_bbox"]["centroid"]
    assert centroid[0] - vehicle.length_m / 2 == pytest.approx(-vehicle.rear_axle_to_rear_bumper_m)


def test_global_shutter_exposure_is_not_empty(scene, tmp_path):
    cameras = {name: replace(camera, shutter_us=0) for name, camera in scene.cameras.items()}
    write_scene(replace(scene, cameras=cameras), tmp_path / "s.usdz")
    (trajectory,) = json.loads(member(tmp_path / "s.usdz", "rig_trajectories.json"))["rig_trajectories"]
    start_us, end_us = next(iter(trajectory["cameras_frame_timestamps_us"].values()))[0]
    assert (start_us, end_us) == (5_000_000, 5_000_001)


def test_tracks_for_other_tools(scene, path):
    value = json.loads(member(path, "sequence_tracks.json"))[scene.scene_id]
    data = value["tracks_data"]
    assert data["tracks_id"] == ["car/1", "van", "w"]
    assert data["tracks_label_class"] == ["automobile", "automobile", "person"]
    assert data["tracks_flags"] == [["CONTROLLABLE"], [], ["CONTROLLABLE"]]
    assert value["cuboidtracks_data"]["cuboids_dims"][2] == [0.6, 0.5, 1.7]
    rows = np.array(data["tracks_poses"][0])
    rebuilt = pose_from_translation_quaternion(rows[:, :3] + world_origin(scene.expert), rows[:, 3:])
    np.testing.assert_allclose(rebuilt, scene.tracks[0].trajectory.T_world_rig, atol=1e-9)


def test_metadata_for_other_tools(scene, path):
    value = yaml.safe_load(member(path, "metadata.yaml"))
    assert value["scene_id"] == scene.scene_id
    assert value["time_range"] == {"start": 5_000_000, "end": 25_000_000}
    assert value["sensors"]["camera_ids"] == list(scene.cameras)
    required = [
        "version_string",
        "training_date",
        "dataset_hash",
        "uuid",
        "is_resumable",
        "logger",
        "training_step_outputs",
    ]
    assert set(required) <= set(value)


def test_ground_mesh_opens_in_trimesh(scene, path):
    mesh = trimesh.load(io.BytesIO(member(path, "mesh_ground.ply")), file_type="ply", process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    np.testing.assert_allclose(
        np.asarray(mesh.vertices) + world_origin(scene.expert), scene.ground.vertices_m, atol=1e-4
    )
    np.testing.assert_array_equal(mesh.faces, scene.ground.faces)


def test_local_world_keeps_the_precision_of_a_faraway_drive(scene):
    poses = scene.expert.T_world_rig.copy()
    poses[:, :3, 3] += (4_321.25, -87_654.5, 100.0)
    origin_m = world_origin(replace(scene.expert, T_world_rig=poses))
    assert np.abs(poses[:, :3, 3] - origin_m).max() < 100.0
    np.testing.assert_array_equal(origin_m, np.round(origin_m))


def test_usd_layers_name_the_volume(path):
    assert b"@./gauss.usda@</World/gauss>" in member(path, "default.usda")
    gauss = member(path, "gauss.usda").decode()
    assert gauss.count("@./volume.nurec@") == 2
    assert "bool omni:nurec:isNuRecVolume = 1" in gauss
    assert "bool omni:nurec:useProxyTransform = 0" in gauss
    assert gauss.count("{") == gauss.count("}")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.usdz: no such scene file; make one with `roadloop reconstruct`"):
        read_scene(tmp_path / "none.usdz")


def test_wrong_suffix(scene, tmp_path):
    with pytest.raises(InputError, match=r"scene\.zip: a scene file must end in \.usdz"):
        write_scene(scene, tmp_path / "scene.zip")


def test_not_a_zip(path):
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"scene\.usdz: not a whole \.usdz \(zip\) file"):
        read_scene(path)


def test_truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"not a whole \.usdz \(zip\) file"):
        read_scene(path)


def test_flipped_byte(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"format_version")] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"not a whole \.usdz \(zip\) file \(Bad CRC-32"):
        read_scene(path)


@pytest.mark.parametrize("name", [RECORD, ARRAYS, GAUSSIANS])
def test_missing_member(path, name):
    rewrite(path, {name: None})
    with pytest.raises(InputError, match=rf"scene\.usdz: member {name} is missing"):
        read_scene(path)


@pytest.mark.parametrize("name", ["../evil.sh", "/etc/evil", "a/../../evil", "a\\evil", "C:evil"])
def test_path_escape(path, name):
    write_archive(path, [(name, b"x"), (RECORD, b"{}")])
    with pytest.raises(InputError, match="leaves the archive; do not trust this file"):
        read_scene(path)


def test_compressed_member(path):
    rewrite(path, {"bomb": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"is compressed, but \.usdz members are stored"):
        read_scene(path)


def test_repeated_member(path):
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(RECORD, b"{}")
    with pytest.raises(InputError, match=r"member 'roadloop\.json' appears twice"):
        read_scene(path)


@pytest.mark.parametrize("name", [ARRAYS, GAUSSIANS])
def test_torn_safetensors(path, name):
    rewrite(path, {name: member(path, name)[:-8]})
    with pytest.raises(InputError, match=rf"{name}: not whole safetensors"):
        read_scene(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format_version=7), r"roadloop\.json: format_version is 7, expected 1"),
        (lambda v: v.pop("cameras"), r"roadloop\.json: key 'cameras' is missing"),
        (lambda v: v["actors"].append("ghost"), r"actor 'ghost' has Gaussians but no track"),
        (lambda v: v["tracks"][0].update(category="ufo"), r"track 0: category is 'ufo', expected one of vehicle"),
        (lambda v: v["tracks"][0].update(size_m=[1, 2]), r"track 0: size_m is \[1, 2\], expected three positive"),
        (lambda v: v["cameras"][0].pop("fx_px"), r"incomplete calibration"),
        (lambda v: v["road_map"].update(source="guessed"), r"map source is 'guessed', expected one of recorded"),
        (lambda v: v["tracks"].append(dict(v["tracks"][0])), r"array tracks\.3\.t_us is missing"),
    ],
)
def test_bad_record(path, change, message):
    edit_record(path, change)
    with pytest.raises(InputError, match=message):
        read_scene(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (GAUSSIANS, lambda a: a.pop("road.sh"), r"array road\.sh is missing"),
        (
            GAUSSIANS,
            lambda a: a.update({"road.sh": np.zeros((7, 5, 3), np.float32)}),
            r"array road\.sh has 5 coefficients, expected one of \(1, 4, 9, 16\)",
        ),
        (
            GAUSSIANS,
            lambda a: a.update({"road.log_scales": np.zeros((6, 3), np.float32)}),
            r"array road\.log_scales is float32 \[6, 3\], expected float32 7x3",
        ),
        (
            GAUSSIANS,
            lambda a: a.update({"road.means_m": np.full((7, 3), np.nan, np.float32)}),
            r"array road\.means_m has NaN or infinite values",
        ),
        (
            ARRAYS,
            lambda a: a.update({"sky": np.zeros((6, 4, 5, 3), np.float32)}),
            r"sky faces are 5x4, expected squares",
        ),
        (
            ARRAYS,
            lambda a: a.update({"ground.faces": np.array([[0, 1, 9]], np.int32)}),
            r"ground\.faces point beyond the 4 vertices",
        ),
        (
            ARRAYS,
            lambda a: a.update({"expert.t_us": a["expert.t_us"][::-1]}),
            r"expert: trajectory: timestamps must increase",
        ),
    ],
)
def test_bad_arrays(path, name, change, message):
    arrays = {key: value.copy() for key, value in load(member(path, name)).items()}
    change(arrays)
    rewrite(path, {name: save({key: np.ascontiguousarray(value) for key, value in arrays.items()})})
    with pytest.raises(InputError, match=message):
        read_scene(path)


def test_actor_without_track_is_not_written(scene, tmp_path):
    with pytest.raises(InputError, match="actor 'van' has Gaussians but no track; add its track or drop the actor"):
        write_scene(replace(scene, tracks=scene.tracks[:1]), tmp_path / "s.usdz")
    assert list(tmp_path.iterdir()) == []
