"""The chat format of one model: messages to ids, and sampled ids to tool calls.

The trained sequence is made of three kinds of ids: the prompt, rendered once; what the policy
sampled, untouched; and observations in the frame that the model's own template writes around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sandbox_rl.chat.between_turns import BetweenTurns
from sandbox_rl.chat.calls import CallReader
from sandbox_rl.chat.dialects import CALL_FORMATS, detect, make
from sandbox_rl.chat.encoding import Piece, TextEncoder
from sandbox_rl.chat.frames import trimmed
from sandbox_rl.chat.template import ChatTemplate, ChatTokenizer, Refused, Slot, example_call, tool_words
from sandbox_rl.chat.turn_ends import TurnEnds
from sandbox_rl.errors import ModelError
from sandbox_rl.types import MalformedCall, Message, ToolCall


class ChatFormat:
    """Built by `from_tokenizer`, immutable afterwards.

    Attributes:
        ends: the ids that end an assistant turn; the policy must stop at them.
        control_ids: ids that no content can produce.
        call_format: name of the format of tool calls.
        call_example: a tool call as the policy should write it.
    """

    def __init__(
        self,
        template: ChatTemplate,
        encoder: TextEncoder,
        other_ends: Iterable[int],
        tools: Sequence[Mapping[str, Any]],
        call_format: str,
    ) -> None:
        self._template = template
        self._encoder = encoder
        self.control_ids = encoder.control_ids
        try:
            shows_tools = template.shows_tools()
            described = detect(template.source, shows_tools=shows_tools)
            self.call_format = _choose(call_format, described, shows_tools, template.name)
            self._calls = make(self.call_format, tools)
            example = example_call(tools)
            self.call_example = "".join(p.text for p in self._calls.write(example))
            self._between = BetweenTurns(
                template,
                encoder,
                own=self.call_example,
                tool_role=shows_tools or described is not None,
                fallback=example.name,
            )
        except Refused as error:
            raise ModelError(
                f"{template.name}: its chat template cannot hold a conversation with tools ({error}); "
                "use another template"
            ) from error
        frame = self._between.frame
        eom = self._controls("<|eom_id|>") if "<|eom_id|>" in template.source else ()
        own_ends = [encoder.control_tokens(token)[0][1] for token in (*self._between.ends, *eom)]
        self.ends = TurnEnds(own_ends[0], frozenset((*own_ends, *other_ends)))
        self._words = tool_words(
            tools if not shows_tools else (),
            self._calls.instructions()
            if tools and (self.call_format != described or not shows_tools)
            else "",
        )
        self._system_role = template.has_system_role()
        think, end_think = self._calls.thinking
        self._thinking = think in frame.after and end_think not in frame.after.rpartition(think)[2]
        invented = self._invented(frame.before + frame.after)
        self._reader = CallReader(self._calls, self.call_example, invented, self._thinking)
        self._layouts: dict[tuple[str, ...], tuple[str | Slot, ...]] = {}

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: ChatTokenizer,
        tools: Sequence[Mapping[str, Any]],
        *,
        call_format: str = "auto",
        template_options: Mapping[str, Any] | None = None,
        model_ends: Iterable[int] = (),
    ) -> ChatFormat:
        """Read everything off a Hugging Face tokenizer; takes a second or two for 150k tokens.

        Args:
            tokenizer: a fast tokenizer (one with a `backend_tokenizer`) with a chat template.
            tools: OpenAI function schemas.
            call_format: "auto" or a name of `dialects.DIALECTS`.
            template_options: variables for the template, such as `enable_thinking`.
            model_ends: the ids at which the model's generation config ends a text.

        Raises:
            ModelError: no fast tokenizer, no chat template, no EOS token, an unusable template, or
                a call format that is not known.
        """
        name = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{name}: it is a {type(tokenizer).__name__}, which has no tokenizer.json; "
                "convert it to a fast tokenizer and save that"
            )
        template = ChatTemplate(tokenizer, tools, template_options or {})
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{name}: it has no EOS token, so no turn could end; set eos_token in tokenizer_config.json"
            )
        encoder = TextEncoder(backend, tokenizer.all_special_ids)
        ends = {tokenizer.eos_token_id, *model_ends}
        if tokenizer.pad_token_id in encoder.control_ids - {tokenizer.unk_token_id}:
            ends.add(tokenizer.pad_token_id)
        return cls(template, encoder, ends, tools, call_format)

    def render_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of a prompt: messages, tool schemas, and the header of the first assistant turn.

        Where the template does not show tools, their schemas are added to the system message; where
        it has no system role, that is put before the first user message.

        Raises:
            ModelError: the template cannot render these roles.
        """
        contents = self._with_words([(m.role, [Piece(m.content)]) for m in messages])
        roles = tuple(role for role, _ in contents)
        try:
            layout = self._layouts.get(roles) or self._template.layout(roles)
        except Refused as error:
            raise ModelError(
                f"{self._template.name}: its chat template cannot render a prompt of the roles "
                f"{', '.join(roles) or 'none'} ({error}); use a system and a user message"
            ) from error
        self._layouts[roles] = layout
        pieces: list[Piece] = []
        for part in layout:
            if isinstance(part, Slot):
                pieces += _trimmed(contents[part.index][1], part.keeps)
            else:
                pieces.append(Piece(part, trusted=True))
        return self._encoder.encode(pieces)

    def render_observations(
        self,
        texts: Sequence[str],
        *,
        ended_by: int | None,
        calls: Sequence[ToolCall | MalformedCall] = (),
    ) -> tuple[int, ...]:
        """Ids that follow an assistant turn: observations in their frame and the next turn's header.

        Args:
            texts: one per observation, at least one; control tokens in them become ordinary ids.
            ended_by: the id by which the policy ended its turn (`TurnEnds.closed_by`); None if it was cut,
                then the end of the turn is added.
            calls: of the turn, in order; some templates write a call's name or id beside its observation.
        """
        if not texts:
            raise ValueError(
                "render_observations got no text; a turn is answered by at least one observation"
            )
        return self._between.observations(texts, ended_by, calls)

    def render_user(
        self,
        text: str,
        *,
        observations: Sequence[str] = (),
        ended_by: int | None,
        calls: Sequence[ToolCall | MalformedCall] = (),
    ) -> tuple[int, ...]:
        """Ids that follow an assistant turn when the user speaks again, and the next turn's header.

        Args:
            text: what the user says; control tokens in it become ordinary ids.
            observations: what answered the turn's calls and is not in the sequence yet. Left out where the
                template takes no user message after them.
            ended_by, calls: as in `render_observations`.

        Raises:
            ModelError: the template has no frame for a second user message.
        """
        return self._between.user(text, observations, ended_by, calls)

    def _controls(self, text: str) -> tuple[str, ...]:
        return tuple(token for token, _ in self._encoder.control_tokens(text))

    def parse(self, token_ids: Sequence[int]) -> tuple[ToolCall | MalformedCall, ...]:
        """The calls of one sampled turn, in order; () if there is none. Never raises.

        See `chat.calls` for the rules.
        """
        return self.calls_of(self.turn_text(token_ids))

    def turn_text(self, token_ids: Sequence[int]) -> str:
        """A sampled turn as text, without its end. Never encode it again."""
        return self.decode(self.ends.before(token_ids))

    def calls_of(self, text: str) -> tuple[ToolCall | MalformedCall, ...]:
        """The calls of a turn's text, as `parse`."""
        return self._reader.read(text)

    def reasoning_and_words(self, token_ids: Sequence[int]) -> tuple[str, str]:
        """A sampled turn for people to read: its reasoning, and its words before the first call."""
        return self._reader.reasoning_and_words(self.turn_text(token_ids))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text for people and reports, control tokens shown. Never encode it again."""
        return self._encoder.decode(token_ids)

    def render_call(self, text_before: str, calls: Sequence[ToolCall]) -> tuple[int, ...]:
        """Ids of an assistant turn that says `text_before` and makes `calls`, end-of-turn included.

        If the turn's header opens reasoning, `text_before` is the reasoning and is closed.
        """
        start = [Piece(text_before), Piece("\n</think>\n\n", trusted=True)] if self._thinking else []
        before = "" if self._thinking else text_before
        end = self._between.call_end if calls else self._between.plain_end
        return self._encoder.encode([*start, *self._calls.turn(before, calls), Piece(end, trusted=True)])

    def _with_words(self, contents: list[tuple[str, list[Piece]]]) -> list[tuple[str, list[Piece]]]:
        """Add the words about tools, and move the system message where there is no role for it."""
        blank = Piece("\n\n", trusted=True)
        if self._words:
            words = Piece(self._words, trusted=True)
            if contents and contents[0][0] == "system":
                contents[0] = ("system", [*contents[0][1], blank, words])
            else:
                contents.insert(0, ("system", [words]))
        if not self._system_role and len(contents) > 1 and contents[0][0] == "system":
            (_, system), (role, first) = contents[0], contents[1]
            contents[:2] = [(role, [*system, blank, *first])]
        return contents

    def _invented(self, frame: str) -> tuple[str, ...]:
        """The tags of the frame, control tokens or not, that a turn may not contain itself."""
        tags = [t for t, _ in self._encoder.control_tokens(frame)] + re.findall(r"</?[a-z_]+>", frame)
        own = {
            *self._controls(self._between.call_end),
            *self._calls.thinking,
            *self._calls.speaks,
            *self._controls(self.call_example),
        }
        own.update(("<think>", "</think>"), re.findall(r"<[^<>]+>", self.call_example))
        return (*(t for t in dict.fromkeys(tags) if t not in own), *self._calls.invented)


def _trimmed(pieces: Sequence[Piece], keeps: tuple[bool, bool]) -> list[Piece]:
    """A message's content without the white space at its edges that the template takes away."""
    found = list(pieces)
    if found:
        found[0] = replace(found[0], text=trimmed(found[0].text, (keeps[0], True)))
        found[-1] = replace(found[-1], text=trimmed(found[-1].text, (True, keeps[1])))
    return found


def _choose(asked: str, described: str | None, shows_tools: bool, name: str) -> str:
    if asked != "auto":
        return asked
    if described is None and shows_tools:
        raise ModelError(
            f"{name}: its chat template writes tool calls in a form that is not known; "
            f"set call_format to one of {', '.join(CALL_FORMATS)} and the prompt will ask for that form"
        )
    return described or "hermes"
