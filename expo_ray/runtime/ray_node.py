"""Joins a Ray cluster, or starts a Ray node on this machine that no signal to this command's group reaches."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import node, ray_constants, services, utils
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config
from expo_ray.runtime.waits import RayLost, WaitExpired, check_ray, ray_processes

OBJECT_STORE_BYTES = 256 << 20
"""Enough for the batches of a small model; Ray's default takes 30 % of memory."""
AGENT_REGISTER_MS = "90000"
"""How long Ray's own agents may take to register with their raylet. Ray's own 15 s are too few on a busy machine."""
TRIES = 3
"""Ray waits 30 s for its own node, which a busy machine can miss."""
SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux."""
SOCKET_IN_RAY = "/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store.1"
"""What Ray puts below its folder."""
SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
PROBE = """
import sys
from ray._private import services
from ray._raylet import GcsClient
address = services.canonicalize_bootstrap_address(sys.argv[1])
client = GcsClient(address=address)
if not services.find_node_ids():
    sys.exit("this machine is no node of it")
services.get_node_to_connect_for_driver(client)
"""
"""Asks a cluster what joining it needs. In the command itself each try would hear no signal for 40 s, 20 times."""


def join_or_start_ray(config: Config) -> bool:
    """Joins the cluster that `cluster.address` (or RAY_ADDRESS) names, or starts Ray on this machine.

    Returns:
        Whether Ray was started here and must be stopped here.

    Raises:
        ConfigError: the address does not lead to a cluster that this machine is a node of, within trainer.start_s.
        WaitExpired: Ray did not start here.
    """
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    key = "cluster.address" if config.cluster.address else "RAY_ADDRESS"
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(key, address, config.trainer.start_s, **quiet)
        return False
    if config.profile.device == "cpu":
        quiet |= {"num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
    start_ray(num_cpus=len(os.sched_getaffinity(0)), **quiet)
    return True


def stop_ray() -> None:
    """Stops the node that `start_ray` started, with all that runs on it."""
    try:
        check_ray()
    except RayLost:
        _end_processes()  # Ray waits for its lost parts otherwise
    ray_processes.clear()
    ray.shutdown()


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
    place = _short_place(get_default_ray_temp_dir())
    for _ in range(TRIES):
        try:
            with _apart():
                ray.init(address="local", include_dashboard=False, _temp_dir=place, **options)
            _watch(psutil.Process().children())
            return
        except Exception as error:  # Ray raises no narrower class for this timeout
            if "timed out during startup" not in str(error):
                raise
            _end_processes()
        except BaseException:
            _end_processes()
            raise
    logs = Path(place or get_default_ray_temp_dir(), "session_latest", "logs")
    raise WaitExpired(
        f"Ray failed to start in {TRIES} tries; {_raylet_error(logs / 'raylet.err')}; logs: {logs}", ["Ray"]
    )


@contextmanager
def _apart() -> Iterator[None]:
    """Within it, Ray starts processes in groups of their own, and leaves this process's handlers of signals alone.

    A process manager, `timeout` or a shell that sends SIGTERM to this command's whole group means the command, which
    needs Ray until its checkpoint is written. No orphans come of it: Ray asks the kernel to end its processes with the
    thread that started them (PR_SET_PDEATHSIG).
    """

    class Apart(services.ConsolePopen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, process_group=0, **options)

    changes: list[tuple[Any, str, Any]] = [
        (services, "ConsolePopen", Apart),
        (utils, "set_sigterm_handler", lambda handler: None),
        # Ray's C++ code would otherwise answer SIGTERM with a stack.
        (ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", True),
        # Two processes that take 3 s of CPU time to start: one sends actors' output to the driver, which does not show
        # it (log_to_driver), the other asks a cloud for more nodes.
        (node.Node, "start_log_monitor", lambda _node: None),
        (node.Node, "start_monitor", lambda _node: None),
    ]
    before = [getattr(module, name) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(changes, before, strict=True):
            setattr(module, name, value)


def _join(key: str, address: str, seconds: float, **options: Any) -> None:
    """Joins a running cluster, with its token where this user has one.

    Raises:
        ConfigError: nobody answers there within `seconds`, or what Ray says of the address.
    """
    told = f"{key}={address}"
    way = "give HOST:PORT of a running cluster that this machine is a node of, or leave it out to start Ray here"
    if address.startswith("ray://"):
        raise ConfigError(f"{told} is an address for Ray Client, which cannot train: {way}, or use expo_ray.submit")
    logging.getLogger("ray").setLevel(options.get("logging_level", logging.ERROR))  # it says that a token is used
    try:
        asked = _probe(address, seconds)
        if "AuthenticationError" in asked.stderr and maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
            asked = _probe(address, seconds)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{told}: no Ray cluster answers within trainer.start_s={seconds:g}: {way}") from error
    if asked.returncode != 0:
        lines = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"]
        raise ConfigError(f"{told}: no Ray cluster can be joined there ({lines[-1]}): {way}")
    # With a token at hand, Ray would assume that the cluster has it too, and refuse the calls of one without.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        with _apart():
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(f"{told} cannot be joined ({' '.join(str(error).split())[:300]}): {way}") from error
    socket = ray._private.worker._global_node.raylet_socket_name
    _watch(each for each in psutil.process_iter() if _has_argument(each, socket))


def _probe(address: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Asks the cluster, with a token only where RAY_AUTH_MODE asks for one.

    Raises:
        subprocess.TimeoutExpired: it did not answer within `seconds`.
    """
    environment = {"RAY_AUTH_MODE": "disabled"} | os.environ
    command = [sys.executable, "-c", PROBE, address]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, env=environment)


def _watch(processes: Any) -> None:
    """Remembers Ray's own processes among these: each wait looks whether they are alive."""
    ray_processes.clear()
    for process in processes:
        with suppress(psutil.Error):
            if process.name() in ("raylet", "gcs_server"):
                ray_processes[process.name()] = process


def _has_argument(process: psutil.Process, value: str) -> bool:
    try:
        return any(part.endswith(value) for part in process.cmdline())
    except psutil.Error:  # it has ended, or is another user's
        return False


def _short_place(folder: str) -> str | None:
    """A folder for Ray whose sockets' paths are short enough, if those in `folder` are not; None if they are.

    Raises:
        ConfigError: there is none.
    """
    room = SOCKET_BYTES - len(SOCKET_IN_RAY)
    if len(os.fsencode(folder)) <= room:
        return None
    told = f"{folder} is too long for the paths of Ray's sockets ({len(os.fsencode(folder))} bytes, of {room})"
    for place in (f"{parent}/ray_{os.getuid()}" for parent in SHORT_PLACES):
        with suppress(OSError):
            os.makedirs(place, mode=0o700, exist_ok=True)
            if os.stat(place).st_uid == os.getuid() and os.access(place, os.W_OK):
                print(f"Ray's files are in {place}: {told}", file=sys.stderr, flush=True)
                return place
    raise ConfigError(
        f"TMPDIR: {told}, and none of {', '.join(SHORT_PLACES)} can be written: set RAY_TMPDIR to a short path"
    )


def _raylet_error(file: Path) -> str:
    """Quotes the first line of the raylet's standard error: a fatal message comes before its stack trace."""
    try:
        text = file.read_text(errors="replace").strip()
    except OSError as error:
        return f"the raylet's log cannot be read ({error})"
    return f"the raylet's log says: {text.splitlines()[0]}" if text else "the raylet reported no error: a busy machine?"


def _end_processes() -> None:
    """Kills the processes that a failed start, or a node that lost a part, left behind; Ray does not."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("/ray/" in part for part in child.cmdline()):
                child.kill()
