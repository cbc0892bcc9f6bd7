"""The locks: every direct dependency at its pinned version, and nothing of the machine that made them."""

import configparser
from pathlib import Path

import pytest

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
