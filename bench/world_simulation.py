"""The demo's learning without its engines: one process, one thread, plain PyTorch, the project's own objectives.

    python bench/world_simulation.py [--every 20] experiment=demo algo=exp_grpo seed=0 [key=value ...]

Prompts, their order, verdicts, samples, weights, losses, learning rate and gradient clipping are the pipeline's;
sampling (a batch decoded with a KV cache) and the update (torch.optim.AdamW) are written out here. Prints one JSON
line an evaluation, the first one of the base model. It shows what settings do to learning, in a fraction of the
pipeline's time (docs/world.md holds what was found).
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.tokens import PolicyTokens
from expo_ray.config.compose import compose_config
from expo_ray.config.schema import Config
from expo_ray.data.sources import load_problems
from expo_ray.data.stream import PromptStream
from expo_ray.learner.update import learning_rate
from expo_ray.messages import Completion, Group, IntArray, Prompt, Rollout, TrainingSample, Verdict
from expo_ray.prompts.builder import PromptBuilder
from expo_ray.verifier.tasks import make_task

DROP_FINISHED_AT = 0.85
"""Rows are taken out of the batch when less than this share of them still grows."""


class World:
    """Policy, reference, prompts and verifier of one simulated run."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        self.config = config
        self.tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        self.policy = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
        self.reference = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
        builder = PromptBuilder(self.tokenizer, config.model.prompt_style, config.verifier.name)
        train, self.heldout = (builder(load_problems(config.data, held_out, config.seed)) for held_out in (False, True))
        self.stream = PromptStream(train, config.trainer.prompts_per_step, config.seed)
        self.task = make_task(config.verifier.name, asdict(config.verifier))

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        """The verdict of the task's own code, called directly."""
        found = self.task.extract(completion.text)
        if found is None:
            return Verdict("no_answer")
        right = any(self.task.grade(found, gold, {})[0] for gold in prompt.problem.answers)
        return Verdict("correct" if right else "wrong", found)

    def sample(self, prompts: list[IntArray], temperature: float) -> list[Completion]:
        """One completion of each prompt. Log-probabilities are left at 0: with one update a batch no ratio is taken."""
        rows = decode(self.policy, prompts, temperature, self.config.rollout.max_completion_tokens, self.tokenizer)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            Completion(
                token_ids=np.array(row, dtype=np.int32),
                logprobs=np.zeros(len(row), dtype=np.float32),
                text=text,
                finish_reason="stop" if row[-1] == self.tokenizer.eos_token_id else "length",
                weight_version=0,
            )
            for row, text in zip(rows, texts, strict=True)
        ]

    def groups(self, prompts: list[Prompt], samples: int, explanations: int, temperature: float) -> list[Group]:
        """Sampled and graded groups, free and conditioned completions in one batch."""
        asked = [p.free_ids for p in prompts for _ in range(samples)]
        asked += [p.conditioned_ids for p in prompts for _ in range(explanations)]
        sampled = self.sample(asked, temperature)
        made = []
        for index, prompt in enumerate(prompts):
            start = len(prompts) * samples + index * explanations
            free, explained = sampled[index * samples : (index + 1) * samples], sampled[start : start + explanations]
            made.append(
                Group(
                    Rollout(prompt, free, explained),
                    [self.judge(prompt, one) for one in free],
                    [self.judge(prompt, one) for one in explained],
                )
            )
        return made

    def evaluate(self) -> dict[str, dict[str, float]]:
        """By level, on held-out problems: `pass`, the share with a right one among `eval.samples` completions, and
        `explained`, the share of right explanations, one a problem. The same random draws each time."""
        state = torch.get_rng_state()
        torch.manual_seed(self.config.seed)
        limit = self.config.eval.max_problems or len(self.heldout)
        chosen: list[Prompt] = []
        for level in sorted({p.problem.level or 0 for p in self.heldout}):
            chosen += [p for p in self.heldout if p.problem.level == level][:limit]
        found: dict[str, dict[str, list[bool]]] = {"pass": defaultdict(list), "explained": defaultdict(list)}
        for group in self.groups(chosen, self.config.eval.samples, 1, self.config.eval.temperature):
            key = str(group.rollout.prompt.problem.level)
            found["pass"][key].append(any(v.outcome == "correct" for v in group.verdicts))
            found["explained"][key].append(group.explanation_verdicts[0].outcome == "correct")
        torch.set_rng_state(state)
        return {name: {k: round(float(np.mean(v)), 3) for k, v in of.items()} for name, of in found.items()}


@torch.no_grad()
def decode(model: Any, prompts: list[IntArray], temperature: float, limit: int, tokenizer: Any) -> list[list[int]]:
    """Samples from left-padded prompts; each row ends with the end token or at `limit` tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p.tolist() for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    rows: list[list[int]] = [[] for _ in prompts]
    alive, cache = list(range(len(prompts))), None
    for _ in range(limit):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        cache = out.past_key_values
        chosen = torch.multinomial(torch.softmax(out.logits[:, -1] / temperature, -1), 1)
        growing = []
        for index, token in enumerate(chosen[:, 0].tolist()):
            row = rows[alive[index]]
            if row and row[-1] == tokenizer.eos_token_id:
                continue
            row.append(token)
            if token != tokenizer.eos_token_id:
                growing.append(index)
        if not growing:
            break
        positions = positions[:, -1:] + 1
        if len(growing) < DROP_FINISHED_AT * len(alive):
            kept = torch.tensor(growing)
            cache.batch_select_indices(kept)
            chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            alive = [alive[index] for index in growing]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
        ids = chosen
    return rows


def token_logprobs(model: Any, samples: list[TrainingSample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [N] of the samples' completion tokens, one sample after the other, and each token's sample."""
    rows = [np.concatenate([s.prompt_ids, s.completion_ids]) for s in samples]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    scored = torch.zeros(len(rows), ids.shape[1] - 1, dtype=torch.bool)
    for index, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        ids[index, : len(row)] = torch.from_numpy(row.astype(np.int64))
        scored[index, len(sample.prompt_ids) - 1 : len(row) - 1] = True
    logits = model(input_ids=ids).logits[:, :-1]
    logprobs = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0]
    return logprobs[scored], scored.nonzero()[:, 0]


def flat_tokens(world: World, samples: list[TrainingSample], needs_reference: bool) -> PolicyTokens:
    """What the learner would hand to the loss. One update a batch: the old policy is the current one."""
    logprobs, owner = token_logprobs(world.policy, samples)
    reference = torch.zeros_like(logprobs)
    if needs_reference:
        with torch.no_grad():
            reference = token_logprobs(world.reference, samples)[0]
    return PolicyTokens(
        logprobs=logprobs,
        entropy=torch.zeros_like(logprobs),
        old_logprobs=logprobs.detach(),
        rollout_logprobs=logprobs.detach(),
        reference_logprobs=reference,
        sample_of_token=owner,
        term=[s.term for s in samples],
        weight=torch.tensor([s.weight for s in samples]),
        advantage=torch.tensor([s.advantage for s in samples]),
        unit=torch.tensor([s.unit for s in samples]),
        reference_sum=torch.full((len(samples),), float("nan")),
    )


def micro_batches(samples: list[TrainingSample], tokens: int) -> list[list[TrainingSample]]:
    """Samples sorted by length, cut where the padded batch would hold more than `tokens`."""
    cut: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda s: len(s.prompt_ids) + len(s.completion_ids)):
        length = len(sample.prompt_ids) + len(sample.completion_ids)
        if not cut or length * (len(cut[-1]) + 1) > tokens:
            cut.append([])
        cut[-1].append(sample)
    return cut


def simulate(config: Config, every: int) -> None:
    """Runs the loop and prints a line every `every` steps."""
    world, algorithm = World(config), make_algorithm(config)
    settings, algo = config.learner, config.algo
    betas = (settings.adam_beta1, settings.adam_beta2)
    optimizer = torch.optim.AdamW(world.policy.parameters(), betas=betas, weight_decay=settings.weight_decay)
    started = time.process_time()
    print(json.dumps({"step": 0, **world.evaluate()}), flush=True)
    for step in range(config.trainer.steps):
        explanations = config.rollout.explanations_per_prompt if algorithm.needs_explanations(step) else 0
        for later in range(step + 1, step + algorithm.explanations_ahead(step)):
            ahead = world.groups(world.stream.prompts(later), 0, explanations, config.rollout.temperature)
            algorithm.collect(ahead, step)
        prompts = world.stream.prompts(step)
        groups = world.groups(prompts, config.rollout.samples_per_prompt, explanations, config.rollout.temperature)
        batch = algorithm.training_batch(groups, step)
        idle = algo.kl_coef == 0 and algo.entropy_bonus == 0  # then an advantage of 0 has no gradient
        samples = [s for s in batch.samples if not (idle and s.term == "policy" and s.advantage == 0)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, config.trainer.steps)
        for part in micro_batches(samples, settings.tokens_per_micro_batch):
            algorithm.loss(flat_tokens(world, part, bool(algorithm.reference_terms))).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(world.policy.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % every == 0 or step + 1 == config.trainer.steps:
            kept = batch.metrics.get("explanations/kept", 0.0)
            line = {"step": step + 1, **world.evaluate(), "kept": kept, "grad_norm": round(float(norm), 3)}
            print(json.dumps(line | {"cpu_s": round(time.process_time() - started)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for expo_ray.train")
    arguments = parser.parse_args()
    config = compose_config(arguments.overrides)
    print(json.dumps({"overrides": arguments.overrides}), flush=True)
    simulate(config, arguments.every)


if __name__ == "__main__":
    main()
