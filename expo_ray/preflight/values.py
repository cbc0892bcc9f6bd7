"""Checks a composed configuration: its values, their combinations, the model folder and the resources."""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from expo_ray.config.algorithms import algorithm_class, explanations_of, samples_completions, sft_on_explanations
from expo_ray.config.compose import algorithm_values
from expo_ray.config.errors import ConfigError, did_you_mean
from expo_ray.config.idle import idle_keys
from expo_ray.config.keys import defaults, facts_of, parse_objective, value_of
from expo_ray.config.model_path import TOKENIZER_FILES, adapter_folder, tokenizer_of, weights_of
from expo_ray.config.resources import Resources, cpu_build, of_cluster, this_machine
from expo_ray.config.schema import Config
from expo_ray.data.sources import parts_of
from expo_ray.files import HUB_ID
from expo_ray.preflight.fit import misfits, too_long
from expo_ray.preflight.model_files import adapter_problems, template_problems, tokenizer_problems, weight_problems
from expo_ray.preflight.model_folder import (
    ModelShape,
    architecture,
    config_problems,
    model_shape,
)
from expo_ray.preflight.options import deepspeed_problems, engine_problems, tracker_problems
from expo_ray.preflight.plan import Plan, plan_for, planned_resources
from expo_ray.rewards.functions import reward_problems
from expo_ray.sync import PLAIN_MODELS
from expo_ray.verifier.tasks import task_problem

LEVELS = (1, 2, 3, 4, 5)
LARGEST_GSPO_CLIP = 0.05
"""GSPO's ratio is a mean over the sequence's tokens: its paper clips at 3e-4 and 4e-4, PPO's 0.2 is never reached."""
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")


def check_config(config: Config, resources: Resources | None = None, training: bool = True) -> Plan:
    """Checks a configuration.

    Args:
        config: the run's configuration.
        resources: what to plan for; None: conf/cluster's, and for a real start this machine's as well.
        training: False for an evaluation, which starts no learner.

    Returns:
        The plan that passed.

    Raises:
        ConfigError: the first thing that is wrong, in one sentence with the remedy.
    """
    _refuse(_setting_problems(config, training))
    shape = model_shape(config.model.path)
    _refuse(_model_problems(config, shape, training))
    plan = plan_for(config, resources or planned_resources(config), shape, training)
    _refuse(too_long(plan))
    _refuse(_resource_problems(plan, resources is not None))
    return plan


def _refuse(problems: Iterator[str]) -> None:
    for problem in problems:
        raise ConfigError(problem)


def _resource_problems(plan: Plan, given: bool) -> Iterator[str]:
    config = plan.config
    joins = config.cluster.address is not None or "RAY_ADDRESS" in os.environ
    stated = of_cluster(config.cluster) is not None
    # The resources of a running Ray cluster are not known here, unless conf/cluster states them.
    if given or stated or not joins:
        yield from misfits(plan)
    if stated and not (given or joins or config.dry_run):
        yield from misfits(plan_for(config, this_machine(), plan.shape, plan.trains))


def _setting_problems(config: Config, training: bool) -> Iterator[str]:
    """Everything that is seen without reading the model's configuration."""
    yield from _values(config)
    yield from _combinations(config)
    if training:
        yield from _learner(config)
    yield from _evaluation(config)
    yield from _levels(config)
    yield from _data(config)
    yield from _lora(config)
    if training:
        yield from _sequence_clip(config)
        yield from _teacher(config)
        yield from program_problems(config, [config.verifier.name])
        yield from _idle(config)
        yield from tracker_problems(config)
        yield from deepspeed_problems(config)
    yield from engine_problems(config)
    yield from _run_folder(config)
    yield from _model_path(config)


def _model_problems(config: Config, shape: ModelShape | None, training: bool) -> Iterator[str]:
    weights = Path(weights_of(config.model.path))
    if (adapter := adapter_folder(config.model.path)) is not None:
        yield from adapter_problems(adapter, shape)
    if weights.is_dir():
        yield from config_problems(weights, training)
        yield from weight_problems(weights, shape, training)
    if (words := Path(tokenizer_of(config.model.path))).is_dir():
        yield from tokenizer_problems(words, shape.vocabulary if shape is not None else None)
        yield from template_problems(words, config.model.chat_template_kwargs)
    yield from _shards(config, shape)
    if training:
        yield from _receiving(config)
    if config.cluster.placement == "colocated" and training:
        yield from _colocated(config)


def _values(config: Config) -> Iterator[str]:
    """The generic check: each key's choices and bounds, as its line of the schema has them."""
    for key in defaults():
        value, facts = value_of(config, key), facts_of(key)
        if facts.choices and value not in facts.choices:
            hint = did_you_mean(str(value), facts.choices)
            yield f"{key}={value} is not a choice{hint} (choices: {', '.join(facts.choices)})"
        if facts.at_least is not None and not value >= facts.at_least:  # a NaN is refused, too
            yield f"{key}={value} is too small: use {key}={facts.at_least:g} or more"
        if facts.at_most is not None and value > facts.at_most:
            yield f"{key}={value} is too large: use {key}={facts.at_most:g} or less"


def _combinations(config: Config) -> Iterator[str]:
    algo, rollout = config.algo, config.rollout
    needs_group = algorithm_class(algo.name).needs_group
    if needs_group and rollout.samples_per_prompt < 2:
        yield (
            f"rollout.samples_per_prompt={rollout.samples_per_prompt} gives algo={algo.name} no group to compare: "
            "use rollout.samples_per_prompt=2 or more"
        )
    yield from _explanations(config)
    yield from _sft(config)
    if 0 < algo.dual_clip <= 1:
        yield (
            f"algo.dual_clip={algo.dual_clip:g} is not above the ratio 1: use algo.dual_clip=0 "
            "(off), or a number above 1 such as algo.dual_clip=3"
        )
    if needs_group and rollout.top_p != 1.0:
        yield f"rollout.top_p={rollout.top_p} makes the importance ratio wrong: use rollout.top_p=1.0"
    if needs_group and rollout.top_k > 0:
        yield f"rollout.top_k={rollout.top_k} makes the importance ratio wrong: use rollout.top_k=0"
    # On a running cluster, the user's class may be installed on the verifiers' nodes only.
    here = config.cluster.address is None or ":" not in config.verifier.name
    if here and (problem := task_problem(config.verifier.name)):
        yield problem
    yield from reward_problems(config.reward, config.cluster.address is None)
    if config.trainer.async_steps and needs_group and algo.importance_correction == "none":
        yield (
            f"trainer.async_steps={config.trainer.async_steps} trains on samples of older weights, which "
            "algo.importance_correction=none does not correct: use algo.importance_correction=truncate"
        )
    if algo.advantage == "maxrl" and config.verifier.reward_wrong < 0:
        yield (
            "algo.advantage=maxrl divides by the mean reward, which can be negative with "
            f"verifier.reward_wrong={config.verifier.reward_wrong}: use verifier.reward_wrong=0"
        )
    if algo.overlong_buffer_tokens >= rollout.max_completion_tokens:
        yield (
            f"algo.overlong_buffer_tokens={algo.overlong_buffer_tokens} must be below "
            f"rollout.max_completion_tokens={rollout.max_completion_tokens}"
        )
    if config.profile.device == "cuda" and cpu_build() and not config.dry_run:
        yield "profile=gpu needs the GPU packages, .venv has the CPU ones: run PROFILE=gpu make setup, or profile=cpu"
    if config.profile.device == "cpu" and config.sync.backend in ("nccl", "ipc"):
        yield f"sync.backend={config.sync.backend} needs GPUs: use sync.backend=auto with profile=cpu"
    if config.trainer.resume not in ("auto", "never") and not Path(config.trainer.resume).expanduser().exists():
        yield f"trainer.resume={config.trainer.resume} is neither auto, never nor an existing folder"
    pushed = config.trainer.push_to_hub
    if pushed is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", pushed):
        yield f"trainer.push_to_hub={pushed} is not a repository of the Hugging Face hub: use OWNER/NAME"
    if algo.dpo_pairs_path is not None and not Path(algo.dpo_pairs_path).expanduser().is_file():
        yield f"algo.dpo_pairs_path={algo.dpo_pairs_path} is not there: leave it out to make the pairs"


def _learner(config: Config) -> Iterator[str]:
    learner = config.learner
    if learner.batching == "packed" and config.profile.device == "cpu":
        yield (
            "learner.batching=packed attends over whole rows on profile=cpu, ten times slower than padded rows: "
            "use learner.batching=padded"
        )
    elif learner.batching == "packed" and (learner.attention == "eager" or learner.dtype == "float32"):
        setting = "attention=eager" if learner.attention == "eager" else "dtype=float32"
        yield (
            f"learner.batching=packed needs a flash attention, which has no learner.{setting}: "
            "use learner.batching=padded"
        )
    if learner.share_prompts and learner.attention != "sdpa":
        yield (
            f"learner.share_prompts=true needs torch's own attention, not learner.attention={learner.attention}: "
            "use learner.attention=sdpa"
        )
    if learner.offload_between_updates and learner.offload_optimizer:
        yield "learner.offload_between_updates=true has nothing to move with learner.offload_optimizer=true: use one"
    if learner.offload_between_updates and learner.zero_stage not in (1, 2):
        yield (
            "learner.offload_between_updates=true needs learner.zero_stage=1 or 2: DeepSpeed cannot move the states of "
            f"stage {learner.zero_stage}"
        )
    if learner.offload_optimizer and not learner.zero_stage:
        yield "learner.offload_optimizer=true needs learner.zero_stage=1 or more: DeepSpeed has no offload at stage 0"
    # A cluster's nodes may have what this machine has not.
    places = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"
    tools = [name for name in ("g++", "ninja") if not shutil.which(name, path=places)]
    if learner.offload_optimizer and tools and config.cluster.address is None and not config.dry_run:
        yield (
            f"learner.offload_optimizer=true compiles DeepSpeed's CPU Adam, for which {' and '.join(tools)} must be "
            "installed: install them, or use learner.offload_optimizer=false"
        )


def _evaluation(config: Config) -> Iterator[str]:
    ask = config.eval
    if not 0 < ask.top_p <= 1:
        yield f"eval.top_p={ask.top_p} is not a share: use a number above 0, up to 1"
    if (wanted := parse_objective(ask.objective)[0]) > ask.samples:
        yield f"eval.objective={ask.objective} needs eval.samples={wanted} or more, not {ask.samples}"
    if ask.temperature == 0 and ask.samples > 1:
        yield f"eval.samples={ask.samples} at eval.temperature=0 repeats one completion: use eval.samples=1"
    if ask.temperature == 0 and ask.top_p != 1:
        yield f"eval.top_p={ask.top_p} does nothing with eval.temperature=0: use eval.top_p=1.0"


def _idle(config: Config) -> Iterator[str]:
    for idle in idle_keys(config, algorithm_values(config.algo.name)):
        usual = "null" if idle.default is None else idle.default
        yield f"{idle.key}={idle.value} does nothing {idle.reason}: leave it out (or use {idle.key}={usual})"


def _teacher(config: Config) -> Iterator[str]:
    algo, facts = config.algo, algorithm_class(config.algo.name)
    if "policy_coef" in (facts.uses or ()) and not algo.policy_coef and not algo.distill_coef:
        yield (
            f"algo={algo.name} with algo.distill_coef=0 and algo.policy_coef=0 trains on nothing: "
            "use algo.policy_coef=1, which is GRPO"
        )
    if facts.teacher_samples and algo.distill_divergence == "sampled":
        yield (
            f"algo.distill_divergence=sampled needs tokens of the policy's own, and algo={algo.name} trains on its "
            "teacher's: use algo.distill_divergence=jsd, or algo=exp_grpo, which raises those tokens' likelihood"
        )


def _sequence_clip(config: Config) -> Iterator[str]:
    """A sequence's ratio stays so close to 1 that a clip range made for tokens never acts."""
    algo = config.algo
    widest = max(algo.clip_low, algo.clip_high)
    if algo.policy_loss == "gspo" and algo.updates_per_batch > 1 and widest > LARGEST_GSPO_CLIP:
        yield (
            f"algo.policy_loss=gspo never reaches the clip range algo.clip_low={algo.clip_low:g} "
            f"algo.clip_high={algo.clip_high:g}: use algo.clip_low=3e-4 algo.clip_high=4e-4"
        )


def program_problems(config: Config, tasks: Iterable[str]) -> Iterator[str]:
    """Refuses to score gold answers, or to end explanations in them, where one of the verifier's `tasks` has tests."""
    algo, facts = config.algo, algorithm_class(config.algo.name)
    if "python_tests" not in tasks:
        return
    if facts.scores_answer:
        yield (
            f"algo={algo.name} scores the gold answer as text, and with verifier=python_tests it holds tests: "
            "use algo=grpo, or algo=exp_grpo algo.explanation_answer=own"
        )
    only_right = algo.explanation_filter and algo.explanation_cut_off == "drop"
    explained = facts.explanations != "none" and config.rollout.explanations_per_prompt > 0
    replaces = explained and (facts.uses is None or "explanation_answer" in facts.uses)
    if replaces and algo.explanation_answer == "gold" and not only_right:
        yield (
            "algo.explanation_answer=gold cannot replace a wrong program: with verifier=python_tests the gold answer "
            "holds tests; use algo.explanation_filter=true, or algo.explanation_answer=own"
        )


def _explanations(config: Config) -> Iterator[str]:
    algo, sampled = config.algo, config.rollout.explanations_per_prompt
    wanted = explanations_of(config)
    if sampled or wanted == "none":
        return
    if sft_on_explanations(config.trainer):
        yield f"trainer.sft_on=explanations needs rollout.explanations_per_prompt=1 or more, not {sampled}"
    elif wanted == "required":
        yield f"algo={algo.name} needs rollout.explanations_per_prompt=1 or more, not {sampled}"
    elif algo.kl_conditioned_coef:
        yield (
            f"algo.kl_conditioned_coef={algo.kl_conditioned_coef} needs rollout.explanations_per_prompt=1 or more, "
            f"not {sampled}: it weighs a term on the explanations"
        )


def _sft(config: Config) -> Iterator[str]:
    """The SFT that a run may begin with."""
    trainer, uses = config.trainer, algorithm_class(config.algo.name).uses
    if trainer.sft_steps > trainer.steps:
        yield f"trainer.sft_steps={trainer.sft_steps} are more than the run has: use trainer.steps={trainer.sft_steps}"
    offline = config.algo.dpo_refresh == "offline" and (uses is None or "dpo_refresh" in uses)
    if trainer.sft_steps and offline:
        yield (
            "algo.dpo_refresh=offline takes the policy before its first update as the reference, which "
            f"trainer.sft_steps={trainer.sft_steps} have changed by then: use algo.dpo_refresh=online"
        )


def _shards(config: Config, shape: ModelShape | None) -> Iterator[str]:
    """vLLM splits the attention heads evenly, and a CPU engine is one process."""
    shards = config.rollout.tensor_parallel
    if config.profile.device == "cpu" and shards > 1:
        yield f"rollout.tensor_parallel={shards} needs GPUs: use rollout.tensor_parallel=1 with profile=cpu"
    elif shape is not None and not _splits(shards, shape.heads, shape.kv_heads):
        most = next(n for n in range(shards, 0, -1) if _splits(n, shape.heads, shape.kv_heads))
        yield (
            f"rollout.tensor_parallel={shards} does not divide the {shape.heads} attention heads ({shape.kv_heads} for "
            f"keys and values) of {config.model.path}: use rollout.tensor_parallel={most}"
        )


def _receiving(config: Config) -> Iterator[str]:
    """Comparing bits, and loading without a reload, need to know which tensors an engine's parameters are made from."""
    wanted = [
        (f"sync.digest_every={config.sync.digest_every}", "sync.digest_every=0", config.sync.digest_every > 0),
        ("sync.receiver=live", "sync.receiver=reload", config.sync.receiver == "live"),
    ]
    shards, found = config.rollout.tensor_parallel, architecture(config.model.path)
    for key, remedy, asked in wanted:
        if asked and shards > 1:
            yield f"{key} needs whole tensors in one engine, not rollout.tensor_parallel={shards}: use {remedy}"
        if asked and found is not None and found not in PLAIN_MODELS:
            yield f"{key} knows the layers of {', '.join(sorted(PLAIN_MODELS))}, not of {found}: use {remedy}"


def _colocated(config: Config) -> Iterator[str]:
    """On each card an engine and a learner rank take turns."""
    rollout, learner, apart = config.rollout, config.learner, "or cluster.placement=disaggregated"
    if config.profile.device == "cpu":
        yield "cluster.placement=colocated shares GPUs, and profile=cpu has none: use cluster.placement=disaggregated"
    if rollout.tensor_parallel > 1:
        yield (
            f"rollout.tensor_parallel={rollout.tensor_parallel} spreads an engine over cards, which "
            f"cluster.placement=colocated cannot share: use rollout.tensor_parallel=1, {apart}"
        )
    if rollout.workers != learner.ranks:
        yield (
            f"cluster.placement=colocated needs an engine for each learner rank, not rollout.workers={rollout.workers} "
            f"and learner.ranks={learner.ranks}: use rollout.workers={learner.ranks}, {apart}"
        )
    if config.trainer.async_steps:
        yield (
            f"trainer.async_steps={config.trainer.async_steps} samples during the update, and with "
            f"cluster.placement=colocated engines sleep then: use trainer.async_steps=0, {apart}"
        )
    if config.sync.backend not in ("auto", "ipc"):
        yield (
            f"sync.backend={config.sync.backend} connects different cards, with cluster.placement=colocated they are "
            "the same: use sync.backend=auto"
        )
    if config.cluster.rollout_resource != config.cluster.learner_resource:
        yield (
            f"cluster.rollout_resource={config.cluster.rollout_resource} and cluster.learner_resource="
            f"{config.cluster.learner_resource} keep apart what cluster.placement=colocated puts on one card: "
            "give both the same"
        )


def _splits(shards: int, heads: int, kv_heads: int) -> bool:
    return heads % shards == 0 and (kv_heads % shards == 0 if kv_heads >= shards else shards % kv_heads == 0)


def _levels(config: Config) -> Iterator[str]:
    for key in ("levels", "eval_levels"):
        if wrong := [level for level in getattr(config.data, key) if level not in LEVELS]:
            yield f"data.{key}={getattr(config.data, key)} names level {wrong[0]}: levels are 1 to 5"
    found = config.data.level_key is not None or config.data.preset != "none"
    if config.data.levels and config.data.name != "toy" and not found:
        yield f"data.levels={config.data.levels} needs data.level_key, the key of your file that holds the level"


def _data(config: Config) -> Iterator[str]:
    data, rates = config.data, list(config.data.pass_rate)
    if len(rates) != 2 or not 0 <= rates[0] <= rates[1] <= 1:
        yield f"data.pass_rate={rates} is not a range of rates: use two numbers from 0 to 1, such as [0,0.25]"
    for part in [data, *parts_of(data, "sources"), *parts_of(data, "eval_sources")]:
        if part.hub is not None and part.hub.startswith(("/", ".", "~")) and not Path(part.hub).is_dir():
            yield f"data.hub={part.hub} is not a folder: give a folder, or the id of a data set on the hub"
    if data.resample == "none":
        return
    if not samples_completions(config):
        yield f"data.resample={data.resample} needs completions, and algo={config.algo.name} samples none: leave it out"
    algo, facts = config.algo, algorithm_class(config.algo.name)
    uses = facts.uses
    samples_ahead = uses is None or ("explanation_refresh_steps" in uses and not facts.explains_when_needed)
    if samples_ahead and config.rollout.explanations_per_prompt and algo.explanation_refresh_steps != 1:
        yield (
            f"data.resample={data.resample} draws a step's prompts by the steps before it, and "
            f"algo.explanation_refresh_steps={algo.explanation_refresh_steps} samples for later steps: "
            "use algo.explanation_refresh_steps=1"
        )
    if (uses is None or "dpo_refresh" in uses) and algo.dpo_refresh != "online":
        yield (
            f"data.resample={data.resample} needs completions of the policy at each step: use algo.dpo_refresh=online, "
            f"not {algo.dpo_refresh}"
        )


def _model_path(config: Config) -> Iterator[str]:
    path = config.model.path
    folder = Path(tokenizer_of(path))
    if folder.is_dir():
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            yield f"model.path={folder} has no tokenizer (tokenizer.json or tokenizer.model): copy it into that folder"
    elif not Path(path).is_dir() and (Path(path).exists() or not HUB_ID.fullmatch(path)):
        yield f"model.path={path} is neither a folder nor a hub id: give a Hugging Face model folder or owner/name"


def _lora(config: Config) -> Iterator[str]:
    targets = list(config.model.lora.target_modules)
    shown = f"model.lora.target_modules=[{','.join(targets)}]"
    dropout, updates = config.model.lora.dropout, config.algo.updates_per_batch
    if dropout and updates > 1 and algorithm_class(config.algo.name).needs_group:
        yield (
            f"model.lora.dropout={dropout:g} adds noise to the importance ratios of algo.updates_per_batch={updates}, "
            "on which the clip would act: use model.lora.dropout=0 or algo.updates_per_batch=1"
        )
    if config.model.lora.rank and not targets:
        yield f"{shown} leaves nothing to train: use [all-linear], or names such as [q_proj,v_proj]"
    if "all-linear" in targets and len(targets) > 1:
        yield f"{shown} names all linear layers and some of them: use [all-linear] alone, or names alone"
    for target in targets:
        if target != "all-linear" and not re.fullmatch(r"\w+(\.\w+)*", target):
            yield f"{shown}: {target!r} is not a module name: use names such as q_proj, or [all-linear]"
        if target.rpartition(".")[2] in EMBEDDINGS:
            yield f"{shown}: {target} is an embedding, an adapter there cannot be merged: use linear layers"


def _run_folder(config: Config) -> Iterator[str]:
    folder = Path(config.run_dir)
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        yield f"run_dir={folder} cannot be made, {nearest} is not a folder to write in: give another run_dir=FOLDER"
