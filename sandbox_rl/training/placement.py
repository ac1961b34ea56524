"""Which cards train and which serve.

    one       a single card trains and serves
    shared    each card that trains holds a server too, which sleeps during updates where both do not fit
    split     some cards train, the others serve
    cpu       there is no card

`placement_plan.py` plans it, `cards.py` looks at the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["GIB", "Card", "Kind", "Needs", "Place", "Placement"]

GIB = 1 << 30
SERVER_WORK = 2 * GIB
"""A server's activations and graphs beside its weights and cache. A rule of thumb."""

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

    def server(self, parallel: int) -> int:
        """The least that a server needs on each of its cards."""
        return (self.weights + self.longest) // parallel + SERVER_WORK


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
                text = f"split: {rank}, {many}{each} on {_several(where)}"
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
