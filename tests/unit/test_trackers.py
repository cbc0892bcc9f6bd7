"""Trackers: which are refused before a start, what TensorBoard and an offline run of wandb get, and failures."""

import inspect
import json
import sys
import threading
import time
from functools import partial
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_options import BASE, HERE, problem

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import as_settings, differences, with_new_keys
from expo_ray.config.schema import Config
from expo_ray.driver import trackers
from expo_ray.driver.trackers import BackgroundTracker, close_all, tracker_of
from expo_ray.preflight.options import TRACKERS, tracker_problems
from expo_ray.preflight.values import check_config
from expo_ray.runtime.journal import Events


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A home without keys of Weights & Biases."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems_of(*named: str) -> str:
    config = Config()
    config.logging.trackers = list(named)
    return next(tracker_problems(config), "")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("logging.trackers=[tensorbord]", "tensorbord is not a choice; did you mean 'tensorboard'?"),
        ("logging.trackers=[tensorboard,tensorboard]", "names tensorboard twice"),
        ("logging.project=mine", "logging.project=mine does nothing with no tracker in logging.trackers that has proj"),
        ("logging.trackers=[]", ""),
    ],
)
def test_the_list_is_checked(override, sentence):
    found = problem(override)
    assert sentence in found if sentence else found == ""


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert "the package mlflow is not installed: pip install mlflow" in problems_of("mlflow")


def test_a_folder_of_that_name_is_no_package(monkeypatch, tmp_path):
    """wandb keeps its runs in wandb/ of the working directory, which is importable."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert "the package wandb is not installed" in problems_of("wandb")


def test_weights_and_biases_without_a_key_would_wait_at_the_terminal(alone, monkeypatch):
    sentence = "wandb has no key here: run wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline"
    assert sentence in problems_of("wandb")
    (alone / ".netrc").write_text("machine elsewhere login me password secret\n")
    assert sentence in problems_of("wandb")
    (alone / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert problems_of("wandb") == ""
    (alone / ".netrc").unlink()
    (alone / "config").mkdir()
    (alone / "config" / "settings").write_text("[default]\nmode = offline\n")
    assert problems_of("wandb") == ""
    (alone / "config" / "settings").unlink()
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_API_KEY", "secret")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert problems_of("wandb") == ""


@pytest.mark.parametrize("name", ["logging.tensorboard", "logging.wandb_project"])
def test_a_former_key_names_its_successor(name, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=f"{name} is no longer a key: use logging.trackers="):
        compose_config([*BASE, f"{name}=true"])
    monkeypatch.chdir(tmp_path)
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(f"# @package _global_\nlogging: {{{name.split('.')[1]}: true}}\n")
    with pytest.raises(ConfigError, match=f"{name} is no longer a key: use logging.trackers="):
        compose_config([*BASE, "experiment=mine"])


def test_a_run_that_was_saved_with_the_former_keys_resumes():
    now = as_settings(Config())
    before = {key: value for key, value in now.items() if not key.startswith(("logging.trackers", "logging.project"))}
    before |= {"logging.tensorboard": False, "logging.wandb_project": "mine"}
    assert differences(before, now) == ([], [])
    nested = {"logging": {"tensorboard": True, "wandb_project": None, "progress": True}, "seed": 0}
    assert with_new_keys(nested) == {"logging": {"progress": True}, "seed": 0}


class Recorded:
    """Stands for a tracker of accelerate."""

    def __init__(self, **arguments):
        self.given = arguments

    def start(self):
        pass

    def store_init_configuration(self, values):
        assert all(isinstance(value, bool | int | float | str | None) for value in values.values())


def test_accelerate_has_every_tracker_and_takes_what_it_is_given(monkeypatch, tmp_path):
    from accelerate import tracking

    for name in TRACKERS:
        kind = tracking.LOGGER_TYPE_TO_CLASS[name]
        with monkeypatch.context() as patch:
            patch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Recorded)
            tracker = tracker_of(name, Config(), tmp_path, 0, as_settings(Config()))
        inspect.signature(kind).bind(**tracker.given)


def followed(name: str, folder: Path, first_step: int = 0) -> list[dict]:
    """Three steps through a real tracker; the run's events."""
    config = check_config(compose_config([*BASE, f"logging.trackers=[{name}]"]), HERE).config
    begin = partial(tracker_of, name, config, folder, first_step, as_settings(config))
    tracker = BackgroundTracker(name, begin, Events(folder))
    for step in range(3):
        tracker.scalars(first_step + step, {"reward/mean": 0.25 * step, "eval/pass@1/all": 0.5})
    close_all([tracker])
    file = folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_tensorboard_shows_every_record(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert followed("tensorboard", tmp_path) == []
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in shown.Scalars("reward/mean")] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert followed("tensorboard", tmp_path, first_step=1) == []  # a run that resumes takes back what came later
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in shown.Scalars("reward/mean")] == [0, 1, 2, 3]


def test_weights_and_biases_writes_an_offline_run(alone, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert followed("wandb", alone) == []
    [file] = (alone / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60  # on a busy machine wandb's service has been seen to write after finish() returned
    while not (b"reward/mean" in (written := file.read_bytes()) and b"rollout.samples_per_prompt" in written):
        assert time.monotonic() < deadline, f"wandb's file has {len(written)} bytes without the records or the settings"
        time.sleep(0.2)


class Service:
    """Stands for the client of a service."""

    def __init__(self, fails=(), finish=lambda: None):
        self.logged, self.fails, self.finish = [], fails, finish

    def log(self, values, step):
        if step in self.fails:
            raise ConnectionError("503\nService Unavailable")
        self.logged.append((step, values))


def test_one_that_fails_in_the_middle_is_said_once_and_counted(tmp_path, capsys):
    service = Service(fails=(1, 2))
    tracker = BackgroundTracker("mlflow", lambda: service, Events(tmp_path))
    for step in range(5):
        tracker.scalars(step, {"eval/pass@1/all": 1, "reward/my_file:judge/mean": 2.0})
    close_all([tracker])
    assert [step for step, _ in service.logged] == [0, 3, 4]
    assert set(service.logged[0][1]) == {"eval/pass_1/all", "reward/my_file_judge/mean"}  # names that MLflow takes
    first, last = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert first["what"] == "mlflow: step 1: ConnectionError: 503 Service Unavailable; the run goes on"
    assert last["what"].startswith("mlflow has not shown 2 of 5 records (step 1: ConnectionError")
    assert last["missing"] == 2 and "mlflow has not shown 2 of 5" in capsys.readouterr().err


def test_one_that_cannot_start_shows_nothing_and_says_so(tmp_path):
    def begin():
        raise RuntimeError("no such host")

    tracker = BackgroundTracker("trackio", begin, Events(tmp_path))
    tracker.scalars(0, {"a": 1.0})
    close_all([tracker])
    said = [json.loads(line)["what"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert said[0] == "trackio: it did not start: RuntimeError: no such host; the run goes on"
    assert said[1].startswith("trackio has not shown 1 of 1 records")


def test_one_that_hangs_holds_up_neither_a_step_nor_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_S", 0.2)
    monkeypatch.setattr(trackers, "MOST_WAITING", 2)
    free = threading.Event()
    tracker = BackgroundTracker("wandb", lambda: SimpleNamespace(log=lambda *_, **__: free.wait()), Events(tmp_path))
    for step in range(10):
        tracker.scalars(step, {"a": 1.0})
    close_all([tracker])
    free.set()
    said = [json.loads(line)["what"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert said[0] == "wandb: it is 2 records behind; the run goes on"
    assert said[-1].startswith("wandb has not shown 10 of 10 records")


def test_all_are_asked_to_end_before_one_is_waited_for(tmp_path):
    ended = threading.Event()

    def finish():
        assert ended.wait(10), "the last was not asked meanwhile"

    first, last = Service(finish=finish), Service(finish=ended.set)
    close_all([BackgroundTracker(name, lambda s=s: s, Events(tmp_path)) for name, s in (("a", first), ("b", last))])
    assert ended.is_set() and not (tmp_path / "events.jsonl").exists()


def test_several_that_hang_share_one_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_S", 0.2)
    free, waited, join = threading.Event(), [], threading.Thread.join
    hangs = [BackgroundTracker(name, lambda: Service(finish=free.wait), Events(tmp_path)) for name in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", lambda thread, seconds: (waited.append(seconds), join(thread, seconds)))
        close_all(hangs)
    free.set()
    assert 0 < waited[0] <= 0.2 and waited[1] < 0.1, "the first has used up the bound"
    assert (tmp_path / "events.jsonl").read_text().count("did not end within 0 s") == 2


def test_a_run_of_wandb_that_was_left_open_gets_no_other_runs_records(monkeypatch, tmp_path):
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorded)
    assert tracker_of("wandb", Config(), tmp_path, 0, {}).given["reinit"] == "finish_previous"
