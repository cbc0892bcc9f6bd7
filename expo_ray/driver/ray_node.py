"""Ray itself: the cluster that the run joins, or the node that it starts on this machine."""

import logging
import os
from contextlib import suppress
from typing import Any

import psutil
import ray

from expo_ray.config.schema import Config

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
        Exception: what Ray raises, the last time or for any other reason.
    """
    for attempt in range(TRIES):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray raises no narrower class here
            if "timed out during startup" not in str(error) or attempt == TRIES - 1:
                raise
            _end_half_started()


def _end_half_started() -> None:
    """Ends what a failed start left behind; Ray forgets it."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("/ray/" in part for part in child.cmdline()):
                child.kill()
