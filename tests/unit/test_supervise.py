"""Lost learners are restarted from the newest checkpoint, a limited number of times."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import GIB
from expo_ray.config.schema import Config
from expo_ray.driver import run as supervise
from expo_ray.learner.group import LearnersLost
from expo_ray.preflight.checks import check_run
from expo_ray.runtime.journal import Events
from tests.chaos.compare import lines


class FakeActors:
    def __init__(self, folder: Path) -> None:
        self.events, self.restarts = Events(folder), 0

    def restart_learners(self) -> None:
        self.restarts += 1


def job(folder: Path, max_restarts: int) -> SimpleNamespace:
    config = Config()
    config.trainer.max_restarts = max_restarts
    return SimpleNamespace(config=config, folder=folder, actors=FakeActors(folder), origin=Path("origin"))


def lose(times: int, seen: list):
    def attempt(_job, checkpoint, restart):
        seen.append((checkpoint, restart))
        if len(seen) <= times:
            raise LearnersLost("learner-1 died", ["learner-1"])
        return 7

    return attempt


def test_a_lost_group_is_restarted_from_the_newest_valid_checkpoint(tmp_path, monkeypatch):
    seen: list = []
    newest = iter([None, Path("step_000004")])
    monkeypatch.setattr(supervise, "_attempt", lose(2, seen))
    monkeypatch.setattr(supervise, "newest_valid", lambda folder, tell: next(newest))
    mine = job(tmp_path, max_restarts=3)
    assert supervise.supervise(mine) == 7
    assert seen == [(Path("origin"), 0), (Path("origin"), 1), (Path("step_000004"), 2)]
    assert mine.actors.restarts == 2
    assert [line["event"] for line in lines(tmp_path / "events.jsonl")] == ["lost", "restarted", "lost", "restarted"]


def test_after_max_restarts_the_loss_ends_the_run(tmp_path, monkeypatch):
    seen: list = []
    monkeypatch.setattr(supervise, "_attempt", lose(99, seen))
    monkeypatch.setattr(supervise, "newest_valid", lambda folder, tell: None)
    mine = job(tmp_path, max_restarts=2)
    with pytest.raises(LearnersLost, match="learner-1 died"):
        supervise.supervise(mine)
    assert len(seen) == 3
    assert mine.actors.restarts == 2


@pytest.mark.parametrize(("first", "own", "saved"), [(5, False, [5]), (5, True, []), (3, False, [])])
def test_a_run_that_begins_at_its_end_saves_what_it_began_with(tmp_path, monkeypatch, first, own, saved):
    """trainer.resume=OTHER_RUN already at trainer.steps; without a checkpoint here there is no policy to push."""
    written: list[int] = []
    anything = SimpleNamespace(
        phase=lambda _: nullcontext(), proof=lambda _: None, push=lambda _: None, close=lambda: None,
        settle=lambda: None, save=lambda done, score, last: written.append(done),
    )  # fmt: skip
    anything.status = anything
    run = SimpleNamespace(first_step=first, **dict.fromkeys(("recorder", "sync", "ahead", "checkpoints"), anything))
    monkeypatch.setattr(supervise, "_assemble", lambda *_: run)
    monkeypatch.setattr(supervise, "train", lambda _: 5)
    if own:
        (tmp_path / "checkpoints" / "step_000005" / "policy").mkdir(parents=True)
    mine = job(tmp_path, max_restarts=0)
    mine.heldout, mine.stop = [], SimpleNamespace(requested=False)
    assert supervise._attempt(mine, None, 0) == 5 and written == saved


class Searched(Exception):
    """A run got as far as looking for a checkpoint."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run of the toy model up to there: `start(change, *overrides)`, with a change of its plan."""

    def search(config, *_):
        raise Searched(config.model.path)

    def begin(change, *overrides):
        given = ["profile=cpu", "experiment=demo", "dry_run=true", f"run_dir={tmp_path}/run", *overrides]
        checked = check_run(compose_config(given))
        (tmp_path / "run").mkdir(exist_ok=True)
        monkeypatch.setattr(supervise, "open_spans", lambda *_: None)
        monkeypatch.setattr(supervise, "find_checkpoint", search)
        monkeypatch.setattr(supervise, "with_merged_adapter", lambda plan, _: change(plan))
        supervise.run(checked, tmp_path / "run")

    return begin


def test_a_run_of_an_adapter_looks_for_checkpoints_by_the_model_that_the_user_gave(start, tmp_path):
    """Another run of the same adapter has its merged model in a folder of its own."""

    def merged(plan):
        path = shutil.copytree(plan.config.model.path, tmp_path / "merged")
        return replace(plan, config=replace(plan.config, model=replace(plan.config.model, path=str(path))))

    with pytest.raises(Searched) as searched:
        start(merged)
    assert str(searched.value) == compose_config(["experiment=demo"]).model.path


@pytest.mark.parametrize(("algo", "ends"), [("grpo", Searched), ("pope", ConfigError)])
def test_guided_prompts_must_fit_an_engines_cache(start, algo, ends):
    """One that holds 90 tokens has room for a sequence of the toy task, and for none with 128 tokens of guidance."""

    def large(plan):
        layers = int(GIB) // (90 * replace(plan.shape, layers=1).kv_bytes_per_token(4))
        return replace(plan, shape=replace(plan.shape, layers=layers))

    with pytest.raises(ends, match=r"/base|cannot hold one sequence of 128 tokens"):
        start(large, f"algo={algo}")
