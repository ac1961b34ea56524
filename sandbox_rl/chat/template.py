"""What the model's chat template writes around the contents of messages.

Contents are replaced by marks, the conversation is rendered, and the text between the marks is the
template's own. So no content can steer the template, and no content is ever decoded or re-encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from sandbox_rl.chat.calls import to_json
from sandbox_rl.errors import ModelError
from sandbox_rl.types import ToolCall

_MARK = re.compile(r"zqx(\d+)qzx")
_FIXED_DAY = date(2024, 7, 26)
"""Given to templates that print a date, so that a prompt does not depend on the day."""
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(f"|replace('{code}','{_FIXED_DAY.strftime(code)}')" for code in ("%Y", "%m", "%d", "%B", "%b"))
    + " -}}{%- endmacro -%}"
)


class ChatTokenizer(Protocol):
    """A model's tokenizer with its chat template: a Hugging Face one fits."""

    all_special_ids: Sequence[int]
    eos_token_id: int | None
    pad_token_id: int | None
    unk_token_id: int | None

    def get_chat_template(self, chat_template: str | None, tools: Sequence[Mapping[str, Any]] | None) -> str:
        """Source of the template.

        Raises:
            ValueError: there is none.
        """
        ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        chat_template: str,
        tools: Sequence[Mapping[str, Any]] | None,
        tokenize: bool,
        add_generation_prompt: bool,
        **options: Any,
    ) -> object:
        """A conversation as text, where it is not tokenized."""
        ...


class Refused(Exception):
    """The template cannot render a conversation of this shape."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the content of message `index` goes, and whether white space at its two edges stays."""

    index: int
    keeps: tuple[bool, bool]


class ChatTemplate:
    """Renders conversations of marks with one tokenizer's template.

    Attributes:
        source: of the template.
        arguments_as_text: whether it wants the arguments of calls as JSON text (DeepSeek V3).
        no_content: what it wants for the content of a message that only calls: "" or None.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> None:
        self._tokenizer = tokenizer
        self._tools = [dict(t) for t in tools] or None
        self._options = {
            "date_string": _FIXED_DAY.strftime("%d %b %Y"),
            "xml_tools": [t["function"] for t in tools] or None,  # SmolLM3's name for tools
            **options,
        }
        self.name = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
        try:
            self.source: str = tokenizer.get_chat_template(None, self._tools)
        except ValueError as error:
            raise ModelError(
                f"{self.name}: it has no chat template; use an instruction-tuned model or save one in "
                "chat_template.jinja beside the tokenizer"
            ) from error
        self._timeless = (_FIXED_CLOCK if "strftime_now" in self.source else "") + self.source
        self.arguments_as_text, self.no_content = self._way_of_calls()

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation: bool) -> str:
        """The rendered text, with the tools and, if asked, the header of an assistant turn.

        Raises:
            Refused: the template raised.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                chat_template=self._timeless,
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
        text = self.render([message("user", 0)], generation=True)
        return all(name in text for name in names)

    def has_system_role(self) -> bool:
        """Whether a system message is rendered, once."""
        try:
            self.layout(("system", "user"))
        except Refused:
            return False
        return True

    def layout(self, roles: Sequence[str]) -> tuple[str | Slot, ...]:
        """A prompt with these roles: the template's own texts and, between them, where messages go.

        Raises:
            Refused: the template raised, or left a message out, or wrote one twice.
        """
        messages = [message(role, i) for i, role in enumerate(roles)]
        texts, order = split_marks(self.render(messages, generation=True))
        if sorted(order) != list(range(len(roles))):
            raise Refused(f"it does not write each message once for the roles {', '.join(roles)}")
        padded = self.render(
            [m | {"content": f"\t \t{m['content']}\t \t"} for m in messages], generation=True
        )
        parts: list[str | Slot] = [texts[0]]
        for index, text in zip(order, texts[1:], strict=True):
            parts += [Slot(index, _edges_kept(padded, index)), text]
        return tuple(p for p in parts if p != "")

    def assistant_end(self, told: Mapping[str, Any] | None = None) -> str:
        """The text after the mark of an assistant turn.

        Args:
            told: the turn, whose mark is 1; None for one of words.

        Raises:
            Refused: the template raised or left the mark out.
        """
        text = self.render([message("user", 0), told or message("assistant", 1)], generation=False)
        _, found, end = text.rpartition(mark(1))
        if not found:
            raise Refused("it leaves out the assistant's content")
        return end

    def _way_of_calls(self) -> tuple[bool, str | None]:
        """Whether arguments must be JSON text, and what stands for no content, in a message that calls."""
        for as_text, nothing in ((False, ""), (True, ""), (False, None), (True, None)):
            arguments = {"x": mark(1)}
            function = {"name": "call", "arguments": json.dumps(arguments) if as_text else arguments}
            call = {"type": "function", "id": "call00000", "function": function}
            told = {"role": "assistant", "content": nothing, "tool_calls": [call]}
            try:
                text = self.render([message("user", 0), told], generation=False)
            except Refused:
                continue
            if text.count(mark(1)) == 1:
                return as_text, nothing
        return False, ""


def mark(index: int) -> str:
    """What stands for the content of message `index`."""
    return f"zqx{index}qzx"


def message(role: str, index: int) -> dict[str, Any]:
    """A message whose content is a mark."""
    return {"role": role, "content": mark(index)}


def split_marks(text: str) -> tuple[list[str], list[int]]:
    """The texts around the marks of a rendering, and the marks' indices in order."""
    parts = _MARK.split(text)
    return parts[::2], [int(index) for index in parts[1::2]]


def _edges_kept(text: str, index: int) -> tuple[bool, bool]:
    """Whether white space on the left and on the right of mark `index` was kept, where it was there."""
    return f"\t \t{mark(index)}" in text, f"{mark(index)}\t \t" in text


def tool_words(tools: Sequence[Mapping[str, Any]], instructions: str) -> str:
    """What to tell a model whose template does not tell it about its tools."""
    parts = [instructions] if instructions else []
    if tools:
        schemas = "\n".join(to_json(t) for t in tools)
        parts.insert(
            0,
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
            "provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{schemas}\n</tools>",
        )
    return "\n\n".join(parts)


def example_call(tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    """A call of the first tool with its required string parameters."""
    if not tools:
        return ToolCall("NAME", {})
    function = tools[0]["function"]
    required = function.get("parameters", {}).get("required", ())
    return ToolCall(function["name"], {k: "ls" if k == "command" else "..." for k in required})
