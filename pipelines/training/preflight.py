"""What would go wrong on which machine, before a long run: `roadloop finetune --preflight`."""

import json
import logging
import os
import platform
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistStoreError

from neural_sim.errors import InputError
from pipelines.provenance import DEPENDENCIES, source_commit
from pipelines.shards.index import read_index
from pipelines.shards.reader import check_shard
from pipelines.training.checkpoints import require_disk, training_mode
from pipelines.training.config import TrainingConfig
from pipelines.training.engine import start_process_group
from pipelines.training.job import TrainingJob, check_job
from pipelines.training.ranks import Ranks
from vla.checkpoint import from_pretrained, policy_hash
from vla.errors import PolicyError
from vla.training_modes import apply_training_mode

logger = logging.getLogger("roadloop")

TIMEOUT = timedelta(minutes=3)
_PROBE_BYTES = 16 * 2**20
_GB = 1e9


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per process for weights, gradients and optimiser, without activations: on the device, and offloaded."""

    device: int
    host: int


def estimate_memory(total: int, trained: int, config: TrainingConfig, world_size: int) -> MemoryEstimate:
    """Memory for the state of a model with `total` weights, `trained` of them trained, in `world_size` processes.

    AdamW keeps two float32 moments of each trained weight and, under ZeRO, a float32 copy of it. ZeRO 1
    splits these over the processes, 2 also the gradients, 3 also the weights. Activations come on top.
    """
    number_bytes, stage = (2 if config.bf16 else 4), config.zero_stage
    split = [world_size if stage >= least else 1 for least in (1, 2, 3)]
    copies = 12 if stage else 8
    optimizer, gradients = trained * copies // split[0], trained * number_bytes // split[1]
    weights = total * number_bytes // split[2]
    if config.offload == "none":
        return MemoryEstimate(weights + gradients + optimizer, 0)
    if config.offload == "optimizer":
        return MemoryEstimate(weights + gradients, optimizer)
    return MemoryEstimate(gradients, weights + optimizer)


def check_machines(job: TrainingJob, ranks: Ranks) -> None:
    """Compare all processes of a run and let them talk once; every process takes part and nothing is trained.

    Checks, in this order: every process reaches the first; versions, source and policy are equal; the shards are there
    with their sizes; a collective goes round; memory and disk suffice. Raises `InputError` on every process, naming
    the hosts.
    """
    store = ranks.store
    _post(store, "facts", ranks, gather_facts(job, ranks))
    if ranks.is_first:
        _post(store, "verdict", ranks, _judge_facts(job, _collect(store, "facts", ranks, "did not report")))
    problems = _get(store, "verdict", 0, 2 * TIMEOUT)
    if problems is None:
        raise InputError(f"{ranks.name}: the first process gave no verdict; look at its output")
    if not problems:
        _post(store, "collective", ranks, _round_trip(job, ranks))
        if ranks.is_first:
            _post(store, "result", ranks, _judge_collective(_collect(store, "collective", ranks, "got stuck")))
        problems = _get(store, "result", 0, 3 * TIMEOUT) or []
    if problems:
        raise InputError(f"preflight found {len(problems)} problem(s):\n" + "\n".join(f"  {line}" for line in problems))
    if ranks.is_first:
        logger.info("preflight: all is well")


def gather_facts(job: TrainingJob, ranks: Ranks) -> dict[str, Any]:
    """What this process has: versions, inputs, free memory; plain JSON values."""
    problems = []
    try:
        problems += _shard_problems(job) if ranks.local_rank == 0 else []
        policy = policy_hash(job.policy)
    except (InputError, PolicyError) as error:
        problems.append(str(error))
        policy = ""
    device, host = _free_memory(job.device, ranks)
    return {
        "host": socket.gethostname(),
        "place": ranks.name,
        "local_world_size": ranks.local_world_size,
        "versions": _versions(job.device),
        "policy": policy,
        "problems": problems,
        "free_device_bytes": device,
        "free_host_bytes": host,
    }


def compare_facts(reports: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Problems in the reports by rank, one line each: what a process says itself, where it differs from the first."""
    problems, seen = [], set()
    first = reports[min(reports)]
    for report in reports.values():
        host = report["host"]
        lines = list(report["problems"])
        if report["policy"] and first["policy"] and report["policy"] != first["policy"]:
            lines.append(f"policy has hash {report['policy']}, on {first['host']} {first['policy']}; copy it again")
        for name, version in report["versions"].items():
            if version != first["versions"].get(name):
                lines.append(f"{name} is {version}, on {first['host']} {first['versions'].get(name)}; make them equal")
        problems += [f"{host}: {line}" for line in lines if (host, line) not in seen]
        seen |= {(host, line) for line in lines}
    return problems


def memory_problems(reports: Mapping[int, Mapping[str, Any]], estimate: MemoryEstimate, on_cpu: bool) -> list[str]:
    """Hosts whose free memory is less than the estimate; one line each."""
    remedy = "take more processes, a higher zero_stage, offload, bf16, or mode lora"
    problems = []
    for report in reports.values():
        need = {"free_device_bytes": estimate.device, "free_host_bytes": estimate.host}
        if on_cpu:
            need = {"free_host_bytes": estimate.device + estimate.host}
        for name, wanted in need.items():
            free = report[name]
            if wanted > free:
                where = "GPU" if name == "free_device_bytes" else "host"
                problems.append(
                    f"{report['place']}: weights, gradients and optimiser need {wanted / _GB:.2f} GB of {where} memory "
                    f"per process, {free / _GB:.2f} GB are free; {remedy}"
                )
    return problems


def _judge_facts(job: TrainingJob, collected: tuple[dict[int, Any], list[str]]) -> list[str]:
    reports, problems = collected
    problems += compare_facts(reports)
    if problems:
        return problems
    try:
        check_job(job, len(reports))
        policy = from_pretrained(job.policy)
        total = apply_training_mode(policy, training_mode(job), job.seed).total
        job.out.parent.mkdir(parents=True, exist_ok=True)
        require_disk(job, total.trained)
    except (InputError, PolicyError) as error:
        return [f"{socket.gethostname()}: {error}"]
    estimate = estimate_memory(total.total, total.trained, job.config, len(reports))
    for line in _table(reports, estimate):
        logger.info("%s", line)
    return memory_problems(reports, estimate, job.device == "cpu")


def _table(reports: Mapping[int, Mapping[str, Any]], estimate: MemoryEstimate) -> list[str]:
    versions = " ".join(f"{name} {version}" for name, version in reports[0]["versions"].items())
    return [
        f"preflight: {len(reports)} process(es), {versions}",
        f"preflight: {(estimate.device + estimate.host) / _GB:.3f} GB per process for weights, gradients and optimiser"
        f"{f', {estimate.host / _GB:.3f} GB of it offloaded' if estimate.host else ''}; activations come on top",
        *(
            f"preflight: {report['place']}: {report['free_device_bytes'] / _GB:.1f} GB free on the device, "
            f"{report['free_host_bytes'] / _GB:.1f} GB on the host, per process"
            for report in reports.values()
        ),
    ]


def _judge_collective(collected: tuple[dict[int, Any], list[str]]) -> list[str]:
    reports, problems = collected
    for report in reports.values():
        if report["error"]:
            problems.append(f"{report['place']}: the collective failed ({report['error']}); {_interface_hint()}")
    if not problems:
        slowest = max(reports.values(), key=lambda report: report["latency_s"])
        logger.info(
            "preflight: a collective takes %.2f ms; %.2f GB/s for 16 MiB (slowest: %s)",
            1e3 * slowest["latency_s"], _PROBE_BYTES / slowest["large_s"] / _GB, slowest["place"],
        )  # fmt: skip
    return problems


def _round_trip(job: TrainingJob, ranks: Ranks) -> dict[str, Any]:
    """Time a small and a large all-reduce."""
    report: dict[str, Any] = {"place": ranks.name, "error": "", "latency_s": 0.0, "large_s": 0.0}
    try:
        start_process_group(job.device, ranks, TIMEOUT)
        for name, size in (("warm-up", 1), ("latency_s", 1), ("large_s", _PROBE_BYTES // 4)):
            started_s = time.perf_counter()
            tensor = torch.ones(size, device=job.device)
            torch.distributed.all_reduce(tensor)
            if float(tensor[-1]) != ranks.world_size:
                report["error"] = f"the sum of ones over {ranks.world_size} processes was {float(tensor[-1])}"
            report[name] = time.perf_counter() - started_s
        torch.distributed.destroy_process_group()
    except RuntimeError as error:
        report["error"] = (str(error).strip() or type(error).__name__).splitlines()[0]
    return report


def _interface_hint() -> str:
    return "set GLOO_SOCKET_IFNAME (CPU) or NCCL_SOCKET_IFNAME (GPU) to the network interface that reaches the others"


def _shard_problems(job: TrainingJob) -> list[str]:
    for folder in job.shards:
        for shard in read_index(folder).shards:
            check_shard(folder, shard, checksum=False)
    return []


def _versions(device: str) -> dict[str, str]:
    names = {name: metadata.version(name) for name in ("roadloop", *DEPENDENCIES)}
    cuda = {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {"python": platform.python_version(), "commit": str(source_commit()), **names, **cuda}


def _free_memory(device: str, ranks: Ranks) -> tuple[int, int]:
    """Free bytes for one process, of its GPU (0 without one) and of the host."""
    on_device = torch.cuda.mem_get_info(ranks.local_rank)[0] if device == "cuda" else 0
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        on_host = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        on_host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return on_device, on_host // ranks.local_world_size


def _post(store: Any, name: str, ranks: Ranks, value: Any) -> None:
    store.set(f"preflight/{name}/{ranks.rank}", json.dumps(value))


def _get(store: Any, name: str, rank: int, timeout: timedelta) -> Any:
    """What a process posted; None when it did not within `timeout`."""
    key = f"preflight/{name}/{rank}"
    try:
        store.wait([key], timeout)
    except DistStoreError:
        return None
    return json.loads(store.get(key))


def _collect(store: Any, name: str, ranks: Ranks, failure: str) -> tuple[dict[int, Any], list[str]]:
    """Reports by rank, and a problem for every process without one."""
    deadline_s = time.monotonic() + TIMEOUT.total_seconds()
    reports, problems = {}, []
    for rank in range(ranks.world_size):
        left_s = max(deadline_s - time.monotonic(), 0.1)
        report = _get(store, name, rank, timedelta(seconds=left_s))
        if report is None:
            machine = rank // ranks.local_world_size
            problems.append(
                f"rank {rank}, machine {machine} of the host list (from 0): {failure} within "
                f"{TIMEOUT.total_seconds():.0f} s; look whether it runs and reaches {os.environ.get('MASTER_ADDR')}"
            )
        else:
            reports[rank] = report
    return reports, problems
