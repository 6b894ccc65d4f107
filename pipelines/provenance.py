"""How an artefact was made: saved beside it, and compared before it is used again."""

import contextlib
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from neural_sim.artifacts import remove_partials, write_json
from neural_sim.errors import InputError
from pipelines.config import differences

logger = logging.getLogger("roadloop")

FORMAT_VERSION = 1
DEPENDENCIES = ("torch", "numpy", "numba", "transformers", "peft", "deepspeed", "webdataset")


def provenance(stage: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What made an artefact: stage, resolved settings, git commit of the source and versions of the dependencies."""
    return {
        "format_version": FORMAT_VERSION,
        "stage": stage,
        "settings": json.loads(json.dumps(settings)),
        "roadloop": metadata.version("roadloop"),
        "commit": source_commit(),
        "versions": {name: metadata.version(name) for name in DEPENDENCIES},
    }


def source_commit() -> str | None:
    """Git commit of the running source tree, with `+changes` when it has uncommitted ones; None if installed."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def provenance_path(artifact: Path) -> Path:
    """Where the provenance of an artefact lies: beside it."""
    return artifact.with_name(f"{artifact.name}.provenance.json")


def begin_artifact(
    artifact: Path, stage: str, settings: dict[str, Any], *, resume: bool, complete: Path | None = None
) -> bool:
    """Get ready to make `artifact`; returns True when it is whole already and was made with the same settings.

    Otherwise its provenance is written and the caller, who holds the artefact (`pipelines.processes.exclusive`), makes
    or completes it. With `resume` what an interrupted job
    with the same settings left in the folder stays; without, it is deleted.

    Args:
        artifact: file or folder to make.
        stage: name of the stage.
        settings: everything that determines the content.
        resume: whether to keep what is there.
        complete: file that exists once the artefact is whole; by default the artefact itself.

    Raises:
        InputError: something else lies at that place, or it was made with other settings; they are named.
    """
    record, settings = provenance_path(artifact), json.loads(json.dumps(settings))
    artifact.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(artifact)
    if artifact.exists():
        if not record.is_file():
            raise InputError(f"{artifact}: exists but has no {record.name} beside it; choose another --out")
        if resume:
            _refuse_changes(artifact, json.loads(record.read_text())["settings"], settings)
            if (complete or artifact).exists():
                logger.info("%s: %s is there already", stage, artifact)
                return True
        elif artifact.is_dir():
            shutil.rmtree(artifact)
        else:
            artifact.unlink()
    write_record(artifact, stage, settings)
    return False


@contextlib.contextmanager
def nothing_left_on_failure(artifact: Path) -> Iterator[None]:
    """Delete the provenance of `artifact` again when the block that was to make it ends without it."""
    try:
        yield
    except BaseException:
        if not artifact.exists():
            provenance_path(artifact).unlink(missing_ok=True)
        raise


def write_record(artifact: Path, stage: str, settings: dict[str, Any]) -> None:
    """Write the provenance of `artifact`; other versions that made what is there of it stay named, with a warning.

    They are in `begun_with`, a list of what `provenance` says of versions, the oldest first.
    """
    record, made = provenance_path(artifact), provenance(stage, settings)
    if artifact.exists() and record.is_file():
        old = json.loads(record.read_text())
        begun_with = [*old.get("begun_with", []), _versions(old)]
        made["begun_with"] = [item for item in begun_with if item != _versions(made)]
        if made["begun_with"]:
            changed = "; ".join(differences(made["begun_with"][-1], _versions(made)))
            logger.warning("%s: begun with other versions (%s); what they made is kept", artifact, changed)
    write_json(record, made)


def begun_with(artifact: Path) -> list[dict[str, Any]]:
    """Versions other than the last that made some of an artefact: `roadloop`, `commit` and `versions` of each."""
    return json.loads(provenance_path(artifact).read_text()).get("begun_with", [])


def _versions(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record.get(name) for name in ("roadloop", "commit", "versions")}


def _refuse_changes(artifact: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = differences(old, new)
    if changed:
        raise InputError(
            f"{artifact}: made with other settings ({'; '.join(changed[:5])}); "
            "choose another --out, or --no-resume to make it anew"
        )
