"""Every key of the schema, for every algorithm: another value changes something, is refused, or is listed here.

What is looked at needs no engine: requests and training batches of simulated steps, the loss and its gradient,
rewards, DeepSpeed's settings, the learning rate, adapters, the arguments of vLLM's engine, and the plan.
"""

import copy
import json
import operator
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache, reduce
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch._dynamo
from algorithm_cases import completion, group, inputs, random_arrays, restate, with_teacher

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.pairs import Pair
from expo_ray.algorithms.properties import SampleProperties
from expo_ray.algorithms.rewards import completion_reward
from expo_ray.config.algorithms import ALGORITHMS, algorithm_class
from expo_ray.config.compose import compose_config, derive, groups
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import defaults, facts_of, value_of
from expo_ray.config.resources import Resources
from expo_ray.data.stream import PromptStream
from expo_ray.driver.groups import Collector
from expo_ray.driver.record import StepRecord
from expo_ray.learner.update import rate_of_update
from expo_ray.messages import Group, Likeliest, Rollout, Verdict
from expo_ray.preflight.plan import plan_text
from expo_ray.preflight.values import check_config
from expo_ray.rollout.requests import LengthBook, evaluation_sampling, training_sampling

HERE = Resources("here", 1, 64, 500, 8, 79)
STEPS = 10
BASE = ["model=toy", "data=toy", "verifier=toy", "profile=cpu", "dry_run=true", f"trainer.steps={STEPS}"]
BASE += ["rollout.max_prompt_tokens=32", "rollout.max_completion_tokens=16", "trainer.prompts_per_step=2"]

VALUES = {
    "algo.dual_clip": 1.05,
    "algo.distill_clip": 0.01,
    "algo.dpo_refresh_steps": 2,
    "algo.overlong_buffer_tokens": 8,
    "algo.prefix_share": 1.0,
    "learner.sft_learning_rate": 1e-5,
    "trainer.sft_steps": 2,
    "algo.updates_per_batch": 3,
    "learner.gradient_checkpointing": True,
    "model.chat_template_kwargs": {"enable_thinking": False},
    "model.lora.target_modules": ["q_proj"],
    "rollout.temperature": 0.5,
    "rollout.top_p": 0.5,
    "rollout.kv_cache_gib": 3.0,
    "profile.name": "gpu",
    "data.levels": [2],
    "data.sources": [{"path": "problems.jsonl"}],
    "data.eval_sources": [{"path": "problems.jsonl"}],
    "data.pass_rate": [0.0, 0.5],
    "data.eval_levels": [2],
    "eval.objective": "pass@2/all",
    "trainer.resume": "never",
    "verifier.name": "math",
    "reward.weights": [0.5],
    "sync.backend": "gloo",
    "trainer.push_to_hub": "owner/name",
    "logging.trackers": ["wandb"],
    "rollout.engine_options": {"max_num_batched_tokens": 4096},
    "learner.deepspeed": {"wall_clock_breakdown": True},
    "sync.receiver": "reload",
}
"""Values for keys whose next one is not allowed or says little. `algo.dpo_pairs_path` gets a file of its own."""

UNDER = {
    "algo.explanation_threshold": {"algo.explanation_scope": "below"},
    "algo.explanation_keep": {"rollout.explanations_per_prompt": 3},
    "algo.kl_estimator": {"algo.kl_coef": 0.1},
    "algo.refill_rounds": {"algo.dynamic_sampling": "refill"},
    "algo.overlong_penalty": {"algo.overlong_buffer_tokens": 8},
    "algo.clip_low": {"algo.updates_per_batch": 2},
    "algo.clip_high": {"algo.updates_per_batch": 2},
    "algo.dual_clip": {"algo.updates_per_batch": 2},
    "algo.dpo_refresh_steps": {"algo.dpo_refresh": "iterative"},
    "algo.dpo_pairs_path": {"algo.dpo_refresh": "offline"},
    "trainer.sft_on": {"trainer.sft_steps": 2},
    "learner.sft_learning_rate": {"trainer.sft_steps": 2},
    "model.lora.alpha": {"model.lora.rank": 8},
    "model.lora.dropout": {"model.lora.rank": 8},
    "model.lora.target_modules": {"model.lora.rank": 8},
    "learner.offload_optimizer": {"profile.device": "cuda"},
    "learner.offload_between_updates": {"profile.device": "cuda", "cluster.placement": "colocated", "learner.ranks": 1},
    "rollout.gpu_memory_utilization": {"profile.device": "cuda"},
    "sync.receiver": {"profile.device": "cuda"},
    "model.head_dtype": {"rollout.dtype": "bfloat16"},
}
"""Settings under which a key must act that does nothing, and is refused, without them."""

NOT_WALKED = {
    "decides when learners measure; batches are the same": ["algo.properties_every", "algo.contrast_prompts"],
    "changes prompts, which need a tokenizer (test_prompts.py)": ["model.prompt_style"],
    "passed to transformers when the model is loaded": ["learner.attention"],
    "which problems are read, and from where (test_sources.py, test_formats.py)": [
        "data.eval_sources", "data.preset", "data.uid_key", "data.pass_rates",
        "data.eval_path", "data.held_out_share", "data.hub_config", "data.split", "data.eval_split", "data.eval_levels",
        "data.verifier_key", "data.tasks",
        "data.question_key", "data.answer_key", "data.answer_from", "data.solution_key", "data.level_key",
        "data.kind_key", "data.max_problems", "eval.max_problems",
    ],
    "which prompts a step draws (test_stream.py)": ["data.resample"],
    "the transfer of weights between processes, and its proof (test_sync_*.py)": [
        "sync.backend", "sync.bucket_mib", "sync.timeout_s", "sync.probe_prompts", "sync.probe_tokens",
        "sync.tolerance", "sync.mean_tolerance", "sync.digest_every",
    ],
    "verdicts of the verifier's processes (test_verifier_*.py)": [
        "verifier.name", "verifier.timeout_s", "verifier.memory_mib", "verifier.strict", "verifier.percent_is_unit",
        "verifier.answer_form", "verifier.run_answers", "verifier.max_unusable_golds",
    ],
    "limits at which a run stops, waits or restarts (test_limits.py, test_supervise.py, tests/chaos)": [
        "verifier.max_failure_rate", "trainer.max_mismatch", "trainer.max_restarts", "trainer.wait_s",
        "trainer.start_s",
    ],
    "which checkpoints are written and kept (test_checkpoint.py, test_preflight_disk.py)": [
        "trainer.checkpoint_every", "trainer.checkpoint_minutes", "trainer.keep_checkpoints", "trainer.keep_best",
    ],
    "when and in which pieces the evaluator samples (test_evaluation_*.py, tests/integration)": [
        "trainer.eval_every", "eval.before", "eval.samples", "eval.chunk",
    ],
    "what a run shows of itself": [
        "logging.samples_per_step", "logging.trackers", "logging.prometheus",
        "logging.progress", "logging.usage_every", "logging.entropy_every",
    ],
    "which cluster is joined or planned for; the walk plans for one of its own (test_config_fit.py, test_recipes.py)": [
        "cluster.name", "cluster.address", "cluster.nodes", "cluster.cpus_per_node", "cluster.gpus_per_node",
        "cluster.memory_gib_per_node", "cluster.gpu_memory_gib", "cluster.gpu_tflops", "cluster.gpu_terabytes_per_s",
    ],
    "where a finished run's policy is pushed to (test_publish.py)": ["trainer.push_to_hub"],
    "an environment variable of the actors": ["profile.threads_per_actor"],
    "whether anything starts (test_config_entry.py)": ["dry_run"],
    "which checkpoint a run starts from (test_checkpoint.py)": ["trainer.resume"],
    "read when a run has ended (test_sweep.py)": ["eval.objective"],
}  # fmt: skip
LISTED = {key: reason for reason, keys in NOT_WALKED.items() for key in keys}
"""Keys that the walk cannot see at work, each with the reason."""

WITHOUT_EXPLANATIONS = [name for name in ALGORITHMS if algorithm_class(name).explanations == "none"]
LISTED_FOR = {
    **{("rollout.explanations_per_prompt", name): "set to 0 without explanations" for name in WITHOUT_EXPLANATIONS},
    **{("algo.measure_base", name): "its reference is loaded anyway" for name in ("dpo_gt", "exp_dpo", "opsd")},
    ("algo.advantage", "ravr"): "compares several explanations, and the walk has one (test_algorithms_ravr.py)",
    ("algo.refill_rounds", "luffy"): "with the solution in them, few simulated groups are without signal",
    ("rollout.samples_per_prompt", "explanation_sft"): "acts where explanation_scope needs completions (below)",
}


TAUGHT = ("opsd", "sdpo", "hdpo")


class Simulated:
    """Engines and verifiers of fixed behaviour: lengths, texts and verdicts follow from the problem's number."""

    def __init__(self) -> None:
        self.rollouts = self.verifiers = self
        self.asked: list[object] = []

    def generate(self, requests, sampling, seed):
        self.asked.append((sampling, seed, [(r.prompt.problem.uid, r.samples, r.explanations) for r in requests]))
        return [
            Rollout(
                r.prompt,
                [completion(4 + 3 * k % 13, self.text(number(r.prompt)), 100 * k) for k in range(r.samples)],
                [self.explanation(number(r.prompt), k) for k in range(r.explanations)],
            )
            for r in requests
        ]

    def text(self, problem: int) -> str:
        return "so it follows" if problem in (0, 1) else "so it is 5"  # as a hint, the latter tells the answer

    def explanation(self, problem: int, k: int):
        leaks = problem in (2, 5, 7, 8) and k == 0
        text = "since the answer is given as 5" if leaks else "it follows that x is 5"
        return completion(3 + k, text, 1000 + 10 * k, "length" if problem in (3, 4) and k == 0 else "stop")

    def verify(self, rollouts):
        outcomes = [["correct", "wrong", "timeout", "wrong", "correct"], ["wrong"], ["correct", "wrong"]]
        found = []
        for rollout in rollouts:
            problem = number(rollout.prompt)
            mine = ["correct"] if problem in (6, 8) else outcomes[problem % 3 if problem else 1]  # 0, 1, 4, 7: never
            free = [Verdict(mine[k % len(mine)]) for k in range(len(rollout.completions))]
            wrong = [(2 * problem + k) % 5 == 2 for k in range(len(rollout.explanations))]
            found.append(Group(rollout, free, [Verdict("wrong" if w else "correct") for w in wrong]))
        return found


def number(prompt) -> int:
    return int(prompt.problem.uid[1:])


def measured(groups: list[Group]):
    """Properties by which `likely`, `rise` and `both` choose differently."""
    ranks = [(-3.0, 1.0), (-1.0, 0.5), (-2.0, 3.0)]
    return [
        [SampleProperties(ranks[k % 3][0], -1.0, ranks[k % 3][1], 0.0) for k in range(len(g.rollout.explanations))]
        for g in groups
    ]


def scored(sequences, temperature=1.0, reference=False, likeliest=0):
    """What the learners say of a teacher: it depends on all that it is asked with."""
    found = []
    for context, ids in sequences:
        start = -0.01 * (float(context.sum()) % 7) - temperature - 0.5 * reference
        logprobs = start - 0.001 * (ids[:, None] % 5) - np.arange(1, max(likeliest, 1) + 1, dtype=np.float32)
        found.append(Likeliest(np.tile(np.arange(likeliest), (len(ids), 1)), logprobs) if likeliest else logprobs[:, 0])
    return found


def steps(config) -> object:
    """Requests and training batches of a few steps over nine problems, two a step."""
    algorithm, actors = make_algorithm(config), Simulated()
    algorithm.attach(None, scored, restate)
    prompts = [group([], uid=f"p{i}").rollout.prompt for i in range(9)]
    algorithm.begin(inputs(prompts))
    algorithm._score_and_store = lambda: 0  # writes a file
    measurer = SimpleNamespace(for_choice=lambda found, *_: measured(found), contrast=lambda *_: None)
    stream = PromptStream(prompts, 2, seed=9)  # some steps need three rounds of refill
    collector = Collector(config, algorithm, stream, actors, measurer, LengthBook())
    batches = []
    for step in range(9):
        groups = collector.groups(step, StepRecord(step))
        batch = algorithm.training_batch(groups, step, measured(groups))
        batches += [(s.term, s.weight, s.advantage, s.unit, s.completion_ids.tolist()) for s in batch.samples]
        batches += [s.prompt_ids.tolist() for s in batch.samples]
        batches += [(None if s.token_advantages is None else s.token_advantages.tolist()) for s in batch.samples]
        batches += [s.teacher and (s.teacher.ids.tolist(), s.teacher.logprobs.tolist()) for s in batch.samples]
        batches.append(batch.beta)
    return actors.asked, batches, sorted(algorithm.reference_terms)


def loss(config) -> object:
    terms = {
        "grpo": ["policy"] * 8,
        "luffy": ["policy"] * 6 + ["expert"] * 2,
        "sft_gt_grpo": ["policy"] * 6 + ["sft"] * 2,
        "verifree": ["policy"] * 6 + ["sft"] * 2,
        "nurl": ["policy"] * 8,
        "ravr": ["policy"] * 6 + ["sft"] * 2,
        "pope": ["policy"] * 8,
        "exp_grpo": ["policy"] * 6 + ["sft", "conditioned"],
        "explanation_sft": ["sft", "conditioned"] * 4,
        "opsd": ["policy"] * 8,
        "sdpo": ["policy"] * 8,
        "hdpo": ["policy"] * 6 + ["distill"] * 2,
    }.get(config.algo.name, ["chosen", "rejected"] * 4)
    tokens = random_arrays(terms, spread=1.0).tokens()
    if config.algo.name in TAUGHT:
        tokens = with_teacher(tokens)
    output = make_algorithm(config).loss(tokens)
    output.loss.backward()
    return float(output.loss.detach()), tokens.logprobs.grad.tolist()


def engine(config) -> object:
    """What vllm.LLM would be called with."""
    from expo_ray.rollout.engine import build_engine

    called: list[object] = []
    vllm, settings, register = ModuleType("vllm"), ModuleType("vllm.config"), ModuleType("expo_ray.sync.gloo.engine")
    vllm.LLM = lambda **arguments: called.append(arguments) or SimpleNamespace(collective_rpc=lambda _: [])
    settings.WeightTransferConfig = lambda **arguments: arguments
    register.register = lambda backend, receiver: f"{backend}, {receiver}"
    with pytest.MonkeyPatch.context() as patch:
        for module in (vllm, settings, register):
            patch.setitem(sys.modules, module.__name__, module)
        patch.setattr(torch._dynamo, "config", SimpleNamespace())
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "")
        context = config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens
        build_engine(config, context, config.seed)
        return called, os.environ["VLLM_CPU_KVCACHE_SPACE"]


def test_an_engine_of_several_processes_receives_by_vllms_own_backend():
    """What is registered in one process is not in those that it spawns."""
    card = {"profile.device": "cuda"}
    assert "nccl, auto" in repr(engine(changed("grpo", card)))
    assert "nccl, reload" in repr(engine(changed("grpo", card | {"rollout.tensor_parallel": 2})))


def adapters(config) -> object:
    from expo_ray.learner import lora

    found: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "inject_adapter_in_model", lambda settings, _: found.append(settings.to_dict()))
        patch.setattr(lora, "_check_targets", lambda *_: None)
        if config.model.lora.rank:
            lora.add_adapters(SimpleNamespace(named_parameters=list), config.model.lora, config.seed)
    return found


def rewards(config) -> object:
    verdicts = [Verdict("correct"), Verdict("wrong"), Verdict("wrong", credit=0.5), Verdict("timeout")]
    return [completion_reward(verdict, {}, config) for verdict in verdicts]


def observed(config, plan) -> Iterator[str]:
    """Everything that is looked at, part by part; what takes longest comes last."""
    from expo_ray.learner.policy import deepspeed_config

    yield plan_text(plan)
    yield repr([training_sampling(config), evaluation_sampling(config)])
    yield repr(rewards(config))
    yield repr(deepspeed_config(config.learner, config.profile.device == "cuda"))
    yield repr([rate_of_update(config, update) for update in range(STEPS)])
    yield repr(engine(config))
    yield repr(adapters(config))
    yield repr(loss(config))
    yield repr(steps(config))


@cache
def composed(name: str):
    return compose_config([*BASE, f"algo={name}"])


def changed(name: str, values: dict[str, object]):
    config = copy.deepcopy(composed(name))
    for key, value in values.items():
        *parents, leaf = key.split(".")
        setattr(reduce(getattr, parents, config), leaf, value)
    return derive(config)


@cache
def _before(name: str, under: str) -> list[str] | None:
    """What is seen without the key's change; None if the settings alone are refused."""
    config = changed(name, json.loads(under))
    try:
        return list(observed(config, check_config(config, HERE)))
    except ConfigError:
        return None


def outcome(name: str, key: str, value: object, under: dict[str, object]) -> str:
    """acts, refused or nothing."""
    try:
        config = changed(name, under | {key: value})
        plan = check_config(config, HERE)
    except ConfigError:
        return "refused"
    before = _before(name, json.dumps(under))
    same = before is not None and all(map(operator.eq, observed(config, plan), before))  # to the first difference
    return "nothing" if same else "acts"


def other_value(key: str, value: object, pairs: str) -> object:
    """A value of the key's type that differs and that its line of the schema allows."""
    facts = facts_of(key)
    if key == "algo.dpo_pairs_path":
        return pairs
    if key in VALUES:
        return VALUES[key]
    if facts.choices:
        return next(choice for choice in reversed(facts.choices) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        more = value + (1 if isinstance(value, int) else 0.25)
        return more if facts.at_most is None or more <= facts.at_most else value - (more - value)
    return ["1"] if isinstance(value, list) else "another"


def reason_of(key: str, name: str) -> str | None:
    return LISTED.get(key) or LISTED_FOR.get((key, name))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> dict[tuple[str, str], tuple[str, str]]:
    """(key, algorithm) -> the outcome of the key alone, and of the key under the settings in UNDER ("" if none)."""
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    texts = ("text [41, 42, 43, 44, 45]", "text [5, 6]")
    stored = [Pair(f"p{i}", 0, [1, 2, 3], [41, 42, 43, 44, 45], [5, 6], *texts) for i in range(9)]
    pairs.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in stored))
    found = {}
    for name in ALGORITHMS:
        for key in defaults():
            value = other_value(key, value_of(composed(name), key), str(pairs))
            under = UNDER.get(key)
            found[key, name] = (outcome(name, key, value, {}), outcome(name, key, value, under) if under else "")
    return found


def test_every_key_acts_or_is_refused_or_is_listed(table):
    silent = [
        (key, name)
        for (key, name), (alone, under) in table.items()
        if "nothing" in (alone, under) and reason_of(key, name) is None
    ]
    assert silent == []


def test_a_key_that_acts_under_a_condition_acts_there(table):
    """Each key of UNDER is refused without its condition, and acts with it for some algorithm."""
    for key in UNDER:
        outcomes = [table[key, name] for name in ALGORITHMS]
        assert {alone for alone, _ in outcomes} == {"refused"}, key
        assert "acts" in {under for _, under in outcomes}, key


def test_nothing_is_listed_that_the_walk_can_see(table):
    walked = [key for key in LISTED if all(table[key, name][0] != "nothing" for name in ALGORITHMS)]
    walked += [pair for pair in LISTED_FOR if "nothing" not in table[pair]]
    assert walked == []
    assert set(LISTED) <= set(defaults())


def test_the_table_is_whole(table):
    """Counts by algorithm; pytest -s shows them."""
    for name in ALGORITHMS:
        counts = Counter(
            "listed" if "nothing" in pair else ("acts" if "acts" in pair else "refused")
            for (_, of), pair in table.items()
            if of == name
        )
        assert sum(counts.values()) == len(defaults())
        print(f"{name:16}", dict(counts))


@pytest.mark.parametrize("experiment", groups()["experiment"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_experiment_keeps_what_the_algorithms_page_promises(experiment, name):
    """beta, filter and the conditioned KL of each algorithm on each recipe, as pages and recipes state them."""
    algo = compose_config([f"experiment={experiment}", f"algo={name}"]).algo
    small = experiment in ("demo", "ladder", "smollm2_135m_words")
    beta = {"exp_grpo": 0.04, "sft_gt_grpo": 0.04, "explanation_sft": 1.0}.get(name, 0.0)
    filters = name in ("explanation_sft", "hdpo", "nurl") or (small and name in ("exp_grpo", "exp_dpo"))
    conditioned = 1.0 if small and name in ("exp_grpo", "explanation_sft", "hdpo") else 0.0
    assert (algo.beta, algo.explanation_filter, algo.kl_conditioned_coef) == (beta, filters, conditioned)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["algo=exp_dpo", "algo.dynamic_sampling=refill"],
            "algo.dynamic_sampling=refill does nothing with algo=exp_dpo",
        ),
        (["algo=explanation_sft", "algo.dynamic_sampling=refill"], "does nothing with algo=explanation_sft"),
        (["algo.entropy_bonus=-0.1"], "use algo.entropy_bonus=0 or more"),
        (["algo.overlong_buffer_tokens=4", "algo.overlong_penalty=-1"], "use algo.overlong_penalty=0 or more"),
        (["eval.temperature=0"], "use eval.samples=1"),
        (["rollout.dtype=float16"], "rollout.dtype=float16 is not a choice"),
        (["algo=exp_dpo", "algo.dpo_pairs_path=x.jsonl"], "does nothing without algo.dpo_refresh=offline"),
        (["algo=exp_dpo", "algo.kl_coef=0.1"], "algo.kl_coef=0.1 does nothing with algo=exp_dpo"),
        (["algo=explanation_sft", "algo.kl_coef=0.1"], "algo.kl_coef=0.1 does nothing with algo=explanation_sft"),
        (["algo=grpo", "algo.kl_conditioned_coef=1"], "algo.kl_conditioned_coef=1.0 does nothing with algo=grpo"),
        (["algo.policy_loss=cispo", "algo.dual_clip=3", "algo.updates_per_batch=2"], "with algo.policy_loss=cispo"),
        (["algo.policy_loss=gspo", "algo.updates_per_batch=2"], "use algo.clip_low=3e-4 algo.clip_high=4e-4"),
    ],
)
def test_settings_that_did_nothing_are_refused_in_a_sentence(overrides, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(ConfigError) as caught:
        check_config(compose_config([*BASE, *overrides]), HERE)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_explanation_sft_samples_completions_for_its_scope_only():
    asked = [
        sum(samples for _, _, requests in steps(changed("explanation_sft", values))[0] for _, samples, _ in requests)
        for values in ({}, {"algo.explanation_scope": "all_wrong"})
    ]
    assert asked == [0, 9 * 2 * composed("explanation_sft").rollout.samples_per_prompt]


@pytest.mark.parametrize("normalisation", ["sequence_mean", "token_mean", "dr_grpo"])
def test_a_step_whose_groups_are_all_dropped_has_no_samples(normalisation):
    config = changed("grpo", {"algo.dynamic_sampling": "drop", "algo.loss_normalisation": normalisation})
    assert make_algorithm(config).training_batch([group(["wrong", "wrong"])], 0).samples == []


def test_a_tilde_is_the_home_folder():
    config = compose_config(["algo.dpo_pairs_path='~/pairs.jsonl'", "trainer.resume='~/run'"])
    assert "~" not in config.algo.dpo_pairs_path + config.trainer.resume
    assert config.trainer.resume.endswith("/run") and config.trainer.resume.startswith("/")
