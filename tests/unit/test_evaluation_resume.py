"""An evaluation's folder: what a stop leaves, what goes on there, and what is refused; the command's short forms."""

import json
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from evaluation_cases import graded, prompt, right, wrong

from expo_ray import evaluate
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.schema import Config
from expo_ray.data.formats import read_records
from expo_ray.data.records import fingerprint, with_preset
from expo_ray.data.sources import Problems
from expo_ray.evaluate import _prompts
from expo_ray.evaluation.evaluator import summarise
from expo_ray.evaluation.samples import SampleFile
from expo_ray.evaluation.settings import expand, settle, store
from expo_ray.preflight import inputs
from expo_ray.prompts.loading import make_builder
from expo_ray.runtime.journal import OWNER
from expo_ray.world.tokenizer import build_tokenizer

PROMPTS = [prompt(f"p{i}", i % 5 + 1, "Algebra" if i % 2 else "Geometry") for i in range(7)]
SAMPLES, CHUNK = 3, 2


def groups(chunk):
    return [graded(p, [right(), wrong(p.problem.uid), wrong("7")]) for p in chunk]


def fill(file: SampleFile, first: int = 0) -> None:
    for chunk in file.chunks[first:]:
        file.append(groups(chunk))


@pytest.fixture
def whole(tmp_path):
    file = SampleFile(tmp_path / "whole.jsonl", PROMPTS, SAMPLES, CHUNK)
    fill(file)
    return file


def test_answers_are_the_same_vote_by_their_own_problems_task(tmp_path):
    asked = prompt("p")
    asked = replace(asked, problem=replace(asked.problem, task="math"))
    mixed = [graded(asked, [right("1/2"), right("0.5"), wrong("3"), wrong("3")])]
    file = SampleFile(tmp_path / "mixed.jsonl", [asked], 4, 1)
    file.append(mixed)
    for found in (summarise(mixed, 4, "choice"), file.evaluation("choice")):
        assert found.scored[0].majority_at_k[-1] == 0.5  # two votes each


def test_chunks_hold_all_prompts_once(whole):
    assert [len(chunk) for chunk in whole.chunks] == [2, 2, 2, 1]
    assert whole.finished() == 4
    lines = [json.loads(line) for line in whole.path.read_text().splitlines()]
    assert [(line["uid"], line["sample"]) for line in lines] == [(p.problem.uid, i) for p in PROMPTS for i in range(3)]
    wanted = {"uid", "level", "kind", "sample", "answers", "text", "outcome", "extracted", "tokens", "finish_reason"}
    assert set(lines[0]) == wanted


def test_stopped_anywhere_it_ends_the_same(whole, tmp_path):
    content = whole.path.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(content) if byte == ord("\n"))]
    cuts = {*ends, *(e - 1 for e in ends[1:]), *random.Random(0).sample(range(len(content)), 60)}
    for cut in sorted(cuts):
        torn = SampleFile(tmp_path / "torn.jsonl", PROMPTS, SAMPLES, CHUNK)
        torn.path.write_bytes(content[:cut])
        complete = content[:cut].count(b"\n")
        done = torn.finished()
        assert done == (4 if complete == 21 else complete // (CHUNK * SAMPLES)), cut
        fill(torn, done)
        assert torn.path.read_bytes() == content


def test_nothing_there_is_nothing_finished(tmp_path):
    assert SampleFile(tmp_path / "none.jsonl", PROMPTS, SAMPLES, CHUNK).finished() == 0


def test_the_file_gives_the_evaluation_of_its_groups(whole):
    from_file = whole.evaluation("math")
    assert from_file.summary() == summarise(groups(PROMPTS), SAMPLES).summary()
    assert from_file.groups == []


def test_pass_rates_by_problem_are_the_shares_of_right_samples(whole):
    lines = whole.pass_rates(whole.evaluation("math"))
    for line, group in zip(lines, groups(PROMPTS), strict=True):
        outcomes = [verdict.outcome for verdict in group.verdicts]
        assert line["pass_rate"] == pytest.approx(outcomes.count("correct") / SAMPLES)
        assert (line["uid"], line["question"]) == (
            group.rollout.prompt.problem.uid,
            fingerprint(group.rollout.prompt.problem),
        )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [*lines[:4], lines[5], *lines[4:]], 5),
        (lambda lines: ["{broken", *lines[1:]], 1),
        (lambda lines: [*lines, lines[-1]], 22),
        (lambda lines: [lines[0].replace('"tokens"', '"lengths"'), *lines[1:]], 1),
        (lambda lines: ["[1]", *lines[1:]], 1),
    ],
)
def test_lines_that_do_not_belong_are_refused(whole, change, line):
    whole.path.write_text("".join(text + "\n" for text in change(whole.path.read_text().splitlines())))
    with pytest.raises(DataError, match=f"line {line} is not what belongs there"):
        whole.finished()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def config(model, **of_eval) -> Config:
    found = Config()
    found.model.path = str(model)
    found.data.name = "toy"
    for key, value in of_eval.items():
        setattr(found.eval, key, value)
    return found


@pytest.fixture
def begun(tmp_path, model):
    """A folder in which an evaluation was begun."""
    folder = tmp_path / "begun"
    folder.mkdir()
    store(settle(config(model), folder, PROMPTS), folder)
    (folder / "config.yaml").touch()
    return folder


def refusal(configured, folder, prompts=PROMPTS) -> str:
    with pytest.raises(ConfigError) as caught:
        settle(configured, folder, prompts)
    return str(caught.value)


def test_the_same_settings_go_on(begun, model):
    settings = settle(config(model), begun, PROMPTS)
    assert settings == json.loads((begun / "settings.json").read_text())
    layout = config(model)
    layout.rollout.workers, layout.run_name, layout.verifier.processes = 4, "other", 3
    assert settle(layout, begun, PROMPTS) == settings


def test_chunk_fills_the_engines_unless_it_is_given(tmp_path, model):
    folder = tmp_path / "new"
    configured = config(model, samples=8)
    configured.rollout.workers, configured.rollout.max_sequences = 2, 64
    assert settle(configured, folder, PROMPTS)["eval.chunk"] == 4 * 2 * 64 // 8
    configured.eval.chunk = 5
    assert settle(configured, folder, PROMPTS)["eval.chunk"] == 5


@pytest.mark.parametrize(
    ("key", "value"), [("samples", 8), ("temperature", 1.0), ("top_p", 0.9), ("max_problems", 3), ("chunk", 3)]
)
def test_other_sampling_is_refused_by_name(begun, model, key, value):
    assert f"eval.{key}={value} is not the" in refusal(config(model, **{key: value}), begun)


def test_other_problems_are_refused(begun, model):
    changed = [*PROMPTS[:-1], prompt("p6", 2, "Geometry", answers=("6",))]
    assert "the problems or their prompts are not those" in refusal(config(model), begun, changed)


def test_another_model_in_the_same_folder_is_refused(begun, model):
    (model / "model.safetensors").write_bytes(bytes(range(255, -1, -1)))
    assert "the files of model.path are not those" in refusal(config(model), begun)


def test_an_adapter_goes_on_in_a_moved_folder(tmp_path, model):
    """It is evaluated as the model that it was merged into, which is in the folder."""
    for name in ("before", "after"):
        shutil.copytree(model, tmp_path / name / "merged")
    settings = settle(config(tmp_path / "before/merged"), tmp_path / "before", PROMPTS, (), "my_adapter")
    store(settings, tmp_path / "after")
    assert settle(config(tmp_path / "after/merged"), tmp_path / "after", PROMPTS, (), "my_adapter")


def test_an_adapter_is_merged_in_a_folder_that_is_owned(tmp_path, monkeypatch):
    def merge(_plan, folder):
        raise InterruptedError("owned" if (folder / OWNER).exists() else "not owned")

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    monkeypatch.setattr(inputs, "with_merged_adapter", merge)
    with pytest.raises(InterruptedError, match=r"^owned"):
        evaluate._evaluate(SimpleNamespace(config=config(tmp_path / "adapter")), tmp_path / "run")


@pytest.mark.parametrize(("of", "words"), [("config.yaml", "another command"), ("settings.json", "other_adapter")])
def test_an_adapter_is_not_merged_into_a_folder_of_something_else(tmp_path, monkeypatch, of, words):
    (tmp_path / of).write_text('{"model.path": "other_adapter"}')
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    monkeypatch.setattr(inputs, "with_merged_adapter", lambda plan, folder: pytest.fail("merged"))
    with pytest.raises(ConfigError, match=words):
        evaluate._evaluate(SimpleNamespace(config=config(tmp_path / "adapter")), tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "samples.jsonl"])
def test_another_command_s_folder_is_refused(tmp_path, model, name):
    (tmp_path / name).touch()
    assert f"holds {name} of another command" in refusal(config(model), tmp_path)


def write(tmp_path, record) -> str:
    file = tmp_path / "it's mine.jsonl"
    file.write_text(json.dumps(record) + "\n")
    return str(file)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"problem": "1+1?", "answer": "2", "level": "Level 1", "type": "Sums"},
            {"question_key": "problem", "answer_from": "field", "level_key": "level", "kind_key": "type"},
        ),
        (
            {"problem": "1+1?", "solution": "\\boxed{2}", "subject": "Sums"},
            {"answer_from": "boxed", "level_key": None, "kind_key": "subject"},
        ),
        ({"question": "1+1?", "answer": "1+1\n#### 2"}, {"question_key": "question", "answer_from": "hashes"}),
    ],
)
def test_a_bare_file_is_read_by_the_keys_that_it_has(tmp_path, record, expected):
    file = write(tmp_path, record)
    composed = compose_config(expand([f"data={file}", "model=toy", "profile=cpu"]))
    assert composed.data.path == file
    taken, _ = with_preset(composed.data, next(read_records(file, "data")))
    assert {key: getattr(taken, key) for key in expected} == expected
    assert composed.verifier.name == ("gsm8k" if expected["answer_from"] == "hashes" else "math")


def test_what_is_written_wins_over_what_is_implied(tmp_path):
    file = write(tmp_path, {"problem": "1+1?", "prompt2": "2+2?", "answer": "2"})
    written = ["data.question_key=prompt2", "verifier=math", "rollout.max_completion_tokens=40", "run_name=mine"]
    composed = compose_config(expand([*written, f"data={file}", "model=toy", "profile=cpu"]))
    assert composed.data.question_key == "prompt2"
    assert composed.rollout.max_completion_tokens == 40
    assert composed.run_name == "mine"
    assert compose_config(expand(["data=toy", "verifier=math", "profile=cpu"])).verifier.name == "math"


def test_a_bare_file_may_have_any_columns_if_the_keys_are_given(tmp_path):
    file = write(tmp_path, {"q": "1+1?", "a": "1+1\n#### 2"})
    keys = ["data.question_key=q", "data.answer_key=a", "data.answer_from=hashes"]
    config = compose_config(expand([f"data={file}", *keys, "model=toy", "profile=cpu"]))
    assert config.verifier.name == "gsm8k"
    config.data.eval_path = config.data.path
    assert [p.answers for p in Problems(config.data, 0).held_out] == [("2",)]


def test_an_evaluation_does_not_depend_on_columns_that_nobody_reads(tmp_path):
    file = write(tmp_path, {"question": "3+4", "answer": "7", "note": "x"})
    config = compose_config(expand([f"data={file}", "model=toy", "profile=cpu", "verifier=toy"]))
    config.data.eval_path = config.data.path
    plan = SimpleNamespace(config=config, context=None)
    assert [prompt.problem.meta for prompt in _prompts(plan, make_builder(build_tokenizer(), config))] == [{}]


def test_choices_stay_choices_and_bring_their_verifier(tmp_path):
    assert compose_config(expand(["data=toy", "model=toy", "profile=cpu"])).verifier.name == "toy"
    assert compose_config(expand(["data=gsm8k", "profile=cpu"])).verifier.name == "gsm8k"
    assert compose_config(expand(["data=math500", "profile=cpu"])).verifier.name == "math"
    assert compose_config(expand([f"model={tmp_path}", "profile=cpu"])).model.path == str(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'math'"):
        compose_config(expand(["data=mth"]))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "1+1?"}, "looks for .*it has: prompt"),
        ({"question": "1+1?"}, "problem/question with answer/solution"),
    ],
)
def test_files_without_questions_or_answers_are_refused(tmp_path, record, words):
    with pytest.raises(DataError, match=words):
        expand([f"data={write(tmp_path, record)}"])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        expand(["data=nowhere.jsonl"])
