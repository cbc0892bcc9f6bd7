"""The toy task's base model: it can explain an answer that it is given, but solves only levels 1 and 2 itself.

`python -m bench.base_model --out DIR` trains it again; the package ships the result in expo_ray/world/base.
"""

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from expo_ray.world.running_totals import (
    LEVELS,
    answer_of,
    conditioned_prompt,
    draw_numbers,
    free_prompt,
    own_solution,
    question_of,
)
from expo_ray.world.tokenizer import EOS_ID, PAD_ID, VOCABULARY, encode, save_tokenizer

FREE_LEVELS = (1, 2)
IGNORED = -100


@dataclass(frozen=True)
class BaseRecipe:
    """How the shipped base model is trained. It never sees free solutions of levels 3 to 5."""

    hidden_size: int = 96
    layers: int = 3
    heads: int = 3
    intermediate_size: int = 256
    steps: int = 800
    batch_size: int = 96
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    free_share: float = 0.5
    partial_share: float = 0.6
    seed: int = 0


def new_model(recipe: BaseRecipe) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights from torch's global generator."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(VOCABULARY),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=EOS_ID,
            pad_token_id=PAD_ID,
            dtype="float32",
        )
    )


def lesson(random_source: random.Random, recipe: BaseRecipe) -> tuple[str, str]:
    """Draws one training pair (prompt, solution): free at levels 1 and 2 only, answer-conditioned at all levels."""
    if random_source.random() < recipe.free_share:
        numbers = draw_numbers(random_source.choice(FREE_LEVELS), random_source)
        return free_prompt(question_of(numbers)), own_solution(numbers)
    numbers = draw_numbers(random_source.choice(LEVELS), random_source)
    hint = answer_of(numbers)
    if random_source.random() < recipe.partial_share:
        hint = partial_hint(hint, random_source)
    return conditioned_prompt(question_of(numbers), hint), own_solution(numbers)


def partial_hint(answer: str, random_source: random.Random) -> str:
    """Hides up to half of the answer's digits, so that an explanation must add as well as copy."""
    hidden = random_source.sample(range(len(answer)), random_source.randint(0, len(answer) // 2))
    return "".join("?" if index in hidden else digit for index, digit in enumerate(answer))


def batch_of(pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels [B, T]; labels cover only the solution and its end token."""
    rows = [(encode(prompt), [*encode(solution), EOS_ID]) for prompt, solution in pairs]
    width = max(len(prompt) + len(solution) for prompt, solution in rows)
    ids = torch.full((len(rows), width), PAD_ID)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (prompt, solution) in enumerate(rows):
        end = len(prompt) + len(solution)
        ids[row, :end] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : end] = torch.tensor(solution)
    return ids, labels


def add_gradients(model: Qwen2ForCausalLM, pairs: list[tuple[str, str]], parts: int = 4) -> float:
    """Adds the gradient of the mean token loss of all pairs. Returns that loss in nats.

    Pairs are batched by length, because a mixed batch would mostly be padding.
    """
    pairs = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    scored_tokens = sum(len(solution) + 1 for _, solution in pairs)
    size = math.ceil(len(pairs) / parts)
    total = 0.0
    for start in range(0, len(pairs), size):
        ids, labels = batch_of(pairs[start : start + size])
        # Padding follows every scored token, so causal attention never sees it and no mask is needed.
        logits = model(input_ids=ids).logits[:, :-1]
        loss = functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        (loss / scored_tokens).backward()
        total += loss.item() / scored_tokens
    return total


def train_base(recipe: BaseRecipe) -> Qwen2ForCausalLM:
    """Trains on one thread with a fixed seed, and prints the loss every 100 steps."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    random_source = random.Random(recipe.seed)
    model = new_model(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    for step in range(recipe.steps):
        rising = min(1.0, (step + 1) / recipe.warmup_steps)
        falling = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rising * falling
        pairs = [lesson(random_source, recipe) for _ in range(recipe.batch_size)]
        loss = add_gradients(model, pairs)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == recipe.steps - 1:
            print(f"step {step:5d}  loss {loss:.4f}", flush=True)
    return model


def save_base(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Writes a Hugging Face folder (config, float32 safetensors, tokenizer, generation config)."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=True)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--steps", type=int, default=BaseRecipe.steps)
    parser.add_argument("--seed", type=int, default=BaseRecipe.seed)
    arguments = parser.parse_args()
    model = train_base(BaseRecipe(steps=arguments.steps, seed=arguments.seed))
    save_base(model, arguments.out)
    print(arguments.out.resolve())


if __name__ == "__main__":
    main()
