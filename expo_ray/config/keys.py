"""Which settings may differ between a run and its continuation."""

from typing import Any

from omegaconf import OmegaConf

from expo_ray.config.schema import Config

FREE = (
    "run_dir",
    "run_name",
    "dry_run",
    "logging",
    "cluster",
    "trainer.resume",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.checkpoint_async",
    "trainer.keep_checkpoints",
    "trainer.keep_best",
    "trainer.max_restarts",
    "trainer.wait_s",
    "trainer.start_s",
    "sync",
    "verifier.workers",
    "verifier.processes",
)
"""They change nothing that is learned."""

CHANGEABLE = (
    "trainer.steps",
    "trainer.eval_every",
    "trainer.max_mismatch",
    "trainer.async_steps",
    "learner.learning_rate",
    "learner.warmup_steps",
    "learner.schedule",
    "learner.tokens_per_micro_batch",
    "learner.gradient_checkpointing",
    "rollout.workers",
    "rollout.max_sequences",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_utilization",
    "rollout.enforce_eager",
    "eval",
    "profile",
)
"""The run goes on with the new value, and says so."""

BY_CONTENT = ("model.path", "data")
"""Compared by content (expo_ray.checkpoint.state): a folder may have moved."""


def as_settings(config: Config) -> dict[str, Any]:
    """The configuration as a flat mapping, "trainer.steps" -> value."""
    return flat(OmegaConf.to_container(OmegaConf.structured(config)))


def differences(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The settings that keep a run from going on, and those that it goes on with changed, as "key: old -> new"."""
    refused: list[str] = []
    changed: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new or _among(key, FREE) or _among(key, BY_CONTENT):
            continue
        (changed if _among(key, CHANGEABLE) else refused).append(f"{key}: {old} -> {new}")
    return refused, changed


def _among(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == of or key.startswith(f"{of}.") for of in keys)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one, names joined by dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return found


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
