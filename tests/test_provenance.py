"""Artefacts are kept, refused or made anew depending on how they were made."""

import json

import pytest

import pipelines.provenance
from neural_sim.errors import InputError
from pipelines.provenance import begin_artifact, begun_with, provenance_path


def test_a_whole_artefact_with_the_same_settings_is_kept(tmp_path):
    artifact = tmp_path / "scene.usdz"
    assert not begin_artifact(artifact, "reconstruct", {"seed": 1}, resume=True)
    artifact.write_text("whole")
    assert begin_artifact(artifact, "reconstruct", {"seed": 1}, resume=True)
    saved = json.loads(provenance_path(artifact).read_text())
    assert saved["settings"] == {"seed": 1}
    assert saved["stage"] == "reconstruct"
    assert "torch" in saved["versions"]


def test_other_settings_are_refused_by_name_and_nothing_is_lost(tmp_path):
    artifact = tmp_path / "scene.usdz"
    begin_artifact(artifact, "reconstruct", {"reconstruct": {"iterations": 10}}, resume=True)
    artifact.write_text("whole")
    with pytest.raises(InputError, match=r"made with other settings \(reconstruct.iterations: 10 -> 20\)"):
        begin_artifact(artifact, "reconstruct", {"reconstruct": {"iterations": 20}}, resume=True)
    assert artifact.read_text() == "whole"


def test_without_resume_it_is_made_anew(tmp_path):
    artifact = tmp_path / "clip"
    begin_artifact(artifact, "ingest", {"seed": 1}, resume=True)
    artifact.mkdir()
    assert not begin_artifact(artifact, "ingest", {"seed": 2}, resume=False)
    assert not artifact.exists()


def test_something_of_another_origin_is_never_touched(tmp_path):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").write_text("words")
    for resume in (True, False):
        with pytest.raises(InputError, match=r"exists but has no thesis.provenance.json beside it"):
            begin_artifact(precious, "ingest", {}, resume=resume)
    assert (precious / "chapter.tex").read_text() == "words"


def test_an_unfinished_folder_is_continued(tmp_path):
    folder = tmp_path / "shards"
    begin_artifact(folder, "rollout", {"seed": 1}, resume=True, complete=folder / "index.json")
    folder.mkdir()
    (folder / "unit.tar").write_text("done")
    assert not begin_artifact(folder, "rollout", {"seed": 1}, resume=True, complete=folder / "index.json")
    assert (folder / "unit.tar").exists()


def test_what_a_killed_writer_left_is_swept(tmp_path):
    folder = tmp_path / "report"
    begin_artifact(folder, "evaluate", {}, resume=True, complete=folder / "summary.json")
    (folder / "rollouts" / ".r000.12345678.partial").mkdir(parents=True)
    (tmp_path / ".report.12345678.partial").write_text("half")
    (tmp_path / ".other.12345678.partial").write_text("somebody else is writing this")
    begin_artifact(folder, "evaluate", {}, resume=True, complete=folder / "summary.json")
    assert [path.name for path in tmp_path.rglob("*.partial")] == [".other.12345678.partial"]


def test_versions_that_began_an_artefact_stay_named(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "report"
    for commit in ("monday", "monday", "tuesday", "tuesday", "wednesday"):
        monkeypatch.setattr(pipelines.provenance, "source_commit", lambda commit=commit: commit)
        begin_artifact(folder, "evaluate", {}, resume=True, complete=folder / "summary.json")
        folder.mkdir(exist_ok=True)
    assert [item["commit"] for item in begun_with(folder)] == ["monday", "tuesday"]
    assert "begun with other versions (commit: 'tuesday' -> 'wednesday'); what they made is kept" in caplog.text


def test_an_artefact_made_anew_has_no_earlier_versions(tmp_path, monkeypatch):
    folder = tmp_path / "report"
    for commit in ("monday", "tuesday"):
        monkeypatch.setattr(pipelines.provenance, "source_commit", lambda commit=commit: commit)
        begin_artifact(folder, "evaluate", {}, resume=False)
        folder.mkdir()
    assert begun_with(folder) == []
