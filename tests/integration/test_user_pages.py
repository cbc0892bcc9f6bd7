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


def expected_scores(text: str, answer: str) -> dict[str, float | None]:
    """What the page's functions give, computed independently."""
    _, mark, rest = text.rpartition("A:")
    stated = rest.split(".")[0] if mark and "." in rest else ""
    right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(stated, answer, strict=False)))
    judged = None if not stated or stated[0] == "1" else float(len(stated) == 2)
    return {
        "verifier": float(stated == answer),
        "my_rewards:digits": right / len(answer),
        "my_rewards:brevity": 1 / (1 + len(text)),
        "my_rewards:judge": judged,
    }


@pytest.mark.timeout(1800)
def test_own_reward(tmp_path):
    copy = follow("own_reward", tmp_path)
    run = copy / "runs/my_reward"
    assert whole(run)["steps_done"] == 2
    seen = [line for line in lines(run / "samples.jsonl") if line["kind"] == "free"]
    assert len(seen) == 2 * 8 * 4
    for line in seen:
        expected = expected_scores(line["text"], line["answers"][0])
        found = {name: of["value"] for name, of in line["rewards"].items()}
        assert found == {name: value if value is None else pytest.approx(value) for name, value in expected.items()}
        total = found["verifier"] + 0.5 * found["my_rewards:digits"] + 0.2 * found["my_rewards:brevity"]
        assert line["reward"] == pytest.approx(total)
    failures = [line["rewards"]["my_rewards:judge"]["failure"] for line in seen]
    assert {failure for failure in failures if failure} == {"ConnectionError: the judge does not answer"}
    metrics = lines(run / "metrics.jsonl")
    assert sum(step["reward/my_rewards:judge/failed"] for step in metrics) == sum(map(bool, failures))
    assert "the judge does not answer" in (run / "logs/reward-0.log").read_text()


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


@pytest.mark.timeout(1800)
def test_your_model(tmp_path):
    """A Qwen3 that could think, switched off, is trained from an adapter; the adapter that comes out is evaluated."""
    from safetensors.torch import load_file

    copy = follow("your_model", tmp_path)
    run = copy / "runs/my_model"
    assert whole(run)["steps_done"] == 2
    assert {line["mismatch/mean_abs"] < 1e-5 for line in lines(run / "metrics.jsonl")} == {True}
    evaluated, policy = copy / "runs/my_policy", run / "checkpoints/step_000002/policy"
    assert json.loads((evaluated / "evaluation.json").read_text())["problems"]["all"] == 5
    of_adapter, of_policy, start = (
        load_file(folder / "model.safetensors") for folder in (evaluated / "merged", policy, run / "merged")
    )
    assert of_adapter.keys() == of_policy.keys() and any(not of_policy[name].equal(start[name]) for name in start)
    assert max((of_adapter[name] - of_policy[name]).abs().max() for name in of_policy) < 1e-6
