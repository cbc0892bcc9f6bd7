"""The built wheel in an environment of its own, in a folder without the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("conf", "expo_ray", "hydra_plugins", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def quietly(*command: object, cwd: Path) -> None:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, because a build leaves folders behind."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(REPOSITORY / name, copy / name)
    uv = Path(sys.executable).with_name("uv")
    quietly(uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", copy / "dist", cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The command `expo-ray` of an environment that has the wheel, and the locked packages without this repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    uv, python = Path(sys.executable).with_name("uv"), folder / "bin/python"
    quietly(uv, "pip", "install", "--offline", "--no-deps", "--python", python, wheel, cwd=folder)
    # A folder named in a .pth file is searched, and its own .pth files, such as this repository's, are not read.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "locked.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin/expo-ray"


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    there = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(installed), *arguments], cwd=cwd, env=there, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_every_file_of_the_package_and_of_conf(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"expo_ray/{file.relative_to(REPOSITORY)}" for file in (REPOSITORY / "conf").rglob("*.yaml")}
    for folder in ("expo_ray", "hydra_plugins"):
        files = [file for file in (REPOSITORY / folder).rglob("*") if file.is_file() and file.suffix != ".pyc"]
        expected |= {str(file.relative_to(REPOSITORY)) for file in files}
    assert len(expected) > 150
    assert expected - held == set()
    assert not [name for name in held if not name.startswith(("expo_ray/", "hydra_plugins/", "expo_ray-"))]


def test_the_package_is_the_one_of_the_wheel(installed, tmp_path):
    where = [str(installed.with_name("python")), "-c", "import expo_ray.config.compose as c; print(c.CONF)"]
    there = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(where, cwd=tmp_path, env=there, capture_output=True, text=True, timeout=120)
    assert Path(done.stdout.strip()).is_relative_to(installed.parents[1]), done.stderr


def test_a_dry_run_with_an_own_experiment_and_the_packaged_model(installed, tmp_path):
    own = tmp_path / "conf/experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\ndefaults: [demo, _self_]\nrun_name: mine\n")
    done = run(installed, tmp_path, "train", "experiment=mine", "profile=cpu", "dry_run=true")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.parent == tmp_path / "runs/mine"
    model = next(line for line in (folder / "config.yaml").read_text().splitlines() if line.endswith("world/base"))
    assert Path(model.split()[-1]).is_relative_to(installed.parents[1])
    assert "mine" in run(installed, tmp_path, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "'trian' is not a command"),
        (["train", "experiment=demoo"], "did you mean 'demo'?"),
        (["demo", "trainer.stepps=1"], "unknown key 'trainer.stepps'"),
        (["evaluate", "model=toy", "eval.samples=0"], "eval.samples=0"),
        (["report", "nowhere"], "nowhere"),
        (["submit", "experiment=demo", "run_dir=runs/mine"], "run_dir=runs/mine is not absolute"),
        (["verify", "--input", "nowhere.jsonl", "--output", "out.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(installed, tmp_path, arguments, said):
    done = run(installed, tmp_path, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_responses_are_graded(installed, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"response": "So it is \\\\boxed{4}.", "answer": "4"}\n')
    done = run(installed, tmp_path, "verify", "--input", "in.jsonl", "--output", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["verdict"] == "correct"
