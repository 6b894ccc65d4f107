import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from training_fixtures import CAMERA, make_example, write_shards

from neural_sim.errors import InputError
from pipelines.shards.describe import describe_shards
from pipelines.shards.example import ShardExample, decode_example, encode_example, safe_name
from pipelines.shards.index import ExampleStatistics, read_index
from pipelines.shards.reader import file_sha256, iterate_examples, read_example, stack_examples
from pipelines.shards.writer import ShardWriter, finalize, finished_units


def assert_same(found: ShardExample, expected: ShardExample, image_tolerance: int = 6) -> None:
    for name in ("key", "t_us", "navigation", "recovered", "meta"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("ego_history", "target", "plan", "candidate_distances"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == np.float32
    assert set(found.images) == set(expected.images)
    for camera, images in expected.images.items():
        # JPEG at quality 95 on smooth images; the tolerance only catches swapped or broken frames.
        difference = np.abs(found.images[camera].astype(int) - images.astype(int)).max()
        assert difference <= image_tolerance
        np.testing.assert_array_equal(found.image_times_us[camera], expected.image_times_us[camera])


def write_unit(folder: Path, unit: str, examples: list[ShardExample]) -> None:
    """One unit with a part for each example."""
    with ShardWriter(folder, unit, max_shard_bytes=1) as writer:
        for example in examples:
            writer.write(example)


def rewrite_index(folder: Path) -> None:
    """Make sizes and checksums of the index fit the changed tars, so that only their content is wrong."""
    value = json.loads((folder / "index.json").read_text())
    for shard in value["shards"]:
        path = folder / shard["name"]
        shard["bytes"], shard["sha256"] = path.stat().st_size, file_sha256(path)
    value["bytes"] = sum(shard["bytes"] for shard in value["shards"])
    (folder / "index.json").write_text(json.dumps(value))


def test_examples_come_back_in_order(tmp_path: Path) -> None:
    write_shards(tmp_path, 7)
    found = list(iterate_examples(tmp_path))
    assert len(found) == 7
    for number, example in enumerate(found):
        assert_same(example, make_example(number, speed_mps=3.0 + 0.5 * number))


def test_two_cameras_and_empty_fields_come_back(tmp_path: Path) -> None:
    example = replace(make_example(1, cameras=("a", "b_2")), candidate_distances=np.zeros(0, np.float32))
    with ShardWriter(tmp_path, "u") as writer:
        writer.write(example)
    finalize(tmp_path, ["u"], {})
    (found,) = iterate_examples(tmp_path)
    assert_same(found, example)
    assert read_index(tmp_path).image_shapes == {"a": [2, 32, 64], "b_2": [2, 32, 64]}


def test_shards_decode_with_nothing_but_tarfile_pil_numpy_and_json(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, units=1, max_shard_bytes=10**9)
    with tarfile.open(tmp_path / "unit_0-00000.tar") as archive:
        names = archive.getnames()
        contents = {name: archive.extractfile(name).read() for name in names}  # pyright: ignore[reportOptionalMemberAccess]
        infos = archive.getmembers()
    prefix = "scene-r000-s0000."
    suffixes = [name.removeprefix(prefix) for name in names[: len(names) // 2]]
    assert suffixes == [
        f"{CAMERA}.0.jpg", f"{CAMERA}.1.jpg", "candidate_distances.npy", "ego_history.npy", "meta.json", "plan.npy",
        "target.npy",
    ]  # fmt: skip
    assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in infos} == {(0, 0, 0, "", 0o644)}
    assert np.load(io.BytesIO(contents[prefix + "target.npy"]), allow_pickle=False).shape == (64, 3)
    assert Image.open(io.BytesIO(contents[f"{prefix}{CAMERA}.1.jpg"])).size == (64, 32)
    facts = json.loads(contents[prefix + "meta.json"])
    assert facts["image_times_us"] == {CAMERA: [900_000, 1_000_000]}
    assert facts["meta"]["scene_id"] == "scene"


def test_webdataset_reads_the_same_members(tmp_path: Path) -> None:
    from webdataset.compat import WebDataset

    write_shards(tmp_path, 5)
    tars = sorted(str(path) for path in tmp_path.glob("*.tar"))
    assert len(tars) > 1
    for sample, expected in zip(WebDataset(tars, shardshuffle=False), iterate_examples(tmp_path), strict=True):
        members = {name: content for name, content in sample.items() if not name.startswith("__")}
        assert_same(decode_example(sample["__key__"], members), expected, image_tolerance=0)


def test_webdataset_shuffles_without_loss(tmp_path: Path) -> None:
    from webdataset.compat import WebDataset

    write_shards(tmp_path, 6)
    tars = sorted(str(path) for path in tmp_path.glob("*.tar"))
    samples: Any = WebDataset(tars, shardshuffle=10, seed=3).shuffle(10, seed=3)
    keys = [sample["__key__"] for sample in samples]
    assert keys != sorted(keys)
    assert sorted(keys) == [example.key for example in iterate_examples(tmp_path)]


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, 6)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second
    assert sum(name.endswith(".tar") for name in first) > 2


def test_parts_respect_the_size_limit_and_counts_add_up(tmp_path: Path) -> None:
    index = read_index(write_shards(tmp_path, 9, units=2, max_shard_bytes=30_000))
    assert index.examples == 9
    for shard in index.shards:
        assert (tmp_path / shard.name).stat().st_size == shard.bytes
        assert shard.bytes <= 30_000 + 1024 or shard.examples == 1
    assert index.statistics.recovered == 3
    assert index.statistics.speed_mean_mps == pytest.approx(5.0)
    assert index.statistics.speed_max == pytest.approx(7.0)
    assert index.summary == {"rollouts": 2}


def test_any_example_is_read_by_its_place(tmp_path: Path) -> None:
    index = read_index(write_shards(tmp_path, 6, units=1, max_shard_bytes=10**9))
    assert read_example(tmp_path, index.shards[0], 4).key == "scene-r000-s0004"
    assert read_example(tmp_path, index.shards[0], 0).key == "scene-r000-s0000"


def test_a_failed_unit_leaves_nothing_and_a_finished_one_stays(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "done") as writer:
        writer.write(make_example(0))
        writer.summary["distance_m"] = 12.5
    bad = replace(make_example(3), meta={"seed": float("nan")})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_unit(tmp_path, "broken", [make_example(1), make_example(2), bad])
    assert finished_units(tmp_path) == {"done": {"distance_m": 12.5}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done-00000.tar", "done.unit.json"]
    with pytest.raises(InputError, match=r"1 of 2 units are not finished \(broken, \.\.\.\)"):
        finalize(tmp_path, ["done", "broken"], {})


def test_a_killed_writer_is_not_finished_and_is_written_again(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "u", max_shard_bytes=1)
    writer.__enter__()
    writer.write(make_example(0))
    writer.write(make_example(1))  # the first part is whole, the second open, and no record exists
    assert finished_units(tmp_path) == {}
    (tmp_path / "u-other-00000.tar").write_bytes(b"another unit's")
    with ShardWriter(tmp_path, "u") as again:
        again.write(make_example(0))
    finalize(tmp_path, ["u"], {})
    assert [example.key for example in iterate_examples(tmp_path)] == ["scene-r000-s0000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.json", "u-00000.tar", "u-other-00000.tar", "u.unit.json",
    ]  # fmt: skip


def test_a_unit_with_a_cut_tar_is_not_finished(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    tar = tmp_path / "unit_0-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert set(finished_units(tmp_path)) == {"unit_1"}


def test_a_unit_may_be_empty(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "crashed"):
        pass
    with ShardWriter(tmp_path, "u") as writer:
        writer.write(make_example(0))
    index = finalize(tmp_path, ["crashed", "u"], {})
    assert index.examples == 1
    assert describe_shards(tmp_path)[1] == []


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    tar = tmp_path / "unit_1-00000.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(InputError, match=r"unit_1-00000\.tar: the checksum differs from the index.*restore the file"):
        list(iterate_examples(tmp_path))
    assert any("unit_1-00000.tar" in problem for problem in describe_shards(tmp_path)[1])


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_shard_is_named(tmp_path: Path, verify: bool) -> None:
    write_shards(tmp_path, 4)
    tar = tmp_path / "unit_0-00000.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes()[: size // 2])
    with pytest.raises(InputError, match=rf"unit_0-00000\.tar: the shard is cut short: {size // 2} bytes, .* {size}"):
        list(iterate_examples(tmp_path, verify))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    (tmp_path / "unit_0-00000.tar").unlink()
    with pytest.raises(InputError, match=r"unit_0-00000\.tar: the shard is missing"):
        list(iterate_examples(tmp_path))


def write_strange_tar(folder: Path, member: tarfile.TarInfo, content: bytes = b"") -> None:
    """One sound example followed by one strange member, with an index that fits."""
    write_shards(folder, 1, units=1)
    tar = folder / "unit_0-00000.tar"
    members = encode_example(make_example(0, speed_mps=3.0))
    with tarfile.open(tar, "w") as archive:
        for suffix, value in members.items():
            info = tarfile.TarInfo(f"scene-r000-s0000.{suffix}")
            info.size = len(value)
            archive.addfile(info, io.BytesIO(value))
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    rewrite_index(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b.npy", "scene-r000-s0000.", "noextension"])
def test_unsafe_member_names_are_refused(tmp_path: Path, name: str) -> None:
    write_strange_tar(tmp_path, tarfile.TarInfo(name), b"x")
    with pytest.raises(InputError, match=r"unit_0-00000\.tar, example 0: unsafe member"):
        list(iterate_examples(tmp_path))


def test_links_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("scene-r000-s0000.link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_strange_tar(tmp_path, member)
    with pytest.raises(InputError, match=r"unsafe member 'scene-r000-s0000\.link'"):
        list(iterate_examples(tmp_path))


def test_members_of_two_examples_in_one_place_are_refused(tmp_path: Path) -> None:
    write_strange_tar(tmp_path, tarfile.TarInfo("other.txt"), b"x")
    with pytest.raises(InputError, match=r"found keys \['other', 'scene-r000-s0000'\]"):
        list(iterate_examples(tmp_path))


def test_pickled_arrays_are_refused() -> None:
    members = encode_example(make_example(0))
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"target\.npy does not decode"):
        decode_example("k", {**members, "target.npy": buffer.getvalue()})


def test_a_missing_member_is_named() -> None:
    members = encode_example(make_example(0))
    del members[f"{CAMERA}.1.jpg"]
    with pytest.raises(InputError, match=rf"member k\.{CAMERA}\.1\.jpg is missing"):
        decode_example("k", members)


def test_an_index_naming_files_elsewhere_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, 2)
    value = json.loads((tmp_path / "index.json").read_text())
    value["shards"][0]["name"] = "../unit_0-00000.tar"
    (tmp_path / "index.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="unsafe shard name"):
        read_index(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1, "shards": 3}'])
def test_a_broken_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json: not an index of shards"):
        read_index(tmp_path)


def test_a_newer_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"format_version": 99}')
    with pytest.raises(InputError, match="shards of format 99, this reader knows 1"):
        read_index(tmp_path)


def test_an_unfinished_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no index\.json; the job that writes these shards has not finished"):
        read_index(tmp_path)


def test_repeated_keys_and_other_image_sizes_are_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "u") as writer:
        writer.write(make_example(0))
        with pytest.raises(InputError, match="example scene-r000-s0000 is written twice"):
            writer.write(make_example(0))
        with pytest.raises(InputError, match="shards of one kind are needed"):
            writer.write(make_example(1, cameras=("other",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a.b"}, "only letters, digits"),
        ({"key": "a/b"}, "only letters, digits"),
        ({"target": np.zeros((63, 3), np.float32)}, r"target is float32 \[63, 3\], expected float32 \[64, 3\]"),
        ({"plan": np.full((64, 3), np.nan, np.float32)}, "plan is not finite"),
        ({"ego_history": np.zeros((16, 4))}, "ego_history is float64"),
        ({"image_times_us": {CAMERA: np.zeros(3, np.int64)}}, r"expected int64 \[2\]"),
        ({"images": {CAMERA: np.zeros((2, 4, 4, 3), np.float32)}}, r"expected uint8 \[F, H, W, 3\]"),
        ({"images": {}}, "the same cameras, at least one"),
    ],
)
def test_bad_examples_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(make_example(0), **change)


def test_description_has_facts_and_finds_strangers(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    facts, problems = describe_shards(tmp_path)
    assert problems == []
    assert facts[0].startswith("4 examples in ")
    assert "from rollout: scene: 4" in facts
    (tmp_path / "stray-00000.tar").write_bytes(b"")
    assert "stray-00000.tar: a shard that the index does not name" in describe_shards(tmp_path)[1][0]


def test_stacked_examples_are_a_training_batch(tmp_path: Path) -> None:
    examples = [make_example(number) for number in range(3)]
    batch = stack_examples(examples, weights=[1.0, 0.5, 0.0])
    assert batch.images[CAMERA].shape == (3, 2, 32, 64, 3)
    assert batch.images[CAMERA].dtype == np.uint8
    assert batch.t_us.tolist() == [1_000_000, 1_100_000, 1_200_000]
    assert batch.navigation == tuple(example.navigation for example in examples)
    np.testing.assert_array_equal(batch.target[2], examples[2].target)
    np.testing.assert_array_equal(batch.weight, np.array([1.0, 0.5, 0.0], np.float32))
    np.testing.assert_array_equal(stack_examples(examples).weight, np.ones(3, np.float32))
    with pytest.raises(InputError, match="shards of one kind are needed"):
        stack_examples([examples[0], make_example(3, cameras=("other",))])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 50, width=32), min_size=1, max_size=20), st.data())
def test_statistics_merge_like_one_pass(speeds: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(speeds)))

    def of(values: list[float]) -> ExampleStatistics:
        total = ExampleStatistics()
        for value in values:
            total = total.merged(ExampleStatistics(1, 0, value, value * value, value, value))
        return total

    merged = of(speeds[:cut]).merged(of(speeds[cut:]))
    assert merged.examples == len(speeds)
    assert (merged.speed_min, merged.speed_max) == (min(speeds), max(speeds))
    assert merged.speed_mean_mps == pytest.approx(np.mean(speeds), abs=1e-6)
    # The variance of sums of squares loses digits where the spread is far below the mean.
    assert merged.speed_std_mps == pytest.approx(np.std(speeds), abs=1e-5 * (1 + max(speeds)))


@given(st.text())
def test_safe_names_are_safe(text: str) -> None:
    name = safe_name(text)
    assert replace(make_example(0), key=name).key == name
