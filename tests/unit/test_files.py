"""Files survive writers that are killed: whole or as before, and a torn line costs only itself."""

import json
import math
import os
import signal
import subprocess
import sys
import threading

import pytest

from expo_ray import files
from expo_ray.files import JsonLines, append_lines, read_lines, read_summary, write_whole

WRITER = """
import sys
from pathlib import Path
from expo_ray.files import write_whole
path, size = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for number in range(1_000_000):
    write_whole(path, str(number % 10) * size)
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path, size = tmp_path / "state.json", 1 << 21
    path.write_text("x" * size)
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(size)], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        for _ in range(20):
            content = path.read_bytes()
            assert len(content) == size and len(set(content)) == 1, "a reader saw part of a file"
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=30)
        writer.stdout.close()
        content = path.read_bytes()
        assert len(content) == size and len(set(content)) == 1
    write_whole(path, "after")
    assert path.read_text() == "after"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"], (
        "the next write takes the partial file's place"
    )


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    write_whole(path, "before é")
    assert path.read_bytes() == "before é".encode()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"after")
    assert path.read_text() == "before é"
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.json"]


def test_lines_come_back_and_what_json_cannot_hold_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert list(JsonLines(path)) == read_lines(path) == []
    append_lines(path, [])
    append_lines(path, [{"a": math.nan, "b": {"c": [1.5, -math.inf]}, "text": "π\n"}, {"a": 0}], flush_to_disk=True)
    append_lines(path, [{"a": 2}])
    assert read_lines(path) == [{"a": None, "b": {"c": [1.5, None]}, "text": "π\n"}, {"a": 0}, {"a": 2}]
    assert "π" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("cut", range(1, 17))
def test_a_torn_last_line_costs_only_itself(tmp_path, cut):
    """Cut anywhere in the second line, its own end included, and appended to afterwards."""
    path = tmp_path / "events.jsonl"
    append_lines(path, [{"event": "lost"}, {"event": "é"}])
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    os.truncate(path, start + cut)
    whole = len(content) - start - 1 <= cut
    lines = JsonLines(path)
    assert list(lines) == [{"event": "lost"}, *[{"event": "é"}] * whole]
    assert lines.torn is not whole and lines.broken == []
    assert len(lines.notes()) == (not whole)
    append_lines(path, [{"event": "next"}])
    assert list(lines) == [{"event": "lost"}, *[{"event": "é"}] * whole, {"event": "next"}]
    assert lines.torn is False and lines.broken == ([] if whole else [2])


def test_a_broken_line_in_a_record_is_an_error_and_a_torn_one_is_not(tmp_path):
    path = tmp_path / "batches.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1')
    assert read_lines(path, ("step",)) == [{"step": 0}]
    path.write_bytes(b'{"step": 0}\n{"other": 1}\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"batches\.jsonl line 2 .* step"):
        read_lines(path, ("step",))
    path.write_bytes(b'{"step": 0}\n[1]\n')
    with pytest.raises(ValueError, match=r"line 2"):
        read_lines(path)


def test_threads_that_append_at_once_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "events.jsonl"

    def write(number: int) -> None:
        for index in range(100):
            append_lines(path, [{"thread": number, "index": index, "text": "x" * 500}])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_lines(path)
    for number in range(4):
        assert [line["index"] for line in found if line["thread"] == number] == list(range(100))


def test_a_summary_is_empty_until_the_run_has_ended(tmp_path):
    assert read_summary(tmp_path) == {}
    write_whole(tmp_path / "summary.json", json.dumps({"finished": True}))
    assert read_summary(tmp_path) == {"finished": True}
    for broken, reason in (
        ("", "not complete"),
        ('{"finished": tr', "not complete"),
        ("[1]", "not an object but list"),
    ):
        (tmp_path / "summary.json").write_text(broken)
        with pytest.raises(ValueError, match=reason):
            read_summary(tmp_path)
