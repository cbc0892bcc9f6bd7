"""Threads share an engine step by step; a pause blocks all of them and loses no request."""

import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from expo_ray.rollout.engine import EngineLoop, EngineStuck
from expo_ray.rollout.receiver import WeightReceiver


class FakeEngine:
    """Each request takes as many steps as its prompt says; records steps and weights."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s, self.left, self.weights, self.inside = step_s, {}, 0, 0
        self.seen: list[tuple[str, int]] = []
        self.llm_engine, self.priorities = self, {}

    def add_request(self, request, prompt, params, priority):
        if prompt:
            self.left[request] = prompt
        self.priorities[request] = priority

    def has_unfinished_requests(self):
        return bool(self.left)

    def step(self):
        self.inside += 1
        assert self.inside == 1, "two threads are in the engine"
        time.sleep(self.step_s)
        done = []
        for request in list(self.left):
            self.seen.append((request, self.weights))
            self.left[request] -= 1
            if not self.left[request]:
                del self.left[request]
                done.append(SimpleNamespace(request_id=request, finished=True))
            else:
                done.append(SimpleNamespace(request_id=request, finished=False))
        self.inside -= 1
        return done


def run(loop: EngineLoop, lengths: list[int]) -> list[str]:
    with loop.turn():
        begun = loop.submit(lengths, [None] * len(lengths))
    return [output.request_id for output in loop.results(begun)]


def test_outputs_come_in_the_order_of_the_requests():
    assert run(EngineLoop(FakeEngine(), 5.0), [3, 1, 2]) == ["0", "1", "2"]


def test_a_short_request_of_another_thread_does_not_wait_for_a_long_one():
    engine = FakeEngine(step_s=0.002)
    loop = EngineLoop(engine, 30.0)
    ended: dict[str, float] = {}

    def work(name: str, length: int) -> None:
        run(loop, [length])
        ended[name] = time.monotonic()

    threads = [threading.Thread(target=work, args=("long", 200)), threading.Thread(target=work, args=("short", 2))]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join(30)
    assert ended["short"] < ended["long"]
    assert not engine.left


def test_weights_change_between_two_steps_and_unfinished_requests_continue():
    engine = FakeEngine(step_s=0.002)
    loop = EngineLoop(engine, 30.0)
    sampler = threading.Thread(target=run, args=(loop, [100]))
    sampler.start()
    time.sleep(0.03)
    loop.pause()
    loop.pause()
    before = len(engine.seen)
    engine.weights = 1
    time.sleep(0.05)
    assert len(engine.seen) == before, "a step was made during the pause"
    resumer = threading.Thread(target=loop.resume)
    resumer.start()
    resumer.join()
    sampler.join(30)
    versions = [weights for _, weights in engine.seen]
    assert len(versions) == 100
    assert versions == sorted(versions)
    assert set(versions) == {0, 1}


def test_a_pause_that_does_not_end_is_an_error_within_the_bound():
    loop = EngineLoop(FakeEngine(), 0.1)
    loop.pause()
    with pytest.raises(EngineStuck, match=r"0 s"):
        run(loop, [1])
    loop.resume()
    assert run(loop, [1]) == ["0"]


def test_an_engine_that_forgets_a_request_is_an_error():
    with pytest.raises(RuntimeError, match="requests 1 are not finished"):
        run(EngineLoop(FakeEngine(), 5.0), [2, 0])


def test_the_thread_that_paused_the_engine_may_use_it_and_goes_first():
    engine = FakeEngine(step_s=0.002)
    loop = EngineLoop(engine, 30.0, priorities=True)
    sampler = threading.Thread(target=run, args=(loop, [60]))
    sampler.start()
    time.sleep(0.03)
    loop.pause()
    with loop.turn(in_pause=True):
        begun = loop.submit([2], [None], first=True)
    assert [output.request_id for output in loop.results(begun, in_pause=True)] == begun
    assert engine.priorities == {"0": 0, begun[0]: -1}
    assert loop.paused and sampler.is_alive()
    loop.resume()
    sampler.join(30)
    assert not sampler.is_alive() and not engine.left


class FakeStream:
    """A CUDA stream that records when it is waited for."""

    def __init__(self, calls: list[tuple[str, object]]) -> None:
        self.calls = calls

    def synchronize(self):
        self.calls.append(("synchronize", None))


class RecordingLlm:
    """The calls that touch weights, each with the CUDA stream of the thread that makes it."""

    def __init__(self, calls, streams) -> None:
        self.calls, self.streams = calls, streams

    def __getattr__(self, name):
        def call(*_, **__):
            self.calls.append((name, getattr(self.streams, "now", "a thread's own stream")))

        return call


def test_what_touches_the_weights_runs_on_the_engines_stream_in_whatever_thread(monkeypatch):
    """As with trainer.async_steps: each call of a round comes in a thread that has not seen the engine's stream."""
    import torch

    calls, streams = [], threading.local()
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(streams, "now", stream))
    stream = FakeStream(calls)
    receiver = WeightReceiver()
    receiver.engine = EngineLoop(RecordingLlm(calls, streams), 5.0, stream=stream)
    request = {"update_info": {}}
    rounds = [
        partial(receiver.init_weight_transfer_engine, {"init_info": {}}),
        receiver.start_weight_update,
        partial(receiver.update_weights, request),
        partial(receiver.update_weights, request),
        partial(receiver.finish_weight_update, "1"),
    ]
    for call in rounds:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(10)
    at = {name: where for name, where in calls if name != "synchronize"}
    for name in ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"):
        assert at[name] is stream, name
    names = [name for name, _ in calls]
    assert names.count("update_weights") == 2
    # The engine's last step has read the old weights before the first new ones can arrive.
    assert names.index("synchronize") < names.index("start_weight_update") < names.index("update_weights")
