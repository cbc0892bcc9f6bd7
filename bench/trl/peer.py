"""TRL's side: one GRPOTrainer run, in TRL's own environment: `.venv-trl/bin/python -m bench.trl.peer SPEC RESULT`.

SPEC is a JSON file (`bench.trl.cases.peer_spec`); RESULT gets the times at which updates ended and the numbers of
sampled tokens. This imports nothing of expo_ray. Settings equal ours; TRL's defaults that ours does not have are off
(gradient checkpointing, bfloat16, shuffling, reports, checkpoints), so that TRL is at its fastest.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.trl.reward import coin


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    result = train(spec)
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1))


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs the updates of a specification; times are seconds since the epoch."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    ends: list[float] = []
    lengths: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            ends.append(time.time())

    def reward(completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        lengths.extend(len(ids) for ids in completion_ids)
        return [float(coin(text)) for text in completions]

    trainer = GRPOTrainer(
        model=spec["model"],
        reward_funcs=reward,
        args=settings(spec),
        train_dataset=Dataset.from_list([{"prompt": text} for step in spec["prompts"] for text in step]),
        callbacks=[Clock()],
    )
    ready = time.time()
    trainer.train()
    dtypes = {str(parameter.dtype) for parameter in trainer.model.parameters()}
    if dtypes != {"torch.float32"}:
        raise RuntimeError(f"TRL trained in {sorted(dtypes)}, not in float32")
    per_step = len(lengths) // spec["updates"]
    return {
        "ready": ready,
        "ends": ends,
        "completions_per_step": per_step,
        "step_tokens": [sum(lengths[i : i + per_step]) for i in range(0, len(lengths), per_step)],
        "shortest": min(lengths),
        "longest": max(lengths),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("trl", "torch", "transformers", "accelerate")},
    }


def settings(spec: dict[str, Any]) -> Any:
    """Returns TRL's arguments: GRPO with the loss of conf/algo/grpo.yaml and the optimizer of conf/learner."""
    from trl import GRPOConfig

    completions = len(spec["prompts"][0]) * spec["group"]
    return GRPOConfig(
        output_dir=spec["scratch"],
        max_steps=spec["updates"],
        # One generation batch per step; only the update is split into micro-batches.
        per_device_train_batch_size=spec["micro_batch"],
        gradient_accumulation_steps=completions // spec["micro_batch"],
        num_generations=spec["group"],
        num_iterations=1,
        max_completion_length=spec["max_completion_tokens"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        shuffle_dataset=False,
        use_transformers_continuous_batching=spec["continuous_batching"],
        beta=0.0,
        loss_type="grpo",
        scale_rewards="group",
        epsilon=0.2,
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=0.0,
        max_grad_norm=1.0,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=spec["seed"],
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
