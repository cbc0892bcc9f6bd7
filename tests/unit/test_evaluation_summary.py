"""What an evaluation of hand-made groups comes to, and how it is asked for."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from evaluation_cases import graded, prompt, right, wrong
from rich.console import Console

from expo_ray.config.schema import Config
from expo_ray.evaluation.evaluator import Evaluator, summarise
from expo_ray.messages import Verdict
from expo_ray.reporting.runs import _with_sets, level_title
from expo_ray.reporting.terminal import evaluation_table

NO_ANSWER, LATE, FAILED = Verdict("no_answer"), Verdict("timeout"), Verdict("error")


@pytest.fixture
def found():
    return summarise(
        [
            graded(prompt("a", 1, "Algebra"), [right("5"), right("5.0"), wrong("6"), NO_ANSWER], [10, 20, 30, 100]),
            graded(prompt("b", 1, "Geometry"), [right(), wrong("6"), wrong("6"), wrong("7")]),
            graded(prompt("c", None, ""), [LATE, FAILED, NO_ANSWER, NO_ANSWER], [100, 100, 4, 4]),
        ],
        4,
    )


def test_pass_at_k_and_problems_keep_their_form(found):
    assert found.samples == 4
    assert found.problems == {"1": 2, "?": 1, "all": 3}
    assert found.pass_at_k["1"] == pytest.approx({1: 3 / 8, 2: (5 / 6 + 1 / 2) / 2, 3: (1 + 3 / 4) / 2, 4: 1.0})
    assert found.pass_at_k["?"] == {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0}
    assert found.summary()["pass_at_k"]["all"]["4"] == pytest.approx(2 / 3, abs=1e-6)


def test_scores_of_a_level(found):
    of = found.by_level["1"]
    # a: 5 has two of four votes. b: 6 has two, 5 one.
    assert of.majority_at_k[4].mean == pytest.approx(0.5)
    assert of.majority_at_k[1].mean == pytest.approx(of.pass_at_k[1].mean)
    assert of.truncated.mean == pytest.approx(1 / 8)
    assert of.no_answer.mean == pytest.approx(1 / 8)
    assert of.tokens.mean == pytest.approx((40 + 4) / 2)
    assert (of.timeouts, of.errors) == (0, 0)
    assert of.pass_at_k[1].low == 0.25
    assert of.pass_at_k[1].high == 0.5


def test_failures_are_counted_and_not_right(found):
    of = found.by_level["all"]
    assert (of.timeouts, of.errors) == (1, 1)
    assert of.pass_at_k[1].mean == pytest.approx(3 / 12)


def test_kinds(found):
    assert {kind: of.problems for kind, of in found.by_kind.items()} == {"?": 1, "Algebra": 1, "Geometry": 1}
    assert summarise([graded(prompt("a", 1), [right()])], 1).by_kind == {}


def test_several_sets_are_summarised_each_on_its_own_and_together():
    def of(name: str, uid: str, verdicts):
        one = prompt(uid, 1)
        return graded(replace(one, problem=replace(one.problem, source=name)), verdicts)

    mixed = [
        of("easy", "a", [right(), right()]),
        of("hard", "b", [wrong("6"), right()]),
        of("hard", "c", [wrong("6")] * 2),
    ]
    summary = summarise(mixed, 2).summary()
    assert {name: of["pass_at_k"]["all"]["1"] for name, of in summary["sets"].items()} == {"easy": 1.0, "hard": 0.25}
    assert {name: of["problems"] for name, of in summary["sets"].items()} == {
        "easy": {"1": 1, "all": 1},
        "hard": {"1": 2, "all": 2},
    }
    assert summary["pass_at_k"]["all"]["1"] == 0.5
    assert summarise(mixed[:1], 2).summary()["sets"] == {}
    shown = _with_sets(summary)["pass_at_k"]  # what charts and tables of the report take
    assert list(shown) == ["1", "all", "easy", "hard"] and shown["hard"] == {"1": 0.25, "2": 0.5}
    assert [level_title(level) for level in shown] == ["level 1", "all", "easy", "hard"]
    assert [level_title(level) for level in ("b", "12", "?")] == ["b", "level 12", "level ?"]


def test_without_problems_there_are_no_scores():
    summary = summarise([], 4).summary()
    assert summary["problems"] == summary["pass_at_k"] == summary["by_level"] == summary["by_kind"] == {}


def test_summary_is_json_and_complete(found):
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    of = summary["by_level"]["1"]
    assert of["accuracy"] == of["pass_at_k"]["1"] == {"mean": 0.375, "low": 0.25, "high": 0.5}
    assert summary["by_kind"]["Algebra"]["majority_at_k"]["4"]["mean"] == 1.0
    assert summary["confidence"] == 0.95


def test_intervals_of_the_whole_hold_its_mean(found):
    for of in found.by_level.values():
        for estimate in (*of.pass_at_k.values(), *of.majority_at_k.values(), of.tokens):
            assert estimate.low <= estimate.mean <= estimate.high


def printed(summary) -> str:
    out = StringIO()
    Console(file=out, width=80).print(evaluation_table("model [x] on data", summary))
    return out.getvalue()


def test_table_fits_a_terminal_and_tells_failures(found):
    text = printed(found.summary())
    assert all(
        part in text for part in ("model [x] on data", "level 1", "Geometry", "pass@4", "maj@4", "37.5", "25-50")
    )
    assert "1 (time) and 1 (error)" in text
    assert "…" not in text


@pytest.mark.parametrize(("samples", "shown"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (64, [1, 4, 16, 64])])
def test_table_shows_some_of_many_k(samples, shown):
    text = printed(summarise([graded(prompt("a", 1), [right()] * samples)], samples).summary())
    assert [k for k in range(1, samples + 1) if f"pass@{k} " in text] == shown


class Recording:
    """Stands for rollout workers and verifiers: keeps what it is asked."""

    def __init__(self):
        self.asked = []

    def generate(self, requests, sampling, seed):
        self.asked.append((requests, sampling, seed))
        return [graded(request.prompt, [right()] * request.samples).rollout for request in requests]

    def verify(self, rollouts):
        return [graded(rollout.prompt, [right()] * len(rollout.completions)) for rollout in rollouts]


def test_the_evaluator_asks_for_samples_and_no_explanations():
    config = Config()
    config.eval.samples, config.eval.temperature, config.seed = 3, 0.5, 11
    workers = Recording()
    evaluator = Evaluator(config, [prompt("a", 1), prompt("b", 2)], workers, workers)
    found = evaluator.evaluate()
    ((requests, sampling, seed),) = workers.asked
    assert [(r.prompt.problem.uid, r.samples, r.explanations) for r in requests] == [("a", 3, 0), ("b", 3, 0)]
    assert (sampling.temperature, seed[0]) == (0.5, 11)
    assert len(found.groups) == 2
    assert found.pass_at_k["all"] == {1: 1.0, 2: 1.0, 3: 1.0}


def test_a_chunk_s_seed_depends_on_seed_and_chunk_alone():
    workers = Recording()
    evaluator = Evaluator(Config(), [prompt("a"), prompt("b")], workers, workers)
    evaluator.evaluate()
    for chunk, asked in ((0, ["a"]), (1, ["b"]), (1, ["a", "b"])):
        evaluator.grade([prompt(uid) for uid in asked], chunk)
    whole, first, second, second_again = [seed for _requests, _sampling, seed in workers.asked]
    assert whole == first
    assert second == second_again
    assert first != second
