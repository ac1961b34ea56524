"""Which cards train and which serve.

    one       a single card trains and serves
    shared    each card that trains holds a server too, which sleeps during updates where both do not fit
    split     some cards train, the others serve
    cpu       there is no card

`placement_plan.py` plans it, for the accelerators of this machine, or for those that a test or a dry run on
another machine says it has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from sandbox_rl.errors import ConfigError

GIB = 1 << 30
SERVER_WORK = 2 * GIB
"""A server's activations and graphs beside its weights and cache. A rule of thumb."""

RESERVE = 2 * GIB
"""Of each card: a CUDA context per process, and what is fragmented. A rule of thumb."""
LARGEST_SHARE = 0.9
"""Of a card that a server gets at most; vLLM's own default."""

Kind = Literal["one", "shared", "split", "cpu"]


@dataclass(frozen=True, slots=True)
class Card:
    """An accelerator.

    Args:
        id: as `CUDA_VISIBLE_DEVICES` names it.
        memory: in bytes.
    """

    id: str
    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run needs on one card, in bytes.

    Args:
        training: peak of an update.
        held: of it, what stays while episodes are sampled: weights and the optimizer's state.
        weights: of a server, undivided.
        longest: keys and values of the longest sequence, undivided: a server has to have space for one.
    """

    training: int
    held: int
    weights: int
    longest: int

    def server(self, parallel: int, cache: int | None = None) -> int:
        """The least that a server needs on each of its cards.

        Args:
            cache: of keys and values there, where that is settled.
        """
        kept = self.longest // parallel if cache is None else cache
        return self.weights // parallel + kept + SERVER_WORK


@dataclass(frozen=True, slots=True)
class Place:
    """Of one server.

    Args:
        cards: its tensor-parallel group; none on the CPU.
        share: of each card's memory (`gpu-memory-utilization`); None where it is not ours to say.
    """

    cards: tuple[Card, ...] = ()
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where everything runs.

    Args:
        training: cards of the processes that train, by their local rank.
        transfer: how weights get into every server.
        sleep: whether servers give their memory back during updates.
        update: bytes that the estimate has for an update on each card that trains.
        note: what else is worth saying.
    """

    kind: Kind
    training: tuple[Card, ...]
    servers: tuple[Place, ...]
    transfer: str
    sleep: bool = False
    update: int = 0
    note: str = ""

    def __str__(self) -> str:
        servers = len(self.servers)
        many = f"{servers} servers" if servers > 1 else "one server"
        if self.kind == "cpu":
            text = f"{many} on the CPU"
        else:
            of = len(self.servers[0].cards)
            each = f" of {of} cards each" if of > 1 else ""
            rank = f"{_several(self.training)} train{'s' if len(self.training) == 1 else ''}"
            if self.update:
                rank += f" ({self.update / GIB:.1f} of {self.training[0].memory / GIB:.0f} GiB)"
            if self.kind == "split":
                where = [card for place in self.servers for card in place.cards]
                text = f"split: {rank}, {many}{each}{f' on {_several(where)}' if where else ''}"
            elif self.kind == "shared":
                text = f"shared: {rank} with {many}{each} on them"
            else:
                text = f"one card: {rank} and serves"
            if share := self.servers[0].share:
                text += f", {share:.0%} of {'each' if servers > 1 else 'it'} for a server"
            text += ", which sleeps during updates" if self.sleep else ""
        text += f"; weights by {self.transfer}"
        return f"{text}; {self.note}" if self.note else text


def _several(cards: Sequence[Card]) -> str:
    return f"{len(cards)} x {cards[0].name}" if cards else "no card"


def refuse_mixed(cards: Sequence[Card]) -> None:
    """One kind of cards is expected.

    Raises:
        ConfigError: there are several, which names the most numerous.
    """
    kinds: dict[tuple[str, int], list[str]] = {}
    for card in cards:
        kinds.setdefault((card.name, round(card.memory / GIB)), []).append(card.id)
    if len(kinds) > 1:
        said = "; ".join(f"{', '.join(ids)}: {name} of {gib} GiB" for (name, gib), ids in kinds.items())
        most = max(kinds.values(), key=len)
        raise ConfigError(
            f"cards of different kinds ({said}), expected one kind, as all wait for the slowest; set "
            f"CUDA_VISIBLE_DEVICES={','.join(most)}"
        )


FAKE_CARDS = "SANDBOX_RL_FAKE_CARDS"
"""Cards to plan for in the place of real ones, e.g. `8x NVIDIA H100 80GB`, several kinds after commas; what
they would run runs on the CPU."""
_KIND = re.compile(r"([1-9]\d{0,3})\s*x\s*(.*?\S)\s+([1-9]\d{0,5})\s*GB")


def find_cards() -> tuple[Card, ...]:
    """In the order of CUDA's numbers.

    Raises:
        ConfigError: of cards that were made up.
    """
    if (text := os.environ.get(FAKE_CARDS)) is not None:
        return fake_cards(text)
    if not torch.cuda.is_available():
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
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


def plain(cards: int) -> str:
    """So many cards, in words."""
    return f"{cards} card{'' if cards == 1 else 's'}"


def size_of(count: float) -> str:
    """Bytes, for a person."""
    return f"{count / GIB:.1f} GiB"
