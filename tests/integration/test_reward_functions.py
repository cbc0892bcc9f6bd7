"""A run with two reward functions besides the verifier: one async, against a server here that fails now and then.

The toy task, because the toy model reads nothing else. One run of two steps, about a minute.
"""

import os
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
    assert record["problem"] == question and record["level"] in (1, 2, 3, 4, 5), record
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


def test_two_functions_and_a_judge_that_fails_now_and_then(server, tmp_path):
    (tmp_path / "my_file.py").write_text(SOURCE.replace("PORT", str(server.server_port)))
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "expo_ray.train", "experiment=demo", "algo=grpo", "trainer.steps=2",
        "trainer.prompts_per_step=8", "eval.before=false", "eval.max_problems=2", "logging.samples_per_step=8",
        "reward.functions=[verifier,my_file:brevity,my_file:judge]", "reward.weights=[1,0.2,0.01]", "reward.workers=2",
        "reward.retries=4", f"run_dir={folder}",
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
        assert step["groups/no_signal"] < 0.5  # completions of one group differ in length, also where all are wrong
        assert step["reward/verifier/mean"] == pytest.approx(step["pass_rate/all"])
