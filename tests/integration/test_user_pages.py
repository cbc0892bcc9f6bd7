"""Follows each page of docs/start in a fresh working copy: writes every file and runs every command."""

import json
from itertools import takewhile
from pathlib import Path

import pytest

from tests.user_pages import PAGES, WorkingCopy, WrittenFile, expected_code, not_shown, parse

pytestmark = pytest.mark.slow


def follow(page: str, folder: Path, seconds: float = 900, instead: tuple[str, str] = ("", "")) -> Path:
    """Does what a page says and checks that each command ends and prints as the page shows, within `seconds`.

    `instead` replaces a number in what the page shows, where the environment makes its commands shorter.
    """
    copy = WorkingCopy(folder / "copy")
    steps = parse((PAGES / f"{page}.md").read_text().replace(*instead))
    for index, step in enumerate(steps):
        if isinstance(step, WrittenFile):
            copy.write(step)
            continue
        ended = copy.run(step, seconds)
        detail = f"$ {step.text}\n{ended.output[-6000:]}"
        assert ended.code == (0 if step.text == "echo $?" else expected_code(steps, index)), detail
        missing = not_shown(step.shown, ended.output)
        assert missing is None, f"not shown: {missing}\n{detail}"
    return copy.folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def whole(run: Path) -> dict:
    """summary.json of a run that finished and exported a policy."""
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"]
    assert (Path(summary["policy"]) / "config.json").is_file()
    return summary


@pytest.mark.timeout(1800)
def test_demo(tmp_path, monkeypatch):
    """With 36 of the page's 60 updates: ExP-GRPO learns level 5 between the 24th and the 34th."""
    monkeypatch.setenv("ARGS", "trainer.steps=36")
    copy = follow("demo", tmp_path, seconds=1500, instead=("60", "36"))
    (demo,) = (copy / "runs/demo").iterdir()
    hardest = {name: whole(demo / name)["evaluation"]["pass_at_k"]["5"]["4"] for name in ("grpo", "exp_grpo")}
    assert hardest["exp_grpo"] >= hardest["grpo"] + 0.3
    assert (demo / "curves.png").stat().st_size > 10_000
    page = (copy / "runs/demo_report/report.html").read_text()
    assert str(demo / "grpo") in page and str(demo / "exp_grpo") in page


@pytest.mark.timeout(1800)
def test_own_data(tmp_path):
    copy = follow("own_data", tmp_path)
    questions, held_out = (
        {line["question"]: line for line in lines(copy / name)} for name in ("problems.jsonl", "held_out.jsonl")
    )
    run = copy / "runs/mine"
    summary = whole(run)
    assert summary["steps_done"] == 4
    samples = lines(run / "samples.jsonl")
    assert {line["step"] for line in samples} == {0, 1, 2, 3}
    for line in samples:
        assert line["answers"] == [questions[line["question"]]["answer"]]
        assert line["level"] == questions[line["question"]]["hardness"]
    assert summary["evaluation"]["problems"] == {"1": 1, "2": 1, "3": 1, "4": 1, "all": 4}
    evaluated = copy / "runs/mine_evaluated"
    assert sorted(json.loads((evaluated / "evaluation.json").read_text())["by_kind"]) == ["long", "short"]
    drawn = lines(evaluated / "samples.jsonl")
    assert len(drawn) == 16 * len(held_out)
    assert sorted({tuple(line["answers"]) for line in drawn}) == sorted((p["answer"],) for p in held_out.values())


def expected_reward(text: str, answer: str) -> tuple[str, float | None]:
    """The outcome and reward that the page promises for its two classes, computed independently."""
    _, mark, rest = text.rpartition("A:")
    stated = rest.split(".")[0] if mark and "." in rest else ""
    if not stated:
        return "no_answer", 0.0
    if stated[0] in "19":
        return {"1": "error", "9": "timeout"}[stated[0]], None
    right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(stated, answer, strict=False)))
    return ("correct", 1.0) if stated == answer else ("wrong", 0.5 * right / len(answer))


@pytest.mark.timeout(1800)
def test_own_reward(tmp_path):
    copy = follow("own_reward", tmp_path)
    run = copy / "runs/my_reward"
    assert whole(run)["steps_done"] == 2
    seen = [line for line in lines(run / "samples.jsonl") if line["kind"] in ("free", "explanation")]
    assert len(seen) == 2 * 8 * (4 + 1)
    for line in seen:
        outcome, reward = expected_reward(line["text"], line["answers"][0])
        assert (line["outcome"], line["reward"]) == (outcome, pytest.approx(reward))
    assert {"correct", "wrong", "error", "timeout"} <= {line["outcome"] for line in seen}
    assert any(0 < line["reward"] < 0.5 for line in seen if line["outcome"] == "wrong")


@pytest.mark.timeout(1800)
def test_own_sweep(tmp_path):
    copy = follow("own_sweep", tmp_path)
    sweep = copy / "runs/my_sweep"
    for number, algorithm in enumerate(("grpo", "exp_grpo")):
        summary = whole(sweep / str(number))
        assert (summary["algorithm"], summary["steps_done"]) == (algorithm, 2)
        assert len(lines(sweep / str(number) / "metrics.jsonl")) == 2, "a job was run twice"
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert [job["ended"] for job in jobs] == ["finished before", "finished before"]
    assert all(job["objective"] is not None for job in jobs)
    page = (copy / "runs/my_sweep_report/report.html").read_text()
    assert str(sweep / "0") in page and str(sweep / "1") in page
