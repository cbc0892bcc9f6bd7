"""The locks: every dependency at its pinned version, for each version of Python, and no path of the machine."""

import configparser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]


def pins(text: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pairs = [line.split("==") for line in lines if "==" in line]
    return {name.split("[")[0].lower(): version for name, version in pairs}


@pytest.mark.parametrize("world", ["cpu", "gpu"])
def test_a_lock_holds_every_direct_dependency(world):
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    direct = pins(setup["options"]["install_requires"])
    for extra in (world, "sweep", "dev"):
        direct |= pins(setup["options.extras_require"][extra])
    lock = pins((REPOSITORY / "requirements" / f"{world}.lock").read_text())
    assert len(direct) > 15
    assert {name: lock.get(name) for name in direct} == direct


@pytest.mark.parametrize("world", ["cpu", "gpu"])
def test_a_lock_names_no_place(world):
    lines = (REPOSITORY / "requirements" / f"{world}.lock").read_text().splitlines()
    assert all("==" in line or line.startswith("#") for line in lines)
    assert not [line for line in lines if "/" in line or "@" in line]


def test_the_cpu_lock_leaves_out_the_packages_that_break_it():
    lock = pins((REPOSITORY / "requirements" / "cpu.lock").read_text())
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & set(lock)
    assert not [name for name in lock if name.startswith("nvidia-")]


@pytest.mark.parametrize("version", ["3.11.9", "3.12.9"])
def test_one_lock_serves_both_versions_of_python(version):
    """Follows the installed packages' own requirements, as they read under `version`, through the lock."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lock = pins((REPOSITORY / "requirements" / "cpu.lock").read_text())
    overridden = {Requirement(line).name for line in uncommented(REPOSITORY / "requirements/overrides-cpu.txt")}
    machine = {"python_version": version.rpartition(".")[0], "python_full_version": version}
    groups = [setup["options"]["install_requires"], *(setup["options.extras_require"][x] for x in ("cpu", "sweep"))]
    asked = [Requirement(line) for text in groups for line in text.splitlines() if line and not line.startswith("#")]
    seen: set[str] = set()
    while asked:
        wanted = asked.pop()
        if str(wanted) in seen or wanted.name in overridden:
            continue
        seen.add(str(wanted))
        name = canonicalize_name(wanted.name)
        assert wanted.specifier.contains(lock[name], prereleases=True), f"{wanted} on {version}: {name}=={lock[name]}"
        try:
            package = distribution(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed: this environment is not the one of cpu.lock")
        assert SpecifierSet(package.metadata["Requires-Python"] or "").contains(version), f"{name} on {version}"
        for text in package.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({**machine, "extra": x}) for x in ("", *wanted.extras)
            ):
                asked.append(needed)
    assert len(seen) > 150


def uncommented(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
