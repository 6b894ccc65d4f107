"""The pages in `docs/formats`: their Python runs without roadloop, and they name every member there is."""

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import test_report
import torch
from synthetic_clip import make_clip, make_map
from synthetic_scene import make_scene, make_track
from test_scene_storage import random_gaussians
from test_shards import write_shards
from test_vla_checkpoint import trained_policy

from eval.report import write_report
from eval.tables import METRICS_SCHEMA
from neural_sim.clips.storage import write_clip
from neural_sim.scenes.storage import write_scene
from vla.checkpoint import save_pretrained

PAGES = Path(__file__).parents[1] / "docs" / "formats"
# Refuses roadloop's packages and runs the code that comes after it.
WITHOUT_ROADLOOP = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("neural_sim", "pipelines", "vla", "eval", "controllers"):
            raise ImportError(f"{name} is part of roadloop")
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """A folder with one of each under the names that the pages use."""
    folder = tmp_path_factory.mktemp("artefacts")
    write_clip(make_clip(folder / "source"), folder / "CLIP")
    scene = replace(
        make_scene(tracks=[make_track("car", (20.0, 3.0, 0.0), 5.0)]),
        background=random_gaussians(20, 1, seed=0), actors={"car": random_gaussians(5, 1, seed=1)}, road_map=make_map(),
    )  # fmt: skip
    write_scene(scene, folder / "SCENE.usdz")
    write_shards(folder / "SHARDS", 4)
    torch.manual_seed(0)
    save_pretrained(trained_policy(), folder / "CHECKPOINT")
    write_report(folder / "REPORT", test_report.evaluation())
    return folder


def page(name):
    return (PAGES / f"{name}.md").read_text()


@pytest.mark.parametrize("name", ["clip", "scene", "shards", "checkpoint", "report"])
def test_the_python_of_each_page_runs_without_roadloop(artefacts, name):
    blocks = re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)
    assert blocks, "every page shows how to read its format"
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_ROADLOOP + block], cwd=artefacts, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def names_in(text):
    return set(re.findall(r"`([^`]+)`", text)) | {
        word for span in re.findall(r"`([^`]+)`", text) for word in span.split()
    }


def test_the_clip_page_names_every_key(artefacts):
    named = names_in(page("clip"))
    record = json.loads((artefacts / "CLIP" / "clip.json").read_text())
    keys = {*record, *record["cameras"][0], *record["cameras"][0]["calibration"], *record["ego_vehicle"]}
    keys |= {*record["navigation"][0]}
    road_map = json.loads((artefacts / "CLIP" / "map.json").read_text())
    keys |= {*road_map, *road_map["lanes"][0]}
    assert keys <= named


def test_the_scene_page_names_every_member_and_key(artefacts):
    named = names_in(page("scene"))
    with zipfile.ZipFile(artefacts / "SCENE.usdz") as archive:
        assert set(archive.namelist()) <= named
        assert set(json.loads(archive.read("roadloop.json"))) <= named


def test_the_shards_page_names_every_key(artefacts):
    named = names_in(page("shards"))
    index = json.loads((artefacts / "SHARDS" / "index.json").read_text())
    assert {*index, *index["shards"][0]} <= named


def test_the_checkpoint_page_names_every_file(artefacts):
    named = names_in(page("checkpoint"))
    assert {path.name for path in (artefacts / "CHECKPOINT").iterdir() if path.is_file()} <= named


def test_the_report_page_names_every_key_and_column(artefacts):
    named = names_in(page("report"))
    summary = json.loads((artefacts / "REPORT" / "summary.json").read_text())
    assert {*summary, *METRICS_SCHEMA.names} <= named
    assert summary["format_version"] == 2
