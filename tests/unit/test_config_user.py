"""A user's own conf/ in the working directory: new choices, precedence, and errors in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from expo_ray import command
from expo_ray.config.compose import CONF, compose_config, groups, user_conf
from expo_ray.config.errors import ConfigError

EXPERIMENT = """\
# @package _global_
defaults:
  - demo
  - override /data: mine
  - _self_
run_name: mine
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A working directory with an experiment and a data set of its own."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("experiment/mine.yaml", EXPERIMENT), ("data/mine.yaml", "name: toy\nlevels: [3]\n")):
        (tmp_path / "conf" / name).parent.mkdir(parents=True)
        (tmp_path / "conf" / name).write_text(text)
    return tmp_path / "conf"


def test_own_choices_stand_beside_the_packaged_ones(own):
    packaged = {file.stem for file in (CONF / "data").glob("*.yaml")}
    assert set(groups()["data"]) == packaged | {"mine"} and "demo" in groups()["experiment"]
    config = compose_config(["experiment=mine"])
    demo = compose_config(["experiment=demo"])
    assert (config.run_name, config.data.levels) == ("mine", [3])
    assert config.trainer == demo.trainer and config.model == demo.model
    assert compose_config(["experiment=mine", "data=toy"]).data == demo.data


def test_an_own_file_of_a_packaged_name_goes_before_it(own):
    (own / "data/toy.yaml").write_text("name: toy\nlevels: [5]\n")
    assert compose_config(["data=toy"]).data.levels == [5]
    assert groups()["data"].count("toy") == 1


def test_the_packaged_conf_is_nobodys_own(monkeypatch, tmp_path):
    monkeypatch.chdir(CONF.parent)
    assert user_conf() is None
    (tmp_path / "conf").symlink_to(CONF)
    monkeypatch.chdir(tmp_path)
    assert user_conf() is None


def test_a_training_command_takes_an_own_experiment(own):
    """In a process of its own: Hydra composes there once more, through its search path."""
    done = subprocess.run(
        [sys.executable, "-m", "expo_ray.train", "experiment=mine", "profile=cpu", "dry_run=true"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{own.parent}/runs/mine/")


def test_help_and_errors_list_both(own, capsys):
    assert command.main(["--help"]) == 0
    listed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  data="))
    assert listed.split()[1:] == [f"{name}," for name in groups()["data"][:-1]] + groups()["data"][-1:]
    with pytest.raises(ConfigError, match=r"data=mime is not a choice; did you mean 'mine'\? \(choices: .*math500"):
        compose_config(["data=mime"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: [3\n", r"^not YAML: .*conf/experiment/wrong\.yaml"),
        (
            "# @package _global_\ntrainer: {stepps: 3}\n",
            r"^In 'experiment/wrong': trainer\.stepps: Key",
        ),
        ("# @package _global_\ntrainer: {steps: many}\n", r"^In 'experiment/wrong': trainer\.steps: Value 'many'"),
        ("# @package _global_\ndefaults: [{override /model: none}]\n", r"'model/none' \(choices: .*toy"),
        ("# @package _global_\ndefaults: [none]\n", r"^In 'experiment/wrong': .*'experiment/none'"),
    ],
)
def test_a_wrong_file_is_named_in_one_sentence(own, text, said):
    (own / "experiment/wrong.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        compose_config(["experiment=wrong"])
    assert "\n" not in str(caught.value)


def test_an_unknown_command_is_refused(capsys):
    assert command.main(["trian", "seed=1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 'trian' is not a command; did you mean 'train'?") and said.count("\n") == 1


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_a_help_and_refuses_a_wrong_argument(name, capsys):
    def code(*arguments: str) -> object:
        try:
            return command.main([name, *arguments])
        except SystemExit as exit:  # argparse
            return exit.code

    assert code("--help") in (0, None) and f"python -m expo_ray.{name}" in capsys.readouterr().out
    assert code("no.such.thing=1") == 2
    assert "error:" in capsys.readouterr().err
