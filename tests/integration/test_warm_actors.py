"""A run on the actors of the run before it is the same, bit for bit, as one on its own."""

import subprocess
import sys

import pytest

from tests.chaos.compare import assert_same_run
from tests.integration.small_run import REPOSITORY, SMALL, STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_second_job_of_a_sweep_equals_the_same_run_alone(small_run, tmp_path):
    sweep = tmp_path / "sweep"
    command = [sys.executable, "-m", "expo_ray.train", "-m", *SMALL, "algo=grpo,exp_grpo", f"run_dir={sweep}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(sweep / "1", small_run, STEPS, samples=4)
    logs = {path.name for path in (sweep / "1" / "logs").glob("*.log")}
    assert {"rollout-0.log", "learner-0.log", "learner-1.log", "verifier-0.log"} <= logs
    # The engine was built once: the second job's log has no word of it.
    assert "Initializing a V1 LLM engine" in (sweep / "0" / "logs" / "rollout-0.log").read_text()
    assert "Initializing a V1 LLM engine" not in (sweep / "1" / "logs" / "rollout-0.log").read_text()
