"""The reward of both sides: a coin that depends on the completion's text alone. Imports nothing of either side."""

import zlib


def coin(text: str) -> bool:
    """Heads or tails, by the text's CRC: nearly every group has both, so that every group has a gradient."""
    return zlib.crc32(text.encode("utf-8", errors="replace")) % 2 == 1
