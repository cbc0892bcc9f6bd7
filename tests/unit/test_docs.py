"""Compares the documentation with the code: recorded names, quoted sentences, links, and the README's reward."""

import inspect
import itertools
import json
import os
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
from algorithm_cases import config_with, group, inputs, random_arrays, restate, score

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.properties import GroupProperties, SampleProperties, property_metrics
from expo_ray.algorithms.rewards import group_metrics
from expo_ray.config.algorithms import CHOICE_KEYS, EXPLANATION_KEYS, SFT_KEYS
from expo_ray.config.compose import compose_config, sweep_jobs
from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.keys import defaults, mappings
from expo_ray.config.schema import DataConfig
from expo_ray.data.sources import Problems
from expo_ray.driver.groups import Collector
from expo_ray.driver.record import StepRecord, batch_line, sample_lines
from expo_ray.driver.run import _summarise
from expo_ray.evaluation.evaluator import summarise
from expo_ray.messages import Score, SyncProof, TrainingBatch, UpdateReport
from expo_ray.preflight.values import check_config
from expo_ray.rewards.functions import load, reward_problems, weights_of
from expo_ray.runtime.journal import Status
from expo_ray.runtime.process import process_usage
from expo_ray.train import main
from tests.house import LAYERS
from tests.user_pages import WrittenFile, parse

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
MEASURED = ("algorithms", "driver", "learner")
OWN_TERMS = {"luffy": "expert"}
GRPO_FAMILY = ("grpo", "exp_grpo", "sft_gt_grpo", "explanation_sft", "verifree", "nurl", "pope", "ravr", *OWN_TERMS)
PROPERTIES = SampleProperties(-1.0, -2.0, 0.5, 0.1)


def expanded(name: str) -> list[str]:
    """`a/{b,c}` as a/b and a/c."""
    parts = [part.split(",") if i % 2 else [part] for i, part in enumerate(re.split(r"\{([^}]*)\}", name))]
    return ["".join(choice) for choice in itertools.product(*parts)]


def documented(section: str) -> set[str]:
    """The names in the first column of a section's table of docs/metrics.md."""
    text = (REPOSITORY / "docs/metrics.md").read_text()
    body = re.search(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert body, section
    cells = re.findall(r"^\| (`.*?) \|", body.group(1), re.MULTILINE)
    return {name for cell in cells for quoted in re.findall(r"`([^`]+)`", cell) for name in expanded(quoted)}


def sources() -> str:
    files = (file for part in MEASURED for file in sorted((REPOSITORY / "expo_ray" / part).glob("*.py")))
    return "\n".join(file.read_text() for file in files)


def emitted() -> set[str]:
    """Names of metrics: literals in the code, and names produced by running algorithms, properties and records."""
    code = sources()
    names = set(re.findall(r'"([a-z_]+/[a-z_]+)"', code)) - {"pass_rate/level_"}
    names |= {f"time/{phase}" for phase in ["step", *re.findall(r'record\.phase\("(\w+)"\)', code)]}
    groups = [group(["correct", "wrong"], uid=f"p{level}", level=level) for level in (1, 2, 3, 4, 5)]
    for name in (*GRPO_FAMILY, "exp_dpo", "dpo_gt"):
        config = config_with(name=name, kl_coef=0.1, kl_conditioned_coef=0.1)
        algorithm = make_algorithm(config)
        algorithm.attach(Path(os.devnull), score, restate)
        algorithm.begin(inputs([each.rollout.prompt for each in groups]))
        names |= set(algorithm.training_batch(groups, step=0).metrics)
        names |= {f"ahead/{count}" for count in algorithm.collect(groups, step=0)}
        terms = ["policy", "sft", "conditioned"] if name in GRPO_FAMILY else ["chosen", "rejected"]
        terms += [OWN_TERMS[name]] if name in OWN_TERMS else []
        losses = set(algorithm.loss(random_arrays(terms).tokens()).metrics)
        names |= losses
        if name in GRPO_FAMILY:
            names |= {f"last_{loss}" for loss in losses if loss.startswith("policy/")}
    rewarded = config_with(name="grpo")
    rewarded.reward.functions = ["verifier", "<function>"]
    scored = replace(group(["correct"]), scores={"<function>": [Score(1.0)]})
    names |= {name for name in group_metrics([scored], rewarded) if "<" in name}
    names |= {"ahead/tokens/generated"}  # as Collector._verified counts any tokens
    names |= set(property_metrics([GroupProperties([PROPERTIES], PROPERTIES, [PROPERTIES])]))
    names |= {f"memory/<actor>_{what}" for what in process_usage()}
    record = StepRecord(0, Status(Path(os.devnull), dict))
    proof = SyncProof(1, [1], 0.0, 0.0, 1e-3, 1e-3, 1, 0.1)
    record.finish(groups, TrainingBatch(0, []), UpdateReport({}, 0, 0.0), proof)
    background = StepRecord(0)
    for phase in re.findall(r'record\.phase\("(\w+)"\)', inspect.getsource(Collector)):
        with background.phase(phase):
            pass
    record.merge_background(background)
    return names | set(record.metrics) | {f"time/{phase}" for phase in record.seconds} | {"step"}


def test_every_metric_that_the_code_emits_is_documented():
    assert emitted() - documented("metrics.jsonl") == set()


def test_every_documented_metric_is_emitted():
    assert documented("metrics.jsonl") - emitted() == set()


def test_every_name_of_a_real_run_is_documented():
    lines = (REPOSITORY / "tests/data/metrics_example.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        assert set(json.loads(line)) - documented("metrics.jsonl") == set()


def test_other_records_are_documented_key_for_key(tmp_path):
    config = config_with()
    groups = [group(["correct", "wrong"], level=1)]
    measured = [GroupProperties([PROPERTIES], PROPERTIES, [PROPERTIES, PROPERTIES])]
    config.reward.weights = [2.0]  # lines then have each function's reward
    samples = set().union(*sample_lines(groups, measured, config)) | {"step"}
    inner = {field.name for field in fields(SampleProperties)}
    page = (REPOSITORY / "docs/metrics.md").read_text()
    assert documented("samples.jsonl") == samples
    assert all(f"`{name}`" in page for name in inner)
    assert documented("proofs.jsonl") == {field.name for field in fields(SyncProof)}
    assert documented("evaluations.jsonl") == {"steps_done", *summarise(groups, 2).summary()}
    _summarise(config, tmp_path, 1, False, 1.0)
    assert documented("batches.jsonl") == {"step", *batch_line(groups)}
    assert documented("summary.json") == set(json.loads((tmp_path / "summary.json").read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def quoted_sentences() -> list[str]:
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    return re.findall(r"^    error: (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("argument", ["algo.betta=1", "algo=exp_gropo", "trainer.steps=many", "algo=grpo,exp_grpo"])
def test_quoted_sentences_are_what_the_command_says(argument, capsys):
    assert main([argument]) == 2
    said = capsys.readouterr().err.removeprefix("error: ").strip()
    assert any(said.startswith(quoted.removesuffix("...)")) for quoted in quoted_sentences()), said


def test_quoted_sentences_about_data_are_what_is_raised(tmp_path):
    file = tmp_path / "problems.jsonl"
    data = DataConfig(name="jsonl", path=str(file), question_key="question", held_out_share=0.0)
    for content in (None, '{"question": "1+1?"}\n'):
        if content is not None:
            file.write_text(content)
        with pytest.raises(DataError) as caught:
            _ = Problems(data, seed=0).training
        assert str(caught.value).replace(str(file), "/data/problems.jsonl") in quoted_sentences()


def test_documented_choices_are_the_folders_of_conf():
    text = (REPOSITORY / "docs/configuration.md").read_text()
    for name in ("experiment", "algo", "data", "verifier", "model"):
        row = re.search(rf"^\| `{name}` \|(.*)$", text, re.MULTILINE)
        assert row, name
        choices = {choice for quoted in re.findall(r"`([^`]+)`", row.group(1)) for choice in expanded(quoted)}
        assert choices == {file.stem for file in (REPOSITORY / "conf" / name).glob("*.yaml")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_key_that_a_page_names_exists(page):
    groups = {key.partition(".")[0] for key in defaults() if "." in key}
    text = re.sub(r"^ *error: unknown key.*$", "", page.read_text(), flags=re.MULTILINE)
    named = re.findall(rf"(?<![\w./])((?:{'|'.join(groups)})\.[a-z][\w.]*)(?==|`)", text)
    keys = {*defaults(), *(key.rpartition(".")[0] for key in defaults())}
    inside = tuple(f"{key}." for key in mappings())  # names of vLLM and DeepSpeed
    assert [name for name in named if name not in keys and not name.startswith(inside)] == []


def test_the_defaults_on_the_page_of_deviations_are_the_schemas():
    text = (REPOSITORY / "docs/algorithms/deviations.md").read_text()
    stated = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^`]+)` \|", text, re.MULTILINE))
    assert stated == {key: str(defaults()[key]).replace("True", "true").replace("False", "false") for key in stated}
    choices = {f"algo.{name}" for name in SFT_KEYS | CHOICE_KEYS | EXPLANATION_KEYS}
    left = {"name", "properties_every", "measure_base", "contrast_prompts", "explanation_threshold", "kl_estimator"}
    assert choices - {f"algo.{name}" for name in left} <= set(stated)


def documented_commands() -> list[str]:
    """Each `python -m expo_ray.train ...` that a page shows as an indented line, without its comment.

    Pages of docs/results list the commands of past runs, which need not be valid today.
    """
    found: dict[str, None] = {}
    for page in (page for page in PAGES if page.parent.name != "results"):
        text = page.read_text().replace("\\\n", " ")
        commands = re.findall(r"^    python -m expo_ray\.train ([^#\n\[]+?)\s*(?:#.*)?$", text, re.MULTILINE)
        found |= dict.fromkeys(" ".join(command.replace("dry_run=true", "").split()) for command in commands)
    return list(found)


@pytest.mark.parametrize("command", documented_commands())
def test_the_settings_of_a_documented_command_pass_the_checks(command):
    if "experiment=mine" in command:
        pytest.skip("the page asks its reader to write this recipe")
    arguments = [word for word in shlex.split(command.replace("FOLDER", "some/model")) if word != "-m"]
    config = compose_config([*next(sweep_jobs(arguments)), "dry_run=true"])
    if "model.lora.rank=0 cluster=2xh100" in command:  # the page says that it does not fit
        with pytest.raises(ConfigError, match="memory"):
            check_config(config)
    else:
        check_config(config)


def test_the_map_of_the_house_is_complete_and_in_the_order_of_the_layers():
    section = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## The map of the house")[2].partition("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    package = REPOSITORY / "expo_ray"
    there = {file.name for file in package.glob("*.py")} - {"__init__.py"}
    there |= {f"{file.parent.name}/" for file in package.glob("*/__init__.py")}
    named = [name for name in re.findall(r"`([a-z_]+(?:\.py|/))`", table) if name not in ("loop.py", "schema.py")]
    assert set(named) == there
    of_layer = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}
    layers = [of_layer[name.removesuffix(".py").removesuffix("/")] for name in named]
    assert layers == sorted(layers, reverse=True)


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_the_reward_of_the_readme_does_what_the_readme_says(tmp_path, monkeypatch):
    readme = (REPOSITORY / "README.md").read_text()
    (file,) = [step for step in parse(readme) if isinstance(step, WrittenFile)]
    assert len([line for line in file.text.splitlines() if line.strip()]) <= 12
    (tmp_path / file.name).write_text(file.text)
    monkeypatch.syspath_prepend(tmp_path)
    (overrides,) = re.findall(r"`(reward\.functions=\S+ reward\.weights=\S+)`", readme)
    reward = compose_config(["experiment=demo", *overrides.split()]).reward
    assert list(reward_problems(reward, here=True)) == [] and list(weights_of(reward).values()) == [1.0, 0.2]
    accuracy, brevity = (load(name).call for name in reward.functions)
    texts = ("so it is Paris.\n", "so it is PARIS", "Rome", " . ")
    assert [accuracy(text, "Paris", question="", record={}) for text in texts] == [1.0, 0.5, 0.0, None]
    assert brevity("") == 1.0 and brevity("x" * 1000) == 0.5


def test_expansion():
    assert expanded("a/{b,c}/{d,e}") == ["a/b/d", "a/b/e", "a/c/d", "a/c/e"]
    assert expanded("plain") == ["plain"]


def test_the_readmes_comparison_is_the_pages():
    """Level 3, level 5 and all levels of each method, as `make ladder` wrote them for training on all levels."""
    page = (REPOSITORY / "docs/results/families.md").read_text().partition("## Trained on all levels")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    found = {row[0]: [row[i].split(" ")[0] for i in (7, 9, 10)] for row in rows if len(row) == 12}
    table = (REPOSITORY / "README.md").read_text().partition("| method | learns from |")[2].partition("\n\n")[0]
    said = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert len(said) > 10 and {row[0]: row[2:] for row in said} == {row[0]: found[row[0]] for row in said}
