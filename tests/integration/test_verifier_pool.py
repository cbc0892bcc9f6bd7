"""The processes behind the verifier: limits, isolation, order, and what happens when one hangs or dies."""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import socket
import subprocess
import threading
import time
from typing import Any

import pytest

from expo_ray.config.schema import VerifierConfig
from expo_ray.verifier import sandbox, wire
from expo_ray.verifier.actor import VerifierActor
from expo_ray.verifier.pool import VerifierPool, VerifierStartError, _Parent
from expo_ray.verifier.tasks import Task

ME = "tests.integration.test_verifier_pool"


class Probe(Task):
    """Does in the grading process what a response asks for."""

    def extract(self, response: str) -> str | None:
        verb, _, rest = response.partition(" ")
        if verb == "spin":
            while True:
                pass
        if verb == "sleep":
            time.sleep(float(rest))
        if verb == "memory":
            return str(len(bytearray(int(rest) << 20)))
        if verb == "die":
            os._exit(3)
        if verb == "recurse":
            return self.extract(response)
        if verb == "raise":
            raise ValueError("a task may fail")
        if verb == "environment":
            return " ".join(sorted(os.environ))
        if verb == "network":
            return _attempt(lambda: socket.create_connection(("127.0.0.1", int(rest)), timeout=1))
        if verb == "program":
            return _attempt(lambda: subprocess.run(["true"], check=True))
        if verb == "fork":
            return _attempt(os.fork)
        if verb == "write":
            return _attempt(lambda: _write(rest))
        if verb == "kill":
            return _attempt(lambda: os.kill(int(rest), signal.SIGKILL))
        if verb == "pid":
            return str(os.getpid())
        if verb == "call":
            numbers = [int(number) for number in rest.split()]
            return str(ctypes.get_errno()) if _system_call(*numbers) == -1 else "done"
        if verb in ("unlink", "read", "chmod", "truncate", "rename"):
            return _attempt(FILE_ACTIONS[verb], rest)
        if verb == "more-cpu":
            return _attempt(resource.setrlimit, resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if verb == "forge":
            # A reply of its own, as far as it can know one.
            for descriptor in range(3, 64):
                with contextlib.suppress(OSError):
                    os.write(descriptor, wire.pack(["00" * wire.KEY_BYTES, 0, "correct", "x", "exact", 0.0, 0.1]))
            return "forged"
        return response or None

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> tuple[bool, str]:
        return extracted == gold, "text"


FILE_ACTIONS = {
    "unlink": os.unlink,
    "read": lambda path: os.close(os.open(path, os.O_RDONLY)),
    "chmod": lambda path: os.chmod(path, 0o777),
    "truncate": lambda path: os.truncate(path, 0),
    "rename": lambda path: os.rename(path, path + ".moved"),
}


def _system_call(*numbers: int) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(*numbers))


def _attempt(action: Any, *arguments: Any) -> str:
    try:
        action(*arguments)
    except (OSError, ValueError) as error:
        return f"refused {type(error).__name__}"
    return "done"


def _write(path: str) -> None:
    with open(path, "w") as file:
        file.write("x" * 100)


@pytest.fixture(scope="module")
def actor():
    os.environ["EXPO_TEST_SECRET"] = "do not inherit"
    made = VerifierActor(VerifierConfig(name=f"{ME}:Probe", processes=2, timeout_s=1.0, memory_mib=512))
    yield made
    made.close()
    del os.environ["EXPO_TEST_SECRET"]


def _one(actor: VerifierActor, response: str, gold: str = "x"):
    return actor.judge([(response, (gold,), {})])[0]


def test_results_come_back_in_order_whoever_is_slow(actor: VerifierActor) -> None:
    items = [(f"{'sleep 0.05' if index % 7 == 0 else index}", (str(index),), {}) for index in range(100)]
    verdicts = actor.judge(items)
    expected = ["wrong" if index % 7 == 0 else "correct" for index in range(100)]
    assert [verdict.outcome for verdict in verdicts] == expected


def test_several_golds(actor: VerifierActor) -> None:
    assert actor.judge([("b", ("a", "b"), {}), ("c", ("a", "b"), {})])[0].outcome == "correct"
    assert actor.judge([("c", ("a", "b"), {})])[0].outcome == "wrong"


def test_a_response_that_computes_beyond_its_limit_is_wrong_and_the_process_is_replaced(actor: VerifierActor) -> None:
    before = actor.ping()
    start = time.monotonic()
    verdicts = actor.judge([("spin", ("x",), {}), *[(f"item {i}", (f"item {i}",), {}) for i in range(50)]])
    assert time.monotonic() - start < 20  # it would compute for minutes
    assert [verdict.outcome for verdict in verdicts] == ["wrong"] + ["correct"] * 50
    assert verdicts[0].method == "limit"
    after = actor.ping()
    assert after["alive"] == 2
    assert after["restarts"] == before["restarts"] + 1


def test_memory_has_a_limit(actor: VerifierActor) -> None:
    assert _one(actor, "memory 10", str(10 << 20)).outcome == "correct"
    assert _one(actor, "memory 600").outcome == "wrong"
    assert actor.ping()["alive"] == 2


def test_cpu_has_a_limit(actor: VerifierActor) -> None:
    pid = actor.ping()["pids"][0]
    with open(f"/proc/{pid}/limits") as file:
        limits = {line[:26].strip(): line[26:].split()[0] for line in file}
    _one(actor, "pid")
    assert limits["Max address space"] == str(512 << 20)
    assert limits["Max file size"] == "0"


@pytest.mark.parametrize("response", ["die", "recurse", "raise"])
def test_a_death_or_failure_that_the_response_causes_is_wrong(actor: VerifierActor, response: str) -> None:
    verdicts = actor.judge([(response, ("x",), {}), ("fine", ("fine",), {})])
    assert [verdict.outcome for verdict in verdicts] == ["wrong", "correct"]


def test_no_network_no_programs_no_files(actor: VerifierActor, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _one(actor, f"network {port}").extracted.startswith("refused")
    assert _one(actor, "program").extracted.startswith("refused")
    assert _one(actor, "fork").extracted.startswith("refused")
    assert _one(actor, f"kill {os.getpid()}").extracted.startswith("refused")
    assert _one(actor, f"write {tmp_path}/file").extracted.startswith("refused")
    assert actor.ping()["isolation"], "no isolation layer is in force"


@pytest.mark.parametrize("action", ["unlink", "chmod", "truncate", "rename"])
def test_files_cannot_be_changed(actor: VerifierActor, tmp_path, action: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    assert _one(actor, f"{action} {victim}").extracted.startswith("refused")
    assert victim.read_text() == "keep me"


def test_what_is_not_the_interpreters_cannot_be_read(actor: VerifierActor, tmp_path) -> None:
    if not {"landlock", "mounts"} & set(actor.ping()["isolation"]):
        pytest.skip("the kernel has neither Landlock nor mount namespaces")
    secret = tmp_path / "secret"
    secret.write_text("gold answers")
    assert _one(actor, f"read {secret}").extracted.startswith("refused")


@pytest.mark.parametrize("name", ["tkill", "tgkill", "pidfd_send_signal", "io_uring_setup", "process_vm_writev"])
def test_more_system_calls_are_refused(actor: VerifierActor, name: str) -> None:
    if "seccomp" not in actor.ping()["isolation"]:
        pytest.skip("the kernel has no seccomp filter")
    number = sandbox._DENIED[name][sandbox._ARCHITECTURES[platform.machine()][0]]
    # EPERM, and not EINVAL or ESRCH: it is the filter that refuses.
    assert _one(actor, f"call {number} 1 1 0 0 0").extracted == "1"


def test_the_cpu_limit_is_hard(actor: VerifierActor) -> None:
    assert _one(actor, "more-cpu").extracted.startswith("refused")
    soft, hard = resource.prlimit(actor.ping()["pids"][0], resource.RLIMIT_CPU)
    assert soft == hard != resource.RLIM_INFINITY


def test_items_under_way_survive_the_loss_of_the_warmed_parent(monkeypatch) -> None:
    pool = VerifierPool(VerifierConfig(name=f"{ME}:Probe", processes=2, timeout_s=20.0))
    fork, lost = _Parent.fork, [True]

    def lost_once(parent: _Parent):
        if len(pool._processes) == 1 and lost:
            lost.clear()
            raise VerifierStartError("it is gone")
        return fork(parent)

    monkeypatch.setattr(_Parent, "fork", lost_once)
    try:
        verdicts = pool.judge([("sleep 2", ("sleep 2",), {}), ("die", ("x",), {}), ("fine", ("fine",), {})])
    finally:
        pool.close()
    assert not lost and [verdict.outcome for verdict in verdicts] == ["correct", "wrong", "correct"]


def test_a_forged_reply_is_not_believed(actor: VerifierActor) -> None:
    verdicts = actor.judge([("forge", ("x",), {}), ("fine", ("fine",), {})])
    assert [verdict.outcome for verdict in verdicts] == ["wrong", "correct"]


class Evaluates(Task):
    """A scorer that runs the answer, as some of reasoning-gym's do."""

    runs_answers = True
    right = "42"

    def extract(self, response: str) -> str | None:
        return response

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> tuple[bool, str]:
        return str(eval(extracted, {"task": self, "os": os})) == type(self).right, "text"


@pytest.fixture(scope="module")
def evaluating():
    made = VerifierActor(VerifierConfig(name=f"{ME}:Evaluates", processes=1, timeout_s=2.0))
    yield made
    made.close()


def test_an_answer_that_runs_as_code_changes_no_later_item(evaluating: VerifierActor) -> None:
    replace = "[setattr(type(task), 'right', 'I do not know'), 1][1]"
    items = [(replace, ("42",), {}), *[(f"'I do not know' + ''*{index}", ("42",), {}) for index in range(9)]]
    verdicts = evaluating.judge([*items, ("6*7", ("42",), {})])
    assert [verdict.outcome for verdict in verdicts] == ["wrong"] * 10 + ["correct"]


@pytest.mark.parametrize(
    "attack",
    [
        "os._exit(0)",
        "[None for _ in iter(int, 1)]",
        "os.fork()",
        "os.kill(os.getppid(), 9)",
        "[os.write(fd, b'\0\0\0\2[]') for fd in range(3, 64)]",
        "open('/tmp/expo_ray_evaluated', 'w').write('x')",
    ],
)
def test_an_answer_that_runs_as_code_harms_itself_only(evaluating: VerifierActor, attack: str) -> None:
    verdicts = evaluating.judge([(attack, ("42",), {}), (f"42 + 0*len({attack!r})", ("42",), {})])
    assert [verdict.outcome for verdict in verdicts] == ["wrong", "correct"]
    assert not os.path.exists("/tmp/expo_ray_evaluated")


def test_no_inherited_secrets(actor: VerifierActor) -> None:
    names = _one(actor, "environment").extracted.split()
    assert "EXPO_TEST_SECRET" not in names
    assert not [name for name in names if "TOKEN" in name or "KEY" in name or "SECRET" in name]


def test_killing_a_process_in_mid_batch_loses_nothing(actor: VerifierActor) -> None:
    items = [(f"sleep 0.01 {index}".replace(f" {index}", "" if index % 2 else "1"), ("x",), {}) for index in range(4)]
    items += [(f"item {index}", (f"item {index}",), {}) for index in range(3000)]
    pids = actor.ping()["pids"]
    killer = threading.Timer(0.05, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids])
    killer.start()
    verdicts = actor.judge([("sleep 0.3", ("sleep 0.3",), {}), *items])
    killer.join()
    assert len(verdicts) == len(items) + 1
    assert [verdict.outcome for verdict in verdicts[-3000:]] == ["correct"] * 3000
    assert not set(pids) & set(actor.ping()["pids"])


def test_repeats_come_from_the_cache(actor: VerifierActor) -> None:
    items = [("sleep 0.02", (f"gold {index}",), {}) for index in range(20)]
    actor.judge(items)
    again = actor.judge(items)
    assert {verdict.outcome for verdict in again} == {"wrong"}
    assert all(verdict.ms == 0.0 for verdict in again)


def test_processes_die_with_their_owner() -> None:
    made = VerifierActor(VerifierConfig(name=f"{ME}:Probe", processes=1))
    pids = made.ping()["pids"]
    made.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_the_warmed_parent_is_replaced_too() -> None:
    made = VerifierActor(VerifierConfig(name=f"{ME}:Probe", processes=1))
    try:
        made.ping()
        os.kill(made._pool._parent.process.pid, signal.SIGKILL)
        time.sleep(0.2)
        assert _one(made, "fine", "fine").outcome == "correct"
        assert made.ping()["alive"] == 1
    finally:
        made.close()


def test_one_percent_that_hang_cost_their_timeouts_only(actor: VerifierActor) -> None:
    hanging: list[Any] = [(f"sleep 0.0042{index}", ("x",), {}) for index in range(1000)]
    for index in range(0, 1000, 100):
        hanging[index] = (f"sleep 600{index}", ("x",), {})
    start = time.monotonic()
    verdicts = actor.judge(hanging)
    # Each of the ten would sleep for 600 s. `python -m bench.verifier hang` measures what they cost.
    assert time.monotonic() - start < 60
    assert sum(verdict.outcome == "timeout" for verdict in verdicts) == 10
    assert actor.ping()["alive"] == 2
