"""The file command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

from expo_ray import verify
from expo_ray.config.errors import DataError
from expo_ray.config.schema import DataConfig
from expo_ray.data.sources import Problems
from expo_ray.messages import Verdict

ROOT = Path(__file__).parent.parent.parent
LINES = [
    {"response": r"So \boxed{\frac12}", "answer": "0.5", "id": 7},
    {"response": r"So \boxed{3}", "answer": ["2", "3"], "note": "lone \ud800 surrogate"},
    {"response": r"So \boxed{4}", "answer": "5"},
    {"response": "I do not know what to say here", "answer": "5"},
]


def write(path: Path, lines: list) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_command_keeps_order_and_keys(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", LINES), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "expo_ray.verify", "--input", str(source), "--output", str(target)]
    done = subprocess.run(
        [*command, "--workers", "2", "--timeout", "5"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["correct", "correct", "wrong", "no_answer"]
    for row, line in zip(rows, LINES, strict=True):
        assert {key: row[key] for key in line} == line
        assert set(row) == {*line, "verdict", "extracted", "method", "ms"}
    assert rows[0]["extracted"] == r"\frac12"
    assert rows[3]["extracted"] is None
    closing = r"4 items, 2 correct, 1 wrong, 1 no_answer, 0 timeout, 0 error, [0-9.]+ items/s"
    assert re.fullmatch(closing, done.stdout.strip().splitlines()[-1])


def test_a_malformed_line_stops_before_anything_is_written(tmp_path: Path, capsys) -> None:
    target = tmp_path / "out.jsonl"
    for bad in (
        "{not json",
        "[1]",
        '{"response": 5, "answer": "5"}',
        '{"response": "5"}',
        '{"response": "5", "answer": []}',
        '{"response": "5", "answer": " "}',
        '{"response": "5", "answer": "half a \\ud800 pair"}',
    ):
        source = write(tmp_path / "in.jsonl", [LINES[0], bad, LINES[1]])
        assert verify.main(["--input", str(source), "--output", str(target)]) == 2
        assert "line 2" in capsys.readouterr().err
        assert not target.exists()


def test_skip_bad_goes_on_and_counts(tmp_path: Path, capsys) -> None:
    source, target = write(tmp_path / "in.jsonl", [LINES[0], "{not json", LINES[2]]), tmp_path / "out.jsonl"
    assert verify.main(["--input", str(source), "--output", str(target), "--skip-bad"]) == 0
    said = capsys.readouterr()
    assert f"1 bad lines left out: {source} line 2 is not JSON" in said.err
    assert said.out.startswith("2 items, 1 correct, 1 wrong")
    assert len(target.read_text().splitlines()) == 2


def test_an_empty_file(tmp_path: Path, capsys) -> None:
    source, target = write(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl"
    assert verify.main(["--input", str(source), "--output", str(target)]) == 0
    assert target.read_text() == ""
    assert capsys.readouterr().out.startswith("0 items")


def test_empty_lines_at_the_end_are_no_items(tmp_path: Path, capsys) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(LINES[0]) + "\n\n  \n")
    assert verify.main(["--input", str(source), "--output", str(target)]) == 0
    assert capsys.readouterr().out.startswith("1 items, 1 correct")


def test_it_takes_what_training_takes_and_refuses_what_training_refuses(tmp_path: Path, capsys) -> None:
    """The same file, read as problems and as answers to verify: both say the same of each answer."""
    taken = ["7", 7, 0.5, 1e-5, [6, "7"], " 7 ", r"\frac12"]
    refused = [True, None, [1, None], {}, float("nan"), "", [], "half a \ud800 pair"]
    target = tmp_path / "out.jsonl"
    for answer in [*taken, *refused]:
        record = {"response": "7", "question": "?", "answer": answer}
        source = tmp_path / "in.jsonl"
        source.write_text("\ufeff" + json.dumps(record) + "\n\n\n", encoding="utf-8")
        try:
            data = DataConfig(name="file", path=str(source), question_key="question", level_key=None, kind_key=None)
            (problem,) = Problems(data, 0).training
        except DataError:
            problem = None
        try:
            ((_, golds, _),) = verify.read_items(source, skip_bad=False)[1]
        except DataError:
            golds = None
        assert golds == (problem and problem.answers), answer
        assert (problem is None) == (answer in refused or answer != answer), answer
    for bad in ("true", "[1, null]"):
        source.write_text(f'{{"response": "1", "question": "?", "answer": {bad}}}\n')
        assert verify.main(["--input", str(source), "--output", str(target)]) == 2
        assert f"error: {source} line 1: key 'answer' is" in capsys.readouterr().err


def test_other_formats_and_empty_lines_between(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(LINES[:1] * 3), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("response,answer\n\\boxed{007},7\nI do not know what to say here,8\n")
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, LINES)))
    for name, verdicts in (
        ("in.parquet", ["correct"] * 3),
        ("in.csv", ["correct", "no_answer"]),
        ("in.jsonl", ["correct", "correct", "wrong", "no_answer"]),
    ):
        assert verify.main(["--input", str(tmp_path / name), "--output", str(target)]) == 0
        assert [json.loads(line)["verdict"] for line in target.read_text().splitlines()] == verdicts


def test_what_is_verified_is_written_before_the_rest(tmp_path: Path, monkeypatch, capsys) -> None:
    source, target = write(tmp_path / "in.jsonl", LINES * 3), tmp_path / "out.jsonl"
    seen: list[int] = []

    class Pool:
        def __init__(self, config) -> None:
            pass

        def judge(self, items, progress):
            seen.append(len(target.read_text().splitlines()))
            if len(seen) == 3:
                raise OSError(28, "No space left on device")
            return [Verdict("correct")] * len(items)

        def close(self) -> None:
            seen.append(-1)

    monkeypatch.setattr(verify, "VerifierPool", Pool)
    monkeypatch.setattr(verify, "PART", 5)
    assert verify.main(["--input", str(source), "--output", str(target)]) == 2
    assert seen == [0, 5, 10, -1] and len(target.read_text().splitlines()) == 10
    assert "No space left on device after 10 of 12 lines" in capsys.readouterr().err


def test_the_input_is_not_overwritten(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "in.jsonl", LINES)
    (tmp_path / "link.jsonl").symlink_to(source)
    assert verify.main(["--input", str(source), "--output", str(tmp_path / "link.jsonl")]) == 2
    assert "is the input, which would be lost" in capsys.readouterr().err
    assert len(source.read_text().splitlines()) == len(LINES)


def test_numbers_are_answers(tmp_path: Path) -> None:
    said = [("42", 42), ("0.5", 0.5), ("0.00001", 1e-5), ("7", [6, "7"]), ("3", 4)]
    lines = [{"response": rf"\boxed{{{text}}}", "answer": answer} for text, answer in said]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert verify.main(["--input", str(source), "--output", str(target)]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["correct"] * 4 + ["wrong"]
    assert [row["answer"] for row in rows] == [answer for _, answer in said]
    for bad in ("true", "NaN", "null", "[1, null]", "{}"):
        source.write_text(f'{{"response": "1", "answer": {bad}}}\n')
        assert verify.main(["--input", str(source), "--output", str(target)]) == 2


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, capsys, monkeypatch) -> None:
    source = write(tmp_path / "in.jsonl", LINES)
    monkeypatch.setattr(verify, "verify_items", lambda *_: 1 / 0)
    for target, said in ((tmp_path / "absent" / "out.jsonl", "does not exist"), (tmp_path, "this is a folder")):
        assert verify.main(["--input", str(source), "--output", str(target)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --output ") and said in error and error.count("\n") == 1


def test_percent_as_a_unit_is_an_option(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"response": r"\boxed{50\%}", "answer": "50"}])
    target = tmp_path / "out.jsonl"
    for options, verdict in (([], "wrong"), (["--percent-is-unit"], "correct")):
        assert verify.main(["--input", str(source), "--output", str(target), *options]) == 0
        assert json.loads(target.read_text())["verdict"] == verdict


def test_a_task_that_reads_columns_gets_them(tmp_path: Path, capsys) -> None:
    """Code with its tests in the same line; a task that reads none is sent none, so that equal answers stay equal."""
    code = "```python\ndef add(a, b):\n    return a + b\n```"
    lines = [{"response": code, "answer": "a + b", "tests": f"assert add(1, {k}) == 3"} for k in (2, 5)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    arguments = ["--task", "python_tests", "--timeout", "20", "--input", str(source), "--output", str(target)]
    assert verify.main(arguments) == 0, capsys.readouterr().err
    assert [json.loads(line)["verdict"] for line in target.read_text().splitlines()] == ["correct", "wrong"]
    assert [meta for _, _, meta in verify.read_items(source, skip_bad=False)[1]] == [{}, {}]
