"""launch/setup.sh with stand-ins for Python and uv: the Python that it takes, the .venv that it keeps, its errors."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGING = ("setup.cfg", "setup.py", "pyproject.toml")
TOOLS = ("awk", "bash", "cat", "chmod", "cp", "cut", "dirname", "env", "grep", "head", "mkdir", "mktemp", "rm", "sed")
TOOLS += ("sha256sum", "tail", "tr")
PYTHON = """#!/usr/bin/env bash
# HAS: the modules it has. VERSION: what it says it is.
case "$*" in
    --version) echo "Python ${VERSION:-3.11}.9" ;;
    "-c import sys, pip;"*) [[ ${HAS-pip} == *pip* ]] ;;
    "-c import sys, ensurepip;"*) [[ ${HAS-pip} == *ensurepip* ]] ;;
    *"version_info[:2] <= (3, 12)"*) [[ ${VERSION:-3.11} == 3.1[12] ]] ;;
    *'"%d.%d"'*) cat "$(dirname "$0")/../version" ;;
    *"pip install"*"--target"*) mkdir "${@: -2:1}/bin" && cp "$STAND_INS/uv.off" "${@: -2:1}/bin/uv" ;;
    *) exit 1 ;;
esac
"""
UV = """#!/usr/bin/env bash
# FOUND: the versions of Python that it finds; DOWNLOADS: whether it can download one.
if [[ $1 == --version ]]; then echo "uv $PIN (stand-in)" && exit; fi
echo "uv $*" >>"$STAND_INS/calls"
if [[ $1 == venv ]]; then
    wanted=${@: -2:1}
    if [[ $* == *--managed-python* && -z ${DOWNLOADS:-} ]]; then
        printf '%s\\n' "error: Request failed" "  cause: no such host" >&2 && exit 2
    elif [[ $* == *--no-python-downloads* && " ${FOUND:-} " != *" $wanted "* ]]; then
        echo "error: No interpreter found" >&2 && exit 2
    fi
    mkdir -p .venv/bin && cp "$STAND_INS/python3" .venv/bin/python && echo "$wanted" >.venv/version
fi
"""


class Repository:
    """A repository with the script, and a PATH with nothing but stand-ins and small tools."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stand_ins = folder / "a repository", folder / "stand-ins"
        self.venv, self.calls = self.folder / ".venv", self.stand_ins / "calls"
        for name in ("launch/setup.sh", "requirements/cpu.lock", "requirements/gpu.lock", *PACKAGING):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, self.folder / name)
        self.stand_ins.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.stand_ins / tool).symlink_to(found)
        self.program("python3", PYTHON)
        self.program("uv.off", UV)  # not on PATH as uv: python3 installs it

    def program(self, name: str, text: str) -> None:
        (self.stand_ins / name).write_text(text)
        (self.stand_ins / name).chmod(0o755)

    def setup(self, *, by: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        pin = next(
            line.partition("=")[2]
            for line in (REPOSITORY / "launch/setup.sh").read_text().splitlines()
            if line.startswith("UV_VERSION=")
        )
        there = {"PATH": str(self.stand_ins), "HOME": str(self.stand_ins), "STAND_INS": str(self.stand_ins), "PIN": pin}
        return subprocess.run(
            [str((by or self.folder) / "launch/setup.sh")],
            env=there | {"PROFILE": "cpu", "TMPDIR": str(self.stand_ins)} | more,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )

    def asked(self) -> list[str]:
        """What uv was asked to do since the last call."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines

    def wheel(self, tag: str) -> str:
        """A folder with a wheel of PyTorch for one version of Python."""
        lock = (REPOSITORY / "requirements/cpu.lock").read_text().splitlines()
        version = next(line.removeprefix("torch==") for line in lock if line.startswith("torch=="))
        folder = self.stand_ins / "wheels"
        folder.mkdir(exist_ok=True)
        (folder / f"torch-{version}-{tag}-{tag}-manylinux_2_28_x86_64.whl").touch()
        return str(folder)


@pytest.fixture
def repository(tmp_path) -> Repository:
    return Repository(tmp_path)


def version(repository: Repository) -> str:
    return (repository.venv / "version").read_text().strip()


@pytest.mark.parametrize(("found", "taken"), [("3.11 3.12", "3.11"), ("3.12", "3.12"), ("", "3.11")])
def test_a_python_that_fits_is_found_or_downloaded(repository, found, taken):
    """The Python on PATH only installs uv; its own version does not matter."""
    done = repository.setup(FOUND=found, DOWNLOADS="yes")
    assert done.returncode == 0, done.stderr
    assert version(repository) == taken
    assert ("downloading 3.11" in done.stderr) == (found == "")
    packages, own = repository.asked()[-2:]
    assert "--index https://download.pytorch.org/whl/cpu" in packages and "requirements/cpu.lock" in packages
    assert own.endswith("-e .")
    assert (repository.venv / "bin/uv").exists()
    assert not list(repository.stand_ins.glob("tmp.*")), "the folder that uv came in is removed"
    again = repository.setup(FOUND=found)
    assert (again.returncode, again.stderr, repository.asked()) == (0, "", [])


def test_without_a_python_and_a_download_it_says_one_sentence(repository):
    done = repository.setup()
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert said[0] == "setup: no Python 3.11 or 3.12 found: downloading 3.11"
    assert said[1:] == [
        "setup: Python 3.11 or 3.12 is needed and could not be downloaded: install it and run again "
        "(error: Request failed cause: no such host )"
    ]
    assert not repository.venv.exists()


def test_the_python_is_one_that_the_folder_of_wheels_has_pytorch_for(repository):
    wheels = repository.wheel("cp311")
    refused = repository.setup(FOUND="3.12", PIP_FIND_LINKS=wheels)
    assert refused.returncode == 1
    assert f"Python 3.11 is needed ({wheels} has PyTorch for no other)" in refused.stderr.splitlines()[-1]
    done = repository.setup(FOUND="3.12", PIP_FIND_LINKS=wheels, DOWNLOADS="yes")
    assert done.returncode == 0 and version(repository) == "3.11", done.stderr
    assert f"--find-links {wheels} -r" in repository.asked()[-2]
    shutil.rmtree(repository.venv)
    repository.wheel("cp312")
    done = repository.setup(FOUND="3.12", PIP_FIND_LINKS=wheels)
    assert done.returncode == 0 and version(repository) == "3.12", done.stderr
    assert f"--find-links {wheels} -r" in repository.asked()[-2]


def test_the_same_folder_by_another_path_keeps_its_venv_and_a_copy_does_not(repository, tmp_path):
    assert repository.setup(FOUND="3.11").returncode == 0
    repository.asked()
    (tmp_path / "another path").symlink_to(repository.folder)
    same = repository.setup(by=tmp_path / "another path")
    assert (same.returncode, same.stderr, repository.asked()) == (0, "", [])
    changed = repository.folder / "requirements/cpu.lock"
    changed.write_text(changed.read_text() + "\n")
    mark = repository.venv / "mark"
    mark.touch()
    updated = repository.setup(by=tmp_path / "another path")
    assert updated.returncode == 0 and mark.exists(), "new packages go into the .venv that is there"
    assert not [call for call in repository.asked() if call.startswith("uv venv")]
    shutil.copytree(repository.folder, tmp_path / "copy")
    copy = repository.setup(by=tmp_path / "copy", FOUND="3.11")
    assert copy.returncode == 0 and "making it again" in copy.stderr
    assert not (tmp_path / "copy/.venv/mark").exists() and mark.exists()


def test_the_other_profile_makes_venv_again(repository):
    assert repository.setup(FOUND="3.11").returncode == 0
    (repository.venv / "mark").touch()
    other = repository.setup(FOUND="3.11", PROFILE="gpu", FORCE_PROFILE="1")
    assert other.returncode == 0 and "making it again" in other.stderr and not (repository.venv / "mark").exists()
    assert "-r requirements/gpu.lock" in repository.asked()[-2]


def test_a_venv_of_another_python_is_left_alone(repository):
    (repository.venv / "bin").mkdir(parents=True)
    shutil.copy(repository.stand_ins / "python3", repository.venv / "bin/python")
    done = repository.setup(FOUND="3.11", VERSION="3.13")
    assert done.returncode == 1
    assert done.stderr.startswith("setup: .venv has Python 3.13.9") and done.stderr.count("\n") == 1
    assert (repository.venv / "bin/python").exists()


@pytest.mark.parametrize("missing", ["pip", "python"])
def test_without_pip_it_says_what_to_install(repository, missing):
    if missing == "python":
        (repository.stand_ins / "python3").unlink()
    done = repository.setup(FOUND="3.11", HAS="")
    assert done.returncode == 1
    assert done.stderr == (
        "setup: Python with pip is needed, any version from 3.8 on: install it "
        "(Debian, Ubuntu: apt install python3-pip)\n"
    )


def test_a_uv_on_path_is_enough_without_pip(repository):
    os.rename(repository.stand_ins / "uv.off", repository.stand_ins / "uv")
    done = repository.setup(FOUND="3.12", HAS="", PIN="0.1.0")
    assert done.returncode == 0 and version(repository) == "3.12", done.stderr
