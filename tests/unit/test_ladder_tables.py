"""The ladder's tables from made-up run folders: their arithmetic against NumPy, grouping, refusals."""

import json

import numpy as np
import pytest
from ladder_cases import cells, evaluation, make_run, values_of

from bench.ladder.ablations import main
from bench.ladder.figures import heldout_curves
from bench.ladder.likelihood import main as likelihood_main
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
from expo_ray.config.errors import DataError
from expo_ray.evaluation.metrics import pass_at_k
from expo_ray.reporting.likelihood import read_likelihoods, sentence

RUNS = {"grpo": (0.0, 0.25, 0.0), "sft_gt_grpo": (0.5, 0.75, 0.25), "exp_grpo": (1.0, 0.75, 1.0)}


@pytest.fixture
def ladder(tmp_path):
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


def test_runs_are_grouped_by_what_they_were_trained_on_and_by_method_alone(ladder):
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


def test_ablations_are_named_by_what_they_change(tmp_path):
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


def test_the_section_of_ablations_is_written_again_alone(ladder, tmp_path):
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
def test_runs_that_cannot_be_compared_are_refused(ladder, settings, words):
    make_run(ladder / "methods" / "50", "exp_grpo", 5, 0.5, **settings)
    with pytest.raises(DataError, match=words):
        collect(ladder, [ladder / "base"])


def test_a_seed_that_is_there_twice_is_refused(ladder):
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


def test_the_table_by_updates_has_each_evaluation_of_each_method(tmp_path):
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
