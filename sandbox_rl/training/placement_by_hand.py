"""Servers whose place nobody plans: on cards that the recipe names, or somebody else's."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.training.placement import LARGEST_SHARE, RESERVE, Card, Needs, Place, Placement


def unplanned_transfer(settings: VLLMSettings, *, cards: bool) -> str:
    """How weights get into servers whose place nobody plans: `shm`, `ipc`, `nccl` or `gloo`.

    Args:
        cards: whether there is one in this machine.

    Raises:
        ConfigError: the chosen way needs a card and there is none.
    """
    transfer = "shm" if settings.transfer == "auto" else settings.transfer
    if transfer in ("ipc", "nccl") and not cards:
        other = "shm" if transfer == "ipc" else "shm for servers of this host or gloo for others"
        raise ConfigError(f"policy.transfer: {transfer!r}, but there is no CUDA card here; set {other}")
    return transfer


def by_hand(cards: Sequence[Card], ranks: int, settings: VLLMSettings) -> Placement:
    """The recipe names the card of the one server."""
    if settings.placement != "auto" or settings.servers not in ("auto", 1):
        raise ConfigError(
            "policy.environment: CUDA_VISIBLE_DEVICES with policy.placement or policy.servers, expected one "
            "of the two: servers get their cards by placement; leave the variable out"
        )
    chosen = _named(cards, settings)
    transfer = unplanned_transfer(settings, cards=True)
    note = f"the server on card {', '.join(chosen)}, as policy.environment says"
    return Placement("split", tuple(cards[:ranks]), (Place(),), transfer, settings.sleep is True, note=note)


def _named(cards: Sequence[Card], settings: VLLMSettings) -> list[str]:
    """The cards that the recipe names for its server; what CUDA does not know would hide all behind it."""
    text = settings.environment["CUDA_VISIBLE_DEVICES"]
    chosen, known = [name.strip() for name in text.split(",")], [card.id for card in cards]
    strange = [name for name in chosen if name not in known and not name.startswith(("GPU-", "MIG-"))]
    if strange or len(set(chosen)) < len(chosen) or len(chosen) < settings.cards_each:
        raise ConfigError(
            f"policy.environment: CUDA_VISIBLE_DEVICES={text!r}, expected {settings.cards_each} or more "
            f"different ones of the cards that are to be seen ({', '.join(known)}); name such, or leave the "
            "variable out"
        )
    return chosen


def refuse_crowded(
    cards: Sequence[Card], ranks: int, settings: VLLMSettings, needs: Needs, sleep: bool
) -> None:
    """Refuse a server that was put by hand onto a card that trains and has too little memory for it."""
    chosen = [name.strip() for name in settings.environment["CUDA_VISIBLE_DEVICES"].split(",")]
    both = [card for card in cards[:ranks] if card.id in chosen]
    free = 1 - ((needs.held if sleep else needs.training) + RESERVE) / cards[0].memory
    share = settings.share or LARGEST_SHARE
    if settings.cache is not None:
        share = needs.server(settings.shards, settings.cache) / cards[0].memory
    if not both or share <= free:
        return
    others = [card.id for card in cards[ranks:]]
    another = f"name another card ({', '.join(others)})" if others else "leave the variable out"
    smaller = f"set policy.arguments.gpu-memory-utilization={int(100 * free) / 100:g} or less, or "
    raise ConfigError(
        f"policy.environment: CUDA_VISIBLE_DEVICES={','.join(chosen)}, but card {both[0].id} trains too, and "
        f"a server takes {share:.0%} of it, expected at most {max(0, int(100 * free))}%; "
        f"{smaller if free > 0 else ''}{another}"
    )
