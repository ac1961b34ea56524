"""What the fake server holds in the place of a model: bytes by name."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import deserialize


def loaded(path: str) -> dict[str, Any]:
    """Name → shape and bytes, of a safetensors file; without torch."""
    tensors = deserialize(Path(path).read_bytes())  # type: ignore[no-untyped-call]
    return {name: (about["shape"], about["data"]) for name, about in tensors}


def checksums_of(weights: Mapping[str, Any], wanted: Mapping[str, int]) -> dict[str, Any]:
    """Name → shape and CRC-32 of the leading rows, as the worker extension says them."""
    found: dict[str, Any] = {}
    for name, rows in wanted.items():
        if name in weights:
            (first, *rest), content = weights[name]
            found[name] = [[rows, *rest], zlib.crc32(content[: len(content) // first * rows])]
    return found
