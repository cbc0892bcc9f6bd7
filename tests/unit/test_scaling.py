"""The scaling model against closed forms, and its fit against costs that were put in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("simpy", reason="simpy is not installed: make setup")

from bench.scaling.events import (
    EngineCosts,
    Sampled,
    Simulation,
    StepCosts,
    StepWork,
    largest_share,
    seconds_per_step,
)
from bench.scaling.fit import fit, iterations, predict
from bench.scaling.gpus import Cluster, collectives, limit, recipe, step_costs, step_work
from bench.scaling.gpus import predict as predict_point
from bench.scaling.measured import MeasuredRun, Workload, read_measured
from expo_ray.config.errors import DataError

ITERATION = EngineCosts(per_iteration=1.0)


def costs(**more: object) -> StepCosts:
    made = StepCosts(engine=ITERATION, max_sequences=4, ranks=1, update=lambda tokens: 0.0)
    return replace(made, **more)  # type: ignore[arg-type]


def equal(count: int, tokens: int, engines: int = 1, prompt: int = 0) -> StepWork:
    share = (Sampled(prompt, tokens),) * (count // engines)
    return StepWork((share,) * engines, (tokens,) * count)


def one_step(cost: StepCosts, work: StepWork):
    return Simulation(cost, [work]).run()[0]


@pytest.mark.parametrize(("count", "waves"), [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_equal_lengths_run_in_waves(count, waves):
    assert one_step(costs(), equal(count, 10)).generate == waves * 10


def test_costs_of_an_iteration_add_up_as_the_closed_form_says():
    engine = EngineCosts(0.5, per_sequence=0.25, per_context_token=0.125, per_prompt_token=2.0, per_batch=3.0)
    tokens, many, prompt = 6, 3, 5
    # Iteration i of T reads prompt + i tokens of each sequence.
    context = many * sum(prompt + i for i in range(1, tokens + 1))
    expected = 3.0 + 2.0 * many * prompt + tokens * (0.5 + 0.25 * many) + 0.125 * context
    assert one_step(costs(engine=engine), equal(many, tokens, prompt=prompt)).generate == pytest.approx(expected)


def test_mixed_lengths_against_a_loop_over_iterations():
    engine = EngineCosts(1.0, per_sequence=0.1, per_context_token=0.01, per_prompt_token=0.5)
    share = tuple(
        Sampled(prompt, tokens) for prompt, tokens in [(3, 9), (4, 2), (5, 2), (1, 7), (2, 1), (6, 3), (3, 5)]
    )
    waiting, running, seconds = list(share), [], 0.0
    while waiting or running:
        while waiting and len(running) < 3:
            sequence = waiting.pop(0)
            running.append([sequence.tokens, sequence.prompt_tokens])
            seconds += 0.5 * sequence.prompt_tokens
        for entry in running:
            entry[0] -= 1
            entry[1] += 1
        seconds += 1.0 + 0.1 * len(running) + 0.01 * sum(context for _, context in running)
        running = [entry for entry in running if entry[0]]
    found = one_step(costs(engine=engine, max_sequences=3), StepWork((share,), (1,))).generate
    assert found == pytest.approx(seconds)


def test_the_longest_completion_of_any_engine_decides():
    work = StepWork(((Sampled(0, 3), Sampled(0, 8)), (Sampled(0, 2),)), (1,))
    found = one_step(costs(), work)
    assert (found.generate, found.engine_busy) == (8, (8 + 2) / 2)


def test_a_synchronous_step_is_the_sum_of_its_phases():
    cost = costs(update=lambda tokens: tokens / 10, sync=2.0, rest=0.5, verify_item=0.25, verify_batch=1.0)
    times = Simulation(cost, [equal(4, 10)] * 3).run()
    assert times[1].verify == 1.0 + 4 * 0.25
    assert seconds_per_step(times) == pytest.approx(10 + 2.0 + 40 / 10 + 2.0 + 0.5)


@pytest.mark.parametrize(("update", "expected"), [(10.0, 11.0), (6.0, 11.0), (15.0, 16.0)])
def test_one_step_off_takes_as_long_as_the_longer_side(update, expected):
    # Sampling takes 10 and is held up by the sync of 1; learning takes update + 1.
    cost = costs(update=lambda tokens: update, sync=1.0, async_steps=1)
    assert seconds_per_step(Simulation(cost, [equal(4, 10)] * 40).run(), warm=20) == pytest.approx(expected)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_step_is_sampled_with_weights_older_than_allowed(ahead):
    cost = costs(update=lambda tokens: 7.0, sync=1.0, async_steps=ahead)
    times = Simulation(cost, [equal(4, 3)] * 12).run()
    for number, step in enumerate(times):
        updates = sum(earlier.ended <= step.began for earlier in times)
        assert updates >= number - ahead
    assert any(step.began < times[number - 1].ended for number, step in enumerate(times) if number) == (ahead > 0)


def test_overlapped_verification_leaves_what_follows_the_last_completion():
    work = StepWork((tuple(Sampled(0, tokens) for tokens in (2, 4, 6, 8)),), (1,))
    apart = one_step(costs(verify_item=1.5), work)
    beside = one_step(costs(verify_item=1.5, verify_overlapped=True), work)
    assert (apart.verify, beside.verify) == (6.0, 1.5)
    queued = one_step(costs(verify_item=3.0, verify_overlapped=True), work)
    assert queued.verify == (2 + 4 * 3.0) - 8  # one process, busy from the first end on


def test_samples_are_dealt_longest_first():
    assert largest_share([7, 6, 5, 4, 3], 2) == 14  # 7+4+3 and 6+5
    assert largest_share([5, 9], 8) == 9
    assert largest_share([], 2) == 0


def test_a_steady_state_needs_steps():
    with pytest.raises(ValueError, match="leave none"):
        seconds_per_step(Simulation(costs(), [equal(1, 1)]).run())


def workload(**more: object) -> Workload:
    made = Workload(
        prompts=8, samples=4, explanations=0, engines=2, max_sequences=16, ranks=2, prompt_tokens=10,
        free_lengths=(5, 20, 35), explanation_lengths=(40,), extra_per_prompt=0, extra_tokens=0, passes=3.0,
        properties_every=0, async_steps=0,
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def invented(name: str, work: Workload, steps: int = 400) -> MeasuredRun:
    """A run whose phases follow known costs exactly."""
    found = []
    for number in range(steps):
        step = work.step(number, seed=7)
        tokens = [sum(one.tokens for one in share) for share in step.shares]
        # One wave: as many iterations as the longest completion has tokens.
        generate = max(
            0.01 * max(one.tokens for one in share) + 0.001 * of for share, of in zip(step.shares, tokens, strict=True)
        )
        update = 0.2 + 0.03 * largest_share(step.trained, work.ranks) * work.passes / 1000
        phases = {"generate": generate, "verify": 0.1, "update": update, "sync": 0.05}
        found.append(phases | {"step": sum(phases.values()) + 0.02})
    return MeasuredRun(name, work, tuple(found))


def test_a_fit_predicts_a_run_of_another_size():
    sizes = [workload(prompts=prompts, max_sequences=512) for prompts in (4, 16, 64)]
    held_out = invented(
        "held out", workload(prompts=32, explanations=2, extra_per_prompt=2, extra_tokens=40, max_sequences=512)
    )
    found = predict(fit([invented(str(work.prompts), work) for work in sizes]), held_out)
    assert abs(found.error) < 0.03
    assert found.predicted["update"] == pytest.approx(found.measured["update"], rel=0.03)


def test_iterations_are_counted_by_the_event_model():
    assert iterations(equal(12, 10), max_sequences=4) == 30


def test_a_run_folder_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text((Path(__file__).parents[1] / "data" / "scaling_config.yaml").read_text())
    line = {
        "completions/mean_tokens": 20.0, "completions/total": 8.0, "tokens/generated": 220.0, "tokens/trained": 220.0,
        "time/generate": 1.0, "time/verify": 0.1, "time/update": 0.5, "time/sync": 0.1, "time/step": 1.8,
    }  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": i} | line) + "\n" for i in range(4)))
    samples = [
        {"kind": "free", "tokens": 10, "question": "1+2+"},
        {"kind": "explanation", "tokens": 30, "question": "1+2+"},
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    run = read_measured(tmp_path)
    assert run.work.free_lengths == (20,)  # scaled to the mean of all completions
    assert (run.work.extra_per_prompt, run.work.extra_tokens) == (1, 30)  # (220 - 8 x 20) / 2 prompts
    assert len(run.steps) == 3
    assert run.mean("step") == pytest.approx(1.8)
    assert len(run.work.step(0, 0).sampled) == 2 * (4 + 1)


def test_an_algorithm_that_is_not_modelled_is_refused(tmp_path):
    config = (Path(__file__).parents[1] / "data" / "scaling_config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("exp_grpo", "exp_dpo"))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="exp_dpo is not modelled"):
        read_measured(tmp_path)


def test_more_gpus_do_not_take_longer_and_perfect_scaling_is_not_beaten():
    config, shape = recipe("math_l5_qwen2.5_3b")
    points = [predict_point(config, shape, Cluster(gpus // 2, gpus // 2, 64)) for gpus in (8, 32)]
    assert points[1].seconds < points[0].seconds
    assert points[1].rate < 4 * points[0].rate
    assert sum(points[0].parts.values()) == pytest.approx(points[0].seconds, rel=0.02)
    name, share = limit(*points)
    assert name == "decoding"
    assert 0 < share < 1


def test_gpu_costs_against_the_data_sheet_by_hand():
    config, shape = recipe("math_l5_qwen2.5_3b")
    found = step_costs(config, shape, Cluster(8, 8, 64))
    weights = 2 * shape.parameters
    assert found.engine.per_iteration == pytest.approx(weights / (3.35e12 * 0.6) + 0.005)
    assert found.update(1000) - found.update(0) == pytest.approx(1000 * 8 * shape.parameters / (989e12 * 0.35))
    assert collectives(config, shape, 8) == pytest.approx(2 * weights * 7 / 8 / (450e9 * 0.7))
    assert collectives(config, shape, 16) == pytest.approx(2 * weights * 15 / 16 / (50e9 * 0.7))
    work = step_work(config, Cluster(8, 8, 64), 0, lengths=[100])
    assert {one.tokens for one in work.sampled} == {100}
    assert len(work.sampled) == 64 * 9
