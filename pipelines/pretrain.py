"""Stage `pretrain`: behaviour cloning of recorded drives, the base policy."""

import logging
import shutil
from collections.abc import Sequence
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
from pipelines.shards.writer import ShardWriter, finalize
from pipelines.training.clip_examples import clip_examples
from pipelines.training.train import train
from pipelines.worlds import image_format
from vla.checkpoint import save_pretrained
from vla.config import PolicyConfig
from vla.model import build_policy

logger = logging.getLogger("roadloop")


def pretrain(
    clips: Sequence[Path],
    *,
    out: Path,
    policy: PolicyConfig,
    config: PretrainConfig,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
) -> Path:
    """Build a policy and train it to imitate the recorded drives, open loop.

    Returns:
        `out`, the checkpoint.

    Raises:
        InputError: a clip is unsound or lacks a camera of the policy, or `out` holds another checkpoint.
    """
    settings: dict[str, Any] = {
        "clips": [folder.name for folder in clips], "seed": seed, "policy": config_to_mapping(policy),
        "pretrain": config_to_mapping(config),
    }  # fmt: skip
    resolved = banner("pretrain", device, seed, config.training.num_processes)
    work = out.parent / f".{out.name}.pretrain"
    with exclusive(out):
        if begin_artifact(out, "pretrain", settings, resume=resume):
            return out
        shards = _write_shards(clips, policy, config, work / "shards")
        initial = work / "initial"
        if not initial.exists():
            with atomic_folder(initial) as folder:
                save_pretrained(build_policy(policy, seed), folder)
        train(initial, [shards], out, config.training, seed=seed, device=resolved)
    shutil.rmtree(work)
    return out


def _write_shards(clips: Sequence[Path], policy: PolicyConfig, config: PretrainConfig, out: Path) -> Path:
    """Cut every clip into training windows."""
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
    return out
