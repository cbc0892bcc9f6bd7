"""Samples both prompts of every problem with vLLM alone, so that it runs wherever vLLM does."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class BadInput(ValueError):
    """An argument that cannot be used, in one sentence."""


def sample(
    model: str,
    prompts: Path,
    out: Path,
    levels: Sequence[str] = (),
    free: int = 8,
    conditioned: int = 4,
    tokens: int = 64,
    temperature: float = 1.0,
    problems: int = 0,
    seconds: float = float("inf"),
) -> None:
    """Writes each problem's samples, level by level; what `out` already has is kept.

    Args:
        model: a Hugging Face folder.
        prompts: the file of `prompts`.
        out: gets a line for each problem.
        levels: names such as factors/2, sampled in this order; empty: all.
        free: completions of the free prompt.
        conditioned: completions of the answer-conditioned prompt.
        tokens: most new tokens of a completion.
        temperature: of both kinds.
        problems: problems of each level; 0: all.
        seconds: no further level begins after this time.

    Raises:
        BadInput: a level that `prompts` does not have, or `out` was sampled with other settings.
    """
    began = time.monotonic()
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    by_level: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_level.setdefault(f"{row['task']}/{row['level']}", []).append(row)
    if unknown := [level for level in levels if level not in by_level]:
        raise BadInput(f"--levels {unknown[0]}: {prompts} has only {', '.join(by_level)}")
    before = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.exists() else []
    wanted = {"temperature": temperature, "tokens": tokens, "free": free, "conditioned": conditioned}
    for row in before:
        had = (row["temperature"], row["max_tokens"], len(row["free"]), len(row["conditioned"]))
        for (name, now), then in zip(wanted.items(), had, strict=True):
            if now != then:
                raise BadInput(
                    f"--out {out} was sampled with --{name} {then}, not {now}: use the same, or another --out"
                )
    done = {row["id"] for row in before}
    llm = _engine(model, max(len(ids) for row in rows for ids in (row["free_ids"], row["conditioned_ids"])) + tokens)
    for level in levels or by_level:
        chosen = [row for row in by_level[level][: problems or None] if row["id"] not in done]
        if not chosen or time.monotonic() - began > seconds:
            continue
        start = time.monotonic()
        settings = {"temperature": temperature, "max_tokens": tokens}
        drawn = _samples(llm, chosen, {"free_ids": free, "conditioned_ids": conditioned}, settings)
        found = [
            {"id": row["id"], **settings, "free": of_free, "conditioned": of_conditioned}
            for row, of_free, of_conditioned in zip(chosen, drawn[: len(chosen)], drawn[len(chosen) :], strict=True)
        ]
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        print(f"{level}: {len(chosen)} problems in {time.monotonic() - start:.1f} s", flush=True)


def _engine(model: str, context: int) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    import torch
    import vllm

    on_card = torch.cuda.is_available()
    return vllm.LLM(
        model=model,
        dtype="bfloat16" if on_card else "float32",
        enforce_eager=True,
        max_model_len=context,
        max_num_seqs=512 if on_card else 256,
        seed=0,
        generation_config="vllm",
        disable_log_stats=True,
        **({} if on_card else {"distributed_executor_backend": "uni"}),
    )


def _samples(
    llm: Any, rows: list[dict[str, Any]], kinds: dict[str, int], settings: dict[str, Any]
) -> list[list[dict[str, Any]]]:
    """The samples of all rows' prompts of the first kind, then of the next one.

    Args:
        llm: the engine.
        rows: lines of the prompts file.
        kinds: key of a prompt's ids -> samples of each prompt.
        settings: of vLLM's SamplingParams.
    """
    from vllm import SamplingParams

    asked = [(row, key, count) for key, count in kinds.items() for row in rows]
    params = [SamplingParams(n=count, stop_token_ids=row["stop_ids"], **settings) for row, _, count in asked]
    outputs = llm.generate([{"prompt_token_ids": row[key]} for row, key, _ in asked], params, use_tqdm=False)
    return [
        [
            {"text": each.text, "tokens": len(each.token_ids), "stopped": each.finish_reason == "stop"}
            for each in output.outputs
        ]
        for output in outputs
    ]
