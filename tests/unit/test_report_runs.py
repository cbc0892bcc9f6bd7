"""What the report reads: incomplete run folders, groups over seeds, curves, samples and their use in training."""

import json
from dataclasses import replace

import numpy as np
import pytest
from algorithm_cases import group
from omegaconf import OmegaConf
from report_cases import metric_lines, sample_line, write_run

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.properties import GroupProperties, SampleProperties
from expo_ray.config.algorithms import samples_completions
from expo_ray.config.errors import DataError
from expo_ray.config.schema import Config
from expo_ray.driver.record import sample_lines
from expo_ray.messages import Group, Score, Verdict
from expo_ray.reporting.charts import moving_mean, over_seeds
from expo_ray.reporting.groups import differences, group_runs
from expo_ray.reporting.runs import find_runs, read_run
from expo_ray.reporting.samples import MAX_CHARACTERS, Replay, read_samples, recorded_groups, thinned
from expo_ray.reporting.terminal import table_by_level


def test_broken_lines_are_left_out_and_told(tmp_path):
    folder = write_run(tmp_path / "a")
    lines = [b'{"step": 0, "x": 1.5}', b"not json", b'["no object"]', b'{"x": 2}', b'{"step": 1, "x": null}', b""]
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines) + b'\n{"step": 2, "x": 2.5, "t": "\xc3')
    run = read_run(folder)
    assert run.curve("x") == {0: 1.5}
    assert run.steps_done == 2
    assert run.notes == [
        "metrics.jsonl: its last line is not complete yet and is left out",
        "metrics.jsonl: 3 broken lines are left out (line 2, 3, 4)",
    ]


def test_a_torn_summary_is_none(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "summary.json").write_text('{"finished": tr')
    assert read_run(folder).summary == {}


def test_a_last_line_without_its_end_counts_if_it_is_whole(tmp_path):
    folder = write_run(tmp_path / "a", metrics=metric_lines(2))
    file = folder / "metrics.jsonl"
    file.write_text(file.read_text().rstrip("\n"))
    assert read_run(folder).steps_done == 2 and read_run(folder).notes == []


def test_folders_that_hold_runs_stand_for_them(tmp_path):
    for name in ("0", "1", "2", "10"):
        write_run(tmp_path / "sweep" / name)
    (tmp_path / "sweep/evaluation").mkdir()
    for name in ("config.yaml", "plan.txt", "evaluation.json"):
        (tmp_path / "sweep/evaluation" / name).write_text("{}")
    found = find_runs([tmp_path / "sweep/1", tmp_path / "sweep", tmp_path / "sweep/1/"])
    assert [run.name for run in found] == ["1", "0", "2", "10"]
    with pytest.raises(DataError, match="no such folder"):
        find_runs([tmp_path / "absent"])


def test_runs_that_differ_only_in_their_seed_are_one_group(tmp_path):
    for i, (algo, seed, beta) in enumerate([("exp_grpo", 10, 0.04), ("grpo", 0, 0.04), ("exp_grpo", 2, 0.04)]):
        write_run(tmp_path / str(i), algo, seed, algo__beta=beta, run_name=f"n{i}", logging__samples_per_step=i)
    write_run(tmp_path / "3", "exp_grpo", 0, algo__beta=0.5)
    groups = group_runs([read_run(tmp_path / str(i)) for i in range(4)])
    assert [group.label for group in groups] == ["ExP-GRPO (beta=0.04)", "GRPO", "ExP-GRPO (beta=0.5)"]
    assert [group.seeds for group in groups] == [[2, 10], [0], [0]]
    assert differences([groups[0].settings, groups[2].settings]) == {"algo.beta": ["0.04", "0.5"]}


def test_curves_over_seeds_against_numpy():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 50))
    curves = [dict(enumerate(row)) for row in values.tolist()]
    found = over_seeds(curves)
    assert found["mean"] == pytest.approx(values.mean(axis=0), rel=1e-6)
    assert found["low"] == pytest.approx(values.min(axis=0), rel=1e-6)
    assert found["high"] == pytest.approx(values.max(axis=0), rel=1e-6)
    assert "n" not in found
    smooth = moving_mean(curves[0], 5)
    expected = [np.mean(values[0][max(0, i - 4) : i + 1]) for i in range(50)]
    assert [smooth[i] for i in range(50)] == pytest.approx(expected)


def test_runs_of_different_length_say_how_many_they_are():
    found = over_seeds([{0: 1.0, 1: 2.0, 2: 3.0}, {0: 3.0}])
    assert found == {"x": [0, 1, 2], "mean": [2.0, 2.0, 3.0], "low": [1, 2, 3], "high": [3, 2, 3], "n": [2, 1, 1]}


def test_long_curves_are_thinned_to_recorded_points():
    curve = {step: step / 7 for step in range(1001)}
    found = over_seeds([curve], max_points=100)
    assert len(found["x"]) <= 101 and found["x"][0] == 0 and found["x"][-1] == 1000
    assert found["mean"] == pytest.approx([curve[step] for step in found["x"]], rel=1e-7)


def test_samples_stay_whole_groups_within_the_limit(tmp_path):
    lines = [
        sample_line(kind, "x" * (MAX_CHARACTERS + 5), step=step, uid=f"p{prompt}")
        for step in range(20)
        for prompt in range(2)
        for kind in ("free", "free", "free", "free", "explanation")
    ]
    run = read_run(write_run(tmp_path / "a", samples=lines))
    found = read_samples(run, limit=50)
    assert found.recorded == 200 and found.shown == 50
    assert [(p["step"], p["uid"]) for p in found.prompts] == [(step, "p0") for step in range(0, 20, 2)]
    assert all(len(p["samples"]) == 5 for p in found.prompts)
    text = found.prompts[0]["samples"][0]["text"]
    assert text.startswith("x" * MAX_CHARACTERS + " [") and "5 more characters" in text
    assert thinned([[{}] * 9], limit=2) == ([[{}] * 9], 9)


def test_two_groups_of_one_problem_in_a_step_are_two():
    kinds = ("free", "explanation", "gold", "free", "explanation")
    assert [len(g) for g in recorded_groups([sample_line(kind, "t") for kind in kinds])] == [3, 2]


MEASURED = SampleProperties(-1.0, -2.0, 0.5, 0.1)


@pytest.mark.parametrize("scope", ["every", "all_wrong"])
@pytest.mark.parametrize("name", ["grpo", "exp_grpo", "sft_gt_grpo", "luffy", "exp_dpo", "dpo_gt", "explanation_sft"])
def test_uses_told_from_the_file_are_those_of_the_training_batch(name, scope):
    """The recorded lines of real groups, written and read as JSON, against the batch made from the groups."""
    config = Config()
    config.algo.name, config.algo.explanation_scope, config.algo.explanation_filter = name, scope, True
    config.algo.kl_conditioned_coef = 1.0
    config.rollout.explanations_per_prompt = 2 if name in ("exp_grpo", "exp_dpo", "explanation_sft") else 0
    told = [("it follows that x is 5", "correct"), ("since the answer is given as 5", "correct")]
    cases = [["correct", "wrong", "wrong", "timeout"], ["wrong", "no_answer", "wrong", "wrong"], ["correct"] * 4]
    if not samples_completions(config):
        cases = [[]]
    for outcomes in cases:
        explanations = told[: config.rollout.explanations_per_prompt]
        whole = group(outcomes, lengths=[3, 4, 5, 6][: len(outcomes)], explanations=explanations)
        measured = [GroupProperties([MEASURED] * len(whole.rollout.explanations), MEASURED, [MEASURED] * 2)]
        object.__setattr__(whole.rollout.prompt.problem, "solution", "x is 5")
        if outcomes and whole.verdicts[2].outcome == "wrong":
            whole.verdicts[2] = Verdict("wrong", credit=0.25)
        lines = [json.loads(json.dumps({"step": 0} | line)) for line in sample_lines([whole], measured, config)]
        uses, _ = Replay(config).uses(lines)
        batch = make_algorithm(config).training_batch([whole], 0, [measured[0].explanations])
        gold = whole.rollout.prompt.gold_ids
        ids = [c.token_ids.tolist() for c in (*whole.rollout.completions, *whole.rollout.explanations)]
        expected = [
            [(s.term, s.advantage) for s in batch.samples if s.completion_ids.tolist() == mine]
            for mine in [*ids, gold.tolist()]
        ]
        assert uses == expected
        assert sum(map(len, uses)) == len(batch.samples)


@pytest.mark.parametrize(
    ("keys", "explained"),
    [
        (dict(name="exp_grpo"), [[("sft", 0.0)], [("sft", 0.0)], []]),
        (dict(name="exp_grpo", explanation_answer="own", explanation_cut_off="keep"), [[("sft", 0.0)]] * 3),
        (dict(name="explanation_sft"), [[("sft", 0.0)], [("sft", 0.0)], []]),
        (dict(name="exp_dpo"), [[("chosen", 0.0)], [("chosen", 0.0)], []]),
        (dict(name="exp_dpo", dpo_refresh="offline"), [[("chosen", 0.0)], [("chosen", 0.0)], []]),
        # A run of a version without these two keys.
        (dict(name="exp_grpo", explanation_answer=None, explanation_cut_off=None), [[("sft", 0.0)]] * 3),
    ],
)
def test_wrong_and_cut_off_explanations_are_used_as_they_were(tmp_path, keys, explained):
    config = Config()
    for name, value in keys.items():
        setattr(config.algo, name, value if value is not None else getattr(config.algo, name))
    config.rollout.samples_per_prompt, config.rollout.explanations_per_prompt = 2 * samples_completions(config), 3
    texts = [("it follows that x is 5", "correct"), ("it follows that x is 6", "wrong"), ("so x", "no_answer")]
    whole = group(["correct", "wrong"] if samples_completions(config) else [], explanations=texts)
    object.__setattr__(whole.rollout.explanations[2], "finish_reason", "length")
    lines = [{"step": 0} | line for line in sample_lines([whole], None, config)]
    written = OmegaConf.to_container(OmegaConf.structured(config))
    kept = {name: value for name, value in written["algo"].items() if keys.get(name, "") is not None}
    folder = write_run(tmp_path / "a", samples=lines)
    OmegaConf.save(OmegaConf.create(written | {"algo": kept}), folder / "config.yaml")
    (prompt,) = read_samples(read_run(folder), 100).prompts
    uses = [[(term, value) for term, value in sample["uses"]] for sample in prompt["samples"]]
    assert uses[-3:] == explained


def test_what_cannot_be_known_is_not_told():
    config = Config()
    free = [sample_line("free", "a", outcome) for outcome in ("correct", "wrong", "wrong", "wrong")]
    uses, reason = Replay(config).uses(free[:3])
    assert uses is None and "not all recorded" in reason
    config.algo.name, config.rollout.explanations_per_prompt = "dpo_gt", 0
    assert "gold solution" in Replay(config).uses(free)[1] and Replay(config).uses(free)[0] is None
    config.algo.name = "grpo"
    uses, reason = Replay(config).uses(free)
    # (1 - mean) / population standard deviation of the rewards 1, 0, 0, 0.
    assert uses[0] == [("policy", pytest.approx(3**0.5))] and reason == ""
    assert Replay(config).uses([sample_line("free", "a", step=None)])[0] is None


def with_functions(one: Group, **functions: list[float]) -> Group:
    return replace(one, scores={name: [Score(value) for value in of] for name, of in functions.items()})


@pytest.mark.parametrize(("functions", "weights"), [(["verifier", "f:g"], [2.0, 0.5]), (["verifier"], [2.0])])
@pytest.mark.parametrize("name", ["pope", "nurl"])
def test_guided_completions_are_used_by_what_each_function_gave(name, functions, weights):
    config = Config()
    config.algo.name, config.reward.functions, config.reward.weights = name, functions, weights
    config.algo.explanation_scope, config.rollout.explanations_per_prompt = "all_wrong", 0
    told = group(["correct", "wrong", "wrong", "correct"][-(4 - (name == "nurl")) :], explanations=[])
    free = group(["wrong"] * 4, explanations=[])
    told.verdicts[0] = Verdict("wrong", credit=0.25)
    if "f:g" in functions:
        told = with_functions(told, **{"f:g": [0.5, 0.25, 0.75, 1.0][: len(told.verdicts)]})
        free = with_functions(free, **{"f:g": [1.0, 0.5, 0.0, 0.25]})
    whole = replace(free, guided=told)
    object.__setattr__(whole.rollout.prompt.problem, "solution", "x is 5")
    lines = [json.loads(json.dumps({"step": 0} | line)) for line in sample_lines([whole], None, config)]
    uses, _ = Replay(config).uses(lines)
    batch = make_algorithm(config).training_batch([whole], 0)
    assert [use for of in uses for use in of] == [(s.term, s.advantage) for s in batch.samples]
    old = [line if line["kind"] == "free" else {k: v for k, v in line.items() if k != "rewards"} for line in lines]
    unknown, reason = Replay(config).uses(old)
    assert unknown is None and "what each reward function gave is not recorded" in reason


@pytest.mark.parametrize(("name", "known"), [("exp_grpo", [True, False]), ("nurl", [True, True])])
def test_a_group_without_explanations_is_whole_where_none_were_needed(name, known):
    config = Config()
    config.algo.name, config.algo.explanation_scope, config.rollout.explanations_per_prompt = name, "all_wrong", 1
    for outcomes, is_known in zip([["correct", "wrong", "wrong", "wrong"], ["wrong"] * 4], known, strict=True):
        lines = [sample_line("free", "a", outcome) for outcome in outcomes]
        uses, reason = Replay(config).uses(lines)
        assert (uses is not None) == is_known and ("not all recorded" in reason) != is_known


def test_table_by_level_takes_runs_without_an_end(tmp_path):
    evaluation = {"samples": 2, "problems": {"5": 1}, "pass_at_k": {"5": {"1": 0.25, "2": 0.5}}}
    done = write_run(tmp_path / "a", summary={"steps_done": 7, "evaluation": evaluation, "evaluation_before": None})
    table = table_by_level([read_run(done), read_run(write_run(tmp_path / "b"))], 2)
    assert [list(column.cells) for column in table.columns] == [["ExP-GRPO, 7 updates"], ["50.0"]]
