"""What the errors of bounded waits say, without any actor: the last meaningful log line, and one shared deadline."""

import pytest

from expo_ray.runtime import waits
from expo_ray.runtime.process import Place
from expo_ray.runtime.waits import Deadline, Waiter

BAR = "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 52.17it/s]"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("loading\nCUDA out of memory\n\n", "CUDA out of memory"),
        (f"CUDA out of memory\n{BAR}\n", "CUDA out of memory"),
        ("no space left\n\rProcessed: 0it [00:00, ?it/s]\r 50%|##   | 1/2 [00:01<00:01,  1.1s/it]\n", "no space left"),
        ("step 3 of [12:30] done\n", "step 3 of [12:30] done"),
        (BAR, BAR),
        ("", "(empty)"),
        (" \n\r\n", "(empty)"),
        (None, "(no log here)"),
    ],
)
def test_the_last_log_line_is_not_a_progress_bar(tmp_path, log, expected):
    if log is not None:
        (tmp_path / "rollout-0.log").write_text(log)
    assert Waiter(str(tmp_path)).last_line("rollout-0") == expected


def test_an_expired_wait_names_actor_process_node_and_log_line(tmp_path):
    (tmp_path / "rollout-1.log").write_text(f"the reason\n{BAR}\n")
    waiter = Waiter(str(tmp_path), {"rollout-1": Place(4711, "10.0.0.2", "abc")})
    error = waiter.expired(["rollout-0", "rollout-1"], "generate for step 3", 12)
    assert error.actors == ["rollout-0", "rollout-1"]
    assert str(error) == (
        "generate for step 3: no answer from rollout-0, rollout-1 within 12 s. rollout-0: log ends: (no log here); "
        "rollout-1 (pid 4711 on node 10.0.0.2): log ends: the reason"
    )
    assert Waiter().last_line("rollout-1") == "(no log here)"


def test_a_deadline_is_one_bound_for_all_its_waits(monkeypatch):
    now = 100.0
    monkeypatch.setattr(waits.time, "monotonic", lambda: now)
    deadline = Deadline(10)
    assert (deadline.seconds, deadline.left) == (10, 10)
    now = 107.5
    assert deadline.left == 2.5
    now = 111.0
    assert (deadline.seconds, deadline.left) == (10, 0)
