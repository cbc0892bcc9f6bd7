"""Joins a Ray cluster, or starts a Ray node on this machine."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._common.utils import get_default_ray_temp_dir

from expo_ray.config.schema import Config
from expo_ray.runtime.waits import WaitExpired

OBJECT_STORE_BYTES = 256 << 20
"""Enough for the batches of a small model; Ray's default takes 30 % of memory."""
AGENT_REGISTER_MS = "90000"
"""How long Ray's own agents may take to register with their raylet. Ray's own 15 s are too few on a busy machine."""
TRIES = 3
"""Ray waits 30 s for its own node, which a busy machine can miss."""


def join_or_start_ray(config: Config) -> bool:
    """Joins the cluster that `cluster.address` (or RAY_ADDRESS) names, or starts Ray on this machine.

    Returns:
        Whether Ray was started here and must be stopped here.
    """
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := config.cluster.address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, **quiet)
        return False
    if config.profile.device == "cpu":
        quiet |= {"num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
    start_ray(num_cpus=len(os.sched_getaffinity(0)), **quiet)
    return True


def start_ray(**options: Any) -> None:
    """Starts a node on this machine with `ray.init`, and retries if it exceeds Ray's own bound on a start.

    Args:
        options: passed to ray.init.

    Raises:
        WaitExpired: every try exceeded the bound. The error quotes the raylet's log.
        Exception: what Ray raises for any other reason.
    """
    os.environ.setdefault("RAY_agent_register_timeout_ms", AGENT_REGISTER_MS)
    # Ray starts idle Python workers for tasks, and this package has actors only: 3 s of CPU time and 170 MiB.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    for _ in range(TRIES):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray raises no narrower class for this timeout
            if "timed out during startup" not in str(error):
                raise
            _end_half_started()
    logs = Path(get_default_ray_temp_dir(), "session_latest", "logs")
    raise WaitExpired(
        f"Ray failed to start in {TRIES} tries; {_raylet_error(logs / 'raylet.err')}; logs: {logs}", ["Ray"]
    )


def _raylet_error(file: Path) -> str:
    """Quotes the first line of the raylet's standard error: a fatal message comes before its stack trace."""
    try:
        text = file.read_text(errors="replace").strip()
    except OSError as error:
        return f"the raylet's log cannot be read ({error})"
    return f"the raylet's log says: {text.splitlines()[0]}" if text else "the raylet reported no error: a busy machine?"


def _end_half_started() -> None:
    """Kills the processes that a failed start left behind; Ray does not."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("/ray/" in part for part in child.cmdline()):
                child.kill()
