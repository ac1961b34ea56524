"""What the fake server holds in the place of a model: bytes by name."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def loaded(path: str) -> dict[str, Any]:
    """Name → shape and bytes, of a safetensors file; read by hand: this module has no torch."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return {
        name: (about["shape"], data[start + about["data_offsets"][0] : start + about["data_offsets"][1]])
        for name, about in json.loads(data[8:start]).items()
    }


def checksums_of(weights: Mapping[str, Any], wanted: Mapping[str, int]) -> dict[str, Any]:
    """Name → shape and CRC-32 of the leading rows, as the worker extension says them."""
    found: dict[str, Any] = {}
    for name, rows in wanted.items():
        if name in weights:
            (first, *rest), content = weights[name]
            found[name] = [[rows, *rest], zlib.crc32(content[: len(content) // first * rows])]
    return found
