"""The algorithms by name, and what composing and planning ask of their classes. Imports neither torch nor NumPy.

A name is either a key of `ALGORITHMS` or the path of a class outside the package, `package.module:Class`
(docs/algorithms/your_own.md). Both are loaded the same way, when they are first asked for.
"""

from typing import Literal

from expo_ray.config.errors import ConfigError, did_you_mean, import_own
from expo_ray.config.schema import Config, TrainerConfig

ALGORITHMS = {
    "grpo": "expo_ray.algorithms.grpo:Grpo",
    "sft_gt_grpo": "expo_ray.algorithms.exp_grpo:SftGtGrpo",
    "luffy": "expo_ray.algorithms.luffy:Luffy",
    "exp_grpo": "expo_ray.algorithms.exp_grpo:ExpGrpo",
    "explanation_sft": "expo_ray.algorithms.exp_grpo:ExplanationSft",
    "nurl": "expo_ray.algorithms.nurl:NuRl",
    "pope": "expo_ray.algorithms.pope:Pope",
    "verifree": "expo_ray.algorithms.verifree:VeriFree",
    "ravr": "expo_ray.algorithms.ravr:Ravr",
    "dpo_gt": "expo_ray.algorithms.exp_dpo:DpoGt",
    "exp_dpo": "expo_ray.algorithms.exp_dpo:ExpDpo",
    "opsd": "expo_ray.algorithms.opsd:Opsd",
    "sdpo": "expo_ray.algorithms.sdpo:Sdpo",
    "hdpo": "expo_ray.algorithms.hdpo:Hdpo",
}
"""The registry: `algo.name` -> class. Tables list the algorithms in this order, each baseline before its method."""


Explanations = Literal["none", "optional", "required"]

ANY_KEYS = frozenset({"name", "updates_per_batch", "properties_every", "measure_base", "contrast_prompts"})
POLICY_KEYS = ANY_KEYS | {
    "advantage", "loss_normalisation", "policy_loss", "clip_low", "clip_high", "dual_clip", "kl_coef",
    "kl_estimator", "dynamic_sampling", "refill_rounds", "overlong_buffer_tokens", "overlong_penalty",
    "importance_correction", "importance_cap", "entropy_bonus",
}  # fmt: skip
SFT_KEYS = ANY_KEYS | {"beta", "beta_schedule", "sft_reduction", "explanation_scope", "explanation_threshold"}
CHOICE_KEYS = ANY_KEYS | {
    "explanation_filter", "leak_filter", "explanation_keep", "explanation_answer", "explanation_cut_off",
}  # fmt: skip
EXPLANATION_KEYS = CHOICE_KEYS | {"explanation_refresh_steps", "kl_conditioned_coef", "kl_estimator"}
TEACHER_KEYS = frozenset({"teacher", "distill_coef", "distill_divergence", "distill_top_k", "distill_clip"})
DPO_KEYS = ANY_KEYS | {
    "dpo_beta", "dpo_refresh", "dpo_refresh_steps", "dpo_pairs_path", "explanation_scope", "explanation_threshold",
}  # fmt: skip
"""Keys of `algo` by what they belong to: the policy term, the ExP-SFT term on any target, the targets made from
explanations, explanations beside a policy, distillation from a teacher, and DPO."""


class AlgorithmFacts:
    """Class attributes of an algorithm; expo_ray.algorithms.base.Algorithm adds the behaviour."""

    label: str = ""
    """Name in tables and reports; empty: the class's own name."""
    needs_group: bool = False
    """Compares the completions of a prompt, so it needs two or more of them, sampled from the whole distribution."""
    explanations: Explanations = "none"
    """Whether `rollout.explanations_per_prompt` counts (none: it is 0), and whether it may be 0."""
    explains_when_needed: bool = False
    """Asks for explanations where it has nothing stored, never for later steps; `explanation_refresh_steps` is how long
    what is made of them is kept."""
    needs_gold: bool = False
    """Trains on the data set's solutions."""
    gold_in_group: bool = False
    """The solution is a member of the group, so the other members' advantages depend on it."""
    own_reward: bool = False
    """Its completions have another reward than `reward.functions` gives."""
    scores_batch: bool = False
    """Its training batch depends on log-probabilities that the learners compute for it (`Algorithm.attach`)."""
    scores_answer: bool = False
    """The likelihood of the gold answer's text is its reward or its target."""
    teacher_samples: bool = False
    """What it distils was sampled by the teacher, so that tokens have no advantage (`distill_divergence=sampled`)."""
    uses: frozenset[str] | None = None
    """Keys of `algo` that it uses; another one that is set is refused. None: not known, nothing is refused."""
    completions_for_scope_only: bool = False
    """Does not train on free completions, and needs them only to tell which prompts `explanation_scope` leaves out."""


def algorithm_class(name: str) -> type[AlgorithmFacts]:
    """Loads the class that `algo.name` names.

    Raises:
        ConfigError: no such name, module or class, or not a subclass of Algorithm; one sentence.
    """
    module, colon, attribute = ALGORITHMS.get(name, name).partition(":")
    if not colon:
        raise ConfigError(
            f"algo.name={name} is not an algorithm{did_you_mean(name, ALGORITHMS)} "
            f"(choices: {', '.join(ALGORITHMS)}, or package.module:Class)"
        )
    found = import_own(module, f"algo={name}")
    cls = getattr(found, attribute, None)
    if cls is None:
        raise ConfigError(
            f"algo={name}: {found.__file__} has no class {attribute}{did_you_mean(attribute, vars(found))}"
        )
    if not (isinstance(cls, type) and issubclass(cls, AlgorithmFacts)):
        raise ConfigError(f"algo={name}: {attribute} is not a subclass of expo_ray.algorithms.base.Algorithm")
    return cls


def samples_completions(config: Config) -> bool:
    """Whether a run samples free completions to train on or to judge prompts by."""
    only_scope = algorithm_class(config.algo.name).completions_for_scope_only
    return not (only_scope and config.algo.explanation_scope == "every")


def explanations_of(config: Config) -> Explanations:
    """Whether a run's explanations count: those of its algorithm, and of the SFT before it (`trainer.sft_on`)."""
    trainer = config.trainer
    return "required" if sft_on_explanations(trainer) else algorithm_class(config.algo.name).explanations


def sft_on_explanations(trainer: TrainerConfig) -> bool:
    """Whether the run begins with SFT on explanations."""
    return trainer.sft_steps > 0 and trainer.sft_on == "explanations"


def group_choice(name: str) -> str:
    """The choice of conf/algo whose values an algorithm starts from: its own, or that of the nearest algorithm of
    the registry that its class derives from; "grpo" where it derives from none.

    Raises:
        ConfigError: see `algorithm_class`.
    """
    if name in ALGORITHMS:
        return name
    ours = {path: choice for choice, path in ALGORITHMS.items()}
    paths = (f"{cls.__module__}:{cls.__qualname__}" for cls in algorithm_class(name).__mro__)
    return next((ours[path] for path in paths if path in ours), "grpo")


def algorithm_label(name: str) -> str:
    """The algorithm's name as readers know it; `name` itself where its class cannot be loaded here."""
    try:
        cls = algorithm_class(name)
    except ConfigError:
        return name
    return cls.label or cls.__name__
