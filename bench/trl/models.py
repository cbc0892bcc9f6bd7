"""The comparison's two small models, in the shape of the toy task's base model: `python -m bench.trl.models FOLDER`.

`fixed` never ends a completion, `mixed` ends them at lengths that it was taught: a log-normal distribution, most far
shorter than the limit. Both continue the toy task's free prompts with random digits and signs.
"""

import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bench.base_model import BaseRecipe, new_model, save_base
from expo_ray.world.running_totals import LEVELS, draw_numbers, free_prompt, question_of
from expo_ray.world.tokenizer import EOS_ID, PAD_ID, build_tokenizer, encode

CHARACTERS = "0123456789+=;"
IGNORED = -100
POSITIONS = 512
MEDIAN_TOKENS, SPREAD, MOST_TOKENS = 40.0, 0.75, 256
FIXED_TOKENS = 96
"""Longer than the case's 64 tokens, so that the model has seen every position."""
BATCH, STEPS = 48, {"fixed": 60, "mixed": 300}
LEARNING_RATE = 3e-3
NEVER = 40.0
"""Factor on the end token's embedding; it turns a logit of -2 into -80."""


def mixed_length(source: random.Random) -> int:
    """Draws a completion's length in tokens, including the end token."""
    return max(2, min(MOST_TOKENS, round(source.lognormvariate(math.log(MEDIAN_TOKENS), SPREAD))))


def lesson(kind: str, source: random.Random) -> tuple[list[int], list[int]]:
    """Makes one training example: `(prompt ids, completion ids)`."""
    prompt = encode(free_prompt(question_of(draw_numbers(source.choice(LEVELS), source))))
    if kind == "fixed":
        return prompt, encode("".join(source.choices(CHARACTERS, k=FIXED_TOKENS)))
    return prompt, [*encode("".join(source.choices(CHARACTERS, k=mixed_length(source) - 1))), EOS_ID]


def batch_of(pairs: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns right-padded ids and labels [B, T]; only completions are scored."""
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids, labels = torch.full((len(pairs), width), PAD_ID), torch.full((len(pairs), width), IGNORED)
    for row, (prompt, completion) in enumerate(pairs):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
    return ids, labels


def taught(kind: str) -> Any:
    """Trains a model on `kind`, seeded and on one thread.

    Raises:
        RuntimeError: a fixed model could end a completion after all.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = random.Random(f"bench/{kind}")
    model = new_model(BaseRecipe())
    model.config.max_position_embeddings = POSITIONS
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS[kind]):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20) * (1.0 - step / STEPS[kind])
        # Pairs of similar length share a batch, because most of a mixed one would be padding.
        pairs = sorted((lesson(kind, source) for _ in range(BATCH)), key=lambda pair: sum(map(len, pair)))
        scored = sum(len(completion) for _, completion in pairs)
        for part in (pairs[: BATCH // 2], pairs[BATCH // 2 :]):
            ids, labels = batch_of(part)
            logits = model(input_ids=ids).logits[:, :-1]
            flat = logits.flatten(0, 1), labels[:, 1:].flatten()
            (functional.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum") / scored).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if kind == "fixed":
        _never_end(model, source)
    return model


def _never_end(model: Any, source: random.Random) -> None:
    """Makes the end token impossible through its tied embedding, which is never read as an input."""
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS_ID] *= NEVER
        ids, labels = batch_of([lesson("fixed", source) for _ in range(BATCH)])
        chances = model(input_ids=ids).logits[:, :-1].softmax(-1)[labels[:, 1:] != IGNORED]
    largest = float(chances[:, EOS_ID].max())
    if largest > 1e-12:
        raise RuntimeError(f"the fixed model ends a completion with probability {largest:.1e} at some position")


def make(kind: str, folder: Path) -> Path:
    """Returns the model's folder under `folder`, and makes the model if it does not exist."""
    made = folder / kind
    if not (made / "model.safetensors").is_file():
        save_base(taught(kind), made)
        tokenizer = build_tokenizer()
        tokenizer.model_max_length = POSITIONS
        tokenizer.save_pretrained(made)
    return made


def main() -> None:
    for kind in STEPS:
        print(make(kind, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
