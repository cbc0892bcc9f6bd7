"""An exported policy for others: its model card, and the push to the Hugging Face hub."""

import json
import re
import shlex
import threading
from pathlib import Path
from typing import Any

import expo_ray
from expo_ray.config.keys import as_settings, defaults, facts_of
from expo_ray.config.model_path import weights_of
from expo_ray.config.schema import Config
from expo_ray.files import read_lines, write_whole
from expo_ray.learner.rank import ADAPTER
from expo_ray.runtime.journal import Events

CARD = "README.md"
SLOWEST = 1 << 20
"""Bytes a second: a push that is slower than this counts as failed."""
SECRET = re.compile(r"(?i)(^|[^a-z])(token|api_?key|key|secret|password)([^a-z]|$)")
"""Names, within a setting of the user's own, of what must not be published: hf_token, and not max_tokens."""


def policy_folder(run_folder: Path, done: int) -> Path:
    """Where the policy is exported to after `done` updates."""
    return run_folder / "checkpoints" / f"step_{done:06d}" / "policy"


def write_card(policy: Path, config: Config, run_folder: Path, done: int) -> None:
    """Writes the model card of a policy: what it was trained from and how, and its evaluations so far.

    Args:
        policy: the exported folder.
        config: the run's configuration as the user gave it.
        run_folder: its evaluations.jsonl is read.
        done: updates that the policy has had; later evaluations are left out.
    """
    from huggingface_hub import ModelCardData

    model, data = config.model.path, config.data
    base = weights_of(model)
    head = ModelCardData(
        base_model=None if Path(base).is_absolute() else base,
        datasets=[data.hub] if data.hub and not (data.path or data.sources or Path(data.hub).is_absolute()) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["expo_ray", "reinforcement-learning", config.algo.name],
    )
    lora = f", adapters of rank {config.model.lora.rank} merged into the weights" if config.model.lora.rank else ""
    lines = read_lines(run_folder / "evaluations.jsonl", ("steps_done",))
    evaluations = [line for line in lines if line["steps_done"] <= done]
    text = f"""---
{head.to_yaml()}
---

# {config.run_name}

{_public(model)} after {done} steps of `{config.algo.name}`{lora}, trained with expo_ray {expo_ray.__version__}.
{_adapter(config, base) if lora else ""}
## Evaluations

{_tables(evaluations, config)}

## Settings

All that differ from the defaults of expo_ray {expo_ray.__version__}:

| key | value |
|---|---|
{_settings(config)}
"""
    write_whole(policy / CARD, text)


def _adapter(config: Config, base: str) -> str:
    """How to load the adapters alone: on the model that training started from."""
    words, merged = "", ""
    if (start := config.model.path) != base:
        words = ", an adapter merged into its base"
        merged = f'model = PeftModel.from_pretrained(model, "{_public(start)}").merge_and_unload()\n'
    return f"""
The adapters alone are in `{ADAPTER}`. They belong to the model that training started from{words}:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{_public(base)}", dtype="auto")
{merged}model = PeftModel.from_pretrained(model, "{config.trainer.push_to_hub or "."}", subfolder="{ADAPTER}")
```
"""


def _tables(evaluations: list[dict[str, Any]], config: Config) -> str:
    if not evaluations:
        return "None was made."
    found = [f"Held-out problems, {config.eval.samples} completions each, temperature {config.eval.temperature:g}."]
    for name in evaluations[-1].get("sets") or [None]:
        of_set = ((line["steps_done"], line.get("sets", {}).get(name) if name else line) for line in evaluations)
        lines = [(done, found_there) for done, found_there in of_set if found_there]
        last = lines[-1][1]["pass_at_k"]
        columns = [("all", k) for k in last.get("all", ())]
        columns += [(level, "1") for level in last if level != "all" and len(last) > 2]
        titles = [f"pass@{k}" if level == "all" else f"pass@{k}, level {level}" for level, k in columns]
        rows = [["steps", "problems", *titles], ["---"] * (2 + len(titles))]
        for done, of in lines:
            rates = [of["pass_at_k"].get(level, {}).get(k) for level, k in columns]
            shown = ["" if rate is None else f"{rate:.1%}" for rate in rates]
            rows.append([str(done), str(of["problems"].get("all", "")), *shown])
        found += [f"**{name}**"] * bool(name) + ["\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return "\n\n".join(found)


def _settings(config: Config) -> str:
    lines = []
    for key, value in as_settings(config).items():
        group = key.partition(".")[0]
        if value != defaults()[key] and facts_of(key).between_runs != "ignored" and group != "cluster":
            lines.append(f"| `{key}` | `{_public(value)}` |")
    return "\n".join(lines)


def _public(value: Any) -> Any:
    """A value without secrets, by their names, and without the folders of this machine: of a path its last part."""
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else value
    if isinstance(value, list):
        return [_public(each) for each in value]
    if isinstance(value, dict):
        return {name: _public(each) for name, each in value.items() if not SECRET.search(str(name))}
    return value


def push(config: Config, policy: Path, events: Events) -> str | None:
    """Pushes an exported policy to `trainer.push_to_hub`, with its card. A failure is an event and ends no run.

    Args:
        config: the run's configuration.
        policy: the exported folder, which stays as it is.
        events: gets the repository's address, or why it failed and the command that tries again.

    Returns:
        The repository's address; None if the push failed.

    Raises:
        KeyboardInterrupt: a signal stopped the push; its text says that the run itself is finished.
    """
    repo, private = str(config.trainer.push_to_hub), config.trainer.hub_private
    seconds = config.trainer.wait_s + sum(file.stat().st_size for file in policy.rglob("*") if file.is_file()) / SLOWEST
    found: dict[str, str] = {}

    def work() -> None:
        try:
            from huggingface_hub import HfApi

            hub = HfApi()
            address = str(hub.create_repo(repo, private=private, exist_ok=True))
            words, settings = f"{config.run_name}, {config.algo.name}", f"{ADAPTER}/adapter_config.json"
            if (policy / settings).is_file():
                public = json.loads((policy / settings).read_text(encoding="utf-8"))
                public["base_model_name_or_path"] = _public(public["base_model_name_or_path"])
                content = json.dumps(public, indent=2).encode()
                hub.upload_file(path_or_fileobj=content, path_in_repo=settings, repo_id=repo, commit_message=words)
            hub.upload_folder(repo_id=repo, folder_path=policy, commit_message=words, ignore_patterns=[settings])
            found["address"] = address
        except Exception as error:  # whatever it is, the run has ended well and its files are here
            found["reason"] = " ".join(f"{type(error).__name__}: {error}".split())[:400]

    thread = threading.Thread(target=work, name="push to the hub", daemon=True)
    thread.start()
    interrupt: KeyboardInterrupt | None = None
    try:
        thread.join(seconds)
    except KeyboardInterrupt:
        interrupt = KeyboardInterrupt("the run is finished; its push to the hub was stopped")
    if "address" in found:
        events.note("pushed", f"{policy} to {found['address']}", repo=repo)
        return found["address"]
    reason = found.get("reason", "a signal stopped it" if interrupt else f"it took longer than {seconds:.0f} s")
    again = shlex.join(["hf", "upload", repo, str(policy), ".", *(["--private"] if private else [])])
    events.note("skipped", f"the policy was not pushed to {repo} ({reason}); nothing is lost, try again: {again}")
    if interrupt is not None:
        raise interrupt
    return None
