"""Jobs as processes of this machine, each with cores and cards of its own."""

import os
import signal
import subprocess
from pathlib import Path

from expo_ray.sweep.job import Job
from expo_ray.sweep.side_by_side import Exit, Share

STOPPED_CODE = 130


class Processes:
    """Starts `python -m expo_ray.train` for each job; what it prints goes to logs/job.log in the job's folder."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._said_before: dict[int, int] = {}
        """Bytes that the job's log held before this call started it."""

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
            # In a session of its own: Ctrl-C in the terminal reaches the sweep alone, which passes it on once.
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
            os.sched_setaffinity(process.pid, share.cores)  # Ray and the plan count the cores that a process may use

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
    """Where a job's output goes."""
    return job.folder / "logs" / "job.log"


def last_error(text: str, otherwise: str) -> str:
    """The last line that says `error:`, without that word; `otherwise` with the last line where none does."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"{otherwise}: {lines[-1] if lines else 'it said nothing'}"
