"""Finds keys that were set and do nothing in the configuration that they are part of (docs/configuration.md)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from expo_ray.config.algorithms import algorithm_class
from expo_ray.config.keys import defaults, value_of
from expo_ray.config.schema import Config


@dataclass(frozen=True)
class Idle:
    """A key whose value changes nothing."""

    key: str
    value: Any
    default: Any
    reason: str
    """Which other setting makes it so, as the end of a sentence: "with algo=grpo"."""


@dataclass(frozen=True)
class Need:
    """Keys that act under a condition only."""

    keys: tuple[str, ...]
    acts: Callable[[Config], bool]
    reason: str


def _compares_rewards(name: str) -> bool:
    facts = algorithm_class(name)
    unknown = facts.uses is None  # of a class that does not say what it uses, nothing is refused
    return unknown or (facts.needs_group and not facts.own_reward)


def _weighs_rewards(config: Config) -> bool:
    """Whether advantages from rewards are part of the loss: distillation may have them beside it, or alone."""
    return config.algo.policy_coef > 0 or "policy_coef" not in (algorithm_class(config.algo.name).uses or ())


def _has_advantages(config: Config) -> bool:
    """Whether any token has an advantage: of rewards, or of a teacher where only the sampled token is compared."""
    return _weighs_rewards(config) or config.algo.distill_divergence == "sampled"


# A weight of 0 (algo.beta, algo.kl_coef) is not a condition here, except for the estimator that both KL terms share:
# 0 is where a sweep over the weight ends, and the other keys of its term stay as they are.
NEEDS = (
    Need(
        ("algo.explanation_threshold",),
        lambda c: c.algo.explanation_scope == "below",
        "without algo.explanation_scope=below",
    ),
    Need(
        ("algo.explanation_keep",),
        lambda c: c.rollout.explanations_per_prompt > 1,
        "with fewer than two explanations to choose from (rollout.explanations_per_prompt)",
    ),
    Need(
        (
            "algo.explanation_filter",
            "algo.leak_filter",
            "algo.explanation_answer",
            "algo.explanation_cut_off",
            "algo.explanation_refresh_steps",
        ),
        lambda c: c.rollout.explanations_per_prompt > 0,
        "with rollout.explanations_per_prompt=0",
    ),
    Need(
        ("algo.explanation_answer",),
        lambda c: not c.algo.explanation_filter or c.algo.explanation_cut_off == "keep",
        "with algo.explanation_filter=true, which keeps only explanations whose own answer is right",
    ),
    Need(
        ("algo.kl_estimator",),
        lambda c: bool(c.algo.kl_coef or c.algo.kl_conditioned_coef),
        "without algo.kl_coef or algo.kl_conditioned_coef",
    ),
    Need(
        ("algo.measure_base", "algo.contrast_prompts"),
        lambda c: c.algo.properties_every > 0,
        "with algo.properties_every=0, which measures nothing",
    ),
    Need(
        ("algo.distill_top_k",),
        lambda c: c.algo.distill_divergence != "sampled",
        "with algo.distill_divergence=sampled, which compares the sampled token alone",
    ),
    Need(
        (
            "algo.advantage",
            "algo.overlong_buffer_tokens",
            "algo.overlong_penalty",
            "reward.functions",
            "reward.weights",
        ),
        _weighs_rewards,
        "with algo.policy_coef=0, which leaves the rewards out",
    ),
    Need(
        (
            "algo.policy_loss",
            "algo.clip_low",
            "algo.clip_high",
            "algo.dual_clip",
            "algo.importance_correction",
            "algo.importance_cap",
        ),
        _has_advantages,
        "with algo.policy_coef=0, where only algo.distill_divergence=sampled gives tokens an advantage",
    ),
    Need(
        ("algo.refill_rounds",),
        lambda c: c.algo.dynamic_sampling == "refill",
        "without algo.dynamic_sampling=refill",
    ),
    Need(
        ("algo.overlong_penalty",),
        lambda c: c.algo.overlong_buffer_tokens > 0,
        "without algo.overlong_buffer_tokens=1 or more",
    ),
    Need(
        ("algo.importance_cap",),
        lambda c: c.algo.importance_correction != "none",
        "with algo.importance_correction=none",
    ),
    Need(("algo.dual_clip",), lambda c: c.algo.policy_loss != "cispo", "with algo.policy_loss=cispo"),
    Need(
        ("algo.clip_low", "algo.clip_high", "algo.dual_clip"),
        lambda c: c.algo.updates_per_batch > 1,
        "with algo.updates_per_batch=1, where every importance ratio is 1",
    ),
    Need(
        ("algo.dpo_refresh_steps",),
        lambda c: c.algo.dpo_refresh == "iterative",
        "without algo.dpo_refresh=iterative",
    ),
    Need(("algo.dpo_pairs_path",), lambda c: c.algo.dpo_refresh == "offline", "without algo.dpo_refresh=offline"),
    Need(
        ("model.lora.alpha", "model.lora.dropout", "model.lora.target_modules"),
        lambda c: c.model.lora.rank > 0,
        "with model.lora.rank=0",
    ),
    Need(
        ("model.chat_template_kwargs",),
        lambda c: c.model.prompt_style in ("auto", "chat"),
        "with model.prompt_style=base or toy, which use no chat template",
    ),
    Need(
        (
            "learner.offload_optimizer",
            "learner.compile",
            "rollout.gpu_memory_utilization",
            "profile.deterministic",
        ),
        lambda c: c.profile.device == "cuda",
        "with profile=cpu",
    ),
    Need(
        ("sync.receiver",),
        lambda c: c.profile.device == "cuda" and c.sync.backend != "gloo",
        "with profile=cpu or sync.backend=gloo, whose receiver is our own",
    ),
    Need(
        ("reward.functions", "reward.weights"),
        lambda c: _compares_rewards(c.algo.name),
        "with an algorithm that uses no reward, only whether completions are correct",
    ),
    Need(
        ("reward.workers", "reward.timeout_s", "reward.retries", "reward.concurrency", "reward.max_failure_rate"),
        lambda c: any(name != "verifier" for name in c.reward.functions),
        "without a function in reward.functions besides the verifier",
    ),
    Need(
        ("trainer.sft_on", "learner.sft_learning_rate"), lambda c: c.trainer.sft_steps > 0, "without trainer.sft_steps"
    ),
    Need(("data.pass_rate",), lambda c: c.data.pass_rates is not None, "without data.pass_rates=FILE"),
    Need(
        ("data.path",),
        lambda c: not c.data.sources,
        "with data.sources, whose entries name the files",
    ),
    Need(("data.eval_path",), lambda c: not c.data.eval_sources, "with data.eval_sources"),
    Need(("learner.share_prompts",), lambda c: c.learner.batching == "packed", "without learner.batching=packed"),
    Need(
        ("learner.offload_between_updates",),
        lambda c: c.cluster.placement == "colocated",
        "without cluster.placement=colocated",
    ),
    Need(
        ("model.head_dtype",),
        lambda c: "bfloat16" in (c.rollout.dtype, c.learner.dtype),
        "with rollout.dtype=float32 and learner.dtype=float32",
    ),
    Need(("trainer.hub_private",), lambda c: c.trainer.push_to_hub is not None, "without trainer.push_to_hub"),
    Need(
        ("logging.project",),
        lambda c: bool(set(c.logging.trackers) - {"tensorboard"}),
        "with no tracker in logging.trackers that has projects",
    ),
    Need(("rollout.kv_cache_gib",), lambda c: c.profile.device == "cpu", "with profile=gpu"),
)


def idle_keys(config: Config, algorithm_values: dict[str, Any]) -> Iterator[Idle]:
    """Yields each key that differs from its default and does nothing, once, in a fixed order.

    Args:
        config: a composed configuration.
        algorithm_values: what conf/algo sets for the algorithm; such a value counts as the key's default.
    """
    usual = defaults() | {f"algo.{name}": value for name, value in algorithm_values.items()}
    uses = algorithm_class(config.algo.name).uses
    for key in defaults():
        value = value_of(config, key)
        if value == usual[key]:
            continue
        group, _, name = key.partition(".")
        if group == "algo" and uses is not None and name not in uses:
            yield Idle(key, value, usual[key], f"with algo={config.algo.name}")
            continue
        for need in NEEDS:
            if key in need.keys and not need.acts(config):
                yield Idle(key, value, usual[key], need.reason)
                break
