"""A sweep of two runs on one set of actors, killed and started again: the second run is the same as one alone."""

import pytest

from tests.chaos.compare import assert_same_run
from tests.integration.small_run import SMALL, STEPS, events, finish, kill, launch, status, until

pytestmark = pytest.mark.timeout(1800)
ENGINE_START = "Initializing a V1 LLM engine"


def test_a_sweep_of_two_killed_in_its_second_run_ends_as_if_never_stopped(small_run, tmp_path):
    sweep = tmp_path / "sweep"
    command = ["expo_ray.train", "-m", *SMALL, "algo=grpo,exp_grpo", f"run_dir={sweep}"]
    first = launch(*command)
    until(lambda: status(sweep / "1")["step"] >= 3, first, seconds=900)
    kill(first)
    logs = {path.name for path in (sweep / "1" / "logs").glob("*.log")}
    assert {"rollout-0.log", "learner-0.log", "learner-1.log", "verifier-0.log"} <= logs
    # The engine was built once: the second job's log does not mention it.
    assert ENGINE_START in (sweep / "0" / "logs" / "rollout-0.log").read_text()
    assert ENGINE_START not in (sweep / "1" / "logs" / "rollout-0.log").read_text()

    done = finish(launch(*command), seconds=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finished before" in done.stdout
    (resumed,) = events(sweep / "1", "resumed")
    assert resumed["steps_done"] in (2, 4)
    assert_same_run(sweep / "1", small_run, STEPS, samples=4)

    report = finish(launch("expo_ray.report", str(sweep), "--out", str(tmp_path / "report")))
    assert report.returncode == 0, report.stderr[-3000:]
    page = (tmp_path / "report" / "report.html").read_text()
    assert str(sweep / "0") in page and str(sweep / "1") in page
