"""python -m expo_ray.preflight.deepspeed_probe: has the installed DeepSpeed read a configuration, as JSON, from stdin.

A process of its own, since importing DeepSpeed takes seconds and changes the process. It prints as JSON `unknown`, the
dotted names that DeepSpeed did not read, and `error`, what it says of a value, or null.
"""

import json
import sys
from collections.abc import Iterator, KeysView
from typing import Any


class Recorder(dict[str, Any]):
    """A mapping that notes which of its names are read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({k: Recorder(v) if isinstance(v, dict) else v for k, v in values.items()})
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping."""
        self.read.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        """As of any mapping; `name in recorder.keys()` reads one name, as DeepSpeed writes it."""
        return KeysView(self)

    def items(self) -> Any:
        """As of any mapping."""
        self.read.update(super().keys())
        return super().items()

    def __copy__(self) -> "Recorder":
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> "Recorder":
        return self

    def unread(self, prefix: str = "") -> Iterator[str]:
        """Names that were not read, of mappings that were looked into: others are kept for later as they are."""
        for name, value in super().items():
            if self.read and name not in self.read:
                yield prefix + name
            elif isinstance(value, Recorder):
                yield from value.unread(f"{prefix}{name}.")


def probe(settings: dict[str, Any]) -> dict[str, Any]:
    """Parses a configuration as `deepspeed.initialize` does.

    Returns:
        `unknown` and `error`, as above.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    recorder = Recorder(settings)
    try:
        DeepSpeedConfig(recorder)
    except ValidationError as error:
        first = error.errors()[0]
        return {"unknown": [], "error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}
    except Exception as error:  # a parser's own errors are of many kinds
        return {"unknown": [], "error": " ".join(str(error).split()) or type(error).__name__}
    return {"unknown": list(recorder.unread()), "error": None}


if __name__ == "__main__":
    print(f"\n{json.dumps(probe(json.load(sys.stdin)))}")
