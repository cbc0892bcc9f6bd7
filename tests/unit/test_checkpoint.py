"""Checkpoints: only complete ones are found, damage is named, the one before is used, settings are compared."""

import functools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from expo_ray.algorithms import make_algorithm
from expo_ray.checkpoint.find import changed_settings, checkpoints_in, find_checkpoint, newest_valid
from expo_ray.checkpoint.manifest import damage, read_manifest, seal
from expo_ray.checkpoint.state import RECORDS, DriverState, Identity, identify, record_lengths, rewind, set_aside
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import as_settings, differences
from expo_ray.config.schema import Config
from expo_ray.data.sources import Problems
from expo_ray.messages import Problem, Prompt
from expo_ray.preflight.model_folder import generation_ends
from expo_ray.prompts.loading import load_prompts, load_tokenizer, make_builder
from expo_ray.reporting.samples import config_of
from expo_ray.sweep.job import is_finished

SAME = Identity("model", "prompts")


def write(run: Path, steps: int, config: Config | None = None, score: float | None = None) -> Path:
    """A checkpoint as a run writes it, with random bytes for the learners' part."""
    folder = run / "checkpoints" / f"step_{steps:06d}"
    (folder / "learner").mkdir(parents=True)
    for rank in range(2):
        (folder / "learner" / f"shard_{rank}.pt").write_bytes(random.Random(steps + rank).randbytes(5000))
    DriverState(steps, {}, record_lengths(run), as_settings(config or Config()), SAME).write(folder)
    seal(folder, steps, score)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    write(folder, 2)
    write(folder, 4)
    return folder


def truncate(folder: Path) -> None:
    path = folder / "learner" / "shard_1.pt"
    path.write_bytes(path.read_bytes()[:1234])


def flip(folder: Path) -> None:
    path = folder / "learner" / "shard_0.pt"
    content = bytearray(path.read_bytes())
    content[2500] ^= 1
    path.write_bytes(bytes(content))


def lose_shard(folder: Path) -> None:
    (folder / "learner" / "shard_1.pt").unlink()


def other_version(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def torn_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:80])


def change_state(folder: Path) -> None:
    path = folder / "driver.json"
    path.write_text(path.read_text().replace('"steps_done": 4', '"steps_done": 3'))


DAMAGES = [
    (truncate, r"shard_1\.pt has 1234 bytes instead of 5000"),
    (flip, r"shard_0\.pt was changed: its SHA-256"),
    (lose_shard, r"shard_1\.pt is missing"),
    (other_version, r"it has format 99, this version reads 2"),
    (no_manifest, r"no manifest\.json, so it is incomplete"),
    (torn_manifest, r"its manifest\.json cannot be read"),
    (change_state, r"driver\.json was changed"),
]


def test_an_undamaged_checkpoint_is_taken(run):
    assert damage(run / "checkpoints" / "step_000004") is None
    assert newest_valid(run / "checkpoints", pytest.fail) == run / "checkpoints" / "step_000004"


@pytest.mark.parametrize(("harm", "reason"), DAMAGES, ids=[harm.__name__ for harm, _ in DAMAGES])
def test_a_damaged_checkpoint_is_refused_with_a_reason_and_the_one_before_is_used(run, harm, reason):
    harm(run / "checkpoints" / "step_000004")
    told: list[str] = []
    found = find_checkpoint(Config(), run, SAME, told.append)
    assert found == run / "checkpoints" / "step_000002"
    assert len(told) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(told[0])
    assert "step_000004 is skipped" in told[0]

    config = Config()
    config.trainer.resume = str(run / "checkpoints" / "step_000004")
    with pytest.raises(ConfigError, match=reason):
        find_checkpoint(config, run, SAME, told.append)


def test_with_all_damaged_auto_starts_anew_and_a_path_is_refused(run):
    for folder in checkpoints_in(run / "checkpoints"):
        flip(folder)
    told: list[str] = []
    assert find_checkpoint(Config(), run, SAME, told.append) is None
    assert len(told) == 2
    config = Config()
    config.trainer.resume = str(run)
    with pytest.raises(ConfigError, match="has no valid checkpoint"):
        find_checkpoint(config, run, SAME, told.append)


def test_the_manifest_lists_every_file_and_knows_the_size(run):
    folder = run / "checkpoints" / "step_000004"
    found = read_manifest(folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(found.files) == names - {"manifest.json"}
    assert found.bytes == sum((folder / name).stat().st_size for name in found.files)


def changed(key: str, value: object) -> Config:
    config = Config()
    *groups, name = key.split(".")
    target = functools.reduce(getattr, groups, config)
    assert hasattr(target, name)
    setattr(target, name, value)
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [("learner.ranks", 3), ("learner.zero_stage", 3), ("seed", 7), ("algo.beta", 0.5), ("model.lora.rank", 4)],
)
def test_what_cannot_change_is_refused_with_key_and_both_values(run, key, value):
    before = as_settings(Config())[key]
    with pytest.raises(ConfigError, match=rf"{key}: {before} -> {value}: put it back, or start a new run"):
        find_checkpoint(changed(key, value), run, SAME, pytest.fail)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("trainer.steps", 500, True),
        ("learner.learning_rate", 1e-4, True),
        ("eval.samples", 8, True),
        ("logging.progress", False, False),
        ("trainer.checkpoint_every", 7, False),
    ],
)
def test_what_can_change_is_allowed_and_told_where_it_matters(run, key, value, told):
    config = changed(key, value)
    found = find_checkpoint(config, run, SAME, pytest.fail)
    assert found is not None
    assert changed_settings(found, config) == ([f"{key}: {as_settings(Config())[key]} -> {value}"] if told else [])


@pytest.mark.parametrize(
    ("identity", "reason"),
    [(Identity("other", "prompts"), "is not the model that"), (Identity("model", "other"), "the training problems")],
)
def test_another_model_or_other_problems_are_refused_by_content(run, identity, reason):
    with pytest.raises(ConfigError, match=reason):
        find_checkpoint(Config(), run, identity, pytest.fail)


def test_identity_follows_content_and_not_the_path(tmp_path):
    prompt = Prompt(Problem("p", "q", ("1",)), np.array([1, 2], np.int32), np.array([1, 2, 3], np.int32))
    other = Prompt(Problem("p", "q", ("1",)), np.array([1, 9], np.int32), np.array([1, 2, 3], np.int32))
    model = tmp_path / "a"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(3 << 20))
    moved = tmp_path / "b"
    shutil.copytree(model, moved)
    first = identify(str(model), [prompt])
    assert identify(str(moved), [prompt]) == first
    assert identify(str(model), [other]).prompts != first.prompts
    (moved / "model.safetensors").write_bytes(bytes((3 << 20) - 1) + b"1")
    assert identify(str(moved), [prompt]).model != first.model
    solved = replace(prompt, problem=replace(prompt.problem, solution="s"))
    assert identify(str(model), [solved]).prompts == first.prompts
    assert identify(str(model), [solved]).problems != first.problems
    for change in ({"meta": {"tests": "assert f(1) == 2"}}, {"task": "gsm8k"}):  # they decide about rewards
        assert identify(str(model), [replace(prompt, problem=replace(prompt.problem, **change))]) != first
    assert identify(str(model), [prompt], [1]) == replace(first, stop_ids=[1])


@pytest.mark.parametrize(("size", "changed"), [(3 << 20, 1), (70 << 20, 4 << 20)])
def test_identity_sees_a_change_inside_a_weight_file(tmp_path, size, changed):
    """A byte of a file of 3 MiB; a matrix of 4 MiB of one of 70 MiB, which is hashed in parts."""
    found = []
    for content in (b"0", b"1"):
        (tmp_path / "model.safetensors").write_bytes(bytes(size))
        with (tmp_path / "model.safetensors").open("r+b") as file:
            file.seek(size // 2 + 12_345 - changed // 2)
            file.write(content * changed)
        found.append(identify(str(tmp_path), []))
    assert found[0].model == found[1].model
    assert found[0].weights != found[1].weights and found[0].base_model != found[1].base_model


KNOWN = Identity("model-1", "prompts-1", "weights-1", "problems-1", [1, 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "model-2"}, ["model.path=??? is not the model", "model-1 then and model-2 now"]),
        ({"weights": "weights-2"}, ["model.path=??? has other weights", "eights-1 then and eights-2 now"]),
        ({"problems": "problems-2"}, ["the training problems (data=???)", "oblems-1 then and oblems-2 now"]),
        ({"prompts": "prompts-2"}, ["or the token ids of their prompts", "rompts-1 then and rompts-2 now"]),
        ({"stop_ids": [1]}, ["end with the token ids [1] and ended with [1, 2]"]),
    ],
)
def test_other_inputs_are_refused_with_both_values_or_skipped_in_a_neighbour(tmp_path, change, words):
    """What is stored by problem (explanations, pairs) is part of the checkpoint and falls with it."""
    own = write(tmp_path / "own", 2)
    replace(DriverState.read(own), identity=KNOWN).write(own)
    seal(own, 2, None)
    now = replace(KNOWN, **change)
    with pytest.raises(ConfigError) as caught:
        find_checkpoint(Config(), tmp_path / "own", now, pytest.fail)
    sentence = str(caught.value)
    assert all(word in sentence for word in [*words, str(own), "put it back"]) and "\n" not in sentence
    (tmp_path / "own" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(Config())))
    said: list[str] = []
    assert find_checkpoint(Config(), tmp_path / "mine", KNOWN, said.append) == own
    assert find_checkpoint(Config(), tmp_path / "mine", now, said.append) is None
    assert len(said) == 1 and all(word in said[0] for word in [*words, "own is skipped"])


def test_a_neighbour_is_taken_only_unfinished_and_with_the_same_settings(tmp_path):
    def neighbour(name: str, config: Config) -> Path:
        folder = tmp_path / name
        write(folder, 2, config)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        return folder

    neighbour("other_seed", changed("seed", 1))
    told: list[str] = []
    mine = tmp_path / "mine"
    assert find_checkpoint(Config(), mine, SAME, told.append) is None
    assert len(told) == 1
    assert "seed: 1 there, 0 here" in told[0]
    for name, file in (("torn", "summary.json"), ("odd", "config.yaml")):
        (neighbour(name, Config()) / file).write_text("{")
        told.clear()
        assert find_checkpoint(Config(), mine, SAME, told.append) is None
        assert any(f"{name} is skipped: it cannot be read" in sentence and "\n" not in sentence for sentence in told)
    same = neighbour("same", Config())
    assert find_checkpoint(Config(), mine, SAME, told.append) == same / "checkpoints" / "step_000002"
    (same / "summary.json").write_text('{"finished": true}')
    assert find_checkpoint(Config(), mine, SAME, told.append) is None


def test_differences_compare_model_and_data_by_content_alone():
    before = as_settings(Config())
    now = before | {"model.path": "moved", "data.path": "moved.jsonl", "run_dir": "x"}
    assert differences(before, now) == ([], [])


SINCE = ["algo.explanation_answer: own -> gold", "algo.explanation_cut_off: keep -> drop"]
"""What is reported of a run older than these keys when it resumes with their defaults."""


def test_a_run_older_than_a_key_counts_as_what_runs_did_then():
    now = as_settings(Config())
    before = {key: value for key, value in now.items() if not key.startswith("algo.explanation_")}
    assert differences(before, now) == ([], SINCE)
    as_then = {"algo.explanation_answer": "own", "algo.explanation_cut_off": "keep"}
    assert differences(before, now | as_then) == ([], [])


def test_records_are_cut_to_the_byte_and_torn_lines_go(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    lengths = record_lengths(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2}\n{"st')
    (tmp_path / "evaluations.jsonl").write_text("after the checkpoint\n")
    rewind(tmp_path, lengths)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'
    assert not (tmp_path / "evaluations.jsonl").exists()
    other = tmp_path / "other"
    other.mkdir()
    rewind(other, lengths, source=tmp_path)
    assert (other / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'


def test_records_of_an_abandoned_run_are_kept_under_another_name(tmp_path):
    for turn in ("first", "second"):
        for name in RECORDS:
            (tmp_path / name).write_text(turn)
        set_aside(tmp_path)
    assert (tmp_path / "metrics.jsonl.1").read_text() == "first"
    assert (tmp_path / "metrics.jsonl.2").read_text() == "second"
    assert not (tmp_path / "metrics.jsonl").exists()


OLD = Path(__file__).parents[1] / "data" / "old_checkpoint"
"""Written by the version before the schema's facts (commit 2032bb8): the demo on 20 problems, after two steps."""


@pytest.fixture
def old_run(tmp_path) -> Path:
    shutil.copytree(OLD, tmp_path / "run" / "checkpoints" / "step_000002")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def demo() -> tuple[Config, Identity]:
    config = compose_config(["experiment=demo", "profile=cpu", "data.max_problems=20"])
    builder = make_builder(load_tokenizer(config), config)
    training, _ = load_prompts(config, builder, Problems(config.data, config.seed), context=None)
    return config, identify(config.model.path, training)


def resettle(checkpoint: Path, **changes: object) -> None:
    """Changes the settings that a checkpoint holds; a value of None takes a key out."""
    state = DriverState.read(checkpoint)
    changed = state.settings | {key.replace("__", "."): value for key, value in changes.items()}
    kept = {key: value for key, value in changed.items() if key.replace(".", "__") not in changes or value is not None}
    replace(state, settings=kept).write(checkpoint)
    seal(checkpoint, state.steps_done, None)


def test_a_checkpoint_of_the_version_before_resumes(old_run, demo):
    config, identity = demo
    found = find_checkpoint(config, old_run, identity, pytest.fail)
    assert found == old_run / "checkpoints" / "step_000002"
    assert changed_settings(found, config) == [
        *SINCE,
        "learner.gradient_checkpointing: False -> None",
        "rollout.max_sequences: 64 -> 0",
    ]
    state = DriverState.read(found)
    algorithm = make_algorithm(config)
    algorithm.load_state_dict(state.algorithm)
    assert (state.steps_done, algorithm.state_dict()) == (2, state.algorithm | {"sampled_to": 0})


@pytest.mark.parametrize(
    ("algo", "state"),
    [
        ("grpo", {}),
        ("sft_gt_grpo", {}),
        ("exp_dpo", {"pairs": {}}),
        ("dpo_gt", {"pairs": {}}),
        ("explanation_sft", {"explanations": {}}),
    ],
)
def test_what_an_algorithm_of_the_version_before_remembered_is_read(algo, state):
    algorithm = make_algorithm(compose_config(["experiment=demo", f"algo={algo}"]))
    algorithm.load_state_dict(state)
    assert algorithm.state_dict() == (state | {"sampled_to": 0} if state else {})


def test_a_key_that_an_old_checkpoint_lacks_counts_as_its_default(old_run, demo):
    config, identity = demo
    checkpoint = old_run / "checkpoints" / "step_000002"
    resettle(checkpoint, algo__overlong_penalty=None, trainer__max_mismatch=None)
    assert find_checkpoint(config, old_run, identity, pytest.fail) == checkpoint
    assert changed_settings(checkpoint, config) == [
        *SINCE,
        "learner.gradient_checkpointing: False -> None",
        "rollout.max_sequences: 64 -> 0",
    ]


def test_a_key_that_this_version_lacks_is_refused_in_one_sentence(old_run, demo):
    config, identity = demo
    resettle(old_run / "checkpoints" / "step_000002", logging__gone=3, algo__gone=3)
    with pytest.raises(ConfigError, match=r"algo\.gone: 3 -> None") as caught:
        find_checkpoint(config, old_run, identity, pytest.fail)
    assert "logging" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_another_has_replaced_counts_as_that_one(old_run, demo, tmp_path):
    """algo.divide_by_std in a checkpoint, in a run's config.yaml and on the command line."""
    config, identity = demo
    checkpoint = old_run / "checkpoints" / "step_000002"
    assert find_checkpoint(config, old_run, identity, pytest.fail) == checkpoint  # true there, grpo here
    resettle(checkpoint, algo__divide_by_std=False)
    with pytest.raises(ConfigError, match=r"algo\.advantage: dr_grpo -> grpo"):
        find_checkpoint(config, old_run, identity, pytest.fail)
    saved = OmegaConf.to_container(OmegaConf.structured(config))
    del saved["algo"]["advantage"]
    for old, new in ((True, "grpo"), (False, "dr_grpo")):
        saved["algo"]["divide_by_std"] = old
        OmegaConf.save(OmegaConf.create(saved), tmp_path / "config.yaml")
        assert config_of(OmegaConf.load(tmp_path / "config.yaml")).algo.advantage == new
        (tmp_path / "summary.json").write_text('{"finished": true}')
        config.algo.advantage = new
        assert is_finished(tmp_path, config)
    config.algo.advantage = "grpo"
    with pytest.raises(ConfigError, match=r"is now algo\.advantage: use algo\.advantage=dr_grpo"):
        compose_config(["algo.divide_by_std=false"])


HUB_SETTINGS = json.dumps({"eos_token_id": [1, 2], "temperature": 0.6, "do_sample": False})


@pytest.mark.parametrize("settings", [None, HUB_SETTINGS], ids=["without", "with"])
def test_a_hub_model_exports_its_generation_settings_if_it_has_any(settings, tiny_models, tmp_path, monkeypatch):
    """From the cache, without the hub, and as they are: transformers does not write a temperature without do_sample."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from expo_ray.learner import saving

    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    shutil.copytree(tiny_models["tied"], snapshot)
    (snapshot / "generation_config.json").unlink()
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("abc")
    if settings:
        (snapshot / "generation_config.json").write_text(settings)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert generation_ends("owner/name") == ((1, 2) if settings else ())
    config = Config()
    config.model.path = "owner/name"
    tokenizer = AutoTokenizer.from_pretrained(snapshot)
    monkeypatch.setattr(saving.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    lm = AutoModelForCausalLM.from_pretrained(snapshot)
    write = saving.export(lm, lm.named_parameters(), config, tmp_path / "policy", writes=True)
    write()
    exported = tmp_path / "policy" / "generation_config.json"
    assert (exported.read_text() if exported.exists() else None) == settings
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert loaded.lm_head.weight.equal(lm.lm_head.weight)
