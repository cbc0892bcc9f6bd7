"""The ladder's page from made-up run folders: the tables' arithmetic against NumPy, grouping, refusals, figures."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from bench.ladder import page as ladder_page
from bench.ladder import run as ladder_run
from bench.ladder.ablations import main
from bench.ladder.figures import heldout_curves
from bench.ladder.likelihood import main as likelihood_main
from bench.ladder.methods import COMPARISONS, FAMILIES, METHODS
from bench.ladder.tables import (
    check_base,
    collect,
    cost,
    labels_by_change,
    levels_of,
    pass_cell,
    read_base,
    setting_table,
    updates_made,
    updates_table,
)
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import DataError
from expo_ray.evaluation.metrics import pass_at_k
from expo_ray.reporting.likelihood import read_likelihoods, sentence

ROOT = Path(__file__).parents[2]
LEVELS = ("1", "5")
PROBLEMS = {"1": 2, "5": 4, "all": 6}


@cache
def saved_config(*overrides: str) -> DictConfig:
    """A run's configuration, as it is read from its folder. Reading it takes long: change a copy of it."""
    return OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(compose_config(list(overrides)))))


def evaluation(values: dict[str, float], samples: int = 4) -> dict:
    """pass@k that grows to its value at k = samples."""
    found = {level: {str(k): value * k / samples for k in range(1, samples + 1)} for level, value in values.items()}
    return {"samples": samples, "problems": PROBLEMS, "pass_at_k": found}


def values_of(level_5: float, level_1: float = 1.0) -> dict[str, float]:
    return {"1": level_1, "5": level_5, "all": (2 * level_1 + 4 * level_5) / 6}


@pytest.fixture
def make_run():
    def make(folder, algo, seed, level_5, level_1=1.0, levels=(5,), finished=True, steps_without=0, **settings):
        folder.mkdir(parents=True)
        config = copy.deepcopy(saved_config("experiment=ladder", "trainer.steps=2"))
        changes = {"algo.name": algo, "seed": seed, "data.levels": list(levels), "run_dir": str(folder)}
        for key, value in (changes | settings).items():
            OmegaConf.update(config, key, value)
        OmegaConf.save(config, folder / "config.yaml")
        (folder / "plan.txt").write_text("run x\nresources   a test: 2 cores\n")
        final = evaluation(values_of(level_5, level_1))
        half = evaluation(values_of(level_5 / 2, level_1))
        lines = [{"steps_done": 1} | half, {"steps_done": 2} | final]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        steps = [{"step": i} | ({"update/gradient_norm": 0.1} if i >= steps_without else {}) for i in range(2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
        (folder / "summary.json").write_text(
            json.dumps({"finished": finished, "evaluation": final if finished else None})
        )

    return make


RUNS = {"grpo": (0.0, 0.25, 0.0), "sft_gt_grpo": (0.5, 0.75, 0.25), "exp_grpo": (1.0, 0.75, 1.0)}


@pytest.fixture
def ladder(tmp_path, make_run):
    """Two training settings, three methods, three seeds; on all levels the paper's order does not hold at level 1."""
    number = 0
    for levels in ((5,), ()):
        for algo, values in RUNS.items():
            for seed, value in enumerate(values):
                easy = 0.5 if algo == "exp_grpo" and not levels else 1.0
                make_run(tmp_path / "methods" / str(number), algo, seed, value, easy, levels)
                number += 1
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.yaml").write_text("algo: {name: grpo}\nseed: 7\n")
    (tmp_path / "base" / "plan.txt").write_text("")
    (tmp_path / "base" / "evaluation.json").write_text(json.dumps(evaluation(values_of(0.125), 64)))
    sweep = {"command": "python -m expo_ray.train -m x", "jobs": [1] * 18, "seconds": 90.0, "seconds_before": 30.0}
    (tmp_path / "methods" / "sweep.json").write_text(json.dumps(sweep))
    return tmp_path


def cells(page: str, row: str) -> list[list[str]]:
    """The cells of every row of that name, in the order of the tables."""
    return [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in page.splitlines() if line.startswith(f"| {row} |")
    ]


def test_the_tables_numbers_are_means_and_deviations_over_seeds(ladder):
    setting, whole = collect(ladder, [ladder / "base"]).settings
    base = read_base(ladder / "base")
    for of, count in ((setting, 3), (whole, 3)):
        text = setting_table(of, ["GRPO", "SFT-GT-CoT", "ExP-GRPO"], ["1", "5", "all"], 4, base)
        for name, label in (("grpo", "GRPO"), ("sft_gt_grpo", "SFT-GT-CoT"), ("exp_grpo", "ExP-GRPO")):
            (row,) = cells(text, label)
            mean, deviation = 100 * np.mean(RUNS[name]), 100 * np.std(RUNS[name], ddof=1)
            assert row[:2] == [str(count), "2"] and row[3] == f"{mean:.1f} ± {deviation:.1f}"
    everything = 100 * np.array([(2 * 0.5 + 4 * value) / 6 for value in RUNS["exp_grpo"]])
    assert cells(text, "ExP-GRPO")[0][4] == f"{everything.mean():.1f} ± {everything.std(ddof=1):.1f}"
    assert cells(text, "base, pass@64")[0][3] == "12.5" and cells(text, "base, pass@4")[0][3] == f"{12.5 * 4 / 64:.1f}"


def test_costs_name_commands_hours_and_the_machine(ladder):
    commands, total = cost(ladder)
    assert commands == "    python -m expo_ray.train -m x   # 18 jobs, 2 min"
    assert total == "18 jobs, 0.0 hours, actor start-up included. Each ran on a test: 2 cores."
    assert cost(ladder / "base") == []


def test_runs_are_grouped_by_what_they_were_trained_on_and_by_method_alone(ladder, make_run):
    for seed, refresh in ((0, "online"), (1, "online"), (0, "offline")):
        folder = ladder / refresh / str(seed)
        make_run(folder, "exp_dpo", seed, 0.5, levels=(), steps_without=1, **{"algo.dpo_refresh": refresh})
    make_run(ladder / "methods" / "99", "grpo", 3, 0.5, finished=False)
    found = collect(ladder, [ladder / "base"])
    assert [setting.title for setting in found.settings] == ["trained on level 5", "trained on all levels"]
    assert [len(setting.methods) for setting in found.settings] == [3, 5]
    labels = {group.label: len(group.runs) for group in found.settings[1].methods}
    assert {name: count for name, count in labels.items() if "DPO" in name} == {
        "ExP-DPO (dpo_refresh=online)": 2,
        "ExP-DPO (dpo_refresh=offline)": 1,
    }
    dpo = found.settings[1].methods[-1]
    assert updates_made(dpo) == 1.0 and levels_of(found) == ["1", "5", "all"]
    assert [path.name for path in found.left_out] == ["99"]
    single = next(group for group in found.settings[1].methods if len(group.runs) == 1)
    assert pass_cell(single, "5", 4).spread is None


def test_curves_begin_at_the_base(ladder):
    group = collect(ladder, [ladder / "base"]).settings[0].methods[0]
    base = json.loads((ladder / "base" / "evaluation.json").read_text())
    assert heldout_curves(group, "5", 4, base)[1] == {0: 12.5 * 4 / 64, 1: 12.5, 2: 25.0}


def test_ablations_are_named_by_what_they_change(tmp_path, make_run):
    for number, (key, value) in enumerate(
        [
            ("algo.beta", 0.04),
            ("algo.beta", 0.5),
            ("algo.explanation_filter", False),
            ("algo.explanation_scope", "all_wrong"),
        ]
    ):
        make_run(tmp_path / str(number), "exp_grpo", 0, 0.5, **{key: value})
    make_run(tmp_path / "grpo", "exp_grpo", 0, 0.0, **{"algo.beta": 0.0, "algo.kl_conditioned_coef": 0.0})
    make_run(tmp_path / "beta", "exp_grpo", 0, 0.0, **{"algo.beta": 0.0})
    (setting,) = collect(tmp_path).settings
    assert sorted(labels_by_change(setting.methods)) == [
        "algo.beta = 0.0",
        "algo.beta = 0.5",
        "algo.explanation_filter = False",
        "algo.explanation_scope = all_wrong",
        "plain GRPO: algo.beta = 0.0, algo.kl_conditioned_coef = 0.0",
        "unchanged",
    ]


def test_the_section_of_ablations_is_written_again_alone(ladder, make_run, tmp_path):
    ablations, page = tmp_path / "ablations", tmp_path / "pages" / "page.md"
    for seed, value in enumerate((0.25, 0.75)):
        make_run(ablations / "beta" / str(seed), "exp_grpo", seed, value, **{"algo.beta": 0.5})
    command = [str(ablations), "--base", str(ladder / "base"), "--page", str(page)]
    assert main(command) == 0
    assert page.read_text().startswith("# Ablations of ExP-GRPO on the toy task\n\n## Ablations\n\n")
    page.write_text("# Page\n\nbefore\n\n## Ablations\n\n| former |\n\n## Later\n\nafter\n")
    assert main([*command, "--commit", "abc123"]) == 0
    text = page.read_text()
    assert text.startswith("# Page\n\nbefore\n\n## Ablations\n\nRan at commit abc123.\n")
    assert text.endswith("|\n\n## Later\n\nafter\n") and "former" not in text
    deviation = 100 * np.std([0.25, 0.75], ddof=1)
    assert cells(text, "unchanged")[0][3] == f"50.0 ± {deviation:.1f}"  # by level
    assert cells(text, "unchanged")[1] == [f"25.0 ± {deviation / 2:.1f}", f"50.0 ± {deviation:.1f}"]  # by updates
    page.write_text("# Page\n\n## Ablations at commit old\n\n| former |\n")
    assert main(command) == 0
    assert page.read_text().startswith("# Page\n\n## Ablations at commit old\n\n| former |\n\n## Ablations\n\n")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trainer.steps": 9}, "trainer.steps: 2 in .*, 9 in"),
        ({"trainer.prompts_per_step": 7}, "trainer.prompts_per_step"),
        ({"model.path": "/other"}, "model.path"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(ladder, make_run, settings, words):
    make_run(ladder / "methods" / "50", "exp_grpo", 5, 0.5, **settings)
    with pytest.raises(DataError, match=words):
        collect(ladder, [ladder / "base"])


def test_a_seed_that_is_there_twice_is_refused(ladder, make_run):
    make_run(ladder / "methods" / "50", "exp_grpo", 1, 0.5)
    with pytest.raises(DataError, match="seed 1 is there twice"):
        collect(ladder, [ladder / "base"])


def test_a_base_that_does_not_fit_is_refused(ladder):
    base, run = read_base(ladder / "base"), collect(ladder, [ladder / "base"]).settings[0].methods[0].runs[0]
    check_base(base, run)
    with pytest.raises(DataError, match="evaluated on other held-out problems"):
        check_base(base | {"problems": {"all": 5}}, run)
    with pytest.raises(DataError, match="has 2 samples per problem, the runs 4"):
        check_base(base | {"samples": 2}, run)
    (ladder / "base" / "evaluation.json").write_text("{}")
    with pytest.raises(DataError, match="no pass_at_k"):
        read_base(ladder / "base")
    (ladder / "base" / "evaluation.json").unlink()
    with pytest.raises(DataError, match=r"no evaluation\.json"):
        read_base(ladder / "base")


def sample(uid, level, kind, logprob, rise, step=0):
    return {
        "step": step,
        "uid": uid,
        "level": level,
        "kind": kind,
        "properties": {"mean_logprob": logprob, "answer_rise": rise},
    }


def test_likelihoods_are_means_over_problems_of_the_first_step(tmp_path, capsys):
    random = np.random.default_rng(0)
    expected: dict[str, list[float]] = {"gold": [], "explanation": [], "free": []}
    lines = []
    for problem in range(30):
        for kind, count in (("gold", 1), ("explanation", 2), ("free", 2)):
            centre = -2.0 if kind == "gold" else -1.0
            drawn = random.normal(centre, 0.1, count)
            expected[kind].append(float(np.mean(drawn)))
            lines += [sample(f"p{problem}", 1 + problem % 2, kind, float(value), 3.0) for value in drawn]
            lines.append(sample(f"p{problem}", 1, kind, -99.0, 0.0, step=1))
        lines.append(sample(f"p{problem}", 1, "free", 0.0, 0.0) | {"properties": None})
    run = tmp_path / "run"
    run.mkdir()
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_likelihoods([run])
    for kind, values in expected.items():
        estimate = found.estimate("mean_logprob", kind)
        assert estimate is not None and estimate[0] == pytest.approx(np.mean(values))
        half = 1.96 * np.std(values, ddof=1) / np.sqrt(30)
        assert estimate[1] == pytest.approx(np.mean(values) - half, abs=0.2 * half)
        assert estimate[2] == pytest.approx(np.mean(values) + half, abs=0.2 * half)
    ratio = np.mean(expected["gold"]) / np.mean(expected["explanation"])
    assert f"is {ratio:.1f} times" in sentence(found)
    picture = tmp_path / "one.png"
    assert likelihood_main([str(run), "--figure", str(picture)]) == 0
    assert cells(capsys.readouterr().out, "gold solution")[0][0] == "30"
    assert picture.stat().st_size > 10_000


def test_a_run_without_properties_is_refused(tmp_path, capsys):
    assert likelihood_main([str(tmp_path)]) == 2
    assert "algo.properties_every=1" in capsys.readouterr().err
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample("p", 1, "free", -1.0, 0.0, step=3)) + "\n")
    with pytest.raises(DataError, match=r"algo\.properties_every=1"):
        read_likelihoods([tmp_path])


def test_the_made_up_numbers_are_possible():
    """The fixtures' shape is that of a real evaluation: pass@k grows with k."""
    assert [pass_at_k(4, 1, k) for k in range(1, 5)] == pytest.approx([k / 4 for k in range(1, 5)])


def test_the_table_by_updates_has_each_evaluation_of_each_method(make_run, tmp_path):
    values = {"grpo": [0.0, 0.25, 0.5], "exp_grpo": [1.0, 0.75, 0.5]}
    for algo, of_seed in values.items():
        for seed, value in enumerate(of_seed):
            make_run(tmp_path / f"{algo}_{seed}", algo, seed, value)
    setting = collect(tmp_path).settings[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in updates_table(setting, ["GRPO", "ExP-GRPO"], "5", 4).split("\n")
    ]
    assert rows[0] == ["policy", "after 1", "after 2"]
    for row, of_seed in zip(rows[2:], values.values(), strict=True):
        half, final = np.array(of_seed) / 2, np.array(of_seed)
        assert row[1] == f"{100 * half.mean():.1f} ± {100 * half.std(ddof=1):.1f}"
        assert row[2] == f"{100 * final.mean():.1f} ± {100 * final.std(ddof=1):.1f}"


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
def searched(tmp_path, make_run):
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
def test_a_search_goes_one_rate_beyond_an_edge(searched, make_run, monkeypatch, values, beyond):
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
def test_methods_that_cannot_be_compared_are_refused(searched, make_run, capsys, algo, seed, settings, words):
    make_run(searched / "runs" / "grpo" / "0.0002" / "0", "grpo", 0, 0.5)
    make_run(searched / "runs" / algo / "0.0002" / "1", algo, seed, 0.5, **({"trainer.steps": 20} | settings))
    assert ladder_page.main([str(searched), "--page", str(searched / "page.md")]) == 2
    assert words in capsys.readouterr().err


def test_the_families_page_has_intervals_rates_and_tokens(searched, make_run):
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
    assert "| GRPO |  | 25.0 | **50.0** | 50.0 |  |" in page and "| POPE |  | 100.0 |  |  |  |" in page
    assert "rate tried is the best" not in page
    assert "highest is LUFFY with 75.0." in page and (searched / "page_curves.png").exists()


def test_the_page_says_what_was_trained_on_and_keeps_words(searched, make_run):
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
    assert text.count("So it is.") == 1 and text.count("## Trained on level 5") == 1 and "former" not in text


def test_an_interval_is_students():
    """Two values 0.4 and 0.6: mean 0.5, deviation of the mean 0.1, t = 12.7, cut at 0 and 1; scipy agrees on t."""
    assert ladder_page.interval([0.4, 0.6]) == (0.5, 0.0, 1.0)
    from scipy.stats import t

    for n, factor in ladder_page.T_95.items():
        assert factor == pytest.approx(t.ppf(0.975, n - 1), abs=1e-3)
    values = [i / 25 for i in range(25)]
    mean, _, high = ladder_page.interval(values)
    assert high - mean >= t.ppf(0.975, 24) * np.std(values, ddof=1) / 5
    values = [0.5, 0.51, 0.52]
    mean, low, high = ladder_page.interval(values)
    assert (high - mean, mean - low) == pytest.approx([t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5] * 2, rel=1e-3)
