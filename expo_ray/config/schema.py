"""Every key of the configuration, said once: type, default, choices, bounds, what may change, and its meaning.

One dataclass for each config group of conf/, whose YAML files hold what differs from these defaults.
"""

# ruff: noqa: RUF009  key() returns a dataclasses.field
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Key:
    """What else the schema's line says of a key, besides its type and default.

    A fact on a group's line in `Config` holds for each of the group's keys that does not say otherwise.
    """

    choices: tuple[str, ...] = ()
    """The only words allowed; empty: no such list."""
    at_least: float | None = None
    at_most: float | None = None
    on_resume: Literal["refused", "reported", "free", "by_content"] = "refused"
    """What happens when a run resumes with another value: refused; resumed and reported; resumed silently, as it
    changes nothing that is learned; or compared by content (expo_ray.checkpoint.state), as a folder may have moved."""
    between_runs: Literal["setting", "measuring", "replicate", "ignored"] = "setting"
    """How two runs that differ in it relate: they have different settings; they differ in what they measure or keep;
    they repeat one experiment; or it does not matter at all."""
    actors: bool = False
    """Actors are started with it, so that runs which differ in it cannot share them."""
    evaluation: bool = False
    """It decides what an evaluation asks, how it samples or how it grades."""
    after_run: bool = False
    """It is used only once a run has ended: a finished job of a sweep counts, whatever its value was."""
    formerly: Any = None
    """What runs did before the schema had the key; None: what its default says."""


def key(default: Any, *choices: str, **facts: Any) -> Any:
    """A field of the schema.

    Args:
        default: the value, or the class of a config group.
        choices: the only words allowed; none: any text is.
        facts: fields of `Key`.
    """
    facts = facts | {"choices": choices}
    Key(**facts)  # a misspelled fact fails at import
    if isinstance(default, type):
        return field(default_factory=default, metadata=facts)
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=facts)
    return field(default=default, metadata=facts)


@dataclass
class AlgoConfig:
    """conf/algo: which objective, and every open choice of the paper (docs/algorithms/)."""

    name: str = key("exp_grpo")  # a name in config/algorithms.py, or package.module:Class
    beta: float = key(0.04, at_least=0)  # weight of the ExP-SFT term; 0.04 is the paper's best, 0 is GRPO
    beta_schedule: str = key("constant", "constant", "linear", "cosine")  # linear, cosine: falls to 0 over the run
    sft_reduction: str = key("mean", "mean", "sum")  # over the tokens of a sample; sum: the formula to the letter
    explanation_scope: str = key("every", "every", "all_wrong", "below")  # prompts trained on; below: the threshold
    explanation_threshold: float = key(0.5, at_least=0, at_most=1)  # explanation_scope=below: pass rate under it
    explanation_refresh_steps: int = key(1, at_least=0)  # explanations are sampled again every k steps; 0: once
    explanation_filter: bool = key(False)  # keep only explanations that the verifier finds correct
    leak_filter: bool = key(True)  # leave out explanations that mention having been given the answer
    explanation_answer: str = key("gold", "gold", "own", formerly="own")  # whose answer a target q -> c~ -> a* ends in
    explanation_cut_off: str = key("drop", "drop", "keep", formerly="keep")  # explanations that met the length limit
    explanation_keep: str = key("all", "all", "likely", "rise", "both")  # which of several a prompt keeps
    advantage: str = key("grpo", "grpo", "dr_grpo", "rloo", "maxrl")  # grpo: over the group's std; maxrl: its mean
    loss_normalisation: str = key("sequence_mean", "token_mean", "sequence_mean", "dr_grpo")  # token_mean: DAPO's
    policy_loss: str = key("clip", "clip", "cispo", "gspo")  # gspo needs a clip range of about 3e-4 and 4e-4
    clip_low: float = key(0.2, at_least=0, at_most=1)  # the importance ratio is clipped below 1 - clip_low
    clip_high: float = key(0.2, at_least=0)  # and above 1 + clip_high; 0.28 is DAPO's clip-higher
    dual_clip: float = key(0.0, at_least=0)  # above 1: bounds the loss of samples with negative advantage; 0: off
    kl_coef: float = key(0.0, at_least=0)  # KL to the reference policy on free completions; the paper's is unknown
    kl_conditioned_coef: float = key(0.0, at_least=0)  # the same on the answer-conditioned prompts' explanations
    kl_estimator: str = key("k3", "k1", "k2", "k3")  # Schulman's estimators of that KL
    dynamic_sampling: str = key("none", "none", "drop", "refill")  # groups without signal: kept, dropped, replaced
    refill_rounds: int = key(2, at_least=1)  # dynamic_sampling=refill: rounds of further prompts in one step
    overlong_buffer_tokens: int = key(0, at_least=0)  # zone before the length limit with a lowered reward; 0: off
    overlong_penalty: float = key(1.0, at_least=0)  # the reward lost at the end of that zone
    importance_correction: str = key("truncate", "none", "truncate", "mask_token", "mask_sequence")  # engine to learner
    importance_cap: float = key(2.0, at_least=1)  # ratio of learner to engine beyond which it is truncated or masked
    entropy_bonus: float = key(0.0, at_least=0)  # weight of the policy's entropy in the objective
    updates_per_batch: int = key(1, at_least=1)  # optimizer steps on one step's samples
    posterior_kl_coef: float = key(0.1, at_least=0)  # RAVR's KL of the answer-conditioned policy to the free one
    prefix_share: float = key(0.5, at_least=0, at_most=1)  # POPE shows beginnings of up to this share of a solution
    expert_shaping: float = key(0.1, at_least=0.001)  # LUFFY's gamma: the ratio p counts as p / (p + gamma)
    dpo_beta: float = key(0.1, at_least=0)  # DPO's temperature
    dpo_refresh: str = key("online", "offline", "online", "iterative")  # offline: pairs made once, by the base model
    dpo_refresh_steps: int = key(8, at_least=1)  # dpo_refresh=iterative: pairs are made again every k steps
    dpo_pairs_path: str | None = key(None)  # dpo_refresh=offline: a file of stored pairs to use again
    teacher: str = key("current", "current", "reference")  # weights of the teacher that is told more; reference: fixed
    teacher_context: str = key("answer", "answer", "solution")  # what the teacher of opsd is told besides the question
    distill_coef: float = key(1.0, at_least=0)  # weight of the distillation from the teacher
    policy_coef: float = key(0.0, at_least=0)  # opsd, sdpo: weight of GRPO's policy term beside it; 1 is GRPO's own
    distill_divergence: str = key("jsd", "jsd", "reverse_kl", "forward_kl", "sampled")  # sampled: an advantage a token
    distill_top_k: int = key(100, at_least=1)  # tokens of the teacher's distribution that are compared one by one
    distill_clip: float = key(0.0, at_least=0)  # bound on each token's entry in the divergence; 0: off
    properties_every: int = key(2, at_least=0, between_runs="measuring")  # measure both ExPO properties; 0: never
    measure_base: bool = key(False, between_runs="measuring")  # then also trained text's likelihood under the base
    contrast_prompts: int = key(0, at_least=0, between_runs="measuring")  # then also explanations told a wrong answer


@dataclass
class LoraConfig:
    """model.lora: adapters of low rank instead of all weights."""

    rank: int = key(0, at_least=0)  # 0: train all weights
    alpha: float = key(32.0, at_least=0.01)  # the adapters' output is scaled by alpha / rank
    dropout: float = key(0.0, at_least=0, at_most=0.99)  # of the adapters' input
    target_modules: list[str] = key(["all-linear"])  # names such as [q_proj,v_proj], or all linear layers


@dataclass
class ModelConfig:
    """conf/model: the policy."""

    path: str = key("???", on_resume="by_content", evaluation=True)  # a Hugging Face folder or hub id
    trust_remote_code: bool = key(False)  # run the code that comes with the model
    prompt_style: str = key("auto", "auto", "chat", "base", "toy", evaluation=True)  # expo_ray.prompts
    chat_template_kwargs: dict[str, Any] = key({}, evaluation=True)  # of its chat template: {enable_thinking: false}
    head_dtype: str = key("model", "model", "float32", evaluation=True)  # of the output layer, in engines and learners
    lora: LoraConfig = key(LoraConfig)  # adapters


@dataclass
class DataConfig:
    """conf/data: where problems come from and which of them are used."""

    name: str = key("???", evaluation=True)  # toy | math | gsm8k | jsonl | file
    path: str | None = key(None, evaluation=True)  # a file, folder or glob; null: the hub (or generated, for toy)
    eval_path: str | None = key(None, evaluation=True)  # held-out problems; null: hub's test split or part of `path`
    held_out_share: float = key(0.1, at_least=0, at_most=0.9)  # of `path`, kept from training if no eval_path is given
    hub: str | None = key(None, evaluation=True)  # data set id on the hub, or a local folder in that form
    hub_config: str | None = key(None)  # configuration of that data set
    split: str = key("train")  # its split to train on
    eval_split: str = key("test", evaluation=True)  # its split to evaluate on
    sources: list[dict[str, Any]] = key([])  # instead of path: entries with path or hub, weight, name, own keys
    eval_sources: list[dict[str, Any]] = key([], evaluation=True)  # instead of eval_path: sets reported one by one
    levels: list[int] = key([])  # train on these levels only; empty: all
    eval_levels: list[int] = key([], evaluation=True)  # evaluate on these levels only; empty: all
    preset: str = key("none", "none", "auto", "verl", "openrlhf", "trl", "plain", evaluation=True)  # finds these keys:
    question_key: str = key("problem")  # a record's key that holds the question, as text or messages; a.b: b under a
    answer_key: str = key("answer")  # the gold answer
    answer_from: str = key("field", "field", "boxed", "hashes")  # where in that text the answer is (data.sources)
    solution_key: str | None = key("solution")  # the expert's solution
    level_key: str | None = key("level", evaluation=True)  # the level, 1 to 5
    kind_key: str | None = key("type", evaluation=True)  # the subject
    uid_key: str | None = key(None, evaluation=True)  # what names a problem; null: unique_id or uid, else the place
    verifier_key: str | None = key(None, evaluation=True)  # a record's verifier.name, where the data mixes tasks
    tasks: list[str] = key([], evaluation=True)  # data=reasoning_gym: names of its tasks
    max_problems: int = key(0, at_least=0)  # a sample of this many to train on; 0: all
    pass_rates: str | None = key(None)  # pass_rates.jsonl of an evaluation: train on its problems only,
    pass_rate: list[float] = key([0.0, 1.0])  # whose rate is from the first to the second number
    resample: str = key("none", "none", "failing", "uncertain", on_resume="refused")  # draw by recent pass rate


@dataclass
class RolloutConfig:
    """conf/rollout: the vLLM engines and what they sample."""

    workers: int = key(1, at_least=1, on_resume="reported", actors=True)  # engines
    samples_per_prompt: int = key(4, at_least=1)  # the group, G
    explanations_per_prompt: int = key(1, at_least=0)  # set to 0 for algorithms without explanations
    max_prompt_tokens: int = key(512, at_least=1, evaluation=True)  # problems with longer prompts are left out
    max_completion_tokens: int = key(512, at_least=1, evaluation=True)  # completions are cut off there
    temperature: float = key(1.0, at_least=0.01)  # of training samples
    top_p: float = key(1.0)  # other values truncate the distribution, which the importance ratio needs whole
    top_k: int = key(0)  # 0: all
    tensor_parallel: int = key(1, at_least=1, actors=True)  # GPUs of one engine
    dtype: str = key("float32", "float32", "bfloat16", actors=True, evaluation=True)  # of the engines
    enforce_eager: bool = key(True, on_resume="reported", actors=True)  # false: CUDA graphs
    max_sequences: int = key(0, at_least=0, on_resume="reported", actors=True)  # decoded at once; 0: as a step asks
    kv_cache_gib: float = key(1.0, on_resume="reported", actors=True)  # of a CPU engine
    gpu_memory_utilization: float = key(0.85, at_least=0.05, at_most=0.98, on_resume="reported", actors=True)  # GPU
    engine_options: dict[str, Any] = key({}, on_resume="reported", actors=True, evaluation=True)  # more of vLLM's own


@dataclass
class LearnerConfig:
    """conf/learner: the DeepSpeed ranks."""

    ranks: int = key(2, at_least=1, actors=True)  # processes, one GPU each
    zero_stage: int = key(2, at_least=0, at_most=3)  # ZeRO shards from 1 the optimizer, 2 gradients, 3 weights
    offload_optimizer: bool = key(False)  # keep the optimizer in host memory, and compute its step on the cores
    offload_between_updates: bool = key(False, on_resume="free")  # colocated: its states leave the card for sampling
    dtype: str = key("float32", "float32", "bfloat16")  # of the weights
    learning_rate: float = key(1e-6, at_least=0, on_resume="reported")  # after the warm-up
    sft_learning_rate: float | None = key(None, on_resume="reported")  # of trainer.sft_steps; null: learning_rate
    warmup_steps: int = key(0, at_least=0, on_resume="reported")  # steps of a linear rise from 0
    schedule: str = key("constant", "constant", "linear", "cosine", on_resume="reported")  # after the warm-up
    weight_decay: float = key(0.0)  # AdamW's
    adam_beta1: float = key(0.9)  # AdamW's
    adam_beta2: float = key(0.999)  # AdamW's
    max_grad_norm: float = key(1.0, at_least=0)  # gradients are clipped to this norm; 0: never
    tokens_per_micro_batch: int = key(4096, at_least=1, on_resume="reported")  # tokens of one forward pass
    batching: str = key("padded", "padded", "packed")  # rows sorted by length, or one row with blocks of attention
    share_prompts: bool = key(False, on_resume="reported")  # a packed row computes a prompt of several samples once
    gradient_checkpointing: bool | None = key(None, on_resume="reported")  # store few activations; null: if a card must
    attention: str = key("sdpa")  # transformers' attn_implementation; sdpa: torch's, varlen_attn for packed rows
    compile: bool = key(False, on_resume="reported", actors=True)  # compile norms, rotary embedding, MLPs, scores; cuda
    logits_chunk_tokens: int = key(1024, at_least=1)  # tokens whose logits exist at once
    deepspeed: dict[str, Any] = key({}, actors=True)  # more of DeepSpeed's configuration (docs/options.md)


@dataclass
class SyncConfig:
    """sync: weights from learners to engines, and the proof that they arrived."""

    backend: str = key("auto", "auto", "gloo", "nccl", "ipc", actors=True)  # auto: gloo on CPU, nccl or ipc on GPU
    receiver: str = key("auto", "auto", "live", "reload", actors=True)  # GPU: vLLM's reload, or into live parameters
    bucket_mib: int = key(64, at_least=1)  # size of one message
    timeout_s: float = key(300.0, at_least=1)  # bound on one sync
    probe_prompts: int = key(4, at_least=1)  # sequences of the proof
    probe_tokens: int = key(48, at_least=2)  # tokens of each
    tolerance: float = key(1e-3, at_least=0)  # nats, the largest difference of a probe token
    mean_tolerance: float = key(1e-3, at_least=0)  # nats, the mean difference of an engine's probe tokens
    digest_every: int = key(0, at_least=0)  # every k-th sync also compares the bits of every tensor; 0: never


@dataclass
class VerifierConfig:
    """conf/verifier: the task that grades, its actors and their processes."""

    name: str = key("math", evaluation=True)  # math | gsm8k | choice | toy | reasoning_gym | package.module:Class
    workers: int = key(1, at_least=1, on_resume="free")  # actors
    processes: int = key(1, at_least=1, on_resume="free")  # killable processes of each actor
    timeout_s: float = key(5.0, at_least=0.01)  # wall-clock limit of one item
    memory_mib: int = key(1024, at_least=64)  # limit of one process
    strict: bool = key(False, evaluation=True)  # accept boxed answers only
    percent_is_unit: bool = key(False, evaluation=True)  # true: 50% also equals 50; false: only 0.5
    answer_form: str = key("any", "any", "simplified", evaluation=True)  # simplified: no formula that is only copied
    run_answers: bool = key(False)  # let reasoning-gym's scorers evaluate an answer of arithmetic or lists
    max_unusable_golds: float = key(0.01, at_least=0, at_most=1)  # share of golds that cannot be graded; more stops
    reward_correct: float = key(1.0)  # reward of a right answer
    reward_wrong: float = key(0.0)  # reward of a wrong answer, or none
    count_failures_as_wrong: bool = key(False)  # false: timeouts and errors are left out of the group
    max_failure_rate: float = key(0.1, at_least=0, at_most=1)  # a step beyond it stops the run


@dataclass
class RewardConfig:
    """reward: the functions whose weighted sum is a completion's reward (docs/start/own_reward.md)."""

    functions: list[str] = key(["verifier"])  # verifier: the reward of its verdict; others are module:function
    weights: list[float] = key([])  # one for each function, 0: only recorded; empty: 1 each
    workers: int = key(1, at_least=1, on_resume="free")  # actors that call the functions
    timeout_s: float = key(60.0, at_least=0.01, on_resume="free")  # of one call; a function with lists: of its batch
    retries: int = key(2, at_least=0, on_resume="free")  # further calls after one that failed
    concurrency: int = key(32, at_least=1, on_resume="free")  # calls of an async function at once, in each actor
    max_failure_rate: float = key(0.1, at_least=0, at_most=1, on_resume="free")  # a step beyond it stops the run


@dataclass
class TrainerConfig:
    """trainer: the loop, its checkpoints and its limits."""

    steps: int = key(100, at_least=1, on_resume="reported")  # of the whole run
    sft_steps: int = key(0, at_least=0)  # the first of these are SFT, before the algorithm begins
    sft_on: str = key("gold", "gold", "explanations")  # its targets: gold solutions, or right self-explanations
    prompts_per_step: int = key(32, at_least=1)  # of one step
    async_steps: int = key(0, at_least=0, at_most=8, on_resume="reported", actors=True)  # steps sampled ahead; 0: none
    resume: str = key("auto", on_resume="free", between_runs="ignored")  # auto | never | PATH
    checkpoint_every: int = key(50, at_least=0, on_resume="free", between_runs="measuring")  # steps; 0: at the end
    checkpoint_minutes: float = key(0.0, at_least=0, on_resume="free")  # also after this much time; 0: by steps alone
    checkpoint_async: bool = key(False, on_resume="free")  # write during the training, from a copy in host memory
    keep_checkpoints: int = key(2, at_least=1, on_resume="free", between_runs="measuring")  # the newest
    keep_best: int = key(1, at_least=0, on_resume="free")  # and of the evaluated ones, those with the best pass@k
    max_restarts: int = key(3, at_least=0, on_resume="free")  # of the learners; of another actor in one step
    eval_every: int = key(0, at_least=0, on_resume="reported", between_runs="measuring")  # steps; 0: before and after
    max_mismatch: float = key(0.05, at_least=0, on_resume="reported")  # nats between engine and learner: the run stops
    wait_s: float = key(600.0, at_least=1, on_resume="free", actors=True)  # bound on one phase of a step
    start_s: float = key(300.0, at_least=1, on_resume="free")  # bound on starting the actors
    push_to_hub: str | None = key(None, on_resume="free", between_runs="ignored")  # OWNER/NAME: the policy, at the end
    hub_private: bool = key(True, on_resume="free", between_runs="ignored")  # of a repository that is made for it


@dataclass
class EvalConfig:
    """eval: how held-out problems are sampled."""

    samples: int = key(4, at_least=1, at_most=1024, evaluation=True)  # completions of each problem
    max_problems: int = key(0, at_least=0, evaluation=True)  # of a level; 0: all
    temperature: float = key(0.7, at_least=0, evaluation=True)  # the paper's
    top_p: float = key(1.0, evaluation=True)  # above 0, up to 1
    before: bool = key(True)  # evaluate the base model before the first step
    objective: str = key("pass@1/all", after_run=True)  # pass@K/LEVEL at the end, for a sweeper (docs/sweeps.md)
    chunk: int = key(0, at_least=0)  # expo_ray.evaluate: problems written down at once; 0: as many as fill the engines


@dataclass
class LoggingConfig:
    """logging: what a run shows of itself."""

    samples_per_step: int = key(2)  # prompts whose samples are written to samples.jsonl
    trackers: list[str] = key(["tensorboard"])  # of tensorboard, wandb, mlflow, trackio, swanlab
    project: str = key("expo_ray")  # of wandb, trackio and swanlab; mlflow's experiment
    prometheus: bool = key(True)  # gauges through Ray's metrics exporter
    progress: bool = key(True)  # progress lines on the terminal
    entropy_every: int = key(1, at_least=0)  # measure the policy's entropy every k steps; 0: never
    usage_every: int = key(10, at_least=0)  # measure memory, files and threads of all actors every k steps; 0: never


@dataclass
class ClusterConfig:
    """conf/cluster: the resources to plan for; local: what this machine (or the Ray cluster) has."""

    name: str = key("local")  # of the choice
    address: str | None = key(None)  # null: start Ray here; auto: join the running cluster
    placement: str = key("disaggregated", "disaggregated", "colocated")  # GPUs apart, or one for an engine and a rank
    nodes: int = key(0)  # 0: detect
    cpus_per_node: float = key(0)  # cores
    gpus_per_node: int = key(0)  # cards
    memory_gib_per_node: float = key(0)  # host memory
    gpu_memory_gib: float = key(0)  # memory of one card
    gpu_tflops: float = key(0)  # dense bfloat16 peak of one card, from its data sheet; 0: no time is estimated
    gpu_terabytes_per_s: float = key(0)  # its memory bandwidth
    rollout_resource: str | None = key(None)  # a custom Ray resource: engines run only on nodes that have it
    learner_resource: str | None = key(None)  # the same for learner ranks


@dataclass
class ProfileConfig:
    """conf/profile: cpu or gpu."""

    name: str = key("cpu", "cpu", "gpu")  # of the choice
    device: str = key("cpu", "cpu", "cuda")  # of engines and learners
    cpus_per_actor: float = key(1.0, at_least=0.01)  # cores of an engine's GPU, or of a learner rank
    threads_per_actor: int = key(1, at_least=1)  # of its libraries; two on two cores in all: ten times slower
    deterministic: bool = key(False)  # cuda: bit-for-bit repeatable kernels, slower; the CPU profile always is


@dataclass
class Config:
    """The whole configuration, conf/train.yaml."""

    algo: AlgoConfig = key(AlgoConfig)
    model: ModelConfig = key(ModelConfig, actors=True)
    data: DataConfig = key(DataConfig, on_resume="by_content")
    rollout: RolloutConfig = key(RolloutConfig)
    learner: LearnerConfig = key(LearnerConfig)
    sync: SyncConfig = key(SyncConfig, on_resume="free")
    verifier: VerifierConfig = key(VerifierConfig, actors=True)
    reward: RewardConfig = key(RewardConfig, actors=True)
    trainer: TrainerConfig = key(TrainerConfig)
    eval: EvalConfig = key(EvalConfig, on_resume="reported", between_runs="measuring")
    logging: LoggingConfig = key(LoggingConfig, on_resume="free", between_runs="ignored")
    cluster: ClusterConfig = key(ClusterConfig, on_resume="free", actors=True)
    profile: ProfileConfig = key(ProfileConfig, on_resume="reported", actors=True)
    seed: int = key(0, at_least=0, at_most=2**31 - 1, between_runs="replicate", evaluation=True)  # of everything random
    dry_run: bool = key(False, on_resume="free", between_runs="ignored")  # print the plan, start nothing
    run_name: str = key("run", on_resume="free", between_runs="replicate")  # runs of one name resume one another
    run_dir: str = key("???", on_resume="free", between_runs="ignored")  # the run's folder; runs/NAME/DATE_TIME
