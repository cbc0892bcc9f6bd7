"""The typed schema of conf/: one dataclass for each config group. The values live in the YAML files."""

from dataclasses import dataclass, field


@dataclass
class AlgoConfig:
    """conf/algo: which objective, and every open choice of the paper (docs/algorithms/)."""

    name: str = "exp_grpo"  # grpo | exp_grpo | sft_gt_grpo | exp_dpo | dpo_gt | explanation_sft
    beta: float = 0.04  # weight of the ExP-SFT term (paper's best)
    beta_schedule: str = "constant"  # constant | linear | cosine: beta falls to 0 over trainer.steps
    sft_reduction: str = "mean"  # mean | sum over the tokens of a sample
    explanation_scope: str = "every"  # every | all_wrong | below (pass rate under explanation_threshold)
    explanation_threshold: float = 0.5
    explanation_refresh_steps: int = 1  # sampled again every k steps; 0: once
    explanation_filter: bool = False  # keep only explanations that the verifier finds correct
    leak_filter: bool = True  # leave out explanations that mention having been given the answer
    explanation_keep: str = "all"  # all | likely | rise | both: which of several a prompt keeps
    divide_by_std: bool = True
    loss_normalisation: str = "sequence_mean"  # token_mean | sequence_mean | dr_grpo
    policy_loss: str = "clip"  # clip | cispo | gspo
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0  # 0: off
    kl_coef: float = 0.0  # KL to the reference policy on free completions
    kl_conditioned_coef: float = 0.0  # the same on the answer-conditioned prompts' explanations
    kl_estimator: str = "k3"  # k1 | k2 | k3
    dynamic_sampling: str = "none"  # none | drop | refill
    refill_rounds: int = 2
    overlong_buffer_tokens: int = 0  # length of the zone before the limit where the reward is lowered; 0: off
    overlong_penalty: float = 1.0
    importance_correction: str = "truncate"  # none | truncate | mask_token | mask_sequence
    importance_cap: float = 2.0
    entropy_bonus: float = 0.0
    updates_per_batch: int = 1
    dpo_beta: float = 0.1
    dpo_refresh: str = "online"  # offline | online | iterative
    dpo_refresh_steps: int = 8  # iterative: pairs made again every k steps
    dpo_pairs_path: str | None = None  # offline: stored pairs to use again
    properties_every: int = 2  # measure the two ExPO properties every k steps; 0: never


@dataclass
class LoraConfig:
    rank: int = 0  # 0: train all weights
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])


@dataclass
class ModelConfig:
    """conf/model: the policy, a Hugging Face folder or hub id."""

    path: str = "???"
    trust_remote_code: bool = False
    prompt_style: str = "auto"  # auto | chat | base | toy (expo_ray.prompts)
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class DataConfig:
    """conf/data: where problems come from and which of them are used."""

    name: str = "???"  # toy | math | gsm8k | jsonl
    path: str | None = None  # a local JSON Lines file; null: hub (or generated, for toy)
    eval_path: str | None = None  # held-out problems; null: the hub's test split, a share of `path`, or generated
    held_out_share: float = 0.1  # of `path`, kept from training, where a local file has no eval_path beside it
    hub: str | None = None  # data set id on the hub
    hub_config: str | None = None
    split: str = "train"
    eval_split: str = "test"
    levels: list[int] = field(default_factory=list)  # train on these levels only; empty: all
    eval_levels: list[int] = field(default_factory=list)
    question_key: str = "problem"
    answer_key: str = "answer"
    answer_from: str = "field"  # field | boxed | hashes: where in a record the answer is (expo_ray.data.sources)
    solution_key: str | None = "solution"
    level_key: str | None = "level"
    kind_key: str | None = "type"
    max_problems: int = 0  # 0: all


@dataclass
class RolloutConfig:
    """conf/rollout: the vLLM engines and what they sample."""

    workers: int = 1
    samples_per_prompt: int = 4  # the group, G
    explanations_per_prompt: int = 1
    max_prompt_tokens: int = 512
    max_completion_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    tensor_parallel: int = 1
    dtype: str = "float32"
    enforce_eager: bool = True
    max_sequences: int = 256  # sequences an engine decodes at once
    kv_cache_gib: float = 1.0  # CPU engines
    gpu_memory_utilization: float = 0.85  # GPU engines


@dataclass
class LearnerConfig:
    """conf/learner: the DeepSpeed ranks."""

    ranks: int = 2
    zero_stage: int = 2
    offload_optimizer: bool = False
    dtype: str = "float32"
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    schedule: str = "constant"  # constant | linear | cosine after the warm-up
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    tokens_per_micro_batch: int = 4096
    batching: str = "padded"  # padded (sorted by length) | packed (one row, block-diagonal attention)
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    logits_chunk_tokens: int = 1024  # tokens whose logits exist at once


@dataclass
class SyncConfig:
    """Weight sync from learners to engines, and its proof."""

    backend: str = "auto"  # auto | gloo | nccl | ipc
    bucket_mib: int = 64
    timeout_s: float = 300.0
    probe_prompts: int = 4
    probe_tokens: int = 48
    tolerance: float = 1e-3  # nats, the largest difference of a probe token
    mean_tolerance: float = 1e-3  # nats, the mean difference of an engine's probe tokens


@dataclass
class VerifierConfig:
    """conf/verifier: the task that grades, its actors and their processes."""

    name: str = "math"  # math | gsm8k | choice | toy | reasoning_gym | import path
    workers: int = 1  # actors
    processes: int = 1  # killable processes in each actor
    timeout_s: float = 5.0  # wall-clock limit of one item
    memory_mib: int = 1024  # limit of one process
    strict: bool = False  # extraction: boxed answers only
    percent_is_unit: bool = False  # true: 50% also equals 50; false: only 0.5 (docs/verifier.md)
    reward_correct: float = 1.0
    reward_wrong: float = 0.0
    count_failures_as_wrong: bool = False  # false: timeout and error are left out of the group
    max_failure_rate: float = 0.1  # a step beyond it stops the run


@dataclass
class TrainerConfig:
    """The loop."""

    steps: int = 100
    prompts_per_step: int = 32
    async_steps: int = 0  # sample up to k steps ahead, beside the update, with weights up to k updates old; 0: in turn
    resume: str = "auto"  # auto | never | PATH
    checkpoint_every: int = 50  # steps; 0: only at the end
    checkpoint_minutes: float = 0.0  # also when this much time has passed; 0: by steps alone
    checkpoint_async: bool = False  # write beside the training, from a copy in host memory
    keep_checkpoints: int = 2  # the newest
    keep_best: int = 1  # and of the evaluated ones, those with the best pass@k
    max_restarts: int = 3  # of the learners in a run; and of any other actor without a completed step between
    eval_every: int = 0  # steps; 0: only before and after
    max_mismatch: float = 0.05  # nats: mean train-against-rollout difference beyond which the run stops
    wait_s: float = 600.0  # bound on one phase of a step
    start_s: float = 300.0  # bound on starting the actors


@dataclass
class EvalConfig:
    samples: int = 4
    max_problems: int = 0  # a level; 0: all
    temperature: float = 0.7
    top_p: float = 1.0
    before: bool = True  # evaluate the base model before the first step
    objective: str = "pass@1/all"  # pass@K/LEVEL of the final evaluation: what a sweeper looks at (docs/sweeps.md)
    chunk: int = 0  # expo_ray.evaluate: problems sampled and written down at once; 0: as many as fill the engines


@dataclass
class LoggingConfig:
    samples_per_step: int = 2
    tensorboard: bool = True
    prometheus: bool = True  # gauges through Ray's metrics exporter
    wandb_project: str | None = None  # set it to log to Weights & Biases
    progress: bool = True
    usage_every: int = 10  # measure memory, files and threads of all actors every k steps; 0: never


@dataclass
class ClusterConfig:
    """conf/cluster: the resources to plan for; local: what this machine (or the Ray cluster) has."""

    name: str = "local"
    address: str | None = None  # null: start Ray here; auto: join the running cluster
    placement: str = "disaggregated"  # GPUs: disaggregated (each its own) | colocated (an engine and a rank share one)
    nodes: int = 0  # 0: detect
    cpus_per_node: float = 0
    gpus_per_node: int = 0
    memory_gib_per_node: float = 0
    gpu_memory_gib: float = 0
    gpu_tflops: float = 0  # dense bfloat16 peak of one card, from its data sheet; 0: no time is estimated
    gpu_terabytes_per_s: float = 0  # its memory bandwidth
    rollout_resource: str | None = None  # a custom Ray resource: engines run only on nodes that have it
    learner_resource: str | None = None  # the same for learner ranks


@dataclass
class ProfileConfig:
    """conf/profile: cpu or gpu."""

    name: str = "cpu"
    device: str = "cpu"  # cpu | cuda
    cpus_per_actor: float = 1.0
    threads_per_actor: int = 1
    deterministic: bool = False  # cuda: bit-for-bit repeatable kernels, slower; the CPU profile always is


@dataclass
class Config:
    """The whole configuration, conf/train.yaml."""

    algo: AlgoConfig = field(default_factory=AlgoConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    seed: int = 0
    dry_run: bool = False
    run_name: str = "run"
    run_dir: str = "???"  # where the run goes; conf/train.yaml: runs/<run_name>/<date and time>
