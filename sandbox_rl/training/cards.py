"""The accelerators of this machine, or those that a test or a dry run on another machine says it has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.placement import GIB, Card

__all__ = ["FAKE_CARDS", "fake_cards", "find_cards"]

FAKE_CARDS = "SANDBOX_RL_FAKE_CARDS"
"""Cards to plan for in the place of real ones, e.g. `8x NVIDIA H100 80GB`, several kinds after commas; what
they would run runs on the CPU."""
_KIND = re.compile(r"(\d+)\s*x\s*(.*?\S)\s+(\d+)\s*GB")


def find_cards(environment: Mapping[str, str] = os.environ) -> tuple[Card, ...]:
    """In the order of CUDA's numbers.

    Raises:
        ConfigError: of cards that were made up.
    """
    if (text := environment.get(FAKE_CARDS)) is not None:
        return fake_cards(text)
    if not torch.cuda.is_available():
        return ()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else []
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        name = names[index] if index < len(names) else str(index)
        found.append(Card(name, about.name, about.total_memory))
    return tuple(found)


def fake_cards(text: str) -> tuple[Card, ...]:
    """Cards by their description.

    Raises:
        ConfigError: it cannot be read.
    """
    cards: list[Card] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _KIND.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"{FAKE_CARDS}: {part!r}, expected a number, a name and the memory, as in "
                "'8x NVIDIA H100 80GB'"
            )
        count, name, memory = match.groups()
        cards += [
            Card(str(len(cards) + i), f"{name} {memory}GB", int(memory) * GIB) for i in range(int(count))
        ]
    return tuple(cards)
