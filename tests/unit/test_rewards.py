"""Reward functions: their forms by signature, failures, timeouts and retries in a real process, and the total reward.

Costs about 20 seconds: each actor here starts a process that imports the functions.
"""

import json
import math
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from algorithm_cases import config_with, group
from simulated_ray import Clock, Ref

from expo_ray import command
from expo_ray.algorithms.grpo import policy_samples
from expo_ray.algorithms.rewards import group_advantages, group_metrics, has_signal, pass_rate, total_rewards
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config, DataConfig, RewardConfig
from expo_ray.data.formats import Record
from expo_ray.data.records import problem_of
from expo_ray.driver.record import sample_lines
from expo_ray.driver.stopping import LimitExceeded, check_failures
from expo_ray.messages import Problem, Score
from expo_ray.preflight.values import check_config
from expo_ray.prompts.builder import PromptBuilder
from expo_ray.prompts.loading import load_prompts
from expo_ray.reporting.samples import Replay
from expo_ray.rewards.actors import RewardActor, RewardFleet
from expo_ray.rewards.functions import check_columns, load, record_of, reward_problems, weights_of
from expo_ray.runtime import dispatch, waits
from expo_ray.runtime.waits import Waiter
from expo_ray.world.tokenizer import build_tokenizer

SOURCE = '''
import asyncio, os, time
import numpy as np

def accuracy(completion: str, answer: str, *, question: str, record: dict) -> float | None:
    """Everything that a function may ask for, in what it returns."""
    return None if completion == "?" else float(completion == answer) + len(question) + record["bonus"]

def brevity(completion, lang="en"):
    return 1 / (1 + len(completion)) if lang == "en" else -1

def batched(completions, answers, *, questions, records):
    return [None if c == "?" else len(c) + len(a) + len(q) + r["bonus"]
            for c, a, q, r in zip(completions, answers, questions, records)]

async def batched_async(completions, **columns):
    await asyncio.sleep(0)
    return np.array([float(len(completions))] * len(completions))

def trl(prompts, completions, answer, **kwargs):
    """As TRL's own examples are written: one call, columns as lists, **kwargs for the rest."""
    assert set(kwargs) == {"uid", "bonus", "lang"} and kwargs["lang"] == ["en"] * len(completions)
    return [float(c == a) * 10 + len(p) for p, c, a in zip(prompts, completions, answer)]

def trl_chat(completions, **kwargs):
    assert kwargs["prompts"] == [[{"role": "user", "content": "q"}]]
    return [len(c[0]["content"]) if c[0]["role"] == "assistant" else -1 for c in completions]

async def wait(completion: str) -> float:
    await asyncio.sleep(60 if completion == "hang" else 0.05)
    return 1.0

def hostile(completion: str) -> float:
    if completion == "hang": time.sleep(60)
    if completion == "die": os._exit(1)
    if completion == "raise": raise KeyError("a mistake")
    return {"text": "1.0", "nan": float("nan"), "true": True, "numpy": np.float32(0.5)}.get(completion, 1.0)

def short(completions):
    return [1.0]

def flaky(completion, path):
    """Fails at the first call for each completion."""
    with open(path + "/" + completion, "a") as file:
        file.write("x")
    if os.path.getsize(path + "/" + completion) < 2:
        raise ConnectionError("busy")
    return 1.0

def neither(text): return 1.0
def both(completion, completions): return 1.0
def by_place(completion, /): return 1.0
def column(completion, nowhere): return 1.0
'''


@pytest.fixture(scope="module", autouse=True)
def functions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    (folder / "my_rewards.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture
def actor():
    started = []

    def make(*names: str, wait_s: float = 100.0, **changes) -> RewardActor:
        config = RewardConfig(functions=[f"my_rewards:{name}" for name in names], **changes)
        started.append(RewardActor(config, wait_s))
        return started[-1]

    yield make
    for each in started:
        each.close()


def item(completion: str, answer: str = "7", **more):
    record = {"uid": "p", "answer": answer, "bonus": 100, "lang": "en"} | more.pop("record", {})
    about = {"question": "what", "answer": answer, "answers": [answer], "record": record, "messages": []}
    return about | {"completion": completion} | more


def values(scores: list[Score]) -> list[float | None]:
    assert all(not score.failure for score in scores), scores
    return [score.value for score in scores]


def test_each_form_is_recognised_by_its_signature(actor):
    names = ["accuracy", "brevity", "batched", "batched_async", "trl", "trl_chat", "wait"]
    mine = actor(*names)
    items = [item("7"), item("?"), item("long")]
    found = {name: mine.score(index, items) for index, name in enumerate(names) if name != "trl_chat"}
    assert values(found["accuracy"]) == [105.0, None, 104.0]
    assert values(found["brevity"]) == [0.5, 0.5, 0.2]
    assert values(found["batched"]) == [106.0, None, 109.0]
    assert values(found["batched_async"]) == [3.0, 3.0, 3.0]
    assert values(found["trl"]) == [14.0, 4.0, 4.0]
    assert values(found["wait"]) == [1.0, 1.0, 1.0]
    assert values(mine.score(names.index("trl_chat"), [item("long", messages=[{"role": "user", "content": "q"}])])) == [
        4.0
    ]
    assert all(score.ms > 0 for scores in found.values() for score in scores)


def test_an_async_function_runs_many_calls_at_once(actor):
    scores = actor("wait", concurrency=200).score(0, [item(str(i)) for i in range(200)])
    assert values(scores) == [1.0] * 200  # one after the other they would pass the bound on the request
    assert sum(score.ms for score in scores) > 200 * 50


def test_a_failure_costs_the_completion_that_caused_it(actor):
    texts = ["ok", "hang", "raise", "die", "text", "nan", "true", "numpy", "ok"]
    scores = actor("hostile", retries=0, timeout_s=0.3).score(0, [item(text) for text in texts])
    found = dict(zip(texts, scores, strict=True))
    assert [score.value for score in scores] == [1.0, None, None, None, None, None, 1.0, 0.5, 1.0]
    assert found["hang"].failure == "no answer within reward.timeout_s=0.3"
    assert found["raise"].failure == "KeyError: 'a mistake'"
    assert found["die"].failure == "its process ended"
    assert "returned '1.0', which is not a finite number" in found["text"].failure
    assert "returned nan" in found["nan"].failure


def test_an_async_call_that_hangs_costs_itself_only(actor):
    scores = actor("wait", retries=0, timeout_s=0.5).score(0, [item("a"), item("hang"), item("b")])
    assert [score.value for score in scores] == [1.0, None, 1.0]
    assert scores[1].failure == "no answer within reward.timeout_s=0.5"


def test_a_function_that_always_hangs_is_given_up_soon(actor):
    scores = actor("hostile", retries=5, timeout_s=0.05).score(0, [item("hang")] * 50)
    assert {score.value for score in scores} == {None}
    assert scores[-1].failure == "not tried after 3 calls in a row that hung or died"


def test_calls_that_die_now_and_then_cost_the_others_nothing(actor):
    scores = actor("hostile", retries=0).score(0, [item("die"), item("ok")] * 4)
    assert [score.value for score in scores] == [None, 1.0] * 4


def test_a_process_that_cannot_import_its_functions_says_so():
    with pytest.raises(RuntimeError, match="calls my_rewards:neither ended as it started; the log has its error"):
        RewardActor(RewardConfig(functions=["my_rewards:neither"]), 100.0)


def test_a_request_is_answered_within_its_bound(actor):
    scores = actor("hostile", wait_s=1.0).score(0, [item("hang"), item("ok")])
    assert [score.value for score in scores] == [None, None]


def test_a_wrong_number_of_rewards_fails_the_whole_batch(actor):
    scores = actor("short", retries=0).score(0, [item("a"), item("b")])
    assert [score.failure for score in scores] == ["ValueError: returned 1 rewards for 2 completions"] * 2


def test_a_failure_is_tried_again_and_a_success_is_not(actor, tmp_path):
    items = [item(text, record={"path": str(tmp_path)}) for text in ("a", "b")]
    assert values(actor("flaky", retries=1).score(0, items)) == [1.0, 1.0]
    assert [(tmp_path / text).read_text() for text in ("a", "b")] == ["xx", "xx"]


def scored(outcomes, **functions):
    scores = {f"my_rewards:{name}": [Score(v) for v in of] for name, of in functions.items()}
    return replace(group(outcomes), scores=scores)


def with_rewards(functions: list[str], weights: list[float] = ()) -> Config:
    config = config_with()
    names = [name if name == "verifier" else f"my_rewards:{name}" for name in functions]
    config.reward = RewardConfig(functions=names, weights=list(weights))
    return config


def test_the_total_is_the_weighted_sum_and_a_completion_without_a_value_is_left_out():
    config = with_rewards(["verifier", "brevity", "wait"], [1.0, 0.2, 0.0])
    config.algo.advantage = "grpo"
    mine = scored(["correct", "wrong", "wrong", "timeout"], brevity=[0.5, None, -1.0, 1.0], wait=[None] * 4)
    assert np.allclose(total_rewards(mine, config), [1.0 + 0.2 * 0.5, np.nan, 0.2 * -1.0, np.nan], equal_nan=True)
    rewards = np.array([1.1, -0.2])
    expected = (rewards - rewards.mean()) / rewards.std()
    samples = policy_samples([mine], config)
    assert [sample.advantage for sample in samples] == pytest.approx(list(expected))
    assert pass_rate(mine, config) == pytest.approx(1 / 3)  # the verifier's, whatever the other functions say


def test_groups_without_a_right_answer_have_signal_where_the_functions_differ():
    config = with_rewards(["verifier", "brevity"])
    assert has_signal(scored(["wrong", "wrong"], brevity=[0.1, 0.2]), config)
    assert not has_signal(scored(["wrong", "wrong"], brevity=[0.1, 0.1]), config)
    assert not has_signal(scored(["wrong", "wrong"], brevity=[0.1, None]), config)


def test_without_functions_nothing_changes():
    config = config_with()
    mine = group(["correct", "wrong", "timeout", "wrong"])
    assert weights_of(config.reward) == {"verifier": 1.0}
    assert total_rewards(mine, config).tolist()[:2] == [1.0, 0.0] and math.isnan(total_rewards(mine, config)[2])
    assert not [name for name in group_metrics([mine], config) if name.count("/") > 1]
    assert all("rewards" not in line for line in sample_lines([mine], None, config))


def test_each_function_has_its_metrics_and_stands_in_the_samples():
    config = with_rewards(["verifier", "brevity"], [1.0, 0.5])
    mine = scored(["correct", "wrong", "error"], brevity=[0.5, None, 1.5])
    mine.scores["my_rewards:brevity"][1] = Score(None, "KeyError: 'x'", 30.0)
    metrics = group_metrics([mine], config)
    assert {name: value for name, value in metrics.items() if name.count("/") > 1} == {
        "reward/verifier/mean": 0.5, "reward/verifier/failed": 1.0, "reward/verifier/undecided": 0.0,
        "reward/verifier/ms": 0.0, "reward/my_rewards:brevity/mean": 1.0, "reward/my_rewards:brevity/failed": 1.0,
        "reward/my_rewards:brevity/undecided": 0.0, "reward/my_rewards:brevity/ms": 10.0,
    }  # fmt: skip
    lines = list(sample_lines([mine], None, config))
    assert [line["reward"] for line in lines[:3]] == [1.25, None, None]
    assert lines[1]["rewards"]["my_rewards:brevity"] == {"value": None, "failure": "KeyError: 'x'", "ms": 30.0}
    assert lines[0]["rewards"]["verifier"]["value"] == 1.0


def test_a_failure_that_counts_as_wrong_is_not_undecided():
    config = with_rewards(["verifier", "brevity"])
    config.verifier.count_failures_as_wrong = True
    metrics = group_metrics([scored(["correct", "timeout"], brevity=[0.5, 0.5])], config)
    shown = {name: metrics[f"reward/verifier/{name}"] for name in ("mean", "failed", "undecided")}
    assert shown == {"mean": 0.5, "failed": 1.0, "undecided": 0.0}


def test_the_report_repeats_the_advantages_from_the_samples():
    config = with_rewards(["verifier", "brevity"], [2.0, 0.5])
    config.rollout.samples_per_prompt, config.rollout.explanations_per_prompt = 3, 1
    mine = scored(["correct", "wrong", "wrong"], brevity=[0.5, 0.25, None])
    lines = json.loads(json.dumps([line | {"step": 0} for line in sample_lines([mine], None, config)]))
    uses, _ = Replay(config).uses(lines)
    found = [advantage for of in uses[:3] for term, advantage in of if term == "policy"]
    expected = group_advantages([2.25, 0.125, np.nan], config.algo.advantage)[:2]
    assert found == pytest.approx(list(expected))


def test_too_many_failures_stop_the_run_and_undecided_ones_do_not():
    config = with_rewards(["verifier", "brevity"])
    config.reward.max_failure_rate = 0.25
    mine = scored(["wrong"] * 4, brevity=[None, None, None, 1.0])
    check_failures([mine], config)
    mine.scores["my_rewards:brevity"][:2] = [Score(None, "OSError: no route")] * 2
    with pytest.raises(LimitExceeded, match=r"my_rewards:brevity failed on 2 of 4 .*OSError: no route"):
        check_failures([mine], config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"functions": []}, "gives no reward"),
        ({"functions": ["verifier", "verifier"]}, "names verifier twice"),
        ({"functions": ["verifier", "my_rewards:brevity"], "weights": [1.0]}, "has 1 weights for 2 functions"),
        ({"weights": [0.0]}, "leaves no reward"),
        ({"weights": [math.nan]}, "must be finite"),
        ({"functions": ["accuracy"]}, "accuracy is neither 'verifier' nor module:function"),
        ({"functions": ["no_such_file:f"]}, "no_such_file cannot be imported from the working directory"),
        ({"functions": ["my_rewards:acuracy"]}, "has no function acuracy; did you mean 'accuracy'?"),
        ({"functions": ["my_rewards:np"]}, "has no function np"),
        ({"functions": ["my_rewards:neither"]}, "neither(text) needs one parameter 'completion'"),
        ({"functions": ["my_rewards:both"]}, "needs one parameter 'completion'"),
        ({"functions": ["my_rewards:by_place"]}, "cannot be passed by name"),
    ],
)
def test_what_cannot_be_called_is_refused_in_one_sentence(changes, sentence):
    (found, *_) = reward_problems(RewardConfig(**changes), here=True)
    assert sentence in found and "\n" not in found


def test_a_column_that_the_data_lacks_is_refused_before_the_start():
    config = Config()
    config.data, config.reward = DataConfig(name="jsonl"), RewardConfig(functions=["my_rewards:column"])
    problem = Problem("p1", "1+1?", ("2",), level=3, meta={"lang": "en"})
    with pytest.raises(ConfigError, match=r"takes 'nowhere', which is no column of problem p1 .*lang"):
        check_columns(config, lambda: [problem])
    check_columns(config, lambda: [replace(problem, meta={"nowhere": 1})])
    assert load("my_rewards:trl").columns() == ["answer"]
    assert record_of(problem, config.data) == {"uid": "p1", "problem": "1+1?", "answer": "2", "level": 3, "lang": "en"}


def test_a_record_has_its_columns_that_name_the_problem_and_its_task_too():
    data = DataConfig(name="jsonl", question_key="question", uid_key="id", verifier_key="task")
    fields = {"question": "1+1?", "answer": "2", "id": 7, "task": "math", "unique_id": "u"}
    assert record_of(problem_of(Record("f", "line", 1, fields), data, False), data) == {"uid": "7", **fields}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algo=exp_dpo", "reward.weights=[2]"], "reward.weights=[2.0] does nothing with an algorithm that uses no"),
        (["reward.timeout_s=5"], "reward.timeout_s=5.0 does nothing without a function in reward.functions"),
        (["reward.functions=[my_rewards:acuracy]"], "did you mean 'accuracy'?"),
        (["reward.functions=[my_rewards:accuracy,my_rewards:brevity]", "reward.weights=[1,0.2,3]"], "has 3 weights"),
    ],
)  # fmt: skip
def test_the_command_line_is_checked(overrides, sentence, tmp_path):
    base = ["experiment=demo", "dry_run=true", f"run_dir={tmp_path}"]
    with pytest.raises(ConfigError) as caught:
        check_config(compose_config([*base, *overrides]))
    assert sentence in str(caught.value)


def test_the_installed_command_finds_files_of_the_working_directory(tmp_path, monkeypatch, capsys):
    """`expo-ray` is a script in another folder, which Python puts on its path instead of the working directory."""
    (tmp_path / "of_my_folder.py").write_text("def short(completion): return 1.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    arguments = ["experiment=demo", "reward.functions=[of_my_folder:shor]", f"run_dir={tmp_path}/run", "dry_run=true"]
    assert command.main(["train", *arguments]) == 2
    assert "of_my_folder.py has no function shor; did you mean 'short'?" in capsys.readouterr().err


def test_on_a_cluster_only_the_form_of_a_name_is_checked():
    """The functions may be on its nodes only."""
    reward = RewardConfig(functions=["only_there:f", "accuracy"])
    (found,) = reward_problems(reward, here=False)
    assert "accuracy is neither" in found


def test_the_plan_has_reward_actors_only_where_they_are_needed(tmp_path):
    base = ["experiment=demo", "dry_run=true", f"run_dir={tmp_path}"]
    functions = "reward.functions=[my_rewards:accuracy,my_rewards:brevity]"
    plan = check_config(compose_config([*base, functions, "reward.weights=[1,0.2]", "reward.workers=2"]))
    assert plan.actor("reward").count == 2
    assert check_config(compose_config(base)).actor("reward").count == 0


def test_a_judge_behind_an_address_that_fails_now_and_then_loses_nothing(actor, functions):
    """Every third request is refused; with retries, each completion gets its score."""
    asked: list[str] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append(text)
            self.send_response(503 if len(asked) % 3 == 0 else 200)
            self.end_headers()
            self.wfile.write(str(len(text)).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (functions / "my_judge.py").write_text(f"""
import asyncio, urllib.request
def ask(text):
    with urllib.request.urlopen("http://127.0.0.1:{server.server_port}", data=text.encode(), timeout=5) as answer:
        return float(answer.read())
async def judge(completion: str) -> float:
    return await asyncio.to_thread(ask, completion)
""")
    mine = RewardActor(RewardConfig(functions=["my_judge:judge"], retries=4), 100.0)
    try:
        texts = ["a" * (1 + i % 7) + str(i) for i in range(30)]
        assert values(mine.score(0, [item(text) for text in texts])) == [float(len(text)) for text in texts]
        assert len(asked) > len(texts)
    finally:
        mine.close()
        server.shutdown()


def test_columns_that_nobody_reads_stay_behind():
    """A prompt travels to the engines and back with its problem."""
    problems = [Problem(f"p{task}", "Q:3+4;", ("7",), task=task, meta={"long": "x"}) for task in ("", "python_tests")]

    def carried(functions: list[str]) -> list[dict]:
        config = compose_config(["experiment=demo"])
        config.reward.functions = functions
        builder = PromptBuilder(build_tokenizer(), "toy")
        training, _ = load_prompts(config, builder, SimpleNamespace(training=problems, held_out=[]), None)
        return [prompt.problem.meta for prompt in training]

    assert carried(["verifier"]) == [{}, {"long": "x"}]
    assert carried(["verifier", "my_rewards:brevity"]) == [{"long": "x"}] * 2


def test_the_fleet_gives_each_group_its_scores_in_whole_blocks(monkeypatch):
    """Groups of different sizes over three actors: every block holds whole groups, every score reaches its place."""
    clock, asked = Clock(), []
    monkeypatch.setattr(dispatch, "ray", clock)
    monkeypatch.setattr(waits, "ray", clock)
    monkeypatch.setattr(waits, "time", clock)

    def remote(function, items):
        asked.append((function, [item["record"]["uid"] for item in items]))
        scores = [Score(100.0 * function + float(item["completion"].removeprefix("text "))) for item in items]
        return Ref(clock.now + 1.0, scores)

    workers = {f"reward-{i}": SimpleNamespace(score=SimpleNamespace(remote=remote)) for i in range(3)}
    fleet = RewardFleet(workers, lambda *_: None, Waiter(), 60.0, 60.0)
    config = with_rewards(["brevity", "verifier", "wait"])
    groups = [group(["wrong"] * (1 + i % 3), uid=f"p{i}") for i in range(10)]
    for i, each in enumerate(groups):
        for k, done in enumerate(each.rollout.completions):
            each.rollout.completions[k] = replace(done, text=f"text {10 * i + k}")
    groups.append(group([], uid="only explained"))
    found = fleet.score(groups, config.reward, DataConfig(name="jsonl"))
    for i, each in enumerate(found[:10]):
        expected = [10.0 * i + k for k in range(1 + i % 3)]
        assert [score.value for score in each.scores["my_rewards:brevity"]] == expected
        assert [score.value for score in each.scores["my_rewards:wait"]] == [100 + value for value in expected]
    assert found[10].scores == {"my_rewards:brevity": [], "my_rewards:wait": []}
    blocks = [uids for function, uids in asked if function == 0]
    assert len(blocks) == 3 and sum(len(set(uids)) for uids in blocks) == 10
