"""What a chat template writes between an assistant's turn and the next one: the frame of observations.

It is read off renderings of marks (see `chat.template`) and compared with what the template writes for one to
three observations and in a second round: it must be the same everywhere, for the sequence only ever grows.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox_rl.chat.encoding import Piece
from sandbox_rl.chat.template import ChatTemplate, Refused, mark, message, split_marks

_ONE_MESSAGE = "\n\n"
_NAME, _ID = "zqxnm{}qzx", "zqxid{}qzx"  # ids of nine letters, since Mistral insists on that
_SLOT = re.compile(r"(zqx(?:nm|id)[PN]qzx)")


@dataclass(frozen=True, slots=True)
class Called:
    """The call that an observation answers: some templates write its name or id around the observation."""

    name: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around observations, from the end of the assistant's turn to the next turn's header.

    Args:
        before: opens the first observation; begins with the token that ends the assistant's turn.
        between: separates two observations.
        after: closes the last observation and opens the next assistant turn.
        escape: whether the template writes observations as JSON strings (Llama 3.1, gpt-oss).
        keeps: whether white space at an observation's beginning and at its end stays.
        role: "tool", or "user" where the template has no usable tool role.
        opens: whether its first token opens the observation: then no other end of a turn stands for it.
    """

    before: str
    between: str
    after: str
    escape: bool
    keeps: tuple[bool, bool]
    role: str
    opens: bool

    @property
    def names_call(self) -> bool:
        """Whether the name of the called tool is a part of it."""
        return "zqxnm" in self.before + self.between + self.after

    def pieces(self, texts: Sequence[str], called: Sequence[Called]) -> list[Piece]:
        """Observations up to the end of the last one's content.

        Args:
            called: what each answers, one per text.
        """
        found: list[Piece] = []
        for index, text in enumerate(texts):
            last = called[index - 1] if index else called[0]
            found += filled(self.between if index else self.before, last, called[index])
            text = trimmed(text, self.keeps)
            found.append(Piece(json.dumps(text, ensure_ascii=False)[1:-1] if self.escape else text))
        return found

    def closing(self, called: Sequence[Called]) -> list[Piece]:
        """What follows the last observation's content."""
        return filled(self.after, called[-1], called[-1])


def filled(text: str, last: Called, following: Called) -> list[Piece]:
    """`text` of a frame with the names and ids of calls in it, which are content like any other."""
    pieces = []
    for part in _SLOT.split(text):
        if _SLOT.fullmatch(part):
            call = last if part[5] == "P" else following
            pieces.append(Piece(call.name if part[3:5] == "nm" else call.id or "000000000"))
        elif part:
            pieces.append(Piece(part, trusted=True))
    return pieces


def trimmed(text: str, keeps: tuple[bool, bool]) -> str:
    """`text` without the white space at its edges that the template takes away."""
    text = text if keeps[0] else text.lstrip()
    return text if keeps[1] else text.rstrip()


class FrameReader:
    """Reads frames off one template.

    Args:
        controls: texts of the control tokens in a text, in order.
        own: control tokens that belong to a written call.
    """

    def __init__(
        self, template: ChatTemplate, controls: Callable[[str], Sequence[str]], own: frozenset[str]
    ) -> None:
        self._template = template
        self._controls = controls
        self._own = own

    def observations(self, *, tool_role: bool) -> Frame:
        """The frame of observations, by the template's tool role or else by its user role.

        A template that knows no tools may still write any role's name into its header; a model
        never saw "tool" there, so `tool_role` says whether the tool role is tried at all.

        Raises:
            Refused: neither role gives a frame that is the same in every turn.
        """
        reasons = []
        ways = (("tool", True), ("tool", False), ("user", False))
        for role, with_calls in ways if tool_role else ways[-1:]:
            try:
                return self._frame(role, with_calls)
            except Refused as error:
                reasons.append(f"{role} role: {error}")
        raise Refused("; ".join(dict.fromkeys(reasons)))

    def user(self) -> Frame | None:
        """The frame of a further user message; None where the template has none."""
        with contextlib.suppress(Refused):
            return self._frame("user", False)
        return None

    def before_user(self, frame: Frame) -> tuple[str, str] | None:
        """What stands between a last observation and a further user message, and what follows that.

        None where the template refuses a user message there, or then writes the observation otherwise.
        """
        for with_calls in (True, False):
            told = [*self._answered(frame.role, with_calls), message("user", 3)]
            try:
                texts, marks = split_marks(self._template.render(told, generation=True))
            except Refused:
                continue
            if marks == [0, 1, 2, 3] and _slots(texts[2], 0).endswith(frame.before):
                return _slots(texts[3], 1), texts[4]
        return None

    def _frame(self, role: str, with_calls: bool) -> Frame:
        (head, after), *_ = self._rounds(role, with_calls, 1)
        (again, follow), (second, last) = self._rounds(role, with_calls, 1, 1)
        if (again, second, last) != (head, head, after):
            raise Refused("the text around an observation depends on the turn")
        # A header may open or skip reasoning that the rendering of an earlier turn does not show.
        header, follow = (text.partition("<think>")[0] for text in (after, follow))
        if not (follow.startswith(header) or header.startswith(follow)):
            raise Refused("earlier observations are rendered differently from the last one")
        tail = _slots(self._template.assistant_end(self._assistant(1, int(with_calls))), 0)
        shared = os.path.commonprefix([tail, head])
        ends = [token for token in self._controls(tail) if token not in self._own]
        start = self._start(head, shared)
        before = head[start:]
        if not self._controls(before) or not before.startswith(self._controls(before)[0]):
            raise Refused("no control token between the assistant's turn and the observation")
        first = self._controls(before)[0]
        between = self._between(role, with_calls, before, after)
        plain = self._controls(self._template.assistant_end())[-1:]
        opens = not ends or (first not in plain and first in self._controls(between))
        return Frame(
            before=before,
            between=between,
            after=after,
            escape=self._escapes(role, with_calls),
            keeps=self._keeps(role, with_calls),
            role=role,
            opens=opens,
        )

    def _rounds(self, role: str, with_calls: bool, *counts: int) -> list[list[str]]:
        """For each round of `n` observations, the texts before, between and after them."""
        messages = [message("user", 0)]
        marks = 1
        for count in counts:
            messages.append(self._assistant(marks, count if with_calls else 0))
            messages += [self._answer(role, marks + 1 + i, i) for i in range(count)]
            marks += 1 + count
        texts, order = split_marks(self._template.render(messages, generation=True))
        if order != list(range(marks)):
            raise Refused("it leaves out or moves some contents")
        found, first = [], 2
        for count in counts:
            found.append([_slots(text, i) for i, text in enumerate(texts[first : first + 1 + count])])
            first += 1 + count
        return found

    def _start(self, head: str, shared: str) -> int:
        """Where the frame begins in `head`, of which `shared` is there without an observation as well.

        At the last control token of that which is not the call's own; or behind all of it.
        """
        start, position = len(shared), 0
        for token in self._controls(head):
            position = head.index(token, position)
            end = position + len(token)
            if end <= len(shared) and token not in self._own:
                start = position
            elif position < len(shared) < end:
                return position if start == len(shared) else start  # two tokens that begin alike
            position = end
        return start

    def _between(self, role: str, with_calls: bool, before: str, after: str) -> str:
        """What separates two observations; a blank line where they must share one message."""
        if role == "user":
            return _ONE_MESSAGE
        for calls in (True, False) if with_calls else (False,):  # Llama 3.1 writes one call at most
            try:
                [two], [three] = self._rounds(role, calls, 2), self._rounds(role, calls, 3)
            except Refused:
                continue
            same = all(found[0].endswith(before) and found[-1] == after for found in (two, three))
            if same and two[1] == three[1] == three[2]:
                return two[1]
        return _ONE_MESSAGE

    def _one(self, role: str, with_calls: bool, content: str) -> str:
        """A conversation with one observation of this content."""
        messages = self._answered(role, with_calls)
        messages[2]["content"] = content
        return self._template.render(messages, generation=True)

    def _answered(self, role: str, with_calls: bool) -> list[dict[str, Any]]:
        """A question, the assistant's turn and an observation, by their marks 0 to 2."""
        return [message("user", 0), self._assistant(1, int(with_calls)), self._answer(role, 2, 0)]

    def _escapes(self, role: str, with_calls: bool) -> bool:
        content = f'{mark(2)}"\n{mark(3)}'
        text = self._one(role, with_calls, content)
        if content in text:
            return False
        if json.dumps(content) in text:
            return True
        raise Refused("it rewrites the text of an observation")

    def _keeps(self, role: str, with_calls: bool) -> tuple[bool, bool]:
        blanks = "\t \t"
        text = self._one(role, with_calls, blanks + mark(2) + blanks)
        written = json.dumps(blanks)[1:-1] if self._escapes(role, with_calls) else blanks
        return written + mark(2) in text, mark(2) + written in text

    def _answer(self, role: str, index: int, call: int) -> dict[str, Any]:
        answer = message(role, index)
        if role == "tool":
            answer |= {"name": _NAME.format(call), "tool_call_id": _ID.format(call)}
        return answer

    def _assistant(self, index: int, calls: int) -> dict[str, Any]:
        if not calls:
            return message("assistant", index)
        # The first call carries the mark.
        made = []
        for i in range(calls):
            arguments: Any = {"x": mark(index) if i == 0 else "y"}
            if self._template.arguments_as_text:
                arguments = json.dumps(arguments)
            function = {"name": _NAME.format(i), "arguments": arguments}
            made.append({"type": "function", "id": _ID.format(i), "function": function})
        return {"role": "assistant", "content": self._template.no_content, "tool_calls": made}


def _slots(text: str, index: int) -> str:
    """`text` before observation `index`, whose marks of names and ids say: of the last or the next call."""

    def slot(match: re.Match[str]) -> str:
        return f"zqx{match[1]}{'N' if int(match[2]) == index else 'P'}qzx"

    return re.sub(r"zqx(nm|id)(\d)qzx", slot, text)
