"""The transfer table: the same evaluation in several renderers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_eval_aggregate import make_score

from eval.aggregate import summarise
from eval.protocol import EvaluationProtocol
from eval.results import EvaluationResult, Series
from eval.tables import write_metrics, write_summary
from neural_sim.artifacts import write_json
from neural_sim.errors import InputError
from pipelines.cli import main
from pipelines.transfer import transfer

# One metre a step; the first two steps are warm-up, so a drive of n + 3 steps is n metres long.
MINUS = "\u2212"
SPLAT = {"base": 10, "tuned": 40, "constant_velocity": 20}
NERF = {"base": 8, "tuned": 20, "constant_velocity": 20}


def driven(policy, scene, metres):
    score = make_score(policy, scene, steps=metres + 3, offroad=[metres + 2])
    counted = Series(score.t_us, (~score.is_warmup).astype(float), np.ones(len(score.t_us), bool), "max")
    return replace(score, series={**score.series, "eval_relevant": counted})


def report(folder, metres, renderer, hashes=None, seed=0, **conditions):
    """A report of two scenes in which every policy leaves the road after its metres."""
    scores = [driven(policy, f"s{s}", length) for policy, length in metres.items() for s in range(2)]
    result = EvaluationResult(
        replace(EvaluationProtocol(), bootstrap_resamples=20, permutations=20), tuple(scores),
        policies=tuple(metres), baselines=("constant_velocity",),
        conditions={"seed": seed, "renderer": renderer, **conditions},
    )  # fmt: skip
    write_metrics(result.scores, folder / "metrics.parquet")
    write_summary(summarise(result), folder / "summary.json")
    write_json(folder.with_name(f"{folder.name}.provenance.json"), {"settings": {"policies": hashes or {}}})
    return folder


@pytest.fixture
def pair(tmp_path):
    hashes = {"base": "1", "tuned": "2"}
    return (
        report(tmp_path / "in_splat", SPLAT, "splat", hashes),
        report(tmp_path / "in_nerf", NERF, "nerf", hashes, nerfs={"s0": "abc"}),
    )


def test_the_table_has_policies_and_renderers(pair, tmp_path):
    text = transfer(pair, out=tmp_path / "out")
    # Off-road once in 10 m and once in 40 m: 100 and 25 per km; in the NeRF 125 and 50.
    gained = f"{MINUS}75.00"
    assert f"tuned minus base: {gained} in splat, {gained} in nerf incidents per km; better in every renderer." in text
    assert "| Driving score (km/incident) | splat | nerf |" in text
    assert "| base | 0.010 | 0.008 |" in text
    assert "| tuned | 0.040 | 0.020 |" in text
    assert "did not drive alike" not in text
    assert (tmp_path / "out" / "transfer.md").read_text() == text + "\n"
    found = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert found["policies"]["tuned"]["nerf"]["driving_score"]["mean"] == pytest.approx(0.02)
    (gain,) = found["gains"]
    assert gain["transfers"] is True
    assert gain["differences"] == pytest.approx({"splat": -75.0, "nerf": -75.0})


def test_a_gain_that_does_not_transfer_is_named(tmp_path):
    splat = report(tmp_path / "a", SPLAT, "splat")
    nerf = report(tmp_path / "b", {**NERF, "tuned": 5, "constant_velocity": 25}, "nerf")
    text = transfer([splat, nerf], out=tmp_path / "out")
    assert f"tuned minus base: {MINUS}75.00 in splat, +75.00 in nerf incidents per km; not the same in every" in text
    assert "The baseline constant_velocity did not drive alike in splat and nerf" in text


def test_without_a_gain_there_is_nothing_to_transfer(tmp_path):
    equal = {"base": 10, "tuned": 10}
    reports = [report(tmp_path / name, equal, name) for name in ("splat", "nerf")]
    text = transfer(reports, out=tmp_path / "out")
    assert "tuned minus base: 0.00 in splat, 0.00 in nerf incidents per km; nothing that could transfer." in text


def test_what_cannot_be_put_side_by_side_is_refused(pair, tmp_path, capsys):
    out = tmp_path / "out"
    splat, nerf = pair
    with pytest.raises(InputError, match="got 1 report, expected at least two"):
        transfer([splat], out=out)
    with pytest.raises(InputError, match="both show splat"):
        transfer([splat, splat], out=out)
    other_seed = report(tmp_path / "other_seed", NERF, "nerf", seed=1)
    with pytest.raises(InputError, match=r"cannot be compared: conditions\.seed: 0 -> 1"):
        transfer([splat, other_seed], out=out)
    other_file = report(tmp_path / "other_file", NERF, "nerf", {"base": "9", "tuned": "2"})
    with pytest.raises(InputError, match="base is not the same checkpoint in both"):
        transfer([splat, other_file], out=out)
    strangers = report(tmp_path / "strangers", {"new": 30, "constant_velocity": 20}, "nerf")
    with pytest.raises(InputError, match="no checkpoint is in all of"):
        transfer([splat, strangers], out=out)
    assert not out.exists()
    assert main(["transfer", str(splat), str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert "nowhere/summary.json: not readable as JSON" in capsys.readouterr().err
    assert main(["transfer", str(splat), str(nerf), "--out", str(out)]) == 0
