"""LoRA adapters on a plain model: refused targets, the base model with adapters off, and their initial values."""

import copy
import json
import shutil
import subprocess
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.model_path import adapter_base
from expo_ray.config.resources import Resources
from expo_ray.config.schema import LoraConfig
from expo_ray.preflight import inputs
from expo_ray.preflight.inputs import with_merged_adapter
from expo_ray.preflight.model_folder import model_shape
from expo_ray.preflight.values import check_config
from expo_ray.prompts.loading import load_tokenizer

TOY = ["profile=cpu", "data=toy", "verifier=toy", "rollout.max_prompt_tokens=32", "rollout.max_completion_tokens=32"]


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapted(folder: Path, targets: list[str]) -> Any:
    from expo_ray.learner.lora import add_adapters

    lm = load(folder)
    add_adapters(lm, LoraConfig(rank=2, target_modules=targets), seed=0)
    return lm


def test_a_target_that_the_model_lacks_is_refused(tiny_models):
    with pytest.raises(ValueError, match=r"no linear layer 'q_porj'; did you mean 'q_proj'\?"):
        adapted(tiny_models["tied"], ["v_proj", "q_porj"])
    names = [name for name, _ in adapted(tiny_models["tied"], ["v_proj", "self_attn.q_proj"]).named_parameters()]
    assert sum("lora_A" in name for name in names) == 4


def test_an_adapter_on_a_tied_head_is_refused(tiny_models):
    from expo_ray.learner.lora import merged_entries

    with pytest.raises(ValueError, match="1 of 3 adapters cannot be merged"):
        merged_entries(adapted(tiny_models["tied"], ["v_proj", "lm_head"]))
    assert len(merged_entries(adapted(tiny_models["untied"], ["v_proj", "lm_head"]))) > 3


def test_adapters_are_on_again_after_an_error(tiny_models):
    from expo_ray.learner.lora import adapters_off

    lm = adapted(tiny_models["tied"], ["all-linear"])
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    row = torch.tensor([[3, 4, 5]])
    on, base = lm(row).logits, load(tiny_models["tied"])(row).logits
    with pytest.raises(RuntimeError, match="inside"), adapters_off(lm):
        assert torch.equal(lm(row).logits, base)
        raise RuntimeError("inside")
    assert torch.equal(lm(row).logits, on) and not torch.allclose(on, base)
    assert {name for name, parameter in lm.named_parameters() if parameter.requires_grad} == trained


def test_initial_adapters_depend_on_the_seed_only(tiny_models):
    torch.manual_seed(99)
    first = copy.deepcopy(adapted(tiny_models["tied"], ["all-linear"]).state_dict())
    torch.rand(7)
    second = adapted(tiny_models["tied"], ["all-linear"]).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_exported_adapter_on_its_base_is_the_exported_policy(tiny_models, tmp_path, merges_here):
    """By peft, and as the start of another run."""
    from peft import PeftModel

    from expo_ray.learner.lora import export_adapter, merged_entries
    from expo_ray.learner.saving import export
    from expo_ray.sync.source import ZeroWeightSource

    base, policy = tiny_models["untied"], tmp_path / "policy"
    lm = adapted(base, ["q_proj", "down_proj", "lm_head"])
    torch.manual_seed(7)
    for name, parameter in lm.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    config = compose_config([*TOY, f"model.path={base}"])
    assert export_adapter(lm, str(base), policy / "adapter", writes=False) is None
    for write in (
        export(lm, ZeroWeightSource(lm, entries=merged_entries(lm)), config, policy, writes=True),
        export_adapter(lm, str(base), policy / "adapter", writes=True),
    ):
        write()
    settings = json.loads((policy / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["down_proj", "lm_head", "q_proj"]  # the same in every process
    row = torch.tensor([[3, 4, 5, 6]])
    exported, start = load(policy).double()(row).logits, load(base).double()
    assert (exported - start(row).logits).abs().max() > 0.1
    found = PeftModel.from_pretrained(start, policy, subfolder="adapter").double()(row).logits
    torch.testing.assert_close(found, exported, rtol=1e-5, atol=1e-5)  # in float64: only weights are rounded
    plan = check_config(compose_config([*TOY, f"model.path={policy}/adapter"]), Resources("here", 1, 64, 500, 0, 0))
    made = with_merged_adapter(plan, tmp_path).config.model.path
    torch.testing.assert_close(load(Path(made)).double()(row).logits, exported, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def saved_adapter(tiny_models, tmp_path_factory) -> Path:
    """An adapter as peft saves it, whose scale is 8 / 2, with the base's tokenizer left out."""
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    torch.manual_seed(5)
    settings = PeftLora(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load(tiny_models["tied"]), settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def merges_here(monkeypatch):
    """Merges in this process, where another would first import torch, transformers and peft."""
    from expo_ray.learner.lora import merge_adapter

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        *words, trusted = command[3:]
        try:
            merge_adapter(*words, trusted == "True")
        except Exception:
            return subprocess.CompletedProcess(command, 1, "", traceback.format_exc())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


def merged_by_hand(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """W + alpha / r B A in float64, from the files."""
    from safetensors.torch import load_file

    weights = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    parts = {name: tensor.double() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    for name in (name for name in parts if "lora_A" in name):
        layer = name.removeprefix("base_model.model.").replace("lora_A.", "")
        weights[layer] = weights[layer] + 8 / 2 * parts[name.replace("lora_A", "lora_B")] @ parts[name]
    return weights


def test_an_adapter_as_the_start_is_the_sum_of_its_base_and_itself(tiny_models, saved_adapter, tmp_path, capsys):
    """Everything that starts then sees a whole model in the run's folder, made once by a process of its own."""
    from safetensors.torch import load_file

    base = tiny_models["tied"]
    (base / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 1}')  # and no do_sample
    config = compose_config([*TOY, f"model.path={saved_adapter}"])
    plan = check_config(config, Resources("here", 1, 64, 500, 0, 0))
    assert plan.shape == model_shape(str(base))
    (tmp_path / "merged.12345").mkdir()  # of a process that was killed
    made = with_merged_adapter(plan, tmp_path)
    assert [path.name for path in tmp_path.glob("merged*")] == ["merged"]
    assert "merging it into" in capsys.readouterr().err
    folder = Path(made.config.model.path)
    assert folder.parent == tmp_path and made.shape == plan.shape and config.model.path == str(saved_adapter)
    wanted, found = merged_by_hand(base, saved_adapter), load_file(folder / "model.safetensors")
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-6, atol=1e-6)
    assert (folder / "generation_config.json").read_text() == (base / "generation_config.json").read_text()
    assert check_config(made.config, Resources("here", 1, 64, 500, 0, 0)).shape == plan.shape
    tokenizer, theirs = load_tokenizer(made.config), load_tokenizer(compose_config(["data=toy", f"model.path={base}"]))
    assert tokenizer.get_vocab() == theirs.get_vocab()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert with_merged_adapter(plan, tmp_path) == made and capsys.readouterr().err == ""
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert with_merged_adapter(made, tmp_path) is made


class Hub(BaseHTTPRequestHandler):
    """A hub with the repositories `owner/<folder of server.files>`."""

    def do_GET(self):
        self.server.asked.append(self.path)
        owner, name, *rest = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        folder, sha, body = self.server.files / name, "0" * 40, None
        if rest[:1] == ["tree"]:
            files = [(file.name, file.stat().st_size) for file in folder.iterdir()]
            body = [{"type": "file", "path": file, "size": size, "oid": file} for file, size in files]
        elif rest[:1] == ["revision"]:
            body = {"id": f"{owner}/{name}", "sha": sha, "siblings": []}
        elif rest[:1] == ["resolve"] and (folder / rest[2]).is_file():
            body = (folder / rest[2]).read_bytes()
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(200 if body is not None else 404)
        self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{rest[-1]}"' if body is not None else "")
        self.send_header("Content-Length", str(len(body or b"")))
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = tmp_path / "hub", []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()


def test_an_adapter_on_the_hub_is_an_adapter(tiny_models, saved_adapter, tmp_path, hub, monkeypatch, merges_here):
    """Fetched by a start, and then known without the hub; a whole model is left alone."""
    from safetensors.torch import load_file

    shutil.copytree(saved_adapter, hub.files / "adapter")
    (hub.files / "adapter" / "optimizer.pt").write_bytes(b"large")
    shutil.copytree(tiny_models["tied"], hub.files / "whole")
    config = compose_config([*TOY, "model.path=owner/whole"])
    inputs.fetch_adapter(config)
    assert adapter_base("owner/whole") is None and not list((tmp_path / "cache").rglob("config.json"))
    config.model.path = "owner/adapter"
    assert adapter_base("owner/adapter") is None  # no dry run asks
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    inputs.fetch_adapter(config)
    assert hub.asked == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with monkeypatch.context() as full, pytest.raises(ConfigError, match=r"cannot be fetched .*\(OSError: no space\)"):
        full.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("no space")))
        inputs.fetch_adapter(config)
    inputs.fetch_adapter(config)
    assert adapter_base("owner/adapter") == str(tiny_models["tied"]) and "optimizer" not in " ".join(hub.asked)
    hub.shutdown()
    plan = check_config(config, Resources("here", 1, 64, 500, 0, 0))
    assert plan.shape == model_shape(str(tiny_models["tied"])) and plan.config.model.path == "owner/adapter"
    found = load_file(Path(with_merged_adapter(plan, tmp_path).config.model.path) / "model.safetensors")
    for name, tensor in merged_by_hand(tiny_models["tied"], saved_adapter).items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-6, atol=1e-6)


def test_an_adapter_of_another_model_is_refused_in_a_sentence(tiny_models, saved_adapter, tmp_path, merges_here):
    settings = json.loads((saved_adapter / "adapter_config.json").read_text())
    wrong = tmp_path / "adapter"
    wrong.mkdir()
    (wrong / "adapter_model.safetensors").write_bytes((saved_adapter / "adapter_model.safetensors").read_bytes())
    (wrong / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["q_proj", "up_proj"]}))
    config = compose_config([*TOY, f"model.path={wrong}"])
    plan = check_config(config, Resources("here", 1, 64, 500, 0, 0))
    with pytest.raises(ConfigError, match=r"cannot be merged into .* \(.*missing adapter keys") as refused:
        with_merged_adapter(plan, tmp_path / "run")
    assert "\n" not in str(refused.value) and list((tmp_path / "run").glob("*")) == []


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (-9, "Loading weights:  40%|####      |\n", r"\(ended by SIGKILL\): it needs memory"),
        (1, "OSError: [Errno 28] No space left on device\n", r"device\): RUN needs room"),
        (1, "UserWarning: Found missing adapter keys\n", r"keys\): give the base that it was trained on"),
        (1, "OSError: We could not connect\n", r"connect\): check the files of both"),
    ],
)
def test_a_merge_that_fails_names_the_remedy(monkeypatch, code, said, words):
    failed = subprocess.CompletedProcess([], code, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    config = compose_config(["data=toy", "model.path=owner/adapter"])
    with pytest.raises(ConfigError, match=r"cannot be merged into base .*" + words):
        inputs._merge(config, Path("adapter"), "base", Path("RUN/merged.1"))
