"""DeepSpeed's configuration of a learner rank: what `learner` asks for, with the options of `learner.deepspeed`.

python -m expo_ray.learner.deepspeed_settings has the installed DeepSpeed read a configuration, as JSON, from stdin. A
process of its own, since importing DeepSpeed takes seconds and changes the process. It prints as JSON `unknown`, the
dotted names that DeepSpeed did not read, and `error`, what it says of a value, or null.
"""

import json
import sys
from collections.abc import Iterator, KeysView
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


class Recorder(dict[str, Any]):
    """A mapping that notes which of its names are read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({k: Recorder(v) if isinstance(v, dict) else v for k, v in values.items()})
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping."""
        self.read.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        """As of any mapping; `name in recorder.keys()` reads one name, as DeepSpeed writes it."""
        return KeysView(self)

    def items(self) -> Any:
        """As of any mapping."""
        self.read.update(super().keys())
        return super().items()

    def __copy__(self) -> "Recorder":
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> "Recorder":
        return self

    def unread(self, prefix: str = "") -> Iterator[str]:
        """Names that were not read, of mappings that were looked into: others are kept for later as they are."""
        for name, value in super().items():
            if self.read and name not in self.read:
                yield prefix + name
            elif isinstance(value, Recorder):
                yield from value.unread(f"{prefix}{name}.")


def probe(settings: dict[str, Any]) -> dict[str, Any]:
    """Parses a configuration as `deepspeed.initialize` does.

    Returns:
        `unknown` and `error`, as above.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    recorder = Recorder(settings)
    try:
        DeepSpeedConfig(recorder)
    except ValidationError as error:
        first = error.errors()[0]
        return {"unknown": [], "error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}
    except Exception as error:  # a parser's own errors are of many kinds
        return {"unknown": [], "error": " ".join(str(error).split()) or type(error).__name__}
    return {"unknown": list(recorder.unread()), "error": None}


if __name__ == "__main__":
    print(f"\n{json.dumps(probe(json.load(sys.stdin)))}")
