"""What a run says of itself: what it does (status.json), what happened (events.jsonl), who runs it (owner.json)."""

import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError
from expo_ray.files import append_lines, write_whole
from expo_ray.runtime.process import Place, lives, same_start, start_of

OWNER = "owner.json"
BEAT_S, SILENT_S = 5.0, 30.0
"""An owner writes its file again every 5 s. One of another machine that does not for 30 s is gone."""
AGAIN_S = 1.0
"""Between the two interrupts that end a run which lost its folder."""
LONG_AGO_S = 600.0
"""An owner's file that is so much older than one that was written now needs no wait."""


class Status:
    """Rewrites `<folder>/status.json` at each change of phase.

    Args:
        folder: the run folder.
        places: returns the actors' places by name.
    """

    def __init__(self, folder: Path, places: Callable[[], dict[str, Place]]) -> None:
        self.path, self._places = folder / "status.json", places
        self.step = -1
        self.current = "starting"

    def enter(self, phase: str) -> str:
        """Sets the phase; returns the previous one."""
        before, self.current = self.current, phase
        self._write()
        return before

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Sets the phase for the body, then restores the previous one."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def _write(self) -> None:
        actors = {name: asdict(place) for name, place in self._places().items()}
        found = {"step": self.step, "phase": self.current, "since": time.time(), "driver": os.getpid()}
        write_whole(self.path, json.dumps(found | {"actors": actors}))


class Events:
    """Appends to `<folder>/events.jsonl` and prints what a user should see on standard error.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"

    def note(self, kind: str, sentence: str, show: bool = True, **details: Any) -> None:
        """Appends one event.

        Args:
            kind: lost, replaced, restarted, resumed, skipped, checkpoint, changed, preempted,
                reused, tracker, pushed.
            sentence: what happened.
            show: also print it.
            details: numbers and names for programs that read the file.
        """
        line = {"time": round(time.time(), 3), "event": kind, "what": sentence} | details
        append_lines(self.path, [line])
        if show:
            print(f"{kind}: {sentence}", file=sys.stderr, flush=True)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Makes this process the owner of a run folder, for the body; owner.json says so to others.

    Raises:
        ConfigError: another process owns it; one sentence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, me = folder / OWNER, _me()
    with _locked(folder):
        refuse_owned(folder)
        write_whole(path, json.dumps(me | {"beat": 0}))
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, me, ended), name="owner", daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        if _is(_read(path), me):
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time look for an owner and become one, for as long as the body takes.

    Raises:
        ConfigError: others take longer than an owner's silence.
    """
    handle, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + 2 * SILENT_S
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(f"run_dir={folder} is being taken by another process: try again") from error
                time.sleep(0.05)
            except OSError:  # NFS locks no folders: of two that start within milliseconds, the beat ends one
                break
        yield
    finally:
        os.close(handle)


def refuse_owned(folder: Path) -> None:
    """Raises ConfigError if another process owns the folder."""
    if (owner := owner_of(folder)) is not None:
        raise ConfigError(
            f"run_dir={folder} belongs to {owner}, which is running: stop that run, or give another run_dir=FOLDER"
        )


def owner_of(folder: Path) -> str | None:
    """Finds out which other process owns a run folder, "process 17 on HOST"; None if none does.

    On this machine the process is looked for; another machine's shows its life by writing the file again, for which
    this waits up to 30 s.
    """
    path, me = folder / OWNER, _me()
    found = _read(path)
    if not found or _is(found, me):
        return None
    name = f"process {found['pid']} on {found['host']}"
    if found["machine"] == me["machine"]:
        return name if lives(found["pid"], found) else None
    if _age(path) > LONG_AGO_S:
        return None
    print(f"waiting up to {SILENT_S:.0f} s for a sign of {name}, which owned {folder}", file=sys.stderr, flush=True)
    deadline = time.monotonic() + SILENT_S
    while (now := _read(path)) == found and time.monotonic() < deadline:
        time.sleep(min(1.0, SILENT_S / 10))
    return None if not now or now == found else f"process {now['pid']} on {now['host']}"


def _beat(path: Path, me: dict[str, Any], ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_S):
        if (found := _read(path)) and not _is(found, me):
            # This process did not run for a while (it was suspended, say), and another one took the folder.
            print(f"the run ends: {path} names {found.get('pid')} on {found.get('host')}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            if not ended.wait(AGAIN_S):  # a run stops at once then, and writes no checkpoint to what is not its own
                os.kill(os.getpid(), signal.SIGINT)
            return
        beat += 1
        try:
            write_whole(path, json.dumps(me | {"beat": beat}))
        except OSError as error:  # a full disk must not end the run here; the next beat may succeed
            print(f"{path} cannot be written ({error})", file=sys.stderr, flush=True)


def _me() -> dict[str, Any]:
    # Containers may share a host's name: process numbers mean the same where boot and process namespace are the same.
    machine = [socket.gethostname()]
    with suppress(OSError):  # macOS has neither
        machine.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        machine.append(os.readlink("/proc/self/ns/pid"))
    return {"host": machine[0], "pid": os.getpid(), "machine": machine} | start_of(os.getpid())


def _is(found: dict[str, Any], me: dict[str, Any]) -> bool:
    return bool(found) and all(found[key] == me[key] for key in ("host", "pid", "machine")) and same_start(found, me)


def _read(path: Path) -> dict[str, Any]:
    """An owner's file; empty if there is none, or it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    complete = isinstance(found, dict) and {"host", "pid", "started", "machine"} <= found.keys()
    return found if complete else {}


def _age(path: Path) -> float:
    """Seconds since the file was written, by the clock of its file system; 0 where that cannot be known."""
    probe = path.with_name(f".{OWNER}.{os.getpid()}.probe")
    try:
        probe.touch()
        try:
            return probe.stat().st_mtime - path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    except OSError:  # the owner's file is gone, or the folder is another user's, whose checkpoints may be read only
        return 0.0
