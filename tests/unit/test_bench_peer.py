"""The comparison's arithmetic and refusals, the step's cost, the start, on records made up for it."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench.startup import Start, moments
from bench.step_cost import allowed, pair_ratios, verify_share
from bench.trl.cases import CASES, our_overrides, write_problems
from bench.trl.compare import SideRun, compare
from bench.trl.reward import coin
from bench.trl.task import CoinTask
from expo_ray.config.compose import compose_config
from expo_ray.reporting.runs import RunFolder

OURS = SideRun(100.0, (140.0, 142.0, 144.0), (640, 640, 640), 10, 0)
TRL = SideRun(200.0, (212.0, 216.0, 220.0), (640, 640, 640), 10, 64)


def test_speeds_and_totals():
    found = compare([OURS], [TRL], 64, exact=True)
    assert (found.ours_samples_per_s, found.trl_samples_per_s) == (5.0, 2.5)
    assert found.ratio == 2.0
    assert (found.ours_total_s, found.trl_total_s) == (44.0, 20.0)
    assert found.total_ratio == pytest.approx(20 / 44)
    # 40 + 2 (n - 1) = 12 + 4 (n - 1)
    assert found.even_updates == pytest.approx(15.0)
    assert found.refusals == ()


def test_a_slower_steady_state_is_never_ahead():
    assert compare([TRL], [OURS], 64, exact=False).even_updates is None


def test_the_median_round_counts():
    slow = replace(OURS, ends=(140.0, 150.0, 160.0))
    fast = replace(OURS, ends=(140.0, 141.0, 142.0))
    assert compare([slow, OURS, fast], [TRL] * 3, 64, exact=True).ratio == 2.0


@pytest.mark.parametrize(
    ("other", "exact", "said"),
    [
        (replace(TRL, step_tokens=(560, 560, 560)), False, "14% apart"),
        (replace(TRL, step_tokens=(640, 640, 639)), True, "exactly 64"),
        (replace(TRL, ends=(212.0, 216.0)), False, "2 of 10 there"),
        (replace(TRL, completions_per_step=8, step_tokens=(512, 512, 512)), False, "of 8 there"),
        (replace(TRL, longest=65), False, "over the limit"),
    ],
)
def test_different_work_is_refused(other, exact, said):
    refusals = compare([OURS], [other], 64, exact).refusals
    assert len(refusals) == 1
    assert said in refusals[0]


def test_lengths_within_a_tenth_are_the_same_work():
    assert compare([OURS], [replace(TRL, step_tokens=(590, 590, 590))], 64, exact=False).refusals == ()


def test_one_update_shows_no_steady_state():
    with pytest.raises(ValueError, match="two updates"):
        replace(OURS, ends=(140.0,)).steady_seconds  # noqa: B018


def test_the_coin_is_fair_and_the_task_tosses_the_same():
    source = random.Random(0)
    texts = ["".join(source.choices("0123456789+=;", k=source.randint(1, 60))) for _ in range(2000)]
    assert 900 < sum(map(coin, texts)) < 1100
    task = CoinTask({})
    assert all(task.grade(str(task.extract(text)), "anything", {})[0] == coin(text) for text in texts[:50])


@pytest.mark.parametrize("name", CASES)
def test_the_overrides_compose_and_ask_for_the_same_as_the_case(name, tmp_path):
    case = CASES[name]
    write_problems(tmp_path / "problems.jsonl")
    base = Path(__file__).resolve().parents[2] / "expo_ray/world/base"
    config = compose_config(our_overrides(case, base, tmp_path, ["rollout.workers=1"]))
    assert config.trainer.prompts_per_step * config.rollout.samples_per_prompt == case.completions
    assert config.rollout.max_completion_tokens == case.max_completion_tokens
    assert (config.algo.name, config.algo.kl_coef, config.algo.updates_per_batch) == ("grpo", 0.0, 1)
    assert (config.rollout.dtype, config.learner.dtype) == ("float32", "float32")
    assert config.rollout.explanations_per_prompt == 0
    assert config.model.prompt_style == ("chat" if name == "smollm2" else "toy")
    assert config.rollout.workers == 1  # what is given last wins
    assert all(case.completions % size == 0 for size in case.micro_batches)


def test_word_problems_have_their_answers(tmp_path):
    write_problems(tmp_path / "problems.jsonl", count=50)
    problems = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    packed = next(problem for problem in problems if "packs" in problem["question"])
    boxes, _, each, *_ = (word for word in packed["question"].split() if word.isdigit() or word == "with")
    assert int(packed["answer"]) == int(boxes) * int(each)


def run_folder(algorithm: str, seconds: list[float], seed: int = 0, verify: float = 0.0) -> RunFolder:
    config = OmegaConf.create({"algo": {"name": algorithm}, "seed": seed})
    lines = [{"step": i, "time/step": s, "time/verify": verify} for i, s in enumerate(seconds)]
    return RunFolder(Path(algorithm), config, lines, [], {})


def test_step_cost_leaves_the_first_step_out():
    pair = [run_folder("grpo", [9.0, 2.0, 2.0, 3.0]), run_folder("exp_grpo", [1.0, 3.0, 2.5, 2.5])]
    assert pair_ratios(pair) == [1.25]
    assert allowed(4, 1) == pytest.approx(1.375)


def test_step_cost_wants_the_same_prompts_in_turns():
    with pytest.raises(ValueError, match="same prompts"):
        pair_ratios([run_folder("grpo", [1.0, 1.0]), run_folder("exp_grpo", [1.0, 1.0], seed=1)])
    with pytest.raises(ValueError, match="are not"):
        pair_ratios([run_folder("exp_grpo", [1.0, 1.0]), run_folder("grpo", [1.0, 1.0])])


def test_verify_share_is_of_all_steps():
    assert verify_share(run_folder("grpo", [1.0, 3.0], verify=0.1)) == pytest.approx(0.2 / 4.0)


def test_the_first_token_lies_between_question_and_answer():
    changes = [("starting", 130.0), ("sync", 131.0), ("starting", 132.0), ("generate", 133.0)]
    assert moments(changes, 100.0, 104.0) is None
    assert moments([*changes, ("starting", 135.0)], 100.0, 104.0) == Start(4.0, 31.0, 33.0, 35.0)
