"""Every reader meets broken files: it answers with the data or with one clear line, and leaves nothing half-made."""

import pickle
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import test_argoverse2
import test_comma2k19
import test_kitti_odometry
import test_kitti_raw
import test_nerfstudio
import test_nuscenes
import test_nuscenes_scene
import test_physical_ai
from damage import spoil
from scenarionet_log import write_log
from synthetic_clip import make_clip, make_map
from synthetic_scene import make_scene, make_track
from test_nurec_scene import rewrite
from test_scene_storage import random_gaussians
from video_fixture import write_video

from neural_sim.clips import comma2k19
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import DATASETS, ingest
from neural_sim.clips.storage import read_clip, write_clip
from neural_sim.errors import InputError
from neural_sim.maps.opendrive import read_opendrive
from neural_sim.maps.opendrive_writer import encode_opendrive
from neural_sim.scenes.bare_gaussians import scene_from_gaussians
from neural_sim.scenes.gaussian_ply import write_ply
from neural_sim.scenes.nurec_payload import encode_volume
from neural_sim.scenes.storage import read_scene, write_scene

ROUNDS = 12


def comma(folder):
    video = write_video(
        folder / "v.hevc", test_comma2k19.FRAMES, test_comma2k19.SIZE, codec="libx265", container="hevc"
    )
    return test_comma2k19.write_layout(folder, video)


LAYOUTS = {
    "argoverse2": (lambda folder: test_argoverse2.write_log(folder / "av2"), ""),
    "comma2k19": (comma, test_comma2k19.SEGMENT),
    "kitti-odometry": (lambda folder: test_kitti_odometry.write_layout(folder / "kitti"), "07"),
    "kitti-raw": (test_kitti_raw.write_layout, "drive_0005"),
    "nerfstudio": (lambda folder: test_nerfstudio.write_foreign(folder / "ns"), ""),
    "nuscenes": (
        lambda folder: test_nuscenes.write_layout(folder / "n", test_nuscenes.make_tables(), test_nuscenes.make_map()),
        "0042",
    ),
    "nuscenes-scene": (test_nuscenes_scene.write_layout, ""),
    "physicalai-av": (test_physical_ai.write_layout, test_physical_ai.CLIP[:8]),
    "scenarionet": (lambda folder: write_log(folder / "logs"), "0042"),
}


@pytest.fixture(autouse=True)
def small_videos(monkeypatch):
    monkeypatch.setattr(comma2k19, "WIDTH_PX", test_comma2k19.SIZE[0])
    monkeypatch.setattr(comma2k19, "HEIGHT_PX", test_comma2k19.SIZE[1])
    monkeypatch.setattr("neural_sim.clips.check.HISTORY_S", 0.5)
    monkeypatch.setattr("neural_sim.clips.check.HORIZON_S", 2.0)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """The layout of a dataset by name, made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = LAYOUTS[name][0](tmp_path_factory.mktemp(name.replace("-", "_")))
        return made[name]

    return make


def test_every_dataset_with_files_is_here():
    assert set(LAYOUTS) == set(DATASETS) - {"town"}


def answers(read, how):
    """Run a reader on spoiled files: fine, or an `InputError` of one line that names something."""
    message = "fine"
    try:
        return read()
    except InputError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{how}: {type(error).__name__} instead of InputError") from error
    assert message, how
    assert "\n" not in message.strip(), f"{how}: {message}"
    return None


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_datasets(pristine, tmp_path, name):
    for number in range(ROUNDS):
        draw = random.Random(f"{name} {number}")
        root = tmp_path / f"root{number}" / pristine(name).parent.name
        shutil.copytree(pristine(name).parent, root)
        how = spoil(root / pristine(name).name, draw)
        options = IngestOptions(root=root / pristine(name).name, sequence=LAYOUTS[name][1])
        out = tmp_path / f"out{number}" / "clip"
        clip = answers(lambda options=options, out=out: ingest(name, options, out), how)
        left = [path.name for path in out.parent.glob("*")] if out.parent.exists() else []
        assert left == ([] if clip is None else ["clip"]), how
        if clip is not None:
            assert np.isfinite(clip.ego.T_world_rig).all(), how
        shutil.rmtree(root.parent)


def clip_folder(folder):
    write_clip(make_clip(folder / "source"), folder / "x" / "clip")
    return folder / "x", lambda root: read_clip(root / "clip")


def scene_file(folder):
    return make_scene_file(folder), lambda root: read_scene(root / "s.usdz")


def make_scene_file(folder):
    (folder / "x").mkdir()
    scene = replace(
        make_scene(tracks=[make_track("car", (20.0, 3.0, 0.1), 5.0)]),
        background=random_gaussians(20, 1, seed=0), actors={"car": random_gaussians(5, 1, seed=1)}, road_map=make_map(),
    )  # fmt: skip
    write_scene(scene, folder / "x" / "s.usdz")
    return folder / "x"


def nurec_file(folder):
    root = make_scene_file(folder)
    rewrite(root / "s.usdz")
    return root, lambda root: read_scene(root / "s.usdz")


def bare_files(suffix):
    def make(folder):
        root = make_scene_file(folder)
        scene = read_scene(root / "s.usdz")
        (root / "s.usdz").unlink()
        if suffix == ".nurec":
            (root / "g.nurec").write_bytes(encode_volume(scene, np.zeros(3)))
        else:
            write_ply(scene.background, root / "g.ply")
            np.savez(root / "g.sky.npz", sky_cubemap=scene.sky.numpy())
        clip = make_clip(folder / "source")
        return root, lambda root: scene_from_gaussians(root / f"g{suffix}", clip)

    return make


def opendrive_file(folder):
    (folder / "x").mkdir()
    (folder / "x" / "map.xodr").write_bytes(encode_opendrive(make_map(), np.zeros(3), "x"))
    return folder / "x", lambda root: read_opendrive(root / "map.xodr")


ARTEFACTS = {
    "clip": clip_folder,
    "scene": scene_file,
    "NuRec scene": nurec_file,
    "bare volume": bare_files(".nurec"),
    "bare PLY": bare_files(".ply"),
    "OpenDRIVE": opendrive_file,
}


@pytest.mark.parametrize("name", sorted(ARTEFACTS))
def test_artefacts(tmp_path, name):
    root, read = ARTEFACTS[name](tmp_path)
    for number in range(4 * ROUNDS):
        draw = random.Random(f"{name} {number}")
        spoiled = tmp_path / f"spoiled{number}"
        shutil.copytree(root, spoiled)
        how = spoil(spoiled, draw)
        answers(lambda spoiled=spoiled: read(spoiled), how)


class Bomb:
    def __reduce__(self):
        return eval, ("open('executed', 'w')",)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_no_file_is_run(pristine, tmp_path, monkeypatch, name):
    """A pickle in the place of any one file of a dataset is not executed."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "copy"
    shutil.copytree(pristine(name).parent, root)
    kinds = {path.suffix or path.name: path for path in sorted(root.rglob("*")) if path.is_file()}
    for path in kinds.values():
        content = path.read_bytes()
        path.write_bytes(pickle.dumps(Bomb()))
        options = IngestOptions(root=root / pristine(name).name, sequence=LAYOUTS[name][1])
        answers(lambda options=options: ingest(name, options, tmp_path / "out" / "clip"), path.name)
        path.write_bytes(content)
    assert not (tmp_path / "executed").exists()
