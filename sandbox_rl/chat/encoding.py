"""Text to ids such that only the chat template can produce control ids.

The template's own text is *trusted*: its control tokens (`<|im_end|>`, `<tool_call>`, …) become
their ids. Everything else (the task, the output of a command) is *content*: it is encoded by a copy
of the tokenizer that knows no added tokens, and the result is checked id by id, so `<|im_end|>` in a
file is a handful of ordinary ids. Plain text on both sides of a border between the two is encoded
together; for content without control tokens the ids are therefore exactly those that the tokenizer
gives for the whole rendered text, which is what the model was trained on and will be served with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "?"
_MAX_SPLITS = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text and whether control tokens in it are real."""

    text: str
    trusted: bool = False


class TextEncoder:
    """Encodes trusted text and content.

    Args:
        tokenizer: the Rust tokenizer of the model; it is copied, never changed.
        special_ids: further ids that content may not contain.

    Attributes:
        control_ids: ids of every added token, special or not. Added tokens of white space alone
            (indentation runs of some vocabularies) are text.
    """

    def __init__(self, tokenizer: Tokenizer, special_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        added = {i: t for i, t in tokenizer.get_added_tokens_decoder().items() if t.content}
        blank = {i: t for i, t in added.items() if not t.content.replace("▁", " ").strip()}
        control = {i: t for i, t in added.items() if i not in blank}
        self.control_ids: frozenset[int] = (frozenset(control) | frozenset(special_ids)) - frozenset(blank)
        self._by_text = {t.content: (i, t) for i, t in control.items()}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        # An empty alternation would match everywhere; (?!) matches nowhere.
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._plain = _without_added_tokens(tokenizer, keep=frozenset(t.content for t in blank.values()))
        self._renumber = {
            self._plain.token_to_id(t.content): i
            for i, t in blank.items()
            if self._plain.token_to_id(t.content) != i
        }

    def control_tokens(self, text: str) -> tuple[tuple[str, int], ...]:
        """The control tokens in trusted `text`, in order, as (text, id)."""
        return tuple((m.group(), self._by_text[m.group()][0]) for m in self._pattern.finditer(text))

    def encode(self, pieces: Iterable[Piece]) -> tuple[int, ...]:
        """Ids of the concatenated pieces; only trusted ones contribute control ids."""
        ids: list[int] = []
        run: list[str] = []  # ordinary text since the last control token
        strip_left = False  # that control token swallows the white space on its right
        for piece in pieces:
            if not piece.trusted:
                run.append(_SURROGATE.sub("\ufffd", piece.text))  # which no tokenizer can encode
                continue
            end = 0
            for match in self._pattern.finditer(piece.text):
                token_id, token = self._by_text[match.group()]
                run.append(piece.text[end : match.start()])
                ids.extend(self._encode_run(run, strip_left, token.lstrip))
                ids.append(token_id)
                run, strip_left, end = [], token.rstrip, match.end()
            run.append(piece.text[end:])
        ids.extend(self._encode_run(run, strip_left, False))
        return tuple(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids` with control tokens shown; unknown ids are left out."""
        known = [i for i in token_ids if 0 <= i < 2**32]
        return str(self._tokenizer.decode(known, skip_special_tokens=False))

    def _encode_run(self, run: Sequence[str], strip_left: bool, strip_right: bool) -> Sequence[int]:
        text = "".join(run)
        text = text.lstrip() if strip_left else text
        text = text.rstrip() if strip_right else text
        return self._encode_text(text, _MAX_SPLITS) if text else ()

    def _encode_text(self, text: str, splits_left: int) -> Sequence[int]:
        """Ids of ordinary text. A piece of the model's own vocabulary that doubles as a control
        token (Unigram and word-level vocabularies) is broken by encoding its parts separately.
        """
        # `encode` keeps the interpreter's lock while it works and this does not: what a policy makes long
        # to encode must not stop the other episodes. Offsets are left out, so they are asked for below.
        ids: list[int] = self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if self._renumber:
            ids = [self._renumber.get(i, i) for i in ids]
        if self.control_ids.isdisjoint(ids):
            return ids
        if splits_left == 0 or text == _REPLACEMENT:
            return [i for i in ids if i not in self.control_ids]
        parts: list[str] = []
        done = 0
        offsets = self._plain.encode(text, add_special_tokens=False).offsets
        for token_id, (start, end) in zip(ids, offsets, strict=True):
            if token_id not in self.control_ids:
                continue
            if end - start > 1:
                parts += [text[done : start + 1]]
                done = start + 1
            else:  # one character that is a control token, or unknown to the vocabulary
                parts += [text[done:start], _REPLACEMENT]
                done = max(end, done)
        parts.append(text[done:])
        return [i for part in parts if part for i in self._encode_text(part, splits_left - 1)]


def _without_added_tokens(tokenizer: Tokenizer, keep: frozenset[str]) -> Tokenizer:
    """A copy of the tokenizer that treats added tokens other than `keep` as any other text."""
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in keep]
    data["post_processor"] = data["truncation"] = data["padding"] = None
    splitter = data.get("pre_tokenizer") or {}
    for part in splitter.get("pretokenizers", [splitter]):
        # "first" puts a blank before the text's very first word only, and a run is never that.
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    return Tokenizer.from_str(json.dumps(data))
