"""What the model's chat template writes around the contents of messages.

Contents are replaced by marks, the conversation is rendered, and the text between the marks is the
template's own. So no content can steer the template, and no content is ever decoded or re-encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from sandbox_rl.errors import ModelError

__all__ = ["ChatTemplate", "Frame", "Refused"]

_MARK = re.compile(r"zqx(\d+)qzx")
_FIXED_DATE = "26 Jul 2024"
"""Given to templates that print a date, so that a prompt does not depend on the day."""


class Refused(Exception):
    """The template cannot render a conversation of this shape."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around observations, from the assistant's end-of-turn to the next turn's header.

    Args:
        before: ends the assistant turn and opens the first observation; begins with end-of-turn.
        between: separates two observations.
        after: closes the last observation and opens the next assistant turn.
        escape: whether the template writes observations as JSON strings (Llama 3.1).
        role: "tool", or "user" where the template has no usable tool role.
    """

    before: str
    between: str
    after: str
    escape: bool
    role: str


class ChatTemplate:
    """Renders conversations of marks with one tokenizer's template.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(
        self, tokenizer: Any, tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> None:
        self._tokenizer = tokenizer
        self._tools = [dict(t) for t in tools] or None
        self._options = {"date_string": _FIXED_DATE, **options}
        self.name = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
        try:
            self.source: str = tokenizer.get_chat_template(None, self._tools)
        except ValueError as error:
            raise ModelError(
                f"{self.name}: it has no chat template; use an instruction-tuned model or save one in "
                "chat_template.jinja beside the tokenizer"
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation: bool) -> str:
        """The rendered text, with the tools and, if asked, the header of an assistant turn.

        Raises:
            Refused: the template raised.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tools=self._tools,
                tokenize=False,
                add_generation_prompt=generation,
                **self._options,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise Refused(str(error).replace("\n", " ")) from error
        return str(text)

    def shows_tools(self) -> bool:
        """Whether the template writes the tool schemas into the prompt."""
        if not self._tools:
            return True
        names = [t["function"]["name"] for t in self._tools]
        text = self.render([_message("user", 0)], generation=True)
        return all(name in text for name in names)

    def has_system_role(self) -> bool:
        """Whether a system message is rendered, once."""
        try:
            self.layout(("system", "user"))
        except Refused:
            return False
        return True

    def layout(self, roles: Sequence[str]) -> tuple[str | int, ...]:
        """A prompt with these roles: the template's own texts and, between them, message indices.

        Raises:
            Refused: the template raised, or left a message out, or wrote one twice.
        """
        text = self.render([_message(role, i) for i, role in enumerate(roles)], generation=True)
        parts: list[str | int] = list(_MARK.split(text))
        parts[1::2] = [int(p) for p in parts[1::2]]
        if sorted(i for i in parts if isinstance(i, int)) != list(range(len(roles))):
            raise Refused(f"it does not write each message once for the roles {', '.join(roles)}")
        return tuple(p for p in parts if p != "")

    def assistant_end(self) -> str:
        """The text after the content of an assistant turn.

        Raises:
            Refused: the template raised or left the content out.
        """
        text = self.render([_message("user", 0), _message("assistant", 1)], generation=False)
        _, found, end = text.rpartition(_mark(1))
        if not found:
            raise Refused("it leaves out the assistant's content")
        return end

    def frame(self, end_of_turn: str, *, tool_role: bool) -> Frame:
        """The frame of observations, by the template's tool role or else by its user role.

        A template that knows no tools may still write any role's name into its header; a model
        never saw "tool" there, so `tool_role` says whether the tool role is tried at all.

        It is read from renderings that hold no reasoning, and then compared with what the template
        writes for one to three observations and in a second round: it must be the same everywhere,
        for the sequence is only ever extended.

        Args:
            end_of_turn: text of the control token that ends an assistant turn.

        Raises:
            Refused: neither role gives a frame that is the same in every turn.
        """
        reasons = []
        ways = (("tool", False), ("tool", True), ("user", False))
        for role, with_calls in ways if tool_role else ways[-1:]:
            try:
                return self._frame(end_of_turn, role, with_calls)
            except Refused as error:
                reasons.append(f"{role} role: {error}")
        raise Refused("; ".join(dict.fromkeys(reasons)))

    def before_user(self, frame: Frame) -> tuple[str, str] | None:
        """What stands between a last observation and a further user message, and what follows that.

        None where the template refuses a user message there, or then writes the observation otherwise.
        """
        for with_calls in (True, False):
            messages = [_message("user", 0), self._assistant(1, int(with_calls))]
            messages += [_message(frame.role, 2), _message("user", 3)]
            try:
                text = self.render(messages, generation=True)
            except Refused:
                continue
            texts = _MARK.split(text)[::2]
            in_order = [int(m) for m in _MARK.findall(text)] == [0, 1, 2, 3]
            if in_order and texts[2].endswith(frame.before):
                return texts[3], texts[4]
        return None

    def _frame(self, end: str, role: str, with_calls: bool) -> Frame:
        def rounds(*counts: int) -> list[list[str]]:
            """For each round of `n` observations, the texts before, between and after them."""
            messages = [_message("user", 0)]
            marks = 1
            for count in counts:
                messages.append(self._assistant(marks, count if with_calls else 0))
                messages += [_message(role, marks + 1 + i) for i in range(count)]
                marks += 1 + count
            text = self.render(messages, generation=True)
            if [int(m) for m in _MARK.findall(text)] != list(range(marks)):
                raise Refused("it leaves out or moves some contents")
            texts = _MARK.split(text)[::2][1:]  # what follows each mark
            found = []
            first = 1
            for count in counts:
                head = texts[first]
                if end not in head:
                    raise Refused(f"no {end} between the assistant's turn and the observation")
                found.append([head[head.index(end) :], *texts[first + 1 : first + 1 + count]])
                first += 1 + count
            return found

        (before, after) = rounds(1)[0]
        (again, follow), (second, last) = rounds(1, 1)
        if (again, second, last) != (before, before, after):
            raise Refused("the text around an observation depends on the turn")
        # A header may open or skip reasoning that the rendering of an earlier turn does not show.
        header, follow = (text.partition("<think>")[0] for text in (after, follow))
        if not (follow.startswith(header) or header.startswith(follow)):
            raise Refused("earlier observations are rendered differently from the last one")
        return Frame(
            before, self._between(rounds, before, after, role), after, self._escapes(role, with_calls), role
        )

    @staticmethod
    def _between(rounds: Any, before: str, after: str, role: str) -> str:
        """What separates two observations; a blank line where they must share one message."""
        one_message = "\n\n"
        if role == "user":
            return one_message
        try:
            [two], [three] = rounds(2), rounds(3)
        except Refused:
            return one_message
        same = two[0] == three[0] == before and two[-1] == three[-1] == after
        if not same or not two[1] == three[1] == three[2]:
            return one_message
        return str(two[1])

    def _escapes(self, role: str, with_calls: bool) -> bool:
        content = f'{_mark(2)}"\n{_mark(3)}'
        messages = [
            _message("user", 0),
            self._assistant(1, 1 if with_calls else 0),
            {**_message(role, 2), "content": content},
        ]
        text = self.render(messages, generation=True)
        if content in text:
            return False
        if json.dumps(content) in text:
            return True
        raise Refused("it rewrites the text of an observation")

    def _assistant(self, index: int, calls: int) -> dict[str, Any]:
        if not calls:
            return _message("assistant", index)
        # The first call carries the mark; the ids are nine letters because Mistral insists on that.
        made = [
            {
                "type": "function",
                "id": f"call{i:05d}",
                "function": {"name": "call", "arguments": {"x": _mark(index) if i == 0 else "y"}},
            }
            for i in range(calls)
        ]
        return {"role": "assistant", "content": "", "tool_calls": made}


def _mark(index: int) -> str:
    return f"zqx{index}qzx"


def _message(role: str, index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": _mark(index)}
    if role == "tool":
        message |= {"name": "call", "tool_call_id": "call00000"}
    return message
