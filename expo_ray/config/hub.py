"""Whether what a run wants from the Hugging Face hub can be had, before anything heavy is imported."""

import os
import socket
from pathlib import Path

from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config

HOST = "huggingface.co"
WAIT_S = 3.0


def check_hub(config: Config) -> None:
    """Refuses a hub model or data set that is neither in the local cache nor within reach.

    Raises:
        ConfigError: one sentence that names the key and asks for a local path.
    """
    wanted = []
    if not Path(config.model.path).is_dir() and not _cached("models", config.model.path):
        wanted.append((f"model.path={config.model.path}", "a local folder by model.path=FOLDER"))
    if config.data.path is None and config.data.hub and not _cached("datasets", config.data.hub):
        wanted.append((f"data.hub={config.data.hub}", "a local file by data.path=FILE"))
    if wanted and not _reachable():
        things, remedies = (" and ".join(words) for words in zip(*wanted, strict=True))
        raise ConfigError(
            f"{things} must be fetched from the Hugging Face hub, and {HOST} cannot be reached: give {remedies}"
        )


def _cached(kind: str, name: str) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return (cache / f"{kind}--{name.replace('/', '--')}" / "snapshots").is_dir()


def _reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    if any(os.environ.get(name) for name in ("HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # Another road leads there; only the client itself can try it.
    try:
        socket.create_connection((HOST, 443), timeout=WAIT_S).close()
    except OSError:
        return False
    return True
