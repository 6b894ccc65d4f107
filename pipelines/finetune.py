"""Stage `finetune`: the policy learns from its guided rollouts (RoaD Algorithm 1, lines 15 to 17)."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipelines.config import CheckpointEvaluation
from pipelines.device import banner
from pipelines.processes import exclusive
from pipelines.provenance import begin_artifact
from pipelines.shards.index import read_index
from pipelines.training.config import TrainingConfig
from pipelines.training.job import result_settings
from pipelines.training.ranks import Ranks
from pipelines.training.train import quiet_followers, train
from vla.checkpoint import policy_hash


def finetune(
    policy: Path,
    shards: Sequence[Path],
    *,
    out: Path,
    config: TrainingConfig,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    evaluation: CheckpointEvaluation | None = None,
) -> Path:
    """Train `policy` on `shards` with DeepSpeed and write the new checkpoint. Equation 3 with the flow-matching loss.

    An interrupted job continues from its last state, bit for bit. Under `torchrun` or `deepspeed` every process calls
    this, and the first one holds the lock and writes. With `evaluation`, checkpoints drive in closed loop as they are
    saved, and the result at the end, in one report at `OUT.report/`.

    Returns:
        `out`.

    Raises:
        InputError: the policy or a shard is unsound, there are too few examples, or `out` holds another checkpoint.
    """
    ranks = Ranks.from_environment()
    quiet_followers(ranks)
    resolved = banner("finetune", device, seed, config.num_processes)

    def begin() -> bool:
        settings: dict[str, Any] = {
            "policy": policy_hash(policy), "shards": [read_index(folder).sha256 for folder in shards], "seed": seed,
            "training": result_settings(config),
        }  # fmt: skip
        lock.enter_context(exclusive(out))
        return begin_artifact(out, "finetune", settings, resume=resume)

    with ExitStack() as lock:
        is_whole = ranks.first("finetune", begin)
        if is_whole and evaluation is None:
            return out
        return train(
            policy, shards, out, config, seed=seed, device=resolved, resume=resume or is_whole, evaluation=evaluation
        )
