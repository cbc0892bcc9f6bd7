"""What the errors of bounded waits say, without any actor: the last meaningful log line, and one shared deadline."""

import pytest
import ray.exceptions
from simulated_ray import Clock, Ref

from expo_ray.config.errors import ConfigError
from expo_ray.runtime import waits
from expo_ray.runtime.process import Place
from expo_ray.runtime.waits import ActorFailed, Deadline, Waiter

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


BOOM = "Traceback (most recent call last):\n  File x, line 1\n    boom()\n    ^^^^^^\nValueError: no such layer\n"
VLLM = "(EngineCore pid=7) ERROR 11-24 10:00:00 [core.py:7] "
SHARDS = "Loading safetensors checkpoint shards:   0% Completed | 0/1"
CRASH = "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n  File x\nExtension modules: a"
ABORT = "terminate called after throwing an instance of 'c10::Error'\n  what():  out of blocks\n  frame #0: x\n"
CHAINED = BOOM + "\nThe above exception was the direct cause of:\n\n" + BOOM.replace("layer", "file")
PYDANTIC = (
    "Exception raised in creation task: The actor died, ray::RolloutWorker.__init__()\n  File x\n"
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig\ncache_dtype\n"
    "  Input should be 'auto' [type=literal_error, input_value='x', input_type=str]\n    For further information"
)
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("loading\nCUDA is ready", "CUDA is ready"),
        (f"loading\n{SHARDS}\n", "loading"),
        (f"loading\n{BOOM}{SHARDS}\n{BAR}\n", "ValueError: no such layer"),
        (f"{BOOM}the engine is shut down\n{SHARDS}", "ValueError: no such layer"),
        ("".join(VLLM + line + "\n" for line in BOOM.splitlines()) + BAR, "ValueError: no such layer"),
        (CHAINED, "ValueError: no such file"),
        (BOOM + "step\n" * 30 + "step 31", "step 31"),
        (f"loading\n{CRASH}\n", "Fatal Python error: Segmentation fault"),
        (ABORT, "what():  out of blocks"),
        (f"{MEMORY}\n{BAR}\nbye", MEMORY),
        (
            f"{CHAINED}{PYDANTIC}",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig: "
            "cache_dtype Input should be 'auto'",
        ),
        ("", "(empty)"),
        (None, "(no log here)"),
    ],
)
def test_the_cause_of_a_death_is_shown_not_what_stands_last(tmp_path, log, expected):
    if log is not None:
        (tmp_path / "rollout-0.log").write_text(log)
    assert Waiter(str(tmp_path)).cause("rollout-0") == expected


class Gone(ray.exceptions.ActorDiedError):
    """As Ray makes it of an exception in an actor's constructor, whose text it holds, without the exception."""

    def __init__(self, text: str) -> None:
        error = ValueError("no layer of that name\nor of another")
        super().__init__(ray.exceptions.RayTaskError("A", text, error, proctitle="ray::A", pid=1, ip="1.2.3.4"))


def test_an_actor_that_cannot_be_constructed_says_what_it_raised(tmp_path, monkeypatch):
    (tmp_path / "rollout-0.log").write_text(f"loading\n{SHARDS}\n")
    clock = Clock()
    monkeypatch.setattr(waits, "ray", clock)
    monkeypatch.setattr(waits, "time", clock)
    with pytest.raises(ActorFailed) as raised:
        Waiter(str(tmp_path)).gather({"rollout-0": Ref(1.0, Gone(BOOM))}, "starting rollout-0", 9)
    assert str(raised.value) == (
        "starting rollout-0: rollout-0 died: its constructor raised ValueError: no such layer. Its log says: loading"
    )


def test_wrong_input_found_by_an_actor_ends_every_kind_of_wait(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(waits, "ray", clock)
    monkeypatch.setattr(waits, "time", clock)
    refs = {"reward-0": Ref(1.0, ray.exceptions.RayTaskError("f", "", ConfigError("reward.functions=x: no such file")))}
    for wait in (Waiter().gather, Waiter().settle):
        with pytest.raises(ConfigError, match="no such file"):
            wait(refs, "scoring", 9)


def test_a_deadline_is_one_bound_for_all_its_waits(monkeypatch):
    now = 100.0
    monkeypatch.setattr(waits.time, "monotonic", lambda: now)
    deadline = Deadline(10)
    assert (deadline.seconds, deadline.left) == (10, 10)
    now = 107.5
    assert deadline.left == 2.5
    now = 111.0
    assert (deadline.seconds, deadline.left) == (10, 0)
