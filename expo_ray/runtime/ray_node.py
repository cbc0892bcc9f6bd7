"""Ray itself: the cluster that the run joins, or the node that it starts on this machine."""

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
"""Enough for the batches of a small machine; Ray's default takes 30 % of memory."""
TRIES = 3
"""Ray gives its own node 30 s to come up, which a busy machine can miss."""


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
    """`ray.init` of a node on this machine, tried again where Ray's own bound on its start was too short.

    Args:
        options: of ray.init.

    Raises:
        WaitExpired: it was too short every time; with what the raylet said last.
        Exception: what Ray raises for any other reason.
    """
    for _ in range(TRIES):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray raises no narrower class here
            if "timed out during startup" not in str(error):
                raise
            _end_half_started()
    logs = Path(get_default_ray_temp_dir(), "session_latest", "logs")
    raise WaitExpired(
        f"Ray did not come up in {TRIES} tries; {_last_words(logs / 'raylet.err')}; logs: {logs}", ["Ray"]
    )


def _last_words(file: Path) -> str:
    """The first line on the raylet's standard error: a fatal one comes before its stack."""
    try:
        said = file.read_text(errors="replace").strip()
    except OSError as error:
        return f"its raylet left nothing to read ({error})"
    return f"its raylet said: {said.splitlines()[0]}" if said else "its raylet reported no error: a busy machine?"


def _end_half_started() -> None:
    """Ends what a failed start left behind; Ray forgets it."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("/ray/" in part for part in child.cmdline()):
                child.kill()
