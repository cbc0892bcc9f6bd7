"""Sweeps with real processes and with the jobs of a real Ray cluster that asks for a token. The jobs are dry runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = [sys.executable, "-m", "expo_ray.train"]
SWEEP = ["-m", "experiment=demo", "algo=grpo,exp_grpo,sft_gt_grpo", "dry_run=true", "profile=cpu"]


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, *arguments], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def ends(folder: Path) -> list[tuple[str, str | None]]:
    return [(job["ended"], job["error"]) for job in json.loads((folder / "sweep.json").read_text())["jobs"]]


def test_jobs_as_processes_and_one_of_them_fails(tmp_path):
    """Job 1 cannot make its folder, because a file is in its place."""
    folder = tmp_path / "a sweep, with {odd} signs"
    folder.mkdir()
    (folder / "1").write_text("")
    done = run([*SWEEP, f"run_dir='{folder}'", "hydra/launcher=local", "profile.cpus_per_actor=0.5"])
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder)
    found = dict(zip("012", sorted(ends(folder), key=lambda end: end[0] == "failed"), strict=True))
    assert [ended for ended, _ in found.values()] == ["finished", "finished", "failed"]
    assert "job 1" in done.stderr and str(folder / "1") in done.stderr
    for number in "02":
        assert (folder / number / "config.yaml").exists()
        assert (folder / number / "logs" / "job.log").read_text().splitlines()[-1] == str(folder / number)


@pytest.mark.slow
def test_jobs_of_a_cluster_that_asks_for_a_token(token_cluster, tmp_path):
    cluster = dict(token_cluster)
    address = cluster.pop("ADDRESS")
    launcher = ["hydra/launcher=ray_jobs", f"hydra.launcher.address={address}", "hydra.launcher.poll_s=0.5"]
    launcher += [f"hydra.launcher.python={sys.executable}"]
    refused = run([*SWEEP, f"run_dir={tmp_path}/refused", *launcher], **cluster | {"RAY_AUTH_TOKEN": "0" * 64})
    assert refused.returncode == 1
    assert {ended for ended, _ in ends(tmp_path / "refused")} == {"failed"}
    assert "token" in refused.stderr and "0" * 64 not in refused.stderr

    done = run([*SWEEP, f"run_dir={tmp_path}/sweep", *launcher], **cluster)
    assert done.returncode == 0, done.stderr
    assert ends(tmp_path / "sweep") == [("finished", None)] * 3
    log = (tmp_path / "sweep" / "0" / "logs" / "job.log").read_text()
    assert str(tmp_path / "sweep" / "0") in log and cluster["RAY_AUTH_TOKEN"] not in log
