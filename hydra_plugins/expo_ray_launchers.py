"""The launchers that conf/hydra/launcher chooses. Hydra finds launchers in this folder only.

Hydra imports this module at every start, so its heavy imports are inside the functions; expo_ray/sweep does the work.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from expo_ray.config.resources import Resources
    from expo_ray.sweep.job import Job, JobEnd
    from expo_ray.sweep.side_by_side import Backend, Limits, Room


class LocalLauncher(Launcher):
    """hydra/launcher=local: jobs as processes on this machine, as many in parallel as the plan says fit.

    Args:
        max_jobs: limit on parallel jobs; 0: as many as fit.
        job_s, stop_s, poll_s: bounds in seconds (expo_ray.sweep.side_by_side.Limits).
    """

    def __init__(self, max_jobs: int, job_s: float, stop_s: float, poll_s: float) -> None:
        self.max_jobs, self.job_s, self.stop_s, self.poll_s = max_jobs, job_s, stop_s, poll_s

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.sweep_folder = Path(config.hydra.sweep.dir).absolute()
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from expo_ray.config.errors import InputError
        from expo_ray.sweep import ledger
        from expo_ray.sweep.job import Ended, Job, job_end
        from expo_ray.sweep.side_by_side import SideBySide

        numbered = enumerate(job_overrides, start=initial_job_idx)
        jobs = [Job(number, tuple(overrides), self.sweep_folder / str(number)) for number, overrides in numbered]
        try:
            backend, room, resources = self.place(jobs)
        except InputError as error:
            ends = [job_end(job, Ended.FAILED, error=str(error)) for job in jobs]
            for end in ends:
                ledger.record(self.sweep_folder, end)
        else:
            ends = SideBySide(backend, room, resources, self.limits(), self.sweep_folder).run(jobs)
        return [_job_return(end) for end in ends]

    def place(self, jobs: "Sequence[Job]") -> "tuple[Backend, Room, Resources]":
        """Returns where these jobs run, the resources for all of them, and the resources to plan one job for."""
        import os

        from expo_ray.config.resources import this_machine
        from expo_ray.sweep.backends import Processes
        from expo_ray.sweep.side_by_side import Room

        machine = this_machine()
        cores = sorted(os.sched_getaffinity(0))[: max(1, int(machine.cores))]
        return Processes(), Room(cores, list(range(machine.gpus)), machine.memory_gib, self.max_jobs), machine

    def limits(self) -> "Limits":
        """Returns the bounds of all waits."""
        from expo_ray.sweep.side_by_side import Limits

        return Limits(self.job_s, self.stop_s, self.poll_s)


class RayJobsLauncher(LocalLauncher):
    """hydra/launcher=ray_jobs: jobs of a running Ray cluster, as many in parallel as the plan says fit.

    Args:
        address: the cluster's dashboard; None: RAY_API_SERVER_ADDRESS, or this machine's.
        python: the interpreter's name on the cluster.
        runtime_env: Ray's runtime environment for each job.
        request_s: bound on one request.
        lost_s: how long the dashboard may be unreachable before a job is given up.
        bounds: the arguments of LocalLauncher.
    """

    def __init__(
        self,
        address: str | None,
        python: str,
        runtime_env: DictConfig,
        request_s: float,
        lost_s: float,
        **bounds: Any,
    ) -> None:
        super().__init__(**bounds)
        self.address, self.python, self.runtime_env = address, python, OmegaConf.create(runtime_env)
        self.request_s, self.lost_s = request_s, lost_s

    def place(self, jobs: "Sequence[Job]") -> "tuple[Backend, Room, Resources]":
        """Returns the cluster; resources in conf/cluster take precedence over what its nodes report."""
        from expo_ray.config.resources import of_cluster
        from expo_ray.sweep.backends import RayJobs
        from expo_ray.sweep.side_by_side import Room

        backend = RayJobs(
            self.address, str(self.sweep_folder), self.python, self.environment(), self.request_s, self.lost_s
        )
        there = of_cluster(jobs[0].config().cluster) or backend.resources()
        cards, cores = list(range(there.gpus)), list(range(int(there.cores)))
        return backend, Room(cores, cards, there.memory_gib, self.max_jobs), there

    def environment(self) -> dict[str, Any]:
        """Returns each job's runtime environment; unless it sets the time for stopping a job, `stop_s` does."""
        from expo_ray.submission.dashboard import time_to_stop

        found: Any = OmegaConf.to_container(self.runtime_env)
        return found | {"env_vars": time_to_stop(self.stop_s) | found.get("env_vars", {})}


def _job_return(end: "JobEnd") -> JobReturn:
    """Returns the objective to the sweeper, or None, which an optimising sweeper counts as a failed trial."""
    return JobReturn(overrides=end.overrides, status=JobStatus.COMPLETED, _return_value=end.objective)
