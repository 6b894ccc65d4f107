"""The index of a folder of shards: what is in it, with checksums."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from neural_sim.errors import InputError
from neural_sim.simulation.observation import PLAN_STEPS
from pipelines.shards.example import SAFE_NAME, ShardExample
from vla.action_space import plan_to_actions

INDEX_NAME = "index.json"
INDEX_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardFile:
    """One tar.

    Attributes:
        name: file name inside the folder.
        unit: the unit of work that wrote it.
        examples: how many examples it holds.
        bytes: size of the file.
        sha256: checksum of the file, hexadecimal.
        offsets: byte at which each example starts, for reading in any order.
    """

    name: str
    unit: str
    examples: int
    bytes: int
    sha256: str
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class ExampleStatistics:
    """Sums over examples that merge without a second pass over the data.

    Attributes:
        examples: count.
        recovered: how many were blended towards the expert.
        speed_sum, speed_square_sum: of the speed at the observation, m/s and m^2/s^2.
        speed_min, speed_max: m/s; 0 where there are no examples.
        acceleration_sum, acceleration_square_sum: over the 64 steps of every target, m/s^2 and m^2/s^4.
        curvature_sum, curvature_square_sum: likewise, 1/m and 1/m^2.
    """

    examples: int = 0
    recovered: int = 0
    speed_sum: float = 0.0
    speed_square_sum: float = 0.0
    speed_min: float = 0.0
    speed_max: float = 0.0
    acceleration_sum: float = 0.0
    acceleration_square_sum: float = 0.0
    curvature_sum: float = 0.0
    curvature_square_sum: float = 0.0

    @staticmethod
    def of(example: ShardExample) -> "ExampleStatistics":
        """Statistics of one example."""
        speed = example.speed_mps
        actions = plan_to_actions(torch.from_numpy(example.target)[None], torch.tensor([speed]))[0].double()
        acceleration, curvature = actions.sum(0).tolist()
        acceleration_square, curvature_square = actions.square().sum(0).tolist()
        return ExampleStatistics(
            1, int(example.recovered), speed, speed * speed, speed, speed, acceleration, acceleration_square, curvature,
            curvature_square,
        )  # fmt: skip

    def merged(self, other: "ExampleStatistics") -> "ExampleStatistics":
        """Statistics of both sets together."""
        if not self.examples or not other.examples:
            return self if self.examples else other
        return ExampleStatistics(
            self.examples + other.examples,
            self.recovered + other.recovered,
            self.speed_sum + other.speed_sum,
            self.speed_square_sum + other.speed_square_sum,
            min(self.speed_min, other.speed_min),
            max(self.speed_max, other.speed_max),
            self.acceleration_sum + other.acceleration_sum,
            self.acceleration_square_sum + other.acceleration_square_sum,
            self.curvature_sum + other.curvature_sum,
            self.curvature_square_sum + other.curvature_square_sum,
        )

    @property
    def speed_mean_mps(self) -> float:
        """Mean speed, m/s; 0 without examples."""
        return self.speed_sum / max(self.examples, 1)

    @property
    def speed_std_mps(self) -> float:
        """Standard deviation of the speed over the examples, m/s."""
        return _mean_and_std(self.speed_sum, self.speed_square_sum, self.examples)[1]

    @property
    def acceleration_mps2(self) -> tuple[float, float]:
        """Mean and standard deviation of the acceleration in the targets (unicycle actions at 10 Hz), m/s^2."""
        return _mean_and_std(self.acceleration_sum, self.acceleration_square_sum, PLAN_STEPS * self.examples)

    @property
    def curvature_per_m(self) -> tuple[float, float]:
        """Mean and standard deviation of the curvature in the targets (unicycle actions at 10 Hz), 1/m."""
        return _mean_and_std(self.curvature_sum, self.curvature_square_sum, PLAN_STEPS * self.examples)


def _mean_and_std(total: float, square_total: float, count: int) -> tuple[float, float]:
    mean = total / max(count, 1)
    return mean, math.sqrt(max(square_total / max(count, 1) - mean**2, 0.0))


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds.

    Attributes:
        folder: where the shards lie.
        shards: sorted by name.
        statistics: over all examples.
        image_shapes: [F, H, W] by camera name, the same in every example.
        summary: what the writer of the shards wanted to be known, plain JSON values.
    """

    folder: Path
    shards: tuple[ShardFile, ...]
    statistics: ExampleStatistics
    image_shapes: Mapping[str, list[int]]
    summary: Mapping[str, Any]

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(shard.examples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Checksum of the data: two folders with the same shards have the same."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of `index.json`."""
        return {
            "format_version": INDEX_FORMAT_VERSION,
            "examples": self.examples,
            "bytes": self.bytes,
            "image_shapes": dict(self.image_shapes),
            "speed_mean_mps": self.statistics.speed_mean_mps,
            "speed_std_mps": self.statistics.speed_std_mps,
            "actions": {
                "mean": [self.statistics.acceleration_mps2[0], self.statistics.curvature_per_m[0]],
                "std": [self.statistics.acceleration_mps2[1], self.statistics.curvature_per_m[1]],
                "units": ["m/s^2", "1/m"],
            },
            "statistics": asdict(self.statistics),
            "summary": dict(self.summary),
            "shards": [asdict(shard) for shard in self.shards],
        }


def read_index(folder: Path) -> ShardIndex:
    """Read `index.json` of a folder of shards.

    Raises `InputError` when the folder or the index is missing, malformed, of another version, or names files
    outside the folder. Does not open the shards; see `pipelines.shards.reader`.
    """
    path = folder / INDEX_NAME
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of shards")
    if not path.is_file():
        raise InputError(f"{folder}: no {INDEX_NAME}; the job that writes these shards has not finished, run it again")
    try:
        value = json.loads(path.read_text())
        _check_version(path, value["format_version"])
        index = ShardIndex(
            folder,
            tuple(shard_from_json(shard, path) for shard in value["shards"]),
            ExampleStatistics(**value["statistics"]),
            value["image_shapes"],
            value["summary"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not an index of shards ({error}); write the shards again") from error
    if index.examples != value["examples"]:
        raise InputError(f"{path}: says {value['examples']} examples but its shards add up to {index.examples}")
    return index


def shard_from_json(value: dict[str, Any], where: Path) -> ShardFile:
    """Read one entry of an index; `where` names the file in errors. Raises `InputError` on an unsafe or bad entry."""
    shard = ShardFile(**{**value, "offsets": tuple(value["offsets"])})
    stem, dot, suffix = shard.name.partition(".")
    if not SAFE_NAME.fullmatch(stem) or dot + suffix != ".tar":
        raise InputError(f"{where}: unsafe shard name {shard.name!r}; expected letters, digits, '_', '-' and '.tar'")
    if shard.examples != len(shard.offsets) or not _are_offsets(shard.offsets, shard.bytes):
        raise InputError(f"{where}: offsets of {shard.name} do not fit its {shard.examples} examples; write it again")
    return shard


def common_image_shapes(shapes: Iterable[tuple[str, Mapping[str, list[int]]]]) -> dict[str, list[int]]:
    """The one [F, H, W] by camera of all `(name, shapes)`, empty ones left out.

    Raises `InputError` naming two that differ.
    """
    first_name, first = "", {}
    for name, shape in shapes:
        if not shape:
            continue
        if not first:
            first_name, first = name, dict(shape)
        elif dict(shape) != first:
            raise InputError(
                f"shards of one kind are needed, but {first_name} has images {first} and {name} has {dict(shape)} "
                "([frames, height, width] by camera); write them with the same cameras"
            )
    return first


def _check_version(path: Path, version: Any) -> None:
    if version != INDEX_FORMAT_VERSION:
        raise InputError(
            f"{path}: shards of format {version!r}, this reader knows {INDEX_FORMAT_VERSION}; write them again"
        )


def _are_offsets(offsets: tuple[int, ...], size: int) -> bool:
    if not offsets:
        return True
    increasing = all(a < b for a, b in itertools.pairwise(offsets))
    return offsets[0] == 0 and offsets[-1] < size and increasing and all(offset % 512 == 0 for offset in offsets)
