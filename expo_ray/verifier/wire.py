"""Frames between the pool and its processes: four bytes of length, then JSON in ASCII.

JSON because a process that graded hostile text is not trusted: what it sends is data with a size limit,
never an object.
"""

import json
import socket
import struct
from typing import Any

HEADER = struct.Struct(">I")
MAX_REPLY = 1 << 16
"""Bytes of one reply; a process that sends more is killed."""
KEY_BYTES = 16
"""Of the key that follows a chunk's frame for each of its items; the reply to the item holds it."""


class BadFrame(ValueError):
    """A peer sent something that is not a frame."""


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
