"""The model card, and pushing a policy to a hub on this machine that speaks the hub's protocol."""

import base64
import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from test_options import BASE, problem

from expo_ray.checkpoint.manifest import damage, seal
from expo_ray.checkpoint.publish import push, write_card
from expo_ray.command import end_by_signal
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.entry import check_arguments
from expo_ray.files import append_lines
from expo_ray.preflight import inputs
from expo_ray.preflight.inputs import check_push
from expo_ray.runtime.journal import Events

REPO = "someone/policy"


class Hub(BaseHTTPRequestHandler):
    """Takes files as a hub that stores nothing large apart; `role` is the token's."""

    made: dict
    files: dict
    role: str
    broken: bool

    def do_GET(self):
        if self.path.startswith("/api/whoami-v2"):
            known = self.headers.get("Authorization") == "Bearer hf_good"
            body = {"name": "someone", "type": "user", "auth": {"accessToken": {"role": self.server.role}}}
            return self.answer(200 if known else 401, body if known else {"error": "Invalid credentials"})
        return self.answer(404, {"error": "no such page"})

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            self.server.made = json.loads(sent)
            return self.answer(200, {"url": f"http://127.0.0.1:{self.server.server_port}/{REPO}", "name": REPO})
        if self.server.broken:
            return self.answer(503, {"error": "the hub is resting"})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(sent)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path == "/api/validate-yaml":  # of the card
            return self.answer(200, {"errors": [], "warnings": []})
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = f"http://127.0.0.1:{self.server.server_port}/{REPO}/commit/1"
        return self.answer(200, {"commitUrl": commit, "commitOid": "1", "success": True})

    def answer(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, and a home with no token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.files, server.role, server.broken = {}, {}, "write", False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no tokens"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()


def run_folder(folder: Path) -> Path:
    """A run's evaluations and the exported policy after two steps."""
    policy = folder / "checkpoints" / "step_000002" / "policy"
    policy.mkdir(parents=True)
    (policy / "config.json").write_text("{}")
    (policy / "model.safetensors").write_bytes(bytes(range(256)))
    for done, rate in ((0, 0.25), (2, 0.5), (4, 0.75)):
        levels = {"all": {"1": rate, "4": rate + 0.125}, "1": {"1": rate}, "2": {"1": rate / 2}}
        line = {"steps_done": done, "samples": 4, "problems": {"all": 8, "1": 4, "2": 4}, "pass_at_k": levels}
        append_lines(folder / "evaluations.jsonl", [line])
    return policy


def configured(*more: str):
    return compose_config([*BASE, f"trainer.push_to_hub={REPO}", "run_name=mine", "algo.beta=0.5", *more])


def test_the_card_has_the_settings_and_the_evaluations_up_to_that_step(tmp_path):
    policy = run_folder(tmp_path)
    config = configured(f"run_dir={tmp_path}/secret", "rollout.engine_options.block_size=32")
    config.rollout.engine_options["hf_token"] = "hf_secret"  # refused before the start, and not the only such name
    write_card(policy, config, tmp_path, done=2)
    card = (policy / "README.md").read_text()
    assert "| steps | problems | pass@1 | pass@4 | pass@1, level 1 | pass@1, level 2 |" in card
    assert "| 0 | 8 | 25.0% | 37.5% | 25.0% | 12.5% |\n| 2 | 8 | 50.0% | 62.5% | 50.0% | 25.0% |" in card
    assert "| 4 |" not in card  # of a later policy
    assert "| `algo.beta` | `0.5` |" in card and "| `rollout.engine_options` | `{'block_size': 32}` |" in card
    assert "| `learner.max_grad_norm`" not in card  # a default
    assert "secret" not in card and str(Path(config.model.path).parent) not in card and "base_model" not in card
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.library_name == "transformers"  # the hub reads its head


def test_a_base_model_of_the_hub_and_several_evaluation_sets(tmp_path):
    policy = run_folder(tmp_path)
    sets = {name: {"problems": {"all": 3}, "pass_at_k": {"all": {"1": 0.5}}} for name in ("math", "gsm8k")}
    append_lines(tmp_path / "evaluations.jsonl", [{"steps_done": 2, "problems": {}, "pass_at_k": {}, "sets": sets}])
    write_card(policy, configured("model.path=Qwen/Qwen2.5-3B-Instruct"), tmp_path, done=2)
    card = (policy / "README.md").read_text()
    assert "base_model: Qwen/Qwen2.5-3B-Instruct" in card
    assert "**math**" in card and "**gsm8k**" in card and card.count("| 2 | 3 | 50.0% |") == 2


def test_a_run_of_an_adapter_names_it_and_its_base(tmp_path):
    policy, adapter = run_folder(tmp_path), tmp_path / "my_adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-3B"}')
    config = configured()
    config.model.path = str(adapter)
    write_card(policy, config, tmp_path, done=2)
    card = (policy / "README.md").read_text()
    assert "base_model: Qwen/Qwen2.5-3B\n" in card and "\nmy_adapter after 2 steps" in card


def test_adapters_are_pushed_with_the_policy_and_the_card_says_how_to_load_them(hub, tmp_path, monkeypatch):
    """By the names that others know: a folder of this machine is only its last part."""
    policy, start = run_folder(tmp_path), tmp_path / "my_adapter"
    (policy / "adapter").mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": f"{tmp_path}/merged"}
    (policy / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    (policy / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    start.mkdir()
    (start / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-3B"}')
    config = configured("model.lora.rank=4")
    config.model.path = str(start)
    write_card(policy, config, tmp_path, done=2)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert push(config, policy, Events(tmp_path)) == f"http://127.0.0.1:{hub.server_port}/{REPO}"
    card = hub.files["README.md"].decode()
    assert f'PeftModel.from_pretrained(model, "{REPO}", subfolder="adapter")' in card
    assert 'from_pretrained("Qwen/Qwen2.5-3B", dtype' in card and '"my_adapter").merge_and_unload()' in card
    assert hub.files["adapter/adapter_model.safetensors"] == b"weights"
    assert json.loads(hub.files["adapter/adapter_config.json"]) == settings | {"base_model_name_or_path": "merged"}
    assert hub.files.keys() == {str(f.relative_to(policy)) for f in policy.rglob("*") if f.is_file()}
    config.model.path = "Qwen/Qwen2.5-3B"
    write_card(policy, config, tmp_path, done=2)
    assert "merge_and_unload" not in (policy / "README.md").read_text()


def test_a_card_that_is_written_again_damages_no_checkpoint(tmp_path):
    policy = run_folder(tmp_path)
    write_card(policy, configured(), tmp_path, done=2)
    seal(policy.parent, 2, None)
    (policy / "README.md").write_text("edited")
    assert damage(policy.parent) is None
    (policy / "config.json").write_text("edited")
    assert "config.json" in str(damage(policy.parent))


def test_a_policy_is_pushed_whole_with_its_card(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    policy = run_folder(tmp_path)
    config = configured()
    check_push(config)
    write_card(policy, config, tmp_path, done=2)
    assert push(config, policy, Events(tmp_path)) is not None
    assert (hub.made["organization"], hub.made["name"], hub.made["visibility"]) == ("someone", "policy", "private")
    assert hub.files == {file.name: file.read_bytes() for file in policy.iterdir()} and len(hub.files) == 3
    assert json.loads((tmp_path / "events.jsonl").read_text())["event"] == "pushed"


def test_a_push_that_fails_is_a_sentence_with_the_command_that_repeats_it(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.broken = True
    policy = run_folder(tmp_path)
    assert push(configured(), policy, Events(tmp_path)) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"the policy was not pushed to {REPO} (" in said and "503" in said
    assert said.rstrip().endswith(f"try again: hf upload {REPO} {policy} . --private")
    assert (policy / "model.safetensors").read_bytes() == bytes(range(256))


def test_a_signal_during_the_push_says_that_the_run_is_finished(hub, tmp_path, monkeypatch, capsys):
    free = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: free.wait())
    config, policy = configured(), run_folder(tmp_path)

    def body():
        threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
        push(config, policy, Events(tmp_path))

    assert end_by_signal(body) == 130
    free.set()
    event, line = capsys.readouterr().err.splitlines()
    assert "(a signal stopped it); nothing is lost, try again: hf upload" in event
    assert line == "SIGINT: the run is finished; its push to the hub was stopped"


def test_a_push_that_never_ends_is_left(hub, tmp_path, monkeypatch):
    free = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: free.wait())
    config = configured()
    config.trainer.wait_s = 0.1
    assert push(config, run_folder(tmp_path), Events(tmp_path)) is None
    free.set()
    assert "it took longer than 0 s" in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("token", "role", "sentence"),
    [
        (None, "write", "needs a token of the Hugging Face hub: run hf auth login with a token that may write"),
        ("hf_wrong", "write", "the Hugging Face hub refuses this machine's token"),
        ("hf_good", "read", "this machine's token of the Hugging Face hub only reads"),
    ],
)
def test_a_run_that_could_not_push_does_not_start(hub, monkeypatch, token, role, sentence):
    hub.role = role
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi._whoami_cache", {}, raising=False)
    with pytest.raises(ConfigError) as caught:
        check_push(configured())
    assert sentence in str(caught.value) and f"trainer.push_to_hub={REPO}" in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, None])
def test_a_hub_without_an_answer_is_away_and_refuses_no_token(hub, monkeypatch, status):
    """It is asked too often, broken, or silent, as behind a proxy that holds the connection."""
    ended = threading.Event()

    def answer(of, code, body):
        if status is None:
            ended.wait(20)
        Hub.send_response(of, status or 200)
        of.end_headers()

    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr(Hub, "answer", answer)
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi._whoami_cache", {}, raising=False)
    monkeypatch.setattr(inputs, "ASK_S", 1.0 if status is None else 30.0)
    with pytest.raises(ConfigError, match="cannot be reached from here"):
        check_push(configured())
    ended.set()


def test_no_way_to_the_hub_is_said_before_the_start(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="cannot be reached from here: leave it out, and push later"):
        check_push(configured())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConfigError, match="cannot be reached from here"):
        check_push(configured())


def test_a_repository_has_an_owner_and_one_job():
    assert "use OWNER/NAME" in problem("trainer.push_to_hub=policy")
    assert "does nothing without trainer.push_to_hub" in problem("trainer.hub_private=false")
    sweep = ["-m", *BASE, "seed=0,1"]
    with pytest.raises(ConfigError, match="would get the policy of each of 2 jobs"):
        check_arguments([*sweep, f"trainer.push_to_hub={REPO}"])
    command = check_arguments([*sweep, f"trainer.push_to_hub={REPO}-${{seed}}"])
    assert {c.config.trainer.push_to_hub for c in command.checked.values()} == {f"{REPO}-0", f"{REPO}-1"}


@pytest.mark.parametrize("chosen", ["learner.learning_rate=interval(1e-6,1e-5)", "hydra/sweeper=optuna_maximize"])
def test_a_sweep_that_chooses_its_values_pushes_nothing(chosen):
    with pytest.raises(ConfigError, match=r"each job that the sweeper chooses: .* by hand with hf upload"):
        check_arguments(["-m", *BASE, chosen, f"trainer.push_to_hub={REPO}"])
