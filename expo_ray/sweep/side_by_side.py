"""Runs jobs in parallel as far as resources allow, and follows them to their end. Every wait is bounded."""

import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from expo_ray.config.errors import InputError
from expo_ray.config.resources import Resources
from expo_ray.driver.stopping import StopSignal
from expo_ray.files import read_summary
from expo_ray.preflight.plan import Plan, make_plan
from expo_ray.sweep import ledger
from expo_ray.sweep.in_turn import with_objective
from expo_ray.sweep.job import Ended, Job, JobEnd, is_finished, job_end, own_resume

SAY_EVERY_S = 60.0
"""Time between two lines on standard error about the running jobs."""


@dataclass(frozen=True)
class Share:
    """The resources reserved for one job."""

    cores: tuple[int, ...]
    """Indices of the cores."""
    gpus: tuple[int, ...]
    """Indices of the cards."""
    memory_gib: float


@dataclass
class Room:
    """The free resources.

    Args:
        cores: indices of the free cores.
        gpus: indices of the free cards.
        memory_gib: free host memory.
        max_jobs: limit on parallel jobs; 0: as many as fit.
    """

    cores: list[int]
    gpus: list[int]
    memory_gib: float
    max_jobs: int = 0
    taken: list[Share] = field(default_factory=list)

    def take(self, plan: Plan) -> Share | None:
        """Reserves a share for a job; None if it has to wait. With no other job running, it gets what there is.

        A job whose memory is unknown before the model is loaded counts as needing all of it.
        """
        if self.max_jobs and len(self.taken) >= self.max_jobs:
            return None
        cores, gpus = math.ceil(plan.cores), plan.gpus
        memory = self.memory_gib if plan.host_memory_gib is None else plan.host_memory_gib
        fits = cores <= len(self.cores) and gpus <= len(self.gpus) and memory <= self.memory_gib
        if plan.host_memory_gib is None and self.taken:
            fits = False
        if not fits and self.taken:
            return None
        share = Share(tuple(self.cores[:cores]), tuple(self.gpus[:gpus]), memory)
        self.cores, self.gpus = self.cores[cores:], self.gpus[gpus:]
        self.memory_gib -= memory
        self.taken.append(share)
        return share

    def give_back(self, share: Share) -> None:
        """Releases the share of a job that has ended."""
        self.taken.remove(share)
        self.cores = sorted([*self.cores, *share.cores])
        self.gpus = sorted([*self.gpus, *share.gpus])
        self.memory_gib += share.memory_gib


@dataclass
class Exit:
    """How a process or a cluster job ended."""

    ok: bool
    error: str | None
    """Its last error message."""
    log: Path | None


class Backend(Protocol):
    """Where jobs run."""

    def start(self, job: Job, resume: str, share: Share) -> None:
        """Starts a job, or follows it if an earlier call left it running."""

    def poll(self, job: Job) -> Exit | None:
        """Returns how it ended; None while it runs."""

    def stop(self, job: Job, at_once: bool) -> None:
        """Asks it to stop with a checkpoint, or kills it at once. It is polled until it is gone."""


@dataclass(frozen=True)
class Limits:
    """Bounds in seconds."""

    job_s: float
    """Longest time for one job."""
    stop_s: float
    """Time from the request to stop until the job is killed, and from then until it is given up."""
    poll_s: float


@dataclass
class _Running:
    job: Job
    share: Share
    began: float
    asked: float | None = None
    """When it was asked to stop."""
    late: bool = False


class SideBySide:
    """Runs the jobs of a sweep in parallel.

    Args:
        backend: where jobs run.
        room: the resources for all jobs together.
        resources: the resources to plan one job for.
        limits: bounds of all waits.
        sweep_folder: where sweep.json is.
    """

    def __init__(self, backend: Backend, room: Room, resources: Resources, limits: Limits, sweep_folder: Path) -> None:
        self.backend, self.room, self.resources, self.limits = backend, room, resources, limits
        self.sweep_folder = sweep_folder
        self._running: list[_Running] = []
        self._ends: dict[int, JobEnd] = {}
        self._said = time.monotonic()

    def run(self, jobs: Sequence[Job]) -> list[JobEnd]:
        """Runs all jobs that have not finished before; a failed one does not end the others.

        Ctrl-C or SIGTERM once: running jobs stop with a checkpoint and no other starts. Ctrl-C twice: they are killed.
        """
        waiting = deque(jobs)
        with StopSignal() as stop:
            try:
                while waiting or self._running:
                    while waiting and (stop.requested or self._begin(waiting[0])):
                        job = waiting.popleft()
                        if stop.requested:
                            self._note(job_end(job, Ended.NOT_STARTED))
                    for running in list(self._running):
                        self._follow(running, stop.requested)
                    self._say_running()
                    if self._running:
                        time.sleep(self.limits.poll_s)
            except BaseException:
                for running in self._running:
                    self.backend.stop(running.job, at_once=True)
                raise
        return [self._ends[job.number] for job in jobs]

    def _begin(self, job: Job) -> bool:
        """Starts a job, or records why it need not run; False if there is no room yet."""
        try:
            config = job.config()
            if is_finished(job.folder, config):
                self._note(with_objective(job_end(job, Ended.BEFORE), config))
                return True
            share = self.room.take(make_plan(config, self.resources))
            if share is None:
                return False
            job.folder.mkdir(parents=True, exist_ok=True)
            ledger.announce(self.sweep_folder, job)
            self.backend.start(job, own_resume(job.folder, config), share)
        except (InputError, OSError) as error:  # OSError: the folder cannot be made or the process not started
            self._note(job_end(job, Ended.FAILED, error=str(error)))
            return True
        self._running.append(_Running(job, share, time.monotonic()))
        return True

    def _follow(self, running: _Running, stopping: bool) -> None:
        job, now = running.job, time.monotonic()
        found = self.backend.poll(job)
        if found is None:
            self._bound(running, stopping, now)
            if running.asked is None or now - running.asked < 2 * self.limits.stop_s:
                return
            found = Exit(False, f"could not be stopped within {2 * self.limits.stop_s:.0f} s", None)
        self._running.remove(running)
        self.room.give_back(running.share)
        self._note(self._ended(running, found, now - running.began))

    def _bound(self, running: _Running, stopping: bool, now: float) -> None:
        """Asks a job to stop if the sweep stops or the job's time is up, and kills it if it does not."""
        running.late = running.late or now - running.began > self.limits.job_s
        if running.asked is None and (stopping or running.late):
            running.asked = now
            self.backend.stop(running.job, at_once=False)
        elif running.asked is not None and now - running.asked > self.limits.stop_s:
            self.backend.stop(running.job, at_once=True)

    def _ended(self, running: _Running, found: Exit, seconds: float) -> JobEnd:
        job, config = running.job, running.job.config()
        try:
            summary = read_summary(job.folder)
        except ValueError as broken:
            return job_end(job, Ended.FAILED, seconds, str(broken), found.log)
        if config.dry_run and found.ok:
            return job_end(job, Ended.FINISHED, seconds)
        if found.ok and summary.get("finished"):
            return with_objective(job_end(job, Ended.FINISHED, seconds), config)
        if running.late:
            error = f"did not end within hydra.launcher.job_s={self.limits.job_s:.0f} seconds"
            return job_end(job, Ended.FAILED, seconds, error, found.log)
        if running.asked is not None or (found.error is None and summary.get("finished") is False):
            return job_end(job, Ended.STOPPED, seconds, found.error, found.log)
        error = found.error or f"it ended without a summary.json in {job.folder} (does this machine see that folder?)"
        return job_end(job, Ended.FAILED, seconds, error, found.log)

    def _say_running(self) -> None:
        """Prints every minute what the running jobs do, since their own output goes to their logs."""
        if not self._running or time.monotonic() - self._said < SAY_EVERY_S:
            return
        self._said = time.monotonic()
        ledger.say("running: " + ", ".join(f"job {of.job.number} ({_state(of.job.folder)})" for of in self._running))

    def _note(self, end: JobEnd) -> None:
        self._ends[end.job] = end
        ledger.record(self.sweep_folder, end)


def _state(folder: Path) -> str:
    """Returns the step and phase of a running job, from its status.json."""
    try:
        found = json.loads((folder / "status.json").read_text())
        return f"step {found['step'] + 1}, {found['phase']}"
    except (OSError, ValueError, KeyError):  # not there yet, or not visible yet on a shared file system
        return "starting"
