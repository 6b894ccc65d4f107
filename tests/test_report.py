"""The report folder: tables, page, and what inspection says about it."""

import json
import re
import shutil
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest
from eval_records import make_record, straight
from synthetic_scene import make_scene, make_track

from eval.describe import describe_report
from eval.protocol import EvaluationProtocol
from eval.report import ReportOptions, write_report
from eval.report_tables import format_number
from eval.results import EvaluationResult, RolloutFailure
from eval.scorers import score_rollout
from eval.tables import METRICS_SCHEMA
from eval.video import write_video
from neural_sim.errors import InputError

SCENES = (
    make_scene(0.0, 8.0, 6.0, [make_track("parked", (30.0, 6.0, 0.0))], half_width_m=6.0),
    make_scene(0.001, 6.0, 6.0, half_width_m=6.0),
)
STEPS = 40


def evaluation(videos=None, failures=()):
    scores = []
    for policy, drift in (("base", 0.12), ("tuned <b>", 0.001)):
        for scene in SCENES:
            for index in range(2):
                sideways = drift * (1 + 0.2 * index) * np.clip(np.arange(STEPS) - 5, 0, None)
                record = make_record(scene, straight(STEPS, 7.0, sideways), warmup_steps=5, rollout_index=index)
                scores.append(score_rollout(record, scene, policy=policy))
    maps = {scene.scene_id: scene.road_map for scene in SCENES}
    return EvaluationResult(EvaluationProtocol(), tuple(scores), failures, maps, videos or {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    frames = [np.full((48, 64, 3), 10 * i, np.uint8) for i in range(5)]
    video = out / "videos" / "base.mp4"
    write_video(video, frames, 10.0)
    failures = (RolloutFailure("base", SCENES[0].scene_id, 2, "out of memory"),)
    write_report(
        out,
        evaluation({("base", SCENES[0].scene_id, 0): video}, failures),
        provenance={"commit": "0123abc"},
        config_yaml="evaluate:\n  rollouts: 2\n",
    )
    return out


def test_summary_schema(folder):
    text = (folder / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    summary = json.loads(text)
    assert list(summary) == [
        "format_version", "protocol", "scenes", "rollouts", "policies",
        "baselines", "failures", "comparisons", "conditions",
    ]  # fmt: skip
    assert summary["scenes"] == sorted(scene.scene_id for scene in SCENES)
    assert summary["protocol"]["max_distance_to_log_m"] == 4.0
    assert list(summary["policies"]) == ["base", "tuned <b>"]
    for metrics in summary["policies"].values():
        assert {"driving_score", "collision_at_fault", "offroad", "dist_traveled_m", "dist_to_gt_trajectory"} <= set(
            metrics
        )
        for cell in metrics.values():
            assert {"mean", "std", "low", "high"} <= set(cell) <= {"mean", "std", "low", "high", "note"}
    assert summary["policies"]["tuned <b>"]["driving_score"]["note"].startswith("no incident in ")
    assert summary["policies"]["base"]["failure_rate"]["mean"] == pytest.approx(0.2)


def test_metrics_parquet_is_alpasims_long_table(folder):
    table = pq.read_table(folder / "metrics.parquet")
    assert table.schema.equals(METRICS_SCHEMA)
    names = "name timestamps_us values valid time_aggregation clipgt_id rollout_id run_uuid run_name"
    assert " ".join(table.schema.names) == names
    rows = table.to_pylist()
    names = {row["name"] for row in rows}
    assert {"eval_relevant", "collision_front", "progress_rel", "plan_deviation", "gt_dist_traveled_m"} <= names
    assert len(rows) == 8 * len(names) * STEPS
    chosen = [
        row
        for row in rows
        if row["run_name"] == "base" and row["rollout_id"] == "1" and row["name"] == "dist_to_gt_location"
    ]
    assert [row["timestamps_us"] for row in chosen[:STEPS]] == sorted(row["timestamps_us"] for row in chosen[:STEPS])
    assert {row["time_aggregation"] for row in chosen} == {"max"}
    invalid = [row for row in rows if not row["valid"]]
    assert invalid
    assert all(row["values"] is None for row in invalid)


def test_page_is_self_contained_and_complete(folder):
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", page)
    assert page.count("data:video/mp4;base64,") == 1
    assert page.count("<svg") == 8  # three a scene, two curves
    for text in (
        "base",
        "tuned &lt;b&gt;",
        "Driving score",
        "Off-road",
        "out of memory",
        "0123abc",
        "rollouts: 2",
        "Derived corridor",
    ):
        assert text in page
    assert "<b>" not in page
    assert not re.search(r">[^<]*\b(?:nan|inf|None)\b", page)


def test_report_is_the_same_each_time(folder, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for out in (first, second):
        write_report(out, evaluation())
    for name in ("report.html", "summary.json", "metrics.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_videos_beyond_the_limit_are_linked(folder, tmp_path):
    video = tmp_path / "videos" / "base one.mp4"
    write_video(video, [np.zeros((16, 16, 3), np.uint8)] * 2, 10.0)
    result = evaluation({("base", SCENES[0].scene_id, 0): video})
    write_report(tmp_path, result, options=ReportOptions(max_embedded_mb=0.0))
    page = (tmp_path / "report.html").read_text()
    assert 'src="videos/base%20one.mp4"' in page
    assert "data:video" not in page


def test_describe_sound_report(folder):
    facts, problems = describe_report(folder)
    assert problems == []
    assert "2 scenes x 3 rollouts" in facts
    assert any(fact.startswith("tuned <b>: driving_score - (no incident in") for fact in facts)
    assert "1 videos" not in facts
    assert "1 video" in facts


def test_describe_names_each_fault(folder, tmp_path):
    for name in ("summary.json", "metrics.parquet", "report.html"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "report.html").write_text('<script src="https://example.org/x.js">')
    (tmp_path / "summary.json").write_text('{"format_version": 1}')
    (tmp_path / "metrics.parquet").write_bytes(b"PAR1")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    text = "\n".join(describe_report(tmp_path)[1])
    for expected in (
        "summary.json: misses protocol, scenes, rollouts, policies",
        "metrics.parquet: not readable as parquet",
        "report.html: the page is cut short",
        "refers to another site",
        "bad.mp4: the video does not decode",
    ):
        assert expected in text


def test_describe_of_an_empty_folder(tmp_path):
    facts, problems = describe_report(tmp_path)
    assert len(problems) == 3
    assert facts == ["0 videos"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "misses format_version"),
        (
            '{"format_version": 9, "protocol": {}, "scenes": [], "rollouts": 1, "policies": {}}',
            "format version 9, expected 2",
        ),
        (
            '{"format_version": 1, "protocol": {}, "scenes": [], "rollouts": 1, "policies": {"a": {"m": {"mean": 1}}}}',
            "a: m is not an object with mean, std, low and high",
        ),
        ('{"format_version": 1, "protocol": {}, "scenes": 3, "rollouts": 1, "policies": []}', "scenes must be a list"),
    ],
)
def test_describe_rejects_a_wrong_summary(tmp_path, text, expected):
    (tmp_path / "summary.json").write_text(text)
    assert any(expected in problem for problem in describe_report(tmp_path)[1])


def test_numbers_for_people():
    assert [format_number(value, 2) for value in (1.005, -3.0, None, float("nan"))] == [
        "1.00",
        "\u22123.00",
        "\u2013",
        "\u2013",
    ]


def test_bad_options():
    with pytest.raises(InputError, match="max_embedded_mb is -1, expected a number >= 0"):
        ReportOptions(max_embedded_mb=-1)


PROBE = """<script>
const headers = document.querySelectorAll("table.sortable");
const rollouts = headers[headers.length - 1];
rollouts.querySelectorAll("thead button")[5].click();
const metres = Array.from(rollouts.tBodies[0].rows).map(row => parseFloat(row.cells[5].textContent));
document.body.dataset.sorted = String(metres.every((value, i) => i === 0 || metres[i - 1] <= value));
const root = document.documentElement;
document.body.dataset.overflow = root.scrollWidth - root.clientWidth;
</script></body>"""


needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")


def browse(tmp_path, page, *options):
    """Open a page in a browser without a screen; returns the page as it is after its scripts have run."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--allow-file-access-from-files", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@needs_chromium
@pytest.mark.parametrize("width_px", [1180, 500])
def test_a_browser_lays_the_page_out_and_sorts_its_tables(folder, tmp_path, width_px):
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text((folder / "report.html").read_text().replace("</body>", PROBE))
    shown = browse(tmp_path, page, f"--window-size={width_px},900", f"--screenshot={picture}", "--dump-dom")
    assert 'data-sorted="true"' in shown
    assert 'data-overflow="0"' in shown
    assert picture.stat().st_size > 10_000


# Windows are at least 500 px wide; a frame can be as narrow as a phone.
PHONE = """<body><iframe id="frame" src="report.html" style="width: 390px; height: 844px; border: 0"></iframe><script>
frame.onload = () => {
  const root = frame.contentDocument.documentElement, videos = frame.contentDocument.querySelectorAll("video");
  const widest = Math.max(...Array.from(videos).map(video => video.getBoundingClientRect().right));
  Object.assign(document.body.dataset, {
    width: root.clientWidth, overflow: root.scrollWidth - root.clientWidth, fits: widest <= root.clientWidth,
  });
};
</script></body>"""


@needs_chromium
def test_the_page_fits_a_phone(folder, tmp_path):
    shutil.copy(folder / "report.html", tmp_path)
    (tmp_path / "phone.html").write_text(PHONE)
    shown = browse(tmp_path, tmp_path / "phone.html", f"--screenshot={tmp_path / 'phone.png'}", "--dump-dom")
    assert re.search(r'data-width="3[0-9]{2}"', shown)
    assert 'data-overflow="0"' in shown
    assert 'data-fits="true"' in shown
    assert (tmp_path / "phone.png").stat().st_size > 10_000


@needs_chromium
def test_paper_shows_what_is_folded_on_the_screen(folder, tmp_path):
    text = (folder / "report.html").read_text()
    folded = len(re.findall(r"<details>", text))
    assert folded >= 2
    sizes = {}
    for name, page in (("unfolding", text), ("folded", text.replace('"beforeprint"', '"never"'))):
        (tmp_path / f"{name}.html").write_text(page)
        browse(tmp_path, tmp_path / f"{name}.html", f"--print-to-pdf={tmp_path / name}.pdf", "--no-pdf-header-footer")
        sizes[name] = (tmp_path / f"{name}.pdf").read_bytes()
        assert sizes[name].startswith(b"%PDF")
    pages = {name: len(re.findall(rb"/Type /Page\b", content)) for name, content in sizes.items()}
    assert pages["unfolding"] >= pages["folded"] >= 1
    assert len(sizes["unfolding"]) > len(sizes["folded"]) + 1000
