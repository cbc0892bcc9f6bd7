"""A job of a sweep in this process: jobs run one after the other, and a failed one does not end the others."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from expo_ray.config.errors import InputError
from expo_ray.config.keys import objective_of
from expo_ray.config.schema import Config
from expo_ray.files import read_summary
from expo_ray.sweep import ledger
from expo_ray.sweep.job import Ended, Job, JobEnd, is_finished, job_end, own_resume


def run_in_turn(job: Job, config: Config, run: Callable[[], None], sweep_folder: Path) -> float | None:
    """Runs a job, unless it has finished before or the sweep was stopped, and records how it ended.

    Args:
        job: its number, overrides and folder.
        config: the job's configuration; `trainer.resume` is narrowed to the job's own folder.
        run: runs it. Its exception is recorded, with a traceback in the job's logs/driver.log.
        sweep_folder: where sweep.json is.

    Returns:
        The objective; None if the job has no final evaluation.
    """
    began = time.monotonic()
    end = _run(job, config, run, sweep_folder)
    end.seconds = round(time.monotonic() - began, 1)
    ledger.record(sweep_folder, end)
    return end.objective


def _run(job: Job, config: Config, run: Callable[[], None], sweep_folder: Path) -> JobEnd:
    if any(end.ended == Ended.STOPPED for end in ledger.ends(sweep_folder)):
        return job_end(job, Ended.NOT_STARTED)
    try:
        if not config.dry_run:
            if is_finished(job.folder, config):
                return with_objective(job_end(job, Ended.BEFORE), config)
            config.trainer.resume = own_resume(job.folder, config)
        ledger.announce(sweep_folder, job)
        run()
    except InputError as error:
        return job_end(job, Ended.FAILED, error=str(error))
    except Exception as error:
        logging.getLogger("expo_ray").exception("the run failed")
        sentence = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return job_end(job, Ended.FAILED, error=sentence, log=job.folder / "logs" / "driver.log")
    stopped = read_summary(job.folder).get("finished") is False
    return with_objective(job_end(job, Ended.STOPPED if stopped else Ended.FINISHED), config)


def with_objective(end: JobEnd, config: Config) -> JobEnd:
    """Returns the job's end with the objective from its summary.json."""
    end.objective = objective_of(read_summary(Path(end.folder)), config.eval.objective)
    return end
