"""Frames between the pool and its processes: four bytes of length, then JSON in ASCII; and typed values in JSON.

JSON because a process that graded hostile text is not trusted: what it sends is data with a size limit,
never an object.
"""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

HEADER = struct.Struct(">I")
MAX_REPLY = 1 << 16
"""Bytes of one reply; a process that sends more is killed."""
KEY_BYTES = 16
"""Of the key that follows a chunk's frame for each of its items; the reply to the item holds it."""


MAX_ITEMS = 100_000
"""Elements of an iterator that `encoded` takes."""
_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}


class BadFrame(ValueError):
    """A peer sent something that is not a frame, or not a value."""


def pack(value: Any) -> bytes:
    """One frame. Lone surrogates survive as escapes; what JSON does not know becomes its text."""
    body = json.dumps(value, default=str).encode("ascii")
    return HEADER.pack(len(body)) + body


def unpack(buffer: bytearray, limit: int) -> Any | None:
    """Take the first whole frame off `buffer`; None while it is incomplete.

    Raises:
        BadFrame: longer than `limit` bytes, or not JSON.
    """
    if len(buffer) < HEADER.size:
        return None
    (length,) = HEADER.unpack_from(buffer)
    if length > limit:
        raise BadFrame(f"frame of {length} bytes, limit {limit}")
    end = HEADER.size + length
    if len(buffer) < end:
        return None
    body = bytes(buffer[HEADER.size : end])
    del buffer[:end]
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"not JSON: {error}") from error


def receive(peer: socket.socket) -> Any | None:
    """The next frame of a blocking socket; None at its end."""
    header = peer.recv(HEADER.size, socket.MSG_WAITALL)
    if len(header) < HEADER.size:
        return None
    return json.loads(peer.recv(HEADER.unpack(header)[0], socket.MSG_WAITALL))


def encoded(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value as JSON that keeps its types, subclasses apart. `other` gives the JSON of what has no such form."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, int | float | str):
        return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    if isinstance(value, list | tuple | set | frozenset):
        name = next(name for name, kind in _CONTAINERS.items() if isinstance(value, kind))
        return {name: [encoded(item, other) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encoded(key, other), encoded(item, other)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).decode("latin-1")}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Iterator | range):
        return {"list": [encoded(item, other) for item in islice(value, MAX_ITEMS)]}
    return other(value)


def decoded(value: Any, object_of: Callable[[int], Any]) -> Any:
    """The value that `encoded` made JSON of; `object_of` gives what {"object": number} stands for.

    Raises:
        BadFrame: it is not such JSON.
    """
    if isinstance(value, _PLAIN):
        return value
    try:
        ((kind, inner),) = value.items()
        if kind == "object":
            return object_of(int(inner))
        if kind == "dict":
            return {decoded(key, object_of): decoded(item, object_of) for key, item in inner}
        if kind in ("bytes", "complex"):
            return inner.encode("latin-1") if kind == "bytes" else complex(*inner)
        return _CONTAINERS[kind](decoded(item, object_of) for item in inner)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadFrame("not a value") from error
