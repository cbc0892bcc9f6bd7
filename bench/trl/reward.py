"""The reward of both sides: a coin that depends only on the completion's text. It imports nothing of either side."""

import zlib


def coin(text: str) -> bool:
    """Tosses a coin by the text's CRC: nearly every group has both sides, so nearly every group has a gradient."""
    return zlib.crc32(text.encode("utf-8", errors="replace")) % 2 == 1
