"""The registry, and an algorithm outside the package: the class of docs/algorithms/your_own.md, by its own words."""

import importlib
import re
import sys

import pytest
from algorithm_cases import group, random_arrays

from expo_ray.algorithms import Algorithm, make_algorithm
from expo_ray.config.algorithms import ALGORITHMS, algorithm_class, algorithm_label, group_choice
from expo_ray.config.compose import compose_config, groups
from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import Resources
from expo_ray.preflight.values import check_config
from expo_ray.train import main
from tests.user_pages import REPOSITORY, WrittenFile, parse

PAGE = REPOSITORY / "docs/algorithms/your_own.md"
OWN = "my_algorithm:Raft"
BROKEN = {
    "absent": "",
    "broken": "def f(:\n",
    "failing": "import a_package_that_nobody_has\n",
    "raising": "1 / 0\n",
    "plain": "class Mine:\n    pass\n",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the page's files, which Python imports from."""
    (file,) = [step for step in parse(PAGE.read_text()) if isinstance(step, WrittenFile)]
    (tmp_path / file.name).write_text(file.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train"])
    yield tmp_path
    for name in ("my_algorithm", *BROKEN):
        sys.modules.pop(name, None)


def test_the_page_shows_an_algorithm_in_sixty_lines():
    assert len(PAGE.read_text().splitlines()) <= 60


def test_its_batch_weighs_each_token_of_a_correct_completion_alike(here):
    algorithm = make_algorithm(compose_config([f"algo={OWN}"]))
    mixed = group(["correct", "wrong", "correct"], [2, 4, 3], uid="a")
    batch = algorithm.training_batch([mixed, group(["wrong"], uid="b"), group(["correct"], [5], uid="c")], 0)
    assert [len(sample.completion_ids) for sample in batch.samples] == [2, 3, 5]
    assert [sample.weight for sample in batch.samples] == [pytest.approx(1 / 10)] * 3
    assert batch.metrics["pass_rate/all"] == pytest.approx(3 / 5)
    assert algorithm.training_batch([group(["wrong"])], 0).samples == []


def test_its_loss_is_the_weighted_sum_of_negative_logprobs(here):
    arrays = random_arrays(["sft"] * 5)
    output = make_algorithm(compose_config([f"algo={OWN}"])).loss(arrays.tokens())
    expected = -sum(w * values.sum() for w, values in zip(arrays.weight, arrays.logprobs, strict=True))
    assert output.loss.item() == pytest.approx(expected, abs=1e-12)
    assert output.metrics["loss/total"][0].item() == pytest.approx(expected, abs=1e-12)


def test_it_composes_with_the_values_of_the_algorithm_it_derives_from(here):
    config = compose_config([f"algo={OWN}"])
    assert (config.algo.name, config.algo.beta, config.rollout.explanations_per_prompt) == (OWN, 0.0, 0)
    (here / "plain.py").write_text(
        "from expo_ray.algorithms.exp_grpo import ExplanationSft\nclass Mine(ExplanationSft): pass\n"
    )
    derived = compose_config(["experiment=demo", "algo=plain:Mine"])
    assert (group_choice("plain:Mine"), derived.algo.name) == ("explanation_sft", "plain:Mine")
    assert derived.rollout.explanations_per_prompt > 0
    assert compose_config(["algo.name=plain:Mine"]).algo.name == "plain:Mine"
    assert (algorithm_label("plain:Mine"), algorithm_label(OWN)) == ("ExP-SFT", "RAFT")


def test_it_is_checked_planned_and_dry_run_alone_and_in_a_sweep(here, capsys):
    common = ["experiment=demo", "profile=cpu", "dry_run=true"]
    assert main([*common, f"algo={OWN}", "run_dir=alone"]) == 0
    assert f"demo: {OWN}, " in capsys.readouterr().out
    assert main(["-m", *common, f"algo=grpo,{OWN}", "run_dir=sweep"]) == 0

    assert f"name: {OWN}" in (here / "sweep/1/config.yaml").read_text()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("my_algorithm:Rafting", ["no class Rafting", "'Raft'"]),
        ("absent_module:Mine", ["absent_module", "ModuleNotFoundError"]),
        ("broken:Mine", ["broken", "SyntaxError"]),
        ("failing:Mine", ["failing", "a_package_that_nobody_has"]),
        ("raising:Mine", ["raising", "ZeroDivisionError"]),
        ("plain:Mine", ["Mine", "not a subclass", "Algorithm"]),
        (":Mine", ["algo=:Mine"]),
        ("my_algorithm:", ["no class"]),
    ],
)
def test_a_path_that_leads_nowhere_is_one_sentence_and_exit_code_2(here, capsys, path, words):
    for name, text in BROKEN.items():
        (here / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    for key in ("algo", "algo.name"):
        assert main([f"{key}={path}", "dry_run=true", "run_dir=never"]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1
        assert all(word in told.err for word in words), told.err
    assert not (here / "never").exists()


def test_the_registry_names_one_class_one_yaml_and_one_page_for_each():
    assert sorted(ALGORITHMS) == groups()["algo"]
    for name in ALGORITHMS:
        cls = algorithm_class(name)
        assert issubclass(cls, Algorithm) and cls.label and group_choice(name) == name
        assert (REPOSITORY / f"docs/algorithms/{name}.md").is_file()
        assert type(make_algorithm(compose_config([f"algo={name}", "profile=cpu"]))) is cls
    with pytest.raises(ConfigError, match=r"algo\.name=ppo is not an algorithm"):
        algorithm_class("ppo")


@pytest.mark.parametrize(
    "choice",
    [
        "loss_normalisation=batch",
        "explanation_scope=some",
        "explanation_keep=best",
        "sft_reduction=max",
        "beta_schedule=step",
        "policy_loss=ppo",
        "importance_correction=clip",
        "kl_estimator=k4",
        "dpo_refresh=weekly",
    ],
)
def test_an_unknown_choice_is_refused_before_any_algorithm_sees_it(choice):
    with pytest.raises(ConfigError, match=f"algo.{choice}"):
        check_config(compose_config([f"algo.{choice}"]), Resources("this machine", 1, 2, 8, 0, 0))


def test_the_code_that_the_pages_name_exists():
    """Each `module.name` in backticks on the pages of docs/algorithms, but for keys, files and other folders' code."""
    modules = {path.stem for path in (REPOSITORY / "expo_ray/algorithms").glob("*.py")}
    named = set()
    for page in PAGE.parent.glob("*.md"):
        named |= set(re.findall(r"`([a-z_]+)\.(\w+)(?:\.\w+)*`", page.read_text()))
    groups_and_types = {*groups(), "trainer", "verifier", "reward", "eval", "model"}
    groups_and_types |= {"prompts", "samples", "self", "update"}
    code = {(module, name) for module, name in named if module not in groups_and_types}
    assert len(code) > 15 and {module for module, _ in code} <= modules
    for module, name in code:
        assert hasattr(importlib.import_module(f"expo_ray.algorithms.{module}"), name), (module, name)
