"""Where jobs run in parallel: processes on this machine, or jobs of a Ray cluster."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import GIB, Resources
from expo_ray.submission.dashboard import ENDED, Answer, NoAnswer, ask, first_line, submit
from expo_ray.sweep.job import Job
from expo_ray.sweep.side_by_side import Exit, Share

SWEEP, NUMBER = "expo_ray_sweep", "expo_ray_job"
"""Metadata keys by which a later call finds jobs that are still running."""


class RayJobs:
    """Submits jobs and follows them.

    Args:
        address: the dashboard's, such as http://head:8265; None: RAY_API_SERVER_ADDRESS, or this machine's.
        sweep: the sweep's folder, on a file system that all nodes share.
        python: the interpreter's name on the cluster.
        runtime_env: Ray's runtime environment for each job; empty: the package is installed on the nodes.
        request_s: bound on one request.
        lost_s: how long the dashboard may be unreachable before a job is given up.

    Raises:
        ConfigError: there is no dashboard, or it rejects our token.
    """

    def __init__(
        self, address: str | None, sweep: str, python: str, runtime_env: dict[str, Any], request_s: float, lost_s: float
    ) -> None:
        from ray.job_submission import JobSubmissionClient

        self.sweep, self.python, self.runtime_env = sweep, python, runtime_env
        self.request_s, self.lost_s = request_s, lost_s
        try:
            self._client = self._ask(lambda: JobSubmissionClient(address))
            self._at_work = self._of_earlier_calls()
        except (NoAnswer, RuntimeError) as error:
            where = address or "the default address"
            raise ConfigError(
                f"hydra.launcher.address: no Ray dashboard that takes jobs at {where} ({first_line(error)}): start "
                "Ray with --head, give hydra.launcher.address=http://HOST:8265, and set RAY_AUTH_MODE=token and the "
                "token where the cluster asks for one"
            ) from error
        self._ids: dict[int, str] = {}
        self._last_answer: dict[int, float] = {}

    def resources(self) -> Resources:
        """Adds up the resources of the cluster's nodes.

        Raises:
            ConfigError: the dashboard does not answer in time.
        """
        from ray.util.state import list_nodes

        def nodes() -> list[Any]:
            return list_nodes(self._client.get_address(), limit=10_000, detail=True, timeout=int(self.request_s))

        try:
            totals = [node.resources_total for node in self._ask(nodes) if node.state == "ALIVE"]
        except (NoAnswer, RuntimeError) as error:
            raise ConfigError(
                f"the cluster's resources could not be read ({first_line(error)}): give cluster=NAME"
            ) from error

        def total(name: str) -> float:
            return sum(float(node.get(name, 0.0)) for node in totals)

        return Resources(
            "the Ray cluster", len(totals), total("CPU"), total("memory") / GIB, int(total("GPU")), gpu_memory_gib=0.0
        )

    def start(self, job: Job, resume: str, share: Share) -> None:
        self._last_answer[job.number] = time.monotonic()
        if job.number in self._at_work:
            self._ids[job.number] = self._at_work[job.number]
            return
        try:
            self._ids[job.number] = submit(
                self._client,
                self.request_s,
                entrypoint=job.shell_line(self.python, resume),
                runtime_env=self.runtime_env,
                metadata={SWEEP: self.sweep, NUMBER: str(job.number)},
            )
        except (NoAnswer, RuntimeError) as error:
            raise ConfigError(f"job {job.number} could not be submitted: {first_line(error)}") from error

    def poll(self, job: Job) -> Exit | None:
        name = self._ids[job.number]
        try:
            info = self._ask(lambda: self._client.get_job_info(name))
            status = str(info.status.value)
            logs = self._ask(lambda: self._client.get_job_logs(name)) if status in ENDED else ""
        except (NoAnswer, RuntimeError) as error:
            if time.monotonic() - self._last_answer[job.number] < self.lost_s:
                return None
            return Exit(
                False, f"{name}: the dashboard has not answered for {self.lost_s:.0f} s ({first_line(error)})", None
            )
        self._last_answer[job.number] = time.monotonic()
        if status not in ENDED:
            return None
        log = log_file(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(logs)
        if status == "SUCCEEDED" or "exit code 130" in (info.message or ""):
            return Exit(status == "SUCCEEDED", None, log)
        return Exit(False, last_error(logs, f"{name} {status.lower()}"), log)

    def stop(self, job: Job, at_once: bool) -> None:
        """Lets Ray send SIGTERM, and SIGKILL after the launcher's stop_s."""
        with contextlib.suppress(NoAnswer, RuntimeError):  # SideBySide asks again, and gives up in the end
            self._ask(lambda: self._client.stop_job(self._ids[job.number]))

    def _of_earlier_calls(self) -> dict[int, str]:
        """Finds the jobs of this sweep that an earlier call left running: number -> submission id."""
        found = {}
        for details in self._ask(lambda: self._client.list_jobs()):
            metadata = details.metadata or {}
            if metadata.get(SWEEP) == self.sweep and NUMBER in metadata and details.status.value not in ENDED:
                found[int(metadata[NUMBER])] = details.submission_id
        return found

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        return ask(call, self.request_s)


STOPPED_CODE = 130


class Processes:
    """Runs each job as a process with its own cores and cards; its output goes to logs/job.log in the job's folder."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._said_before: dict[int, int] = {}
        """Size of the job's log in bytes before this call started it."""

    def start(self, job: Job, resume: str, share: Share) -> None:
        environment = dict(os.environ)
        if share.gpus:
            allowed = environment.get("CUDA_VISIBLE_DEVICES")
            names = allowed.split(",") if allowed is not None else None
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] if names else str(i) for i in share.gpus)
        log = log_file(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._said_before[job.number] = file.tell()
            # A session of its own keeps the terminal's Ctrl-C away: the sweep passes it on, and only once.
            process = subprocess.Popen(
                job.command(resume=resume),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._processes[job.number] = process
        if share.cores:
            os.sched_setaffinity(process.pid, share.cores)  # Ray and the plan count a process's allowed cores

    def poll(self, job: Job) -> Exit | None:
        code = self._processes[job.number].poll()
        if code is None:
            return None
        log = log_file(job)
        said = log.read_bytes()[self._said_before[job.number] :].decode(errors="replace")
        error = None if code in (0, STOPPED_CODE) else last_error(said, f"exit code {code}")
        return Exit(code == 0, error, log)

    def stop(self, job: Job, at_once: bool) -> None:
        process = self._processes[job.number]
        if process.poll() is not None:
            return
        if at_once:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM)


def log_file(job: Job) -> Path:
    """Returns the file with a job's output."""
    return job.folder / "logs" / "job.log"


def last_error(text: str, otherwise: str) -> str:
    """Returns the last line that starts with `error:`, without that prefix; else `otherwise` with the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"{otherwise}: {lines[-1] if lines else 'no output'}"
