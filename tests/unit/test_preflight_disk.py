"""Room on disk: bytes of a checkpoint against measured ones, how many lie there at once, and remedies that fit."""

import json
import shutil
from collections import namedtuple

import pytest
from model_folder import write_model

from expo_ray import evaluate
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.preflight.checks import check_start
from expo_ray.preflight.disk import (
    checkpoint_bytes,
    checkpoints_at_once,
    disk_problems,
    evaluation_disk_problems,
    record_bytes,
)
from expo_ray.preflight.model_folder import KNOWN, ModelShape, model_shape
from expo_ray.preflight.plan import make_plan

GIB = 1 << 30
SMOLLM2 = ModelShape(576, 30, 1536, 49152, 9, 3, 64, tied=True, qkv_bias=False, context=8192)
Usage = namedtuple("Usage", "total used free")


def config_with(*overrides):
    return compose_config(["profile=cpu", "run_dir=/tmp/not_there/run", *overrides])


@pytest.fixture
def disk(monkeypatch):
    """Sets what is free, and tells which folders were asked about."""
    asked = []

    def free(count):
        def usage(folder):
            asked.append(str(folder))
            return Usage(10 * count, 9 * count, count)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        return asked

    return free


@pytest.mark.parametrize(
    ("shape", "overrides", "measured"),
    [
        # SmolLM2-135M, two ranks, float32: model states, both optimizer shards and the policy of a run's checkpoint.
        (SMOLLM2, ["learner.zero_stage=2"], 538_139_289 + 807_108_563 + 807_102_611 + 538_090_408),
        # The toy task's base, ZeRO-2 and ZeRO-3 (its model states hold no weights).
        ("toy", ["learner.zero_stage=2"], 1_355_033 + 2_019_731 + 2_019_987 + 1_346_752),
        ("toy", ["learner.zero_stage=3"], 20_421 + 20_485 + 2 * 2_018_259 + 1_346_752),
    ],
)
def test_a_checkpoint_has_the_size_of_measured_ones(shape, overrides, measured):
    if shape == "toy":
        shape = model_shape(compose_config(["model=toy", "profile=cpu"]).model.path)
    assert checkpoint_bytes(config_with(*overrides), shape) == pytest.approx(measured, rel=0.02)


def test_adapters_make_a_checkpoint_smaller():
    """tests/integration/test_lora.py's tied model at ZeRO-1, rank 4: its measured files, zip headers included."""
    shape = ModelShape(64, 2, 128, 25, 2, 1, 32, tied=True, qkv_bias=True, context=128)
    wanted = ["model.lora.rank=4", "learner.zero_stage=1"]
    measured = 365_410 + 2 * 54_547 + 306_264 + 39_120
    assert checkpoint_bytes(config_with(*wanted), shape) == pytest.approx(measured, rel=0.06)
    assert checkpoint_bytes(config_with(*wanted), shape) < 0.6 * checkpoint_bytes(config_with(), shape)


def test_bytes_by_precision_written_out():
    size = 494_032_768
    shape = KNOWN["qwen2.5-0.5b"]
    bf16 = ["learner.dtype=bfloat16", "rollout.dtype=bfloat16"]
    assert checkpoint_bytes(config_with(*bf16), shape) == size * (2 + 12 + 2)
    assert checkpoint_bytes(config_with(*bf16, "learner.zero_stage=3"), shape) == size * (12 + 2)
    assert checkpoint_bytes(config_with("learner.zero_stage=0"), shape) == size * (4 + 8 + 4)


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["trainer.steps=100", "trainer.checkpoint_every=10", "trainer.keep_checkpoints=2", "trainer.keep_best=0"], 3),
        (["trainer.steps=100", "trainer.checkpoint_every=10", "trainer.keep_checkpoints=2", "trainer.keep_best=2"], 5),
        (["trainer.steps=100", "trainer.checkpoint_every=0"], 1),
        (["trainer.steps=3", "trainer.checkpoint_every=2", "trainer.keep_checkpoints=5"], 2),
        (["trainer.steps=3", "trainer.checkpoint_every=0", "trainer.checkpoint_minutes=5", "trainer.keep_best=0"], 3),
    ],
)
def test_how_many_lie_there_at_once(overrides, count):
    assert checkpoints_at_once(config_with(*overrides)) == count


def test_records_grow_with_the_run():
    short, long = config_with("trainer.steps=10"), config_with("trainer.steps=1000")
    assert record_bytes(short) < record_bytes(long) < GIB


KEEP = ["trainer.checkpoint_every=1", "trainer.keep_checkpoints=4", "trainer.keep_best=1", "trainer.steps=50"]


def test_too_little_room_is_told_with_remedies_that_fit(disk):
    config, shape = config_with(*KEEP), KNOWN["qwen2.5-0.5b"]
    each = checkpoint_bytes(config, shape)
    asked = disk(5 * each)
    (sentence,) = disk_problems(config, shape)
    assert sentence.startswith("run_dir=/tmp/not_there/run: 6 checkpoints of 9.2 GiB and ")
    assert "46.0 GiB free" in sentence and "run_dir=FOLDER on a disk with 55." in sentence
    assert sentence.endswith("or trainer.keep_checkpoints=2")
    assert set(asked) == {"/tmp"}
    assert list(disk_problems(config_with(*KEEP, "trainer.keep_checkpoints=2"), shape)) == []
    assert list(disk_problems(config_with(*KEEP, "trainer.keep_checkpoints=3"), shape))


@pytest.mark.parametrize(
    ("room", "remedy"),
    [
        (3.5, ["trainer.keep_checkpoints=1"]),
        (2.5, ["trainer.keep_best=0", "trainer.keep_checkpoints=1"]),
        (1.5, ["trainer.checkpoint_every=0"]),
        (0.5, []),
    ],
)
def test_the_remedy_for_each_room(disk, room, remedy):
    config, shape = config_with(*KEEP), KNOWN["qwen2.5-0.5b"]
    disk(int(room * checkpoint_bytes(config, shape)))
    (sentence,) = disk_problems(config, shape)
    named = sentence.partition(" or ")[2].removesuffix(" (one checkpoint, at the end)").split()
    assert named == remedy
    assert bool(list(disk_problems(config_with(*KEEP, *remedy), shape))) == (not remedy)


def test_checkpoints_that_are_there_count_as_room(disk, tmp_path):
    config, shape = config_with(*KEEP, f"run_dir={tmp_path}"), KNOWN["qwen2.5-0.5b"]
    asked = disk(int(5.5 * checkpoint_bytes(config, shape)))
    assert list(disk_problems(config, shape))
    old = tmp_path / "checkpoints/step_000001"
    old.mkdir(parents=True)
    with (old / "weights").open("wb") as file:
        file.truncate(checkpoint_bytes(config, shape))
    assert list(disk_problems(config, shape)) == []
    assert set(asked) == {str(tmp_path)}


def test_an_adapters_merged_model_takes_room(disk, tmp_path):
    model, adapter = write_model(tmp_path / "model"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    with (tmp_path / "model" / "model.safetensors").open("ab") as file:
        file.truncate(2 * GIB)
    config = config_with(f"model.path={adapter}")
    disk(GIB)
    (sentence,) = disk_problems(config, None)
    assert "2.0 GiB of records and the adapter's merged model do not fit" in sentence
    (sentence,) = evaluation_disk_problems(config, None)
    assert "the adapter's merged model of 2.0 GiB does not fit, the disk of /tmp has 1.0 GiB free" in sentence
    disk(3 * GIB)
    assert list(disk_problems(config, None)) == list(evaluation_disk_problems(config, None)) == []


def test_an_evaluation_asks_for_that_room(disk, monkeypatch, capsys):
    monkeypatch.setattr("expo_ray.preflight.disk.merged_bytes", lambda *_: 2 * GIB)
    disk(GIB)
    assert evaluate.main(["profile=cpu", "model=toy", "data=toy", "verifier=toy", "run_dir=/tmp/not_there/run"]) == 2
    assert "error: run_dir=/tmp/not_there/run: the adapter's merged model" in capsys.readouterr().err


def test_records_alone_can_be_too_much_and_an_unknown_model_counts_as_nothing(disk):
    disk(1 << 20)
    (sentence,) = disk_problems(config_with(), None)
    assert "of records do not fit" in sentence and "has 1 MiB free" in sentence
    disk(GIB)
    assert list(disk_problems(config_with(), None)) == []


def test_a_start_is_refused(disk, tmp_path):
    model = write_model(tmp_path / "model")
    config = config_with(f"model.path={model}", "model.prompt_style=base")
    check_start(make_plan(config))
    disk(1 << 20)
    with pytest.raises(ConfigError, match=r"run_dir=/tmp/not_there/run: .* do not fit"):
        check_start(make_plan(config))
