"""Runs the training command, kills its processes from outside, and starts the command again when it was the driver."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.plan import Kill

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_S = 0.001
LEFT_OVER_S = 40.0
"""How long processes of a killed driver may live on."""
AGENTS_LEFT_OVER_S = 150.0
"""The same for Ray's own agents, which try for a minute to report to the dead cluster."""
ALIVE_S = 20.0
"""After so many seconds without news a line says how far the run is."""


class ChaosError(AssertionError):
    """The run did not live through it."""


@dataclass
class Made:
    """A kill that was made."""

    kill: Kill
    name: str
    step: int
    hit: bool
    """The phase was still the planned one right after the kill."""
    at: float
    recovered_s: float = 0.0
    """Seconds until the next step was completed."""


@dataclass
class Chaos:
    """One run under kills.

    Args:
        overrides: of `python -m expo_ray.train`, without run_dir.
        folder: the run's folder.
        kills: what to do to it, one after the other, each after a step was completed since the last.
        seed: of the choice among processes and the moment within a phase.
        bound_s: seconds that a recovery may take.
    """

    overrides: list[str]
    folder: Path
    kills: list[Kill]
    seed: int = 0
    bound_s: float = 600.0
    made: list[Made] = field(default_factory=list)
    starts: int = 0
    _agents: list[psutil.Process] = field(default_factory=list)

    def run(self) -> None:
        """Runs to the end.

        Raises:
            ChaosError: the command failed, hung, left processes behind, or ended before all kills were made.
        """
        chance = random.Random(self.seed)
        self._start()
        waiting = list(self.kills)
        while waiting:
            self._await_progress()
            kill = waiting[0]
            made = self._kill(kill, chance)
            self.made.append(made)
            if made.hit:
                waiting.pop(0)
            done = len(self.kills) - len(waiting)
            how = "" if made.hit else " (missed the phase: again)"
            print(f"kill {done} of {len(self.kills)}: {made.name}, {kill.phase} of step {made.step}{how}", flush=True)
        if self.made:
            self._await_progress()
        self._await(lambda: self._process.poll() is not None, "the end of the run")
        if self._process.returncode != 0:
            raise ChaosError(f"the command ended with {self._process.returncode}: {self.stderr()[-3000:]}")
        _none_left(self._agents, AGENTS_LEFT_OVER_S)

    def stderr(self) -> str:
        """What the command wrote to standard error, in all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.folder.with_suffix(".stderr")

    def _start(self) -> None:
        self.starts += 1
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "expo_ray.train", *self.overrides, f"run_dir={self.folder}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )

    def _await_progress(self) -> None:
        """Waits for a step that was completed after the last kill."""
        last = self.made[-1] if self.made else None
        began = last.at if last else time.time()

        def progressed() -> bool:
            path = self.folder / "metrics.jsonl"
            return path.exists() and path.stat().st_mtime > began and path.stat().st_size > 0

        self._await(progressed, f"a step after {last}")
        if last:
            last.recovered_s = time.time() - last.at

    def _kill(self, kill: Kill, chance: random.Random) -> Made:
        """Waits for the phase, then kills."""
        found: dict[str, Any] = {}

        def in_phase() -> bool:
            found.update(self._status())
            return found.get("phase") == kill.phase and found["step"] >= kill.from_step

        self._await(in_phase, f"phase {kill.phase}", idle=POLL_S)
        if kill.phase != "verify":  # which is over in no time
            time.sleep(chance.random() * 0.1)
            found.update(self._status())
        victim = self._victim(kill.target, found, chance)
        if victim is None:
            return Made(kill, "nobody", found["step"], False, time.time())
        name, pid = victim
        family = psutil.Process(self._process.pid).children(recursive=True) if kill.target == "driver" else []
        names = {process.pid: process.name() for process in family}
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return Made(kill, name, found["step"], False, time.time())
        made = Made(kill, name, found["step"], self._status().get("phase") == kill.phase, time.time())
        if kill.target == "driver":
            self._process.wait(timeout=30)
            agents = [process for process in family if "Agent" in names[process.pid]]
            self._agents += agents
            _none_left([process for process in family if process not in agents], LEFT_OVER_S)
            self._start()
        return made

    def _victim(self, target: str, status: dict[str, Any], chance: random.Random) -> tuple[str, int] | None:
        """Name and process id; None while there is none of that kind."""
        if target == "driver":
            return "driver", self._process.pid
        kind = "verifier" if target == "grader" else target
        names = [name for name in sorted(status["actors"]) if name.startswith(f"{kind}-")]
        if not names:
            return None
        name = chance.choice(names)
        pid = status["actors"][name]["pid"]
        if target != "grader":
            return name, pid
        try:
            children = psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        return (f"grader of {name}", chance.choice(children).pid) if children else None

    def _status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _await(self, holds: Any, what: str, idle: float = 0.05) -> None:
        deadline, news = time.monotonic() + self.bound_s, time.monotonic() + ALIVE_S
        while not holds():
            if time.monotonic() > news:
                status, news = self._status(), time.monotonic() + ALIVE_S
                print(f"  step {status.get('step', 0)}, {status.get('phase', 'starting')}; awaiting {what}", flush=True)
            if time.monotonic() > deadline:
                self._process.send_signal(signal.SIGTERM)
                raise ChaosError(f"{what} did not come within {self.bound_s:.0f} s: {self.stderr()[-3000:]}")
            if self._process.poll() is not None and not holds():
                raise ChaosError(f"the run ended before {what}: {self.stderr()[-3000:]}")
            time.sleep(idle)


def _none_left(processes: list[psutil.Process], seconds: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    if alive:
        raise ChaosError(f"processes outlived the driver by {seconds:.0f} s: {[(p.pid, p.name()) for p in alive]}")
