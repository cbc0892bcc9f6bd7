"""A training job of a running Ray cluster: its command and files, its log as it grows, its end as an exit code."""

import asyncio
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expo_ray.config.compose import CONF, REPOSITORY, compose_config, jobs_of, parse_overrides, quoted
from expo_ray.config.errors import ConfigError
from expo_ray.preflight.values import check_config
from expo_ray.submission.dashboard import ENDED, NoAnswer, ask, first_line, time_to_stop

INTERRUPTED, STOP_S = 130, 1800  # STOP_S: from SIGTERM to SIGKILL when a job is stopped
REQUEST_S, POLL_S, LOST_S = 60.0, 2.0, 600.0  # one request; between two; how long the dashboard may be silent
LEFT_HERE: tuple[str, ...] = ("/.*/", "/runs/", "/outputs/", "/multirun/", "/bench/", "/build/", "/dist/", "/docker/")
LEFT_HERE += ("/docs/", "/tests/", "*.egg-info/", "__pycache__/", "*.log")
"""No job needs these files. The grammar is .gitignore's; Ray also leaves out what .gitignore names."""


def complete(overrides: list[str], runs: str | None, multirun: bool) -> list[str]:
    """Checks the overrides; adds a run folder in `runs`, which outlives the job, and the cluster's address.

    Raises:
        ConfigError: no cluster can run this. The nodes check their files, sizes and places themselves.
    """
    given = {override.key_or_group: override.value() for override in parse_overrides(overrides)}
    for of_job in jobs_of(overrides, multirun):
        config = compose_config(of_job)
        config.dry_run, config.cluster.address = True, "auto"  # this machine's resources do not matter
        config.run_dir, config.trainer.resume, config.algo.dpo_pairs_path = tempfile.gettempdir(), "auto", None
        config.model.path = config.model.path if Path(config.model.path).exists() else "elsewhere/model"
        check_config(config)
    _check_files(given)
    folder = str(given.get("run_dir") or runs or "").strip("'\"")
    if not folder.startswith("/"):
        wrong = f"run_dir={folder} is not absolute" if folder else "run_dir is missing"
        raise ConfigError(f"{wrong}: give run_dir=/SHARED/FOLDER or --runs /SHARED/FOLDER, which all nodes see")
    run_dir = f"run_dir={quoted(folder.rstrip('/') + '/${run_name}/${now:%Y-%m-%d_%H-%M-%S}')}"
    defaults = {"run_dir": run_dir, "cluster.address": "cluster.address=auto"}
    return [*overrides, *(text for key, text in defaults.items() if key not in given)]


def _check_files(given: dict[str, Any]) -> None:
    """Checks that files with relative names are among those that travel: a node resolves them in its copy.

    Raises:
        ConfigError: one is not.
    """
    named = [(key, given.get(key)) for key in ("data.path", "data.eval_path", "data.pass_rates")]
    entries = [(key, each) for key in ("data.sources", "data.eval_sources") for each in given.get(key) or ()]
    named += [(key, entry.get("path")) for key, entry in entries if isinstance(entry, dict)]
    folder = working_dir()
    for key, name in named:
        if not isinstance(name, str) or name.startswith(("/", "~")):
            continue
        first = Path(name).parts[0]
        if first.startswith(".") or f"/{first}/" in LEFT_HERE or not any(folder.glob(name)):
            raise ConfigError(
                f"{key}={name} does not travel with the job, which gets {folder} without runs/, docs/, tests/ and the "
                "like: put it there, or give an absolute path that all nodes see"
            )


def entrypoint(python: str, overrides: list[str], multirun: bool) -> str:
    """The job's shell line. With `exec`, Ray's signals reach the trainer and not a shell above it."""
    return shlex.join(["exec", python, "-m", "expo_ray.train", *(["-m"] if multirun else []), *overrides])


def working_dir() -> Path:
    """The folder that travels with a job."""
    return REPOSITORY if CONF.parent == REPOSITORY else Path.cwd()


def runtime_env() -> dict[str, Any]:
    """Ray's runtime environment, without secrets: the repository travels, or this folder if a wheel is installed."""
    return {"working_dir": str(working_dir()), "excludes": list(LEFT_HERE), "env_vars": time_to_stop(STOP_S)}


class Follower:
    """Prints a job's log until it ends. `ask_user` asks at Ctrl-C: "stop", "leave" or "go on"; None: nobody to ask."""

    def __init__(self, client: Any, name: str, ask_user: Callable[[], str] | None) -> None:
        self._client, self._name, self._ask_user = client, name, ask_user
        self._printing, self._printed, self._over = threading.Lock(), 0, False

    def follow(self) -> int:
        """Returns the exit code of the job's command; 128 + N if signal N ended it; 130 if it was stopped or left.

        Raises:
            NoAnswer: no answer for `LOST_S`. The job may still run.
        """
        threading.Thread(target=lambda: asyncio.run(self._read()), daemon=True).start()
        try:
            while True:
                try:
                    return self._end()
                except KeyboardInterrupt:
                    with self._printing:  # the log waits for the answer
                        if self._leaves():
                            return INTERRUPTED
        finally:
            self._over = True

    async def _read(self) -> None:
        """Prints the log as it grows, over a new connection when one breaks. Each begins with the whole log."""
        said = None
        while not self._over:
            at = 0
            try:
                async for piece in self._client.tail_job_logs(self._name):
                    self._print(piece, at)
                    at += len(piece)
            except Exception as error:
                if (reason := first_line(error)) != said:
                    tell(f"the log of {self._name} does not come ({reason}); trying again")
                said = reason
            await asyncio.sleep(POLL_S)

    def _print(self, piece: str, at: int) -> None:
        """Prints what is new of a piece that begins `at` characters into the log."""
        with self._printing:
            if not self._over:
                new = piece[max(0, self._printed - at) :]
                self._printed += len(new)
                print(new, end="", flush=True)

    def _end(self) -> int:
        heard = time.monotonic()
        while True:
            try:
                info = ask(lambda: self._client.get_job_info(self._name), REQUEST_S)
                heard = time.monotonic()
                if info.status.value in ENDED:
                    break
            except NoAnswer as error:
                if time.monotonic() - heard > LOST_S:
                    raise NoAnswer(f"the dashboard has not answered for {LOST_S:.0f} s ({error})") from error
            time.sleep(POLL_S)
        try:
            self._print(ask(lambda: self._client.get_job_logs(self._name), REQUEST_S), at=0)
        except (NoAnswer, RuntimeError) as error:
            tell(f"the end of the log of {self._name} is missing ({first_line(error)})")
        code = {"SUCCEEDED": 0, "STOPPED": INTERRUPTED}.get(info.status.value, info.driver_exit_code)
        if code is None:  # the command never ran: no environment, or the head was lost
            tell(f"the job failed: {info.message or 'Ray does not say why'}")
            return 1
        return code if code >= 0 else 128 - code

    def _leaves(self) -> bool:  # asks, after Ctrl-C
        try:
            wish = self._ask_user() if self._ask_user is not None else "leave"
            if wish == "stop":
                ask(lambda: self._client.stop_job(self._name), REQUEST_S)
                tell(f"{self._name} was asked to stop: it ends after its step, with a checkpoint")
        except KeyboardInterrupt:
            wish = "leave"
        except (NoAnswer, RuntimeError) as error:
            tell(f"{self._name} could not be asked to stop: {first_line(error)}")
        if wish == "leave":
            tell(f"{self._name} runs on; {how_to(self._client, self._name)}")
        return wish == "leave"


def how_to(client: Any, name: str) -> str:
    """The commands that follow and stop a job."""
    at = f"--address {client.get_address()}"
    return f"follow it: python -m expo_ray.submit {at} --follow {name}; stop it: ray job stop {at} {name}"


def tell(text: str) -> None:
    print(f"submit: {text}", file=sys.stderr, flush=True)
