"""What every actor's process has: a log file, environment variables, and methods that report on it."""

import faulthandler
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.runtime.spans import open_spans

SAME_START_S = 2.0
"""The clock moves a little between two computations of a process's start, and so does the time of boot in seconds."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor's process runs."""

    pid: int
    node_ip: str
    node_id: str
    card: str | None = None
    """Name of its GPU."""


class ActorProcess:
    """Base class of actors: the calls that the driver makes on all of them."""

    def ready(self) -> Place:
        """Returns where this process runs, once the constructor is done."""
        return here()

    def log_to(self, name: str, log_folder: str) -> None:
        """Sends this process's log to another folder from now on."""
        begin(name, log_folder)

    def usage(self) -> dict[str, float]:
        """Measures this process and its children."""
        return process_usage()


def here() -> Place:
    """This process's place in the Ray cluster."""
    import ray

    node_ip, node_id = ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()
    return Place(os.getpid(), node_ip, node_id, _card())


def _card() -> str | None:
    # An actor that has a card has imported torch already; the others should not wait for the import.
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def process_usage(of_children: bool = True) -> dict[str, float]:
    """Measures resident memory (MiB), open files and threads; memory and files include those of children."""
    import psutil

    own = psutil.Process()
    rss, files = own.memory_info().rss, own.num_fds()
    for child in own.children(recursive=True) if of_children else []:
        try:
            rss, files = rss + child.memory_info().rss, files + child.num_fds()
        except psutil.Error:
            continue  # it has ended meanwhile
    return {"rss_mib": rss / 2**20, "open_files": float(files), "threads": float(own.num_threads())}


def start_of(pid: int) -> dict[str, float]:
    """When a process began, in seconds: `started` by the clock, and `since_boot`, which no step of the clock changes.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    import psutil

    started = psutil.Process(pid).create_time()
    return {"started": started, "since_boot": started - psutil.boot_time()}


def same_start(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Compares two `start_of`s; what an earlier version wrote has no `since_boot`."""
    key = "since_boot" if "since_boot" in one.keys() & other.keys() else "started"
    return bool(abs(one[key] - other[key]) < SAME_START_S)


def lives(pid: int, start: Mapping[str, Any]) -> bool:
    """Whether the process of this machine that has this number, and began then, still runs."""
    import psutil

    try:
        return same_start(start, start_of(pid)) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def log_path(log_folder: str, name: str) -> Path:
    """The log file of one actor."""
    return Path(log_folder) / f"{name}.log"


def begin(name: str, log_folder: str) -> None:
    """Sends this process's output to `<log_folder>/<name>.log`, including that of C++ libraries.

    Engines print hundreds of lines at start; the terminal is for the run's progress.
    """
    path = log_path(log_folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    # Reassigning sys.stdout would not reach C++ code, which writes to the file descriptors.
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable()
    open_spans(log_folder, name)


@contextmanager
def while_importing() -> Iterator[None]:
    """Stops Python's garbage collector within it: vLLM's import makes a million objects that all stay, and 2 of its 15
    seconds went into looking through them again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def environment(device: str, threads: int, deterministic: bool = False) -> dict[str, str]:
    """Environment variables of an actor's process, which must be set before its libraries are loaded.

    Args:
        device: cpu or cuda.
        threads: OpenMP threads. More threads than free cores are slow: each operator ends in a barrier, at which
            a thread without a core costs the others a scheduler quantum.
        deterministic: use vLLM's batch-invariant kernels and a fixed cuBLAS workspace.
    """
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    if device == "cpu":
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if device == "cuda" and deterministic:
        variables |= {"VLLM_BATCH_INVARIANT": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return variables
