"""From one turn of the policy to the next: where turns end, which frame answers one, and its ids."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_rl.chat.encoding import Piece, TextEncoder
from sandbox_rl.chat.frames import Called, Frame, FrameReader, filled
from sandbox_rl.chat.template import ChatTemplate, Refused
from sandbox_rl.errors import ModelError
from sandbox_rl.types import MalformedCall, ToolCall


class BetweenTurns:
    """What stands between two turns of one template.

    Args:
        own: a written call; its control tokens end no turn.
        tool_role: whether the template's tool role is tried.
        fallback: name of the tool that an observation of no call is said to be of, where there must be one.

    Attributes:
        frame: of observations.
        ends: texts of the control tokens that end turns, the one after calls first.
        call_end, plain_end: what ends a turn with calls, and one without.

    Raises:
        Refused: the template has no frame that is the same in every turn.
        ModelError: it ends turns with no control token.
    """

    def __init__(
        self, template: ChatTemplate, encoder: TextEncoder, *, own: str, tool_role: bool, fallback: str
    ) -> None:
        self._name = template.name
        self._encoder = encoder
        self._fallback = Called(fallback)
        self._reader = FrameReader(template, self._controls, frozenset(self._controls(own)))
        tail = template.assistant_end()
        try:
            self.frame = self._reader.observations(tool_role=tool_role)
        except Refused as error:
            if self._controls(tail):
                raise
            raise ModelError(
                f"{template.name}: its chat template ends assistant turns with no control token; "
                "use a template that ends them with one, such as ChatML's <|im_end|>"
            ) from error
        self._user = self.frame if self.frame.role == "user" else self._reader.user()
        # Where the template ends plain turns by nothing, the next role's header does (GLM).
        opened = [self._user] if self._user is not None and self._user.opens else []
        firsts = [self._controls(frame.before)[0] for frame in (self.frame, *opened)]
        closers = self._controls(tail)[-1:] or firsts[-1:]
        before, closed, _ = tail.rpartition(closers[0])
        self.ends = (*firsts, *closers)
        self.plain_end = before + closed or closers[0]
        self.call_end = self.plain_end if self.frame.role == "user" else firsts[0]

    def observations(
        self, texts: Sequence[str], ended_by: int | None, calls: Sequence[ToolCall | MalformedCall]
    ) -> tuple[int, ...]:
        """See `ChatFormat.render_observations`."""
        frame, pieces, called = self._observed(texts, ended_by, calls)
        return self._after_turn([*pieces, *frame.closing(called)], frame, ended_by)

    def user(
        self,
        text: str,
        observations: Sequence[str],
        ended_by: int | None,
        calls: Sequence[ToolCall | MalformedCall],
    ) -> tuple[int, ...]:
        """See `ChatFormat.render_user`."""
        if self.frame.role == "user" and observations:
            return self.observations([*observations, text], ended_by, calls)
        around = self._reader.before_user(self.frame) if observations else None
        if around is not None:
            frame, before, called = self._observed(observations, ended_by, calls)
            if frame is self.frame:
                between = filled(around[0], called[-1], called[-1])
                pieces = [*before, *between, Piece(text), Piece(around[1], trusted=True)]
                return self._after_turn(pieces, frame, ended_by)
        if self._user is None:
            raise ModelError(
                f"{self._name}: its chat template cannot take a second user message; ask everything at once"
            )
        texts = [text] if around is None else [*observations, text]
        called = [self._fallback] * len(texts)
        pieces = [*self._user.pieces(texts, called), *self._user.closing(called)]
        return self._after_turn(pieces, self._user, ended_by)

    def _observed(
        self, texts: Sequence[str], ended_by: int | None, calls: Sequence[ToolCall | MalformedCall]
    ) -> tuple[Frame, list[Piece], list[Called]]:
        """The frame that fits how the turn ended, its pieces up to the last content, what each answers."""
        made = [Called(c.name, c.id) if isinstance(c, ToolCall) else self._fallback for c in calls]
        called = [*made, *[self._fallback] * len(texts)][: len(texts)]
        frame = self.frame
        if self._user is not None and ended_by != self._first(frame):
            # The user speaks where the frame names a tool and none was called, or where the turn says so.
            nobody = frame.names_call and not any(isinstance(c, ToolCall) for c in calls)
            named = self._user.opens and ended_by == self._first(self._user)
            frame = self._user if nobody or named else frame
        return frame, frame.pieces(texts, called), called

    def _after_turn(self, pieces: Sequence[Piece], frame: Frame, ended_by: int | None) -> tuple[int, ...]:
        """Ids of pieces that begin with the end of the turn, without it if the policy has sampled it."""
        ids = self._encoder.encode(pieces)
        there = ended_by == ids[0] if frame.opens else ended_by is not None
        return ids[1:] if there else ids

    def _first(self, frame: Frame) -> int:
        return self._encoder.control_tokens(frame.before)[0][1]

    def _controls(self, text: str) -> tuple[str, ...]:
        return tuple(token for token, _ in self._encoder.control_tokens(text))
