"""Stages that run the whole pipeline: the toy task, random weights of a real shape, real weights."""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.setting import Setting, end_owned, output_of, owned, tell
from expo_ray.files import read_lines

RECORDS = ("metrics.jsonl", "proofs.jsonl", "evaluations.jsonl", "samples.jsonl", "events.jsonl", "config.yaml")
"""What is kept of a run with real weights, for expo_ray.report."""
SHOWN = ("time/", "sync/", "mismatch/", "tokens/", "update/", "step", "reward", "memory/")
BRIEF = [
    "eval.before=false", "eval.samples=1", "eval.max_problems=1", "logging.trackers=[]", "logging.usage_every=1",
    "trainer.checkpoint_every=0", "trainer.resume=never", "sync.digest_every=1",
]  # fmt: skip
LOOSE = ["sync.tolerance=5", "sync.mean_tolerance=1", "trainer.max_mismatch=1"]
"""A first measurement must not end at a bound that no card has confirmed. How large the differences are is measured."""
EAGER = ["rollout.enforce_eager=true", "learner.compile=false"]
REAL_ALGORITHMS = ("grpo", "exp_grpo")


def toy_overrides(setting: Setting, eager: bool) -> list[str]:
    """The demo's run, with the engine as the profile has it, or without torch.compile and CUDA graphs."""
    card = [] if setting.rehearse else ["learner.ranks=1", "rollout.gpu_memory_utilization=0.25"]
    return [
        "experiment=demo",
        *setting.where,
        *card,
        *BRIEF,
        *LOOSE,
        *(EAGER if eager else []),
    ]


def big_overrides(setting: Setting, eager: bool) -> list[str]:
    """The recipe's sizes with half its prompts and completions; random weights, verdicts of a coin."""
    sizes = ["rollout.max_completion_tokens=512", "trainer.prompts_per_step=32"]
    if setting.rehearse:
        sizes = ["rollout.max_completion_tokens=32", "trainer.prompts_per_step=4"]
    return [
        "experiment=math_l5_qwen2.5_3b", *setting.where, *BRIEF, *LOOSE, f"model.path={setting.model}", "algo=grpo",
        "model.prompt_style=toy", "data=toy", "verifier=toy", "verifier.name=bench.gpu.coin:Coin",
        "rollout.max_prompt_tokens=64", *sizes, *(EAGER if eager else []),
    ]  # fmt: skip


def real_overrides(setting: Setting, algorithm: str) -> list[str]:
    """A run on the given weights and problems, with an evaluation before and every 20 steps."""
    recipe = ["experiment=gsm8k_qwen2.5_0.5b", "eval.max_problems=64", "trainer.eval_every=20"]
    if setting.rehearse:
        recipe = ["experiment=demo", "data=jsonl", "data.level_key=level", "eval.max_problems=1", "eval.samples=1"]
        recipe += ["trainer.prompts_per_step=8"]
    brief = [key for key in BRIEF if not key.startswith("eval.")]
    return [
        *recipe, *setting.where, *brief, f"algo={algorithm}", f"model.path={setting.weights}",
        f"data.path={setting.problems}", *setting.overrides,
    ]  # fmt: skip


def toy(setting: Setting, bound: float) -> None:
    """Eager and with real weights: sleep, wake, CUDA IPC, proof, update."""
    _pipeline(setting, "toy", toy_overrides(setting, eager=True), 2 if setting.rehearse else 8, bound)


def toy_graphs(setting: Setting, bound: float) -> None:
    """The same with torch.compile and CUDA graphs, as the GPU profile has it."""
    _pipeline(setting, "toy_graphs", toy_overrides(setting, eager=False), 2 if setting.rehearse else 8, bound)


def big(setting: Setting, bound: float) -> None:
    """Phases of a step, sync and memory at the recipe's sizes."""
    _pipeline(setting, "big", big_overrides(setting, eager=False), 1 if setting.rehearse else 3, bound)


def big_eager(setting: Setting, bound: float) -> None:
    """The same without torch.compile and graphs, where those do not work."""
    _pipeline(setting, "big_eager", big_overrides(setting, eager=True), 3, bound)


def real(setting: Setting, bound: float) -> None:
    """GRPO and then ExP-GRPO, each for half the time; their records are kept for `python -m expo_ray.report`.

    A rehearsal makes them as a sweep, on the same actors.
    """
    if setting.weights is None or setting.problems is None:
        raise SystemExit("the stage real needs --weights FOLDER and --problems FILE")
    if setting.rehearse:
        try:
            overrides = real_overrides(setting, ",".join(REAL_ALGORITHMS))
            _pipeline(setting, "real", overrides, 1, bound, sweep=REAL_ALGORITHMS)
        finally:
            for number, algorithm in enumerate(REAL_ALGORITHMS):
                keep_records(setting.work / "real" / str(number), setting.out / f"real_{algorithm}")
        return
    began = time.monotonic()
    for left, algorithm in zip((2, 1), REAL_ALGORITHMS, strict=True):
        share = (bound - (time.monotonic() - began)) / left
        name = f"real_{algorithm}"
        try:
            _pipeline(setting, name, real_overrides(setting, algorithm), 10_000, share)
        finally:
            keep_records(setting.work / name, setting.out / name)


def keep_records(folder: Path, to: Path) -> None:
    """Copies what expo_ray.report reads of a run folder."""
    to.mkdir(parents=True, exist_ok=True)
    for name in RECORDS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, to / name)


def _pipeline(
    setting: Setting, name: str, overrides: list[str], steps: int, bound: float, sweep: Sequence[str] = ()
) -> None:
    """Runs `expo_ray.train` until it has recorded so many steps, and then kills it: its end would write a checkpoint
    of 15 GiB for each billion weights.

    Args:
        sweep: names of the jobs, if the overrides make a sweep; all but the last come to their end.
    """
    folder = setting.work / name
    runs = {f"{name}_{job}": folder / str(number) for number, job in enumerate(sweep)} or {name: folder}
    shutil.rmtree(folder, ignore_errors=True)  # an earlier call's
    overrides = [*overrides, f"trainer.steps={steps if sweep else max(40, steps)}", f"run_dir={folder}"]
    command = [sys.executable, "-m", "expo_ray.train", *(["-m"] if sweep else []), *overrides]
    print(" ".join(command), flush=True)
    began, seen, proved = time.monotonic(), dict.fromkeys(runs, 0), set[str]()
    owner, environment = owned()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
    try:
        ended = False
        while not ended and min(seen.values()) < steps and time.monotonic() < began + bound:
            time.sleep(0.5)
            ended = child.poll() is not None
            for run, at in runs.items():
                if run not in proved and (proofs := read_lines(at / "proofs.jsonl")):
                    proved.add(run)
                    tell(**{f"{run}_first_proof": proofs[0], f"{run}_first_proof_after_s": time.monotonic() - began})
                seen[run] = _tell_steps(run, read_lines(at / "metrics.jsonl"), seen[run])
    finally:
        for at in runs.values():
            _show_logs(at)
        code = child.poll()
        end_owned(owner)
        child.wait()
    tell(**{f"{run}_steps": count for run, count in seen.items()}, **{f"{name}_s": time.monotonic() - began})
    if 0 in seen.values() or (code is not None and not (sweep and code == 0)):
        how = "it was killed at its bound" if code is None else f"it ended by itself (code {code})"
        raise SystemExit(f"{name} has {seen} steps after {time.monotonic() - began:.0f} s: {how}")


def _tell_steps(name: str, lines: list[dict[str, Any]], seen: int) -> int:
    for number in range(seen, len(lines)):
        tell(**{f"{name}_step{number}": {key: v for key, v in lines[number].items() if key.startswith(SHOWN)}})
        tell(**{f"{name}_card_used": output_of("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader")})
    return len(lines)


def _show_logs(folder: Path) -> None:
    for log in sorted((folder / "logs").glob("*.log")):
        text = log.read_text(errors="replace")
        print(f"\n---- {log.name} ({len(text)} bytes)\n{text[:4000]}\n[...]\n{text[-12000:]}", flush=True)
