"""A run on reasoning-gym's tasks with two reward functions besides the verifier: one async, against a server here that
fails now and then.

Options of vLLM and DeepSpeed (docs/options.md) go along, and are seen in the actors' logs.

The policy is a random model that reads characters. It solves nothing, but its completions differ, and so do their
rewards. One run of two steps, about a minute on two free cores.
"""

import os
import string
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from small_run import REPOSITORY

from tests.chaos.compare import lines

SOURCE = """
import asyncio
import urllib.request

def brevity(completion: str, question: str, record: dict) -> float:
    assert record["problem"] == question and record["type"] in ("chain_sum", "leg_counting"), record
    return 1 / (1 + len(completion))

def ask(text):
    with urllib.request.urlopen("http://127.0.0.1:PORT/judge", data=text.encode(), timeout=10) as answer:
        return float(answer.read())

async def judge(completion: str, answer: str) -> float | None:
    return await asyncio.to_thread(ask, completion) if completion else None
"""


class Judge(BaseHTTPRequestHandler):
    """Gives the number of digits; refuses every fifth request."""

    requests: int = 0
    guard = threading.Lock()

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with Judge.guard:
            Judge.requests += 1
            refused = Judge.requests % 5 == 0
        self.send_response(503 if refused else 200)
        self.end_headers()
        self.wfile.write(b"" if refused else str(sum(map(str.isdigit, text))).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()


@pytest.fixture
def reader(tmp_path):
    """A random two-layer model with a token for each printable character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokens = ["<pad>", "<eos>", "<unk>", *string.printable]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    torch.manual_seed(3)
    shape = Qwen2Config(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path / "reader"
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=2048, **names).save_pretrained(folder)
    return folder


def test_two_functions_and_a_judge_that_fails_now_and_then(server, reader, tmp_path):
    (tmp_path / "my_file.py").write_text(SOURCE.replace("PORT", str(server.server_port)))
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "expo_ray.train", f"model.path={reader}", "data=reasoning_gym", "algo=grpo",
        "profile=cpu", "model.prompt_style=base",
        "data.tasks=[chain_sum,leg_counting]", "data.levels=[1]", "data.eval_levels=[1]", "data.max_problems=16",
        "rollout.samples_per_prompt=4", "rollout.max_prompt_tokens=1500", "rollout.max_completion_tokens=24",
        "trainer.steps=2", "trainer.prompts_per_step=8", "eval.before=false", "eval.max_problems=2",
        "logging.samples_per_step=8",
        "reward.functions=[verifier,my_file:brevity,my_file:judge]", "reward.weights=[1,0.2,0.01]", "reward.workers=2",
        "reward.retries=4", f"run_dir={folder}", "rollout.engine_options.max_num_batched_tokens=3210",
        "learner.deepspeed={log_level: info, zero_optimization: {round_robin_gradients: true}}",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    samples = [line for line in lines(folder / "samples.jsonl") if line["kind"] == "free"]
    assert len(samples) == 2 * 8 * 4  # every completion of both steps, none lost
    for line in samples:
        by_name = {name: found["value"] for name, found in line["rewards"].items()}
        digits, text = sum(map(str.isdigit, line["text"])), line["text"]
        assert by_name["my_file:brevity"] == pytest.approx(1 / (1 + len(text)))
        assert by_name["my_file:judge"] == (digits if text else None)
        if text:
            expected = by_name["verifier"] + 0.2 / (1 + len(text)) + 0.01 * digits
            assert line["reward"] == pytest.approx(expected)
    assert Judge.requests > len(samples)  # some were refused and asked again
    for step in lines(folder / "metrics.jsonl"):
        assert step["reward/my_file:judge/failed"] == 0 and step["reward/my_file:brevity/failed"] == 0
        assert step["reward/my_file:judge/ms"] > 0 and 0 < step["reward/my_file:brevity/mean"] < 1
        assert step["reward/verifier/mean"] == pytest.approx(step["pass_rate/all"])
        # Nothing is solved, and yet there is a signal: the functions' rewards differ within the groups.
        assert step["pass_rate/all"] < 0.5 and step["groups/no_signal"] < 0.5 and step["update/gradient_norm"] > 0
    assert {line["uid"].split("-")[0] for line in samples} == {"chain_sum", "leg_counting"}
    # What vLLM and DeepSpeed say of themselves: the options of both keys have arrived and act.
    engine, learner = ((folder / "logs" / f"{name}.log").read_text() for name in ("rollout-0", "learner-0"))
    assert "Chunked prefill is enabled with max_num_batched_tokens=3210." in engine
    assert "Round robin gradient partitioning: True" in learner
