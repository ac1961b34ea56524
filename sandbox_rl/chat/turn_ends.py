"""The ids that end a turn: one set, made here and used wherever a turn's end matters.

Sampling in this process and in servers stops at them; parsing reads nothing behind the first; TRL's masks and
metrics of truncation and the exported model take them over through the generation config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """Ids that end an assistant turn.

    Args:
        written: the one that the chat template itself ends turns with.
        others: what ends a turn as well: the tokenizer's EOS, what the model's generation config lists, and
            padding, which TRL takes for an end. May name `written` again.
    """

    written: int
    others: frozenset[int] = frozenset()

    @property
    def ids(self) -> frozenset[int]:
        """All of them."""
        return self.others | {self.written}

    @property
    def listed(self) -> list[int]:
        """All of them as a generation config has them, the template's own first."""
        return [self.written, *sorted(self.others - {self.written})]

    def before(self, token_ids: Sequence[int]) -> Sequence[int]:
        """What a turn says: its ids before the first end."""
        ids = self.ids
        return token_ids[: next((i for i, t in enumerate(token_ids) if t in ids), len(token_ids))]

    def closed_by(self, token_ids: Sequence[int]) -> int | None:
        """The end that a turn's last id is; None if the turn was cut."""
        return token_ids[-1] if token_ids and token_ids[-1] in self.ids else None
