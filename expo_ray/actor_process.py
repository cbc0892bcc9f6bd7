"""What every actor does first in its process: its own log file, its own threads."""

import faulthandler
import os
import sys
from pathlib import Path


def log_path(log_folder: str, name: str) -> Path:
    """The log file of one actor."""
    return Path(log_folder) / f"{name}.log"


def begin(name: str, log_folder: str) -> None:
    """Sends this process's output, C++ libraries' included, to `<log_folder>/<name>.log`.

    Engines print hundreds of lines at start; the terminal belongs to the run's progress.
    """
    path = log_path(log_folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable()


def environment(device: str, threads: int) -> dict[str, str]:
    """Environment variables of an actor's process; they must be set before its libraries load.

    One OpenMP thread an actor on CPU: two barriers on one core wait a scheduler quantum at each operator.
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
    return variables
