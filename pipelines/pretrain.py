"""Stage `pretrain`: behaviour cloning of recorded drives, the base policy."""

import json
import logging
import shutil
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from neural_sim.artifacts import atomic_folder
from neural_sim.clips.check import require_duration
from neural_sim.clips.storage import read_clip
from neural_sim.errors import InputError
from pipelines.config import PretrainConfig, config_to_mapping
from pipelines.device import banner
from pipelines.processes import exclusive
from pipelines.provenance import begin_artifact
from pipelines.shards.example import safe_name
from pipelines.shards.index import read_index
from pipelines.shards.writer import ShardWriter, finalize
from pipelines.training.clip_examples import clip_examples
from pipelines.training.job import result_settings
from pipelines.training.ranks import Ranks
from pipelines.training.train import quiet_followers, train
from pipelines.worlds import image_format
from vla.checkpoint import save_pretrained
from vla.config import PolicyConfig
from vla.model import build_policy

logger = logging.getLogger("roadloop")


def pretrain(
    clips: Sequence[Path] = (),
    shards: Sequence[Path] = (),
    *,
    out: Path,
    policy: PolicyConfig,
    config: PretrainConfig,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
) -> Path:
    """Build a policy and train it to imitate the recorded drives, open loop.

    Args:
        clips: clip folders; their windows are cut here and come first in `source_weights`, as one source.
        shards: folders of shards, for example the expert re-rendered from scenes (`rollout` with the guidance strategy
            `expert`).
        out: checkpoint folder to write.
        policy: architecture.
        config: windows and optimisation.
        seed: of weights, order and noise.
        device: "auto", "cpu" or "cuda".
        resume: continue an interrupted job.

    Returns:
        `out`, the checkpoint.

    Raises:
        InputError: neither clips nor shards, one of them is unsound or lacks a camera of the policy, or `out` holds
            another checkpoint.
    """
    if not clips and not shards:
        raise InputError("pretrain needs clips, shards or both, found neither; pass --clips or --shards")
    ranks = Ranks.from_environment()
    quiet_followers(ranks)
    resolved = banner("pretrain", device, seed, config.training.num_processes)
    work = out.parent / f".{out.name}.pretrain"
    sources = [*([work / "shards"] if clips else []), *shards]

    def begin() -> bool:
        settings: dict[str, Any] = {
            "clips": [folder.name for folder in clips], "shards": [read_index(folder).sha256 for folder in shards],
            "seed": seed, "policy": config_to_mapping(policy), "window_stride_s": config.window_stride_s,
            "training": result_settings(config.training),
        }  # fmt: skip
        lock.enter_context(exclusive(out))
        if begin_artifact(out, "pretrain", settings, resume=resume):
            return True
        _prepare(clips, policy, config, seed, work)
        return False

    with ExitStack() as lock:
        if ranks.first("pretrain", begin):
            return out
        train(_initial(work, policy, seed), sources, out, config.training, seed=seed, device=resolved, resume=resume)
    if ranks.is_first:
        shutil.rmtree(work)
    return out


def _prepare(clips: Sequence[Path], policy: PolicyConfig, config: PretrainConfig, seed: int, work: Path) -> None:
    """Write the shards of the clips and the policy to start from."""
    if clips:
        write_clip_shards(clips, policy, config, work / "shards")
    initial = _initial(work, policy, seed)
    if not initial.exists():
        with atomic_folder(initial) as folder:
            save_pretrained(build_policy(policy, seed), folder)


def _initial(work: Path, policy: PolicyConfig, seed: int) -> Path:
    """Where the policy to start from lies; another architecture or seed is another folder."""
    return work / f"initial_{zlib.crc32(json.dumps([policy.to_json(), seed]).encode()):08x}"


def write_clip_shards(clips: Sequence[Path], policy: PolicyConfig, config: PretrainConfig, out: Path) -> None:
    """Cut every clip into training windows, a unit of shards each.

    Raises `InputError` when a clip is unsound or lacks a camera of the policy.
    """
    for folder in clips:
        clip = read_clip(folder)
        require_duration(clip)
        missing = [name for name in policy.cameras if name not in clip.cameras]
        if missing:
            raise InputError(
                f"{folder}: the policy wants camera {missing[0]!r} but the clip has {', '.join(clip.cameras)}; "
                "set policy.cameras to cameras of the clip"
            )
        with ShardWriter(out, safe_name(folder.name)) as writer:
            for example in clip_examples(clip, image_format(policy), round(config.window_stride_s * 1e6)):
                writer.write(example)
    index = finalize(out, [safe_name(folder.name) for folder in clips], {"clips": [folder.name for folder in clips]})
    logger.info("pretrain: %d windows of %d clips", index.examples, len(clips))
