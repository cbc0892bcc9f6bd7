"""DeepSpeed's configuration of a learner rank: what `learner` asks for, with the options of `learner.deepspeed`."""

from typing import Any

from expo_ray.config.resources import BUCKET_ELEMENTS
from expo_ray.config.schema import LearnerConfig


def deepspeed_config(config: LearnerConfig, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's settings (deepspeed.ai/docs/config-json).

    `gradient_accumulation_steps` is 1, so that DeepSpeed does not scale the loss; expo_ray.learner.update sets the
    accumulation boundary itself. `learner.deepspeed` is merged into them; what it must not set is refused before the
    start (expo_ray.preflight.options).
    """
    adam: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": [config.adam_beta1, config.adam_beta2],
        "weight_decay": config.weight_decay,
    }
    if not config.offload_optimizer:
        # DeepSpeed would compile its own kernel at start, for which the CUDA toolkit must be installed.
        adam |= {"torch_adam": True, "fused": on_gpu}
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": config.offload_optimizer,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        # A bfloat16 sum over many micro-batches would depend on how the batch was cut.
        "data_types": {"grad_accum_dtype": "fp32" if config.zero_stage >= 2 else None},
        "steps_per_print": 1 << 30,
    }
    return merged(ours, config.deepspeed)


def merged(ours: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Merges two nested mappings; where both have a value, that of `more` counts."""
    found = dict(ours)
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else value
    return found
