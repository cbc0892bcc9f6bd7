"""Parses and runs a page as its reader would: files to write, commands to type, and the output that the page shows.

A fenced block whose info string names a file is that file. A `console` block has commands after `$ `, each followed by
its output; an `sh` block has commands alone. A backslash at the end of a line continues a command. In the output `...`
stands for anything, and alone on a line for any lines. A command must end with exit code 0 unless `$ echo $?` follows.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = REPOSITORY / "docs/start"
COPIED = ("Makefile", "conf", "expo_ray", "hydra_plugins", "launch", "requirements")
COPIED += ("pyproject.toml", "setup.cfg", "setup.py")
"""The part of the repository that the commands of a page need."""
STAMPED = ("requirements/{profile}.lock", "setup.cfg", "setup.py", "pyproject.toml", "launch/setup.sh")
"""The files whose digest launch/setup.sh stores."""
LAST_CODE = "echo $?"
STOP_S = 60


@dataclass(frozen=True)
class WrittenFile:
    """A file that the page asks the reader to write."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as it is typed, and the lines that the page shows below it."""

    text: str
    shown: tuple[str, ...] = ()


class BadPage(ValueError):
    """Says why a page cannot be followed."""


def parse(page: str) -> list[WrittenFile | Command]:
    """Lists what the reader of a page does, in order.

    Raises:
        BadPage: a fence that is not closed, a file outside the working copy, a console block without a command.
    """
    steps: list[WrittenFile | Command] = []
    for info, body in _blocks(page):
        language, _, name = info.partition(" ")
        if name:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise BadPage(f"{name} is outside the working copy")
            steps.append(WrittenFile(name, "".join(f"{line}\n" for line in body)))
        elif language == "console":
            steps += _console(body)
        elif language == "sh":
            steps += [Command(text) for text in _joined(body) if text and not text.startswith("#")]
    return steps


def _blocks(page: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append((line[3:].strip(), []))
        elif inside:
            found[-1][1].append(line)
    if inside:
        raise BadPage(f"the block '{found[-1][0]}' is not closed")
    return found


def _joined(lines: list[str]) -> list[str]:
    """Joins each line with those that continue it."""
    found: list[str] = []
    for line in lines:
        if found and found[-1].endswith("\\"):
            found[-1] += f"\n{line}"
        else:
            found.append(line)
    return found


def _console(body: list[str]) -> list[Command]:
    found: list[Command] = []
    for line in _joined(body):
        if line.startswith("$ "):
            found.append(Command(line[2:]))
        elif not found:
            raise BadPage(f"'{line}' is in a console block before any command")
        else:
            found[-1] = Command(found[-1].text, (*found[-1].shown, line))
    return found


def expected_code(steps: list[WrittenFile | Command], index: int) -> int:
    """The exit code that the page shows for the command at `index`."""
    following = steps[index + 1] if index + 1 < len(steps) else None
    if isinstance(following, Command) and following.text == LAST_CODE:
        return int(following.shown[0])
    return 0


def not_shown(shown: tuple[str, ...], output: str) -> str | None:
    """The first line of `shown` that the output lacks after the lines before it; None if it has all, in order."""
    rest = iter([_plain(line) for line in output.splitlines()])
    for line in shown:
        wanted = ".*".join(re.escape(_plain(part)) for part in line.split("..."))
        if line.strip() not in ("", "...") and not any(re.fullmatch(rf"\s*{wanted}\s*", each) for each in rest):
            return line
    return None


def _plain(line: str) -> str:
    return " ".join(line.split())


@dataclass(frozen=True)
class Ended:
    """A command's exit code and everything that it printed."""

    code: int
    output: str


class WorkingCopy:
    """A fresh copy of a reader's checkout: the code, and an environment made by `make setup`.

    Raises:
        RuntimeError: this environment is out of date; the copy shares it and must not change it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / name)
        self._environment()
        self._aliases: list[str] = []
        self._last = 0

    def _environment(self) -> None:
        own, shared = self.folder / ".venv", Path(sys.prefix)
        stamp = shared / "expo_ray.stamp"
        profile, _, digest = stamp.read_text().split() if stamp.exists() else ("cpu", "", "")
        content = b"".join((self.folder / name.format(profile=profile)).read_bytes() for name in STAMPED)
        if digest != hashlib.sha256(content).hexdigest():
            raise RuntimeError(f"{shared} is not up to date with this checkout: run make setup")
        own.mkdir()
        for entry in shared.iterdir():
            if entry != stamp:
                (own / entry.name).symlink_to(entry)
        (own / stamp.name).write_text(f"{profile} {self.folder} {digest}\n")

    def write(self, file: WrittenFile) -> None:
        """Writes a file of the page; fails if it exists, because it would then be a file of the project."""
        path = self.folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as target:
            target.write(file.text)

    def run(self, command: Command, seconds: float) -> Ended:
        """Runs a command in a shell with the aliases and the exit code of the commands before it.

        Raises:
            subprocess.TimeoutExpired: it took longer than `seconds` and was stopped.
        """
        script = "\n".join(["shopt -s expand_aliases", *self._aliases, f"(exit {self._last})", command.text])
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            raise
        if command.text.startswith("alias "):
            self._aliases.append(command.text)
        self._last = process.returncode
        return Ended(process.returncode, output)


def _end(process: subprocess.Popen[str]) -> None:
    """Stops a command and everything that it started; SIGTERM comes first so that Ray can stop its processes."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=STOP_S)
            return
