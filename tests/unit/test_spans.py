"""Spans of several processes and threads become one trace."""

import json
import threading
import time

import pytest

from expo_ray.runtime import spans
from expo_ray.runtime.spans import open_spans, span, write_trace


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    monkeypatch.setattr(spans, "_file", None)


def sample() -> None:
    with span("generate"):
        pass


def test_nothing_is_written_before_spans_are_opened(tmp_path):
    with span("update"):
        pass
    assert write_trace(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_trace_has_a_row_for_each_thread_of_each_actor(tmp_path):
    logs = tmp_path / "logs"
    open_spans(logs, "driver")
    with span("step", step=3):
        time.sleep(0.02)
        beside = threading.Thread(target=sample, name="ahead")
        beside.start()
        beside.join()
    open_spans(logs, "learner-0")
    with pytest.raises(ValueError, match="lost"), span("update"):
        raise ValueError("lost")
    with (logs / "spans" / "learner-0.jsonl").open("a") as file:
        file.write('{"name": "torn')
    path = write_trace(tmp_path)
    assert path == tmp_path / "trace.json"
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert sorted(names.values()) == ["driver", "learner-0"]
    done = {(names[e["pid"]], e["name"]): e for e in events if e["ph"] == "X"}
    assert set(done) == {("driver", "step"), ("driver", "generate"), ("learner-0", "update")}, "a failure takes time"
    step = done["driver", "step"]
    assert step["args"] == {"step": 3}
    assert 20_000 <= step["dur"] < 5_000_000
    assert abs(step["ts"] / 1e6 - time.time()) < 60
    rows = [e["args"]["name"] for e in events if e["name"] == "thread_name" and names[e["pid"]] == "driver"]
    assert sorted(rows) == ["MainThread", "ahead"]
    assert done["driver", "generate"]["tid"] != step["tid"]


def test_a_full_disk_costs_the_trace_and_nothing_else(tmp_path, capsys):
    open_spans(tmp_path / "logs", "driver")
    with span("generate"):
        pass
    file = tmp_path / "logs" / "spans" / "driver.jsonl"
    (tmp_path / ".trace.json.partial").mkdir()
    assert write_trace(tmp_path) is None
    assert "trace.json cannot be written" in capsys.readouterr().err
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match="lost"), span("update"):
        raise ValueError("lost")
    with span("update"):
        pass
    assert capsys.readouterr().err.count("is traced no further") == 1


def test_times_nest_as_they_were_taken(tmp_path):
    open_spans(tmp_path / "logs", "driver")
    with span("outer"), span("inner"):
        time.sleep(0.01)
    events = json.loads(write_trace(tmp_path).read_text())["traceEvents"]
    outer, inner = (next(e for e in events if e["name"] == name) for name in ("outer", "inner"))
    assert outer["ts"] <= inner["ts"] + 1000
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1000
