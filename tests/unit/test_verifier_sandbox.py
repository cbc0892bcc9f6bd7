"""Each layer of the isolation alone, attacked from inside by a process that has entered only that one (1 s)."""

import ctypes
import errno
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from expo_ray.config.compose import compose_config
from expo_ray.preflight.plan import make_plan, plan_text
from expo_ray.verifier import sandbox

ROOT = Path(__file__).parents[2]
PATHS = ["/etc/passwd", str(ROOT / "README.md"), "/proc/self/environ"]


def attacked(enter: Callable[[], object], victim: Path) -> dict[str, bool]:
    """What succeeds in a forked process behind one layer: reading files, and changing `victim`."""
    planted = Path(os.__file__).with_name("planted.py")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            enter()
            done = {path: _succeeds(Path(path).read_bytes) for path in [*PATHS, str(victim)]}
            done["import"] = _succeeds(Path(os.__file__).read_bytes)
            for name, change in {
                "truncate": lambda: os.truncate(victim, 0),
                "chmod": lambda: os.chmod(victim, 0o777),
                "rename": lambda: os.rename(victim, f"{victim}.moved"),
                "unlink": lambda: os.unlink(victim),
                "create": Path(f"{victim}.new").touch,
                "library": planted.touch,
            }.items():
                done[name] = _succeeds(change)
            os.write(writing, json.dumps(done).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said, "the attacker died"
    planted.unlink(missing_ok=True)
    return dict(json.loads(said))


def _succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "victim"
    file.write_text("gold answers")
    file.chmod(0o600)
    return file


def works(layer: Callable[[], bool]) -> None:
    if not sandbox._succeeds(layer):
        pytest.skip("this kernel does not permit the layer")


def test_without_a_layer_everything_is_open(victim: Path) -> None:
    done = attacked(lambda: None, victim)
    assert all(done[name] for name in ("truncate", "chmod", "rename", "create", str(victim), *PATHS)), done


def test_mounts_hide_every_file_that_is_not_pythons_without_landlock(victim: Path) -> None:
    works(lambda: "mounts" in sandbox.isolate())
    done = attacked(sandbox.isolate, victim)
    assert {name for name, success in done.items() if success} == {"import"}
    assert victim.read_text() == "gold answers" and victim.stat().st_mode & 0o777 == 0o600


def test_landlock_alone_refuses_reading_and_changing(victim: Path) -> None:
    works(lambda: sandbox.read_only(sandbox.own_files()))
    done = attacked(lambda: sandbox.read_only(sandbox.own_files()), victim)
    # Landlock knows nothing of chmod: that is seccomp's.
    assert {name for name, success in done.items() if success} <= {"import", "chmod"}
    assert victim.read_text() == "gold answers"


def test_seccomp_alone_refuses_changing(victim: Path) -> None:
    works(sandbox.deny_system_calls)
    done = attacked(sandbox.deny_system_calls, victim)
    assert not any(done[name] for name in ("truncate", "chmod", "rename", "unlink", "create", "library"))
    assert victim.read_text() == "gold answers"


CALLS = {
    "pidfd_getfd": (438, 0, 0, 0),  # the files that another process of this user has opened
    "shmget": (29, 1, 1, 0o1600),  # its shared memory, and its keys
    "keyctl": (250, 0, -3, 0),
    "prlimit64 of the parent": (302, os.getpid(), resource.RLIMIT_NOFILE, 0),
    "getpid by x32": (sandbox._X32 | 39, 0, 0, 0),
    "prlimit64 of itself": (302, 0, resource.RLIMIT_NOFILE, 0),
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
def test_seccomp_refuses_calls_that_reach_other_processes_and_the_second_interface() -> None:
    works(sandbox.deny_system_calls)

    def error(number: int, *arguments: int) -> int:
        libc = sandbox._libc()
        return ctypes.get_errno() if libc.syscall(number, *arguments) == -1 else 0

    def found() -> bool:
        sandbox.deny_system_calls()
        return [error(*call) == errno.EPERM for call in CALLS.values()] == [True] * 5 + [False]

    assert sandbox._succeeds(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_nobody_reads_no_private_file(victim: Path) -> None:
    works(sandbox.become_nobody)
    done = attacked(sandbox.become_nobody, victim)
    assert done["/etc/passwd"] and not done[str(victim)] and not done["truncate"] and not done["unlink"]


def test_a_file_beside_an_imported_module_is_not_pythons() -> None:
    own = sandbox.own_files()
    assert not any(str(ROOT / "README.md").startswith(path) for path in own)
    assert str(ROOT / "expo_ray") in own or sys.prefix in str(ROOT)


@pytest.mark.parametrize(
    ("layers", "gap"),
    [
        (["netns", "mounts", "seccomp"], None),
        (["seccomp", "landlock"], None),
        (["seccomp"], "read the files of this user"),
        (["seccomp", "nobody"], "read files that everybody may read"),
        (["python"], "open sockets and change files and read the files of this user"),
    ],
)
def test_a_gap_is_said(layers: list[str], gap: str | None) -> None:
    assert sandbox.gap(layers) == gap
    text = plan_text(replace(make_plan(compose_config([])), gap=sandbox.gap(layers)))
    assert text.count("ISOLATION") == bool(gap)


def test_finding_out_what_can_be_had_has_a_bound(monkeypatch):
    monkeypatch.setattr(sandbox, "PROBE_S", 1)
    assert not sandbox._succeeds(lambda: bool(time.sleep(60)) or True)
