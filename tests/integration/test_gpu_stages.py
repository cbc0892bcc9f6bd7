"""Every stage of the GPU measurement, on a CPU with tiny models (bench.gpu --rehearse).

One process runs an engine with a sender and a learner rank. At the same time a sweep runs two pipelines on the same
actors. Then follows one more pipeline.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "out"
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", "--seconds", "560", "--out", str(folder)]
    found = subprocess.run(command, cwd=REPOSITORY, env=dict(os.environ), capture_output=True, text=True, timeout=600)
    logs = folder / "logs.txt"
    assert found.returncode == 0, f"{found.stdout[-3000:]}\n{found.stderr[-1000:]}\n{logs.read_text()[-3000:]}"
    return folder


def test_every_stage_ends_well_and_writes_its_figures(out):
    figures = json.loads((out / "figures.json").read_text())
    assert figures.keys() == {"env", "kernels", "model", "engine", "learner", "real", "big"}
    assert {found["code"] for found in figures.values()} == {0}
    print({name: found["inside_s"] for name, found in figures.items()})
    assert figures["kernels"]["rms_norm_error"] < 1e-5
    assert figures["big"]["big_first_proof"]["tensors_compared"] == 26
    for algorithm in ("grpo", "exp_grpo"):
        assert figures["real"][f"real_{algorithm}_first_proof"]["tensors_compared"] == 38
        assert figures["real"][f"real_{algorithm}_steps"] == 1
    assert figures["big"]["big_step0"]["update/tera_operations_per_second"] > 0
    assert figures["learner"]["padded"]["tokens_per_s"] > 0
    engine = figures["engine"]
    assert engine["sampling1"]["tokens"] > 0 and engine["sampling1"]["bare_s"] > 0
    for way in ("live", "reload"):
        assert engine[f"sync_{way}0"]["bytes"] == figures["model"]["bytes"]
        assert engine[f"digests_after_{way}"]["tensors"] == 26
    assert engine["copy_s"] > 0


def test_runs_on_real_weights_leave_what_a_report_reads(out):
    for algorithm in ("grpo", "exp_grpo"):
        kept = out / f"real_{algorithm}"
        steps = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
        assert len(steps) >= 1
        assert (kept / "evaluations.jsonl").read_text().count("\n") >= 1
        assert f"name: {algorithm}" in (kept / "config.yaml").read_text()
