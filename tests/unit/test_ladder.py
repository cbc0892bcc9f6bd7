"""The ladder: its methods, the search of a rate, jobs at once, and the page of what is finished."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from ladder_cases import evaluation, make_run, saved_config, values_of
from omegaconf import OmegaConf
from scipy.stats import t

from bench.ladder import page as ladder_page
from bench.ladder import run as ladder_run
from bench.ladder.methods import COMPARISONS, FAMILIES, METHODS
from expo_ray.config.compose import compose_config

ROOT = Path(__file__).parents[2]
SCORES = {"luffy": (0.25, 0.75, 0.5), "grpo": (0.25, 0.5, 0.5)}


TOY = COMPARISONS["toy"]
SAME = ("--", "trainer.steps=2")
"""The overrides of the runs that `make_run` makes up."""


def _set_rate(where, algo, rate):
    keys = [f"algo={algo}", "seed=100", "data.levels=[]", *SAME[1:]]
    config = copy.deepcopy(saved_config("experiment=ladder", *keys))
    OmegaConf.update(config, "learner.learning_rate", rate)
    OmegaConf.save(config, where / "config.yaml")


@pytest.fixture
def searched(tmp_path):
    """Two methods whose search is finished, and a third whose search is not."""
    for name, values in (SCORES | {"pope": (1.0,)}).items():
        for number, (rate, value) in enumerate(zip(TOY.rates, values, strict=False)):
            where = tmp_path / "search" / name / str(number)
            make_run(where, name, 100, value, level_1=value, levels=())
            _set_rate(where, name, rate)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "evaluation.json").write_text(json.dumps(evaluation(values_of(0.125), 64)))
    return tmp_path


def test_the_families_are_whole_and_every_method_composes():
    assert [sum(m.family == family for m in METHODS) for family in FAMILIES] == [10, 6, 2]
    assert len({m.name for m in METHODS}) == len({m.label for m in METHODS}) == len(METHODS)
    assert TOY.jobs == 9
    for method in METHODS:
        overrides = ladder_run.search_command(Path("x"), TOY, method, TOY.rates, [])[5:-1]
        assert compose_config([*(o for o in overrides if "learning_rate" not in o), "experiment=ladder"])
        assert all(f"{rate:g}" in overrides[-1] for rate in TOY.rates)


def test_a_comparison_without_a_search_begins_with_its_runs(searched, jobs, capsys):
    jobs(0, 0)
    command = [str(searched), "--comparison", "words", "--at-once", "1", "--methods", "grpo", "exp_grpo"]
    assert COMPARISONS["words"].jobs == 3 and ladder_run.main([*command, "--", "data.path=some.jsonl"]) == 0
    assert [job[4:6] for job in Job.started] == [
        ["experiment=smollm2_135m_words", f"algo={name}"] for name in ("exp_grpo", "grpo")
    ]
    assert all("data.levels=[]" in job and "data.path=some.jsonl" in job for job in Job.started)
    assert "2 methods, 6 jobs: about 2.5 hours with 1 at once" in capsys.readouterr().out


def test_a_rate_is_chosen_by_the_search_and_the_runs_get_it(searched, monkeypatch, capsys):
    """The highest over all levels, of equal ones the smallest; a method without a whole search waits."""
    called = []
    monkeypatch.setattr(ladder_run, "_call", lambda command, stop: called.append(command[5:]) or 0)
    assert ladder_run.main([str(searched), "--at-once", "1", "--methods", "luffy", "grpo", "pope", *SAME]) == 1
    assert [c[-1].rsplit("/", 2)[1:] for c in called] == [["luffy", "0.0002"], ["search", "pope"], ["grpo", "0.0002"]]
    luffy, pope, grpo = called
    assert "learner.learning_rate=0.0002" in luffy and "seed=0,1,2" in luffy and "data.levels=[5],[]" in luffy
    assert "learner.learning_rate=0.0002" in grpo and grpo[-2] == "trainer.steps=2"
    assert "learner.learning_rate=7e-05,0.0002,0.0007" in pope and "seed=100" in pope
    assert "3 methods, 27 jobs: about 1.2 hours with 1 at once" in capsys.readouterr().out


@pytest.mark.parametrize(("values", "beyond"), [((0.75, 0.5, 0.25), "2e-05"), ((0.25, 0.5, 0.75), "0.002")])
def test_a_search_goes_one_rate_beyond_an_edge(searched, monkeypatch, values, beyond):
    """The rate beyond is searched, and the runs get it if it is better yet; else the edge's own."""
    for number, value in enumerate(values):
        make_run(searched / "search" / "dpo_gt" / str(number), "dpo_gt", 100, value, value, levels=())
        _set_rate(searched / "search" / "dpo_gt" / str(number), "dpo_gt", TOY.rates[number])
    called = []

    def call(command, stop):
        called.append(command)
        if "/search/" in command[-1]:
            make_run(searched / "search" / "dpo_gt" / "3", "dpo_gt", 100, 1.0, 1.0, levels=())
            _set_rate(searched / "search" / "dpo_gt" / "3", "dpo_gt", float(beyond))
        return 0

    monkeypatch.setattr(ladder_run, "_call", call)
    assert ladder_run.main([str(searched), "--methods", "dpo_gt", *SAME]) == 0
    assert f"learner.learning_rate=7e-05,0.0002,0.0007,{beyond}" in called[0]
    assert called[1][-1].endswith(f"runs/dpo_gt/{beyond}") and f"learner.learning_rate={beyond}" in called[1]
    assert len(called) == 2
    edge = "smallest" if values[0] > values[2] else "largest"
    assert ladder_page.at_the_edge(searched, TOY) == (
        f"The {edge} rate tried is the best for DPO-GT; one beyond it may be better."
    )


class Job:
    """A job instead of a process; `endings` are the exit codes in the order of the starts."""

    endings: ClassVar[list[int]] = []
    started: ClassVar[list[list[str]]] = []

    def __init__(self, command):
        Job.started.append(command)
        self.number = len(Job.started) - 1

    def wait(self):
        if Job.endings[self.number] == 130:
            time.sleep(0.2)  # a method started beside it has begun by then
        return Job.endings[self.number]


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Job)
    monkeypatch.setattr(Job, "started", [])
    return lambda *codes: monkeypatch.setattr(Job, "endings", list(codes))


def test_a_stopped_job_stops_the_ladder(searched, jobs):
    jobs(130)
    command = [str(searched), "--methods", "luffy", "grpo", *SAME]
    assert ladder_run.main([*command[:1], "--at-once", "1", *command[1:]]) == 130 and len(Job.started) == 1
    jobs(-9, -9, -9)
    assert ladder_run.main(command) == 1 and len(Job.started) == 3


def test_methods_run_at_once(searched, jobs):
    """Two sweeps are started before one of them ends."""
    jobs(130, 130)
    assert ladder_run.main([str(searched), "--methods", "luffy", "grpo", *SAME]) == 130 and len(Job.started) == 2


def test_after_ctrl_c_running_jobs_end_and_no_other_starts(searched, tmp_path):
    """As in a terminal, SIGINT goes to the ladder and its job, which takes a second to write its checkpoint."""
    started, job, script = (tmp_path / name for name in ("started", "job.py", "ladder.py"))
    job.write_text(f"""
import signal, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), exit(0)))
with open({str(started)!r}, "a") as file:
    file.write("x")
time.sleep(60)
""")
    script.write_text(f"""
import sys
from bench.ladder import run
run.runs_command = lambda *_: [sys.executable, {str(job)!r}]
sys.exit(run.main([{str(searched)!r}, "--at-once", "1", "--methods", "luffy", "grpo", "--", {SAME[1]!r}]))
""")
    ladder = subprocess.Popen(
        [sys.executable, script], start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(ladder.pid, signal.SIGINT)
    assert ladder.wait(30) == 130 and started.read_text() == "x"


def test_a_search_with_other_settings_is_not_used(searched, monkeypatch, capsys):
    monkeypatch.setattr(ladder_run, "_call", lambda command, stop: pytest.fail("nothing may run"))
    assert ladder_run.main([str(searched), "--methods", "luffy", "--", "trainer.steps=7"]) == 2
    assert "other settings (trainer.steps=2, here trainer.steps=7)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("algo", "seed", "settings", "words"),
    [("luffy", 1, {}, "trainer.steps"), ("grpo", 1, {}, "trainer.steps"), ("grpo", 0, {"trainer.steps": 2}, "twice")],
)
def test_methods_that_cannot_be_compared_are_refused(searched, capsys, algo, seed, settings, words):
    make_run(searched / "runs" / "grpo" / "0.0002" / "0", "grpo", 0, 0.5)
    make_run(searched / "runs" / algo / "0.0002" / "1", algo, seed, 0.5, **({"trainer.steps": 20} | settings))
    assert ladder_page.main([str(searched), "--page", str(searched / "page.md")]) == 2
    assert words in capsys.readouterr().err


def test_the_families_page_has_intervals_rates_and_tokens(searched):
    finals = {"luffy": (1.0, 0.75, 0.5), "grpo": (0.0, 0.0, 0.25)}
    for name, values in finals.items():
        for seed, value in enumerate(values):
            where = searched / "runs" / name / "0.0002" / str(seed)
            make_run(where, name, seed, value, **{"learner.learning_rate": TOY.rates[1]})
            lines = [{"step": i, "update/gradient_norm": 0.1, "tokens/generated": 1500.0} for i in range(2)]
            (where / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ladder_page.main([str(searched), "--page", str(searched / "page.md")]) == 0
    page = (searched / "page.md").read_text()
    assert page.index("### From gold solutions") < page.index("### From neither")
    (row,) = [line for line in page.splitlines() if line.startswith("| LUFFY | 0.0002")]
    reach = 4.303 * np.std(finals["luffy"], ddof=1) / 3**0.5
    assert f"| {75.0} ({100 * (0.75 - reach):.1f} to 100.0) |" in row and "| 3 | 2 | 3 k |" in row
    everything = [(2 + 4 * value) / 6 / 4 for value in finals["luffy"]]  # pass@1 is a quarter of pass@4 here
    reach = t.ppf(0.975, 2) * np.std(everything, ddof=1) / 3**0.5
    low, mean, high = (100 * (np.mean(everything) + side * reach) for side in (-1, 0, 1))
    assert row.endswith(f"| {mean:.1f} ({low:.1f} to {high:.1f}) |")
    base = next(line for line in page.splitlines() if line.startswith("| base, pass@64"))
    assert base.endswith(f"| {100 * (2 + 4 * 0.125) / 6:.1f} | {100 * (2 + 4 * 0.125) / 6 / 64:.1f} |")
    assert "| GRPO |  | 25.0 | **50.0** | 50.0 |  |" in page and "| POPE |  | 100.0 |  |  |  |" in page
    assert "rate tried is the best" not in page
    assert "highest is LUFFY with 75.0." in page and (searched / "page_curves.png").exists()


def test_the_page_says_what_was_trained_on_and_keeps_words(searched):
    for seed, shift in enumerate((0.0, 0.2)):
        where = searched / "runs" / "luffy" / "0.0002" / str(seed)
        make_run(where, "luffy", seed, 0.5)
        measured = {"trained/texts": 40.0, "trained/leaked": 0.25 + shift, "trained/base_logprob": -3.0}
        lines = [
            {"step": 0, "trained/mean_logprob": -3.0 + shift, "contrast/follows": 0.5} | measured,
            {"step": 1, "trained/mean_logprob": -1.0 + shift, "contrast/follows": 0.75} | measured,
        ]
        (where / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = searched / "page.md"
    page.write_text("# Old\n\n## What was found\n\nSo it is.\n\n## Trained on level 5\n\nformer\n")
    for _ in range(2):
        assert ladder_page.main([str(searched), "--page", str(page)]) == 0
    text = page.read_text()
    assert (searched / "page_trained.png").stat().st_size > 10_000
    assert "| LUFFY | 160 | 35.0 % | -2.90 to -0.90 | -3.00 | - | 0.50 to 0.75 |" in text
    reach = t.ppf(0.975, 1) * np.std([-3.0, -2.8], ddof=1) / 2**0.5
    assert f"| LUFFY | -2.90 ± {reach:.2f} | -0.90 ± {reach:.2f} |" in text
    assert "| method | step 0 | step 1 |" in text and "Property 2 by step" not in text  # which nobody measured
    assert text.count("So it is.") == 1 and text.count("## Trained on level 5") == 1 and "former" not in text


def test_an_interval_is_students():
    """Two values 0.4 and 0.6: mean 0.5, deviation of the mean 0.1, t = 12.7, cut at 0 and 1; scipy agrees on t."""
    assert ladder_page.interval([0.4, 0.6]) == (0.5, 0.0, 1.0)
    for n, factor in ladder_page.T_95.items():
        assert factor == pytest.approx(t.ppf(0.975, n - 1), abs=1e-3)
    values = [i / 25 for i in range(25)]
    mean, _, high = ladder_page.interval(values)
    assert high - mean >= t.ppf(0.975, 24) * np.std(values, ddof=1) / 5
    values = [0.5, 0.51, 0.52]
    mean, low, high = ladder_page.interval(values)
    assert (high - mean, mean - low) == pytest.approx([t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5] * 2, rel=1e-3)
