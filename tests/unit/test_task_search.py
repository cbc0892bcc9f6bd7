"""The search for a task: made problems against their own statements, grading, and the table's arithmetic."""

import json
import random
import re
import string
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy.stats import binomtest

from bench.task_search import sample as sampling
from bench.task_search.__main__ import main
from bench.task_search.grade import Graded, table, wilson
from bench.task_search.levels import LEVELS
from bench.task_search.made import MAKERS, subset_sum
from expo_ray.verifier.tasks import make_task

MADE = [level for level in LEVELS if level.task in MAKERS]


@pytest.mark.parametrize("level", MADE, ids=lambda level: level.name)
def test_made_solutions_check_the_answer_and_are_graded_as_right(level):
    task = make_task("math", {"name": "math"})
    problems = level.problems(40, seed=3)
    assert len({problem.question for problem in problems}) == len(problems)
    for problem in problems:
        for left, right in re.findall(r"([\d*+^ -]*\d) = (\d+(?: [*+] \d+)*)(?![\d*+])", problem.solution):
            assert eval(left.replace("^", "**")) == eval(right), problem.solution
        said = task.extract(problem.solution)
        assert said is not None and task.grade(said, problem.answers[0], {})[0]


def test_a_subset_is_the_only_one_with_its_sum():
    for seed in range(20):
        question, answer, _ = subset_sum(random.Random(seed), 9, 3)
        *numbers, wanted = map(int, re.findall(r"\d+", question.split("numbers")[1]))
        fitting = [set(of) for of in combinations(numbers, 3) if sum(of) == wanted]
        assert fitting == [set(map(int, answer.split(", ")))]


@pytest.mark.parametrize("level", [of for of in LEVELS if of.task in ("caesar", "digit_code")], ids=lambda of: of.name)
def test_a_code_is_undone_sign_by_sign(level):
    signs = string.digits if level.task == "digit_code" else string.ascii_lowercase
    for problem in level.problems(40, seed=3):
        shift = int(re.search(r"forward by (\d+)", problem.question)[1])
        given = re.search(r"which gave ([\w ]+)\.", problem.question)[1].replace(" ", "")
        pairs = re.findall(r"(\w) ?-> ?(\w)", problem.solution)
        assert ["".join(of) for of in zip(*pairs, strict=True)] == [given, problem.answers[0]]
        assert all(signs[(signs.index(plain) + shift) % len(signs)] == moved for moved, plain in pairs)


def test_the_problems_of_a_level_follow_from_the_seed():
    for level in MADE[0], LEVELS[-1]:
        assert level.problems(3, seed=1) == level.problems(5, seed=1)[:3] != level.problems(3, seed=2)


@pytest.mark.parametrize(("right", "count"), [(0, 40), (1, 40), (20, 40), (40, 40), (7, 9)])
def test_the_interval_is_wilsons(right, count):
    wanted = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def graded(free: list[list[bool]], conditioned: list[list[tuple[bool, bool, bool]]]) -> list[Graded]:
    """Samples of one level: right or not of each free one; right, stopped and leaking of each explanation."""
    found = []
    for index, (of_free, explanations) in enumerate(zip(free, conditioned, strict=True)):
        row = {"id": str(index), "task": "made", "level": 2}
        found += [Graded(row, "free", "", 10, True, right, None) for right in of_free]
        found += [
            Graded(row, "conditioned", "", 30, s, r, "the answer is given" if leaks else None)
            for r, s, leaks in explanations
        ]
    return found


def test_the_table_counts_what_a_run_could_train_on():
    explained = [(True, True, False), (True, True, True), (True, False, False), (False, True, False)]
    cells = table(graded([[False] * 8] * 24 + [[True] + [False] * 7], [explained] * 25)).splitlines()[-1].split(" | ")
    assert cells[:2] == ["| made/2", "25"]
    assert [cell.split()[0] for cell in cells[2:6]] == ["0.01", "0.04", "0.75", "0.25"]
    assert cells[6:] == ["0.25", "0.25", "30", "right |"]


def test_a_level_that_is_solved_freely_does_not_qualify():
    conditioned = [[(True, True, False)]] * 10
    assert table(graded([[False] * 8] * 10, conditioned)).endswith("| right, usable |")
    assert table(graded([[False] * 8] * 9 + [[False] * 7 + [True]], conditioned)).endswith("|  |")


def test_a_level_with_fewer_samples_says_so_and_does_not_qualify():
    explained = [[(True, True, False)]] * 9
    few = [replace(each, row=each.row | {"level": 3}) for each in graded([[False] * 2] * 9, explained)]
    lines = table(graded([[False] * 8] * 9, explained) + few).splitlines()
    assert "free pass@8" in lines[0] and lines[2].endswith("| right, usable |") and "k=" not in lines[2]
    assert ", k=2 |" in lines[3] and lines[3].endswith("|  |")
    assert "free pass@2" in table(few) and table(few).endswith("|  |")


def test_samples_are_graded_by_the_task_of_their_problem(tmp_path: Path, capsys):
    gym = next(level for level in LEVELS if level.name == "countdown/1").problems(1, seed=0)[0]
    made = MADE[0].problems(1, seed=0)[0]
    prompts, samples = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    for uid, problem in (("a", gym), ("b", made)):
        row = {
            "id": uid, "task": problem.kind, "level": problem.level, "verifier": problem.task,
            "question": problem.question, "answer": problem.answers[0], "meta": problem.meta,
        }  # fmt: skip
        texts = [f"\\boxed{{{problem.answers[0]}}}", f"The given answer is {problem.answers[0]}.", "\\boxed{1+1}"]
        drawn = [{"text": text, "tokens": 9, "stopped": True} for text in texts]
        with prompts.open("a") as file:
            file.write(json.dumps(row) + "\n")
        with samples.open("a") as file:
            file.write(json.dumps({"id": uid, "free": drawn[2:], "conditioned": drawn}) + "\n")
    assert main(["grade", "--prompts", str(prompts), "--samples", str(samples)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[cells[0], cells[2][:4], cells[4][:4], cells[5][:4], cells[6]] for cells in rows] == [
        ["| countdown/1", "0.00", "0.67", "0.33", "0.33"],
        ["| factors/1", "0.00", "0.67", "0.33", "0.33"],
    ]


class Engine:
    """Stands in for vllm.LLM and keeps the prompts that it was given."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(self, prompts, params, use_tqdm):
        self.asked += [prompt["prompt_token_ids"][0] for prompt in prompts]
        done = SimpleNamespace(text="x", token_ids=(1, 2), finish_reason="length")
        return [SimpleNamespace(outputs=[done] * of.n) for of in params]


def test_sampling_takes_the_levels_in_order_and_continues_a_file(tmp_path: Path, monkeypatch, capsys):
    rows = [
        {
            "id": f"{task}/1/{index}", "task": task, "level": 1, "stop_ids": [2], "free_ids": [10 * number + index],
            "conditioned_ids": [100 + 10 * number + index],
        }
        for number, task in enumerate("abc")
        for index in range(3)
    ]  # fmt: skip
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = Engine()
    monkeypatch.setattr(sampling, "_engine", lambda model, context: engine)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    command = ["sample", "--model", "m", "--prompts", str(prompts), "--out", str(out), "--problems", "2"]
    assert main([*command, "--levels", "c/1", "a/1"]) == 0
    assert engine.asked == [20, 21, 120, 121, 0, 1, 100, 101]
    engine.asked.clear()
    assert main([*command, "--seconds", "-1"]) == 0 and engine.asked == []
    assert main(command) == 0 and engine.asked == [10, 11, 110, 111]
    capsys.readouterr()
    for more, words in (
        (["--temperature", "0.5"], "was sampled with --temperature 1.0, not 0.5"),
        (["--tokens", "32"], "--tokens 64, not 32"), (["--free", "2"], "--free 8, not 2"),
        (["--conditioned", "2"], "--conditioned 4, not 2"), (["--levels", "d/1"], "has only a/1, b/1, c/1"),
    ):  # fmt: skip
        assert main([*command, *more]) == 2
        assert words in capsys.readouterr().err
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in written] == ["c/1/0", "c/1/1", "a/1/0", "a/1/1", "b/1/0", "b/1/1"]
    sample = {"text": "x", "tokens": 2, "stopped": False}
    assert all(row["temperature"] == 1.0 and row["max_tokens"] == 64 for row in written)
    assert all(row["free"] == [sample] * 8 and row["conditioned"] == [sample] * 4 for row in written)


@pytest.mark.parametrize(("level", "words"), [("factors/1", "all of them held out"), ("factors/99", "there are only")])
def test_levels_without_training_problems_are_refused(tmp_path: Path, capsys, level, words):
    command = ["data", "--levels", level, "--problems", "5"]
    assert main([*command, "--out", str(tmp_path / "a"), "--held-out-out", str(tmp_path / "b")]) == 2
    assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", ["anagram/2", "factors/4"])
def test_training_problems_do_not_give_held_out_ones_away(tmp_path: Path, level):
    files = [tmp_path / "training.jsonl", tmp_path / "held_out.jsonl"]
    command = ["data", "--levels", level, "--problems", "150", "--held-out", "50"]
    assert main([*command, "--out", str(files[0]), "--held-out-out", str(files[1])]) == 0
    training, held_out = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert len(held_out) == 50 and len(training) > 90
    key = "answer" if level.startswith("anagram") else "question"
    assert not {row[key] for row in training} & {row[key] for row in held_out}


def test_conditioned_questions_are_what_a_chat_model_reads_for_an_explanation(tmp_path: Path):
    files = [tmp_path / "training.jsonl", tmp_path / "held_out.jsonl"]
    command = ["data", "--levels", "factors/1", "animals/1", "--problems", "3", "--held-out", "2", "--conditioned"]
    assert main([*command, "--out", str(files[0]), "--held-out-out", str(files[1])]) == 0
    training, held_out = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert [row["kind"] for row in held_out] == ["factors"] * 2 + ["animals"] * 2
    for free, conditioned in zip(training[:6], training[6:], strict=True):
        assert conditioned["question"].startswith(f"{free['question']}\n\nThe correct answer is {free['answer']}.")
        assert conditioned["solution"] == free["solution"]
