"""The three cases, and each side's description of one: overrides for ours, a JSON specification for TRL's."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.config.compose import compose_config
from expo_ray.data.sources import Problems
from expo_ray.data.stream import PromptStream
from expo_ray.prompts.loading import load_prompts, load_tokenizer, make_builder

LEARNING_RATE = 1e-6
"""Small, so that lengths stay the same while both sides train."""
NAMES = ["Ada", "Ben", "Chloe", "Dan", "Eva", "Finn", "Grace", "Hugo"]
THINGS = ["apples", "books", "coins", "stamps", "marbles", "pencils", "tickets", "shells"]


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    prompts_per_step: int
    group: int
    max_completion_tokens: int
    exact: bool
    """Whether every completion must have exactly that many tokens."""
    bar: float
    """At least this many times TRL's samples/s."""
    micro_batches: tuple[int, ...]
    """Sizes of TRL's micro-batch of completions, from which its trial chooses."""
    rounds: int
    updates: int

    @property
    def completions(self) -> int:
        """Returns the number of completions in a step."""
        return self.prompts_per_step * self.group


CASES = {
    case.name: case
    for case in (
        Case("fixed", 32, 8, 64, True, 1.3, (256, 64), rounds=3, updates=16),
        Case("mixed", 32, 8, 256, False, 2.5, (256, 64), rounds=3, updates=10),
        Case("smollm2", 8, 8, 128, False, 1.5, (16,), rounds=3, updates=3),
    )
}


def our_overrides(case: Case, model: Path, scratch: Path, more: list[str]) -> list[str]:
    """Returns the arguments of `python -m expo_ray.train` for a case; `more` comes last and wins."""
    small = case.name != "smollm2"
    data = (
        ["data=toy"] if small else ["data=jsonl", f"data.path={scratch / 'problems.jsonl'}", "data.solution_key=null"]
    )
    style, longest = ("toy", 32) if small else ("chat", 256)
    return [
        "experiment=demo",
        "algo=grpo",
        "profile=cpu",
        f"model.path={model}",
        f"model.prompt_style={style}",
        f"rollout.max_prompt_tokens={longest}",
        *data,
        "verifier.name=bench.trl.task:CoinTask",
        f"rollout.samples_per_prompt={case.group}",
        f"rollout.max_completion_tokens={case.max_completion_tokens}",
        "rollout.workers=2",
        f"rollout.max_sequences={case.completions // 2}",
        f"trainer.prompts_per_step={case.prompts_per_step}",
        "trainer.resume=never",
        "trainer.checkpoint_every=0",
        "trainer.eval_every=0",
        "eval.before=false",
        "eval.samples=1",
        "eval.max_problems=1",
        f"learner.learning_rate={LEARNING_RATE}",
        "learner.warmup_steps=0",
        "algo.properties_every=0",
        "algo.kl_conditioned_coef=0",
        "logging.trackers=[]",
        "logging.progress=false",
        *more,
    ]


def write_problems(file: Path, count: int = 400) -> None:
    """Writes word problems of one or two steps as JSON Lines with `question` and `answer`, always the same ones."""
    source = random.Random("bench/problems")
    lines = []
    for _ in range(count):
        name, other = source.sample(NAMES, 2)
        a, b, c = source.randint(12, 90), source.randint(2, 60), source.randint(2, 9)
        thing = source.choice(THINGS)
        text, answer = source.choice(
            [
                (f"{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?", a + b),
                (f"{name} packs {b} boxes with {c} {thing} each. How many {thing} are packed?", b * c),
                (f"{name} has {a} {thing} and {other} has {b} more. How many do they have together?", 2 * a + b),
                (f"A shop sells {a} {thing} a day. How many {thing} does it sell in {c} days?", a * c),
            ]
        )
        lines.append(json.dumps({"question": text, "answer": str(answer)}))
    file.write_text("\n".join(lines) + "\n")


def peer_spec(case: Case, overrides: list[str], updates: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Returns TRL's specification, with the prompts of each step of our run as text.

    Raises:
        ValueError: a prompt's text does not tokenise to the ids that our side uses.
    """
    config = compose_config([*overrides, f"seed={seed}"])
    tokenizer = load_tokenizer(config)
    training, _ = load_prompts(
        config, make_builder(tokenizer, config), Problems(config.data, config.seed), context=None
    )
    stream = PromptStream(training, config.trainer.prompts_per_step, config.seed)
    steps = []
    for step in range(updates):
        ids = [prompt.free_ids.tolist() for prompt in stream.prompts(step)]
        texts = [tokenizer.decode(prompt) for prompt in ids]
        for text, wanted in zip(texts, ids, strict=True):
            if tokenizer(text)["input_ids"] != wanted:
                raise ValueError(f"the prompt {text!r:.80} tokenises to other ids than the ones it was decoded from")
        steps.append(texts)
    return {
        "case": case.name,
        "model": config.model.path,
        "prompts": steps,
        "group": case.group,
        "max_completion_tokens": case.max_completion_tokens,
        "updates": updates,
        "learning_rate": LEARNING_RATE,
        "seed": seed,
        "scratch": str(scratch / "trl"),
        "continuous_batching": False,
    }
