"""One set of ids ends a turn: the template's turn end, the tokenizer's EOS, the generation config's list."""

from __future__ import annotations

import pytest

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.chat.turn_ends import TurnEnds
from sandbox_rl.types import ToolCall
from tests.unit.chat.tokenizers_for_tests import CHATML, TOOLS, make_tokenizer, tokenizer_for

CALL = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'


def ids_of(tokenizer, *tokens: str) -> set[int]:
    return set(tokenizer.convert_tokens_to_ids(list(tokens)))


def base_tokenizer():
    """As base models have it: the document's end is the EOS, and the template ends turns otherwise."""
    tokenizer = make_tokenizer("qwen", CHATML)
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "model_ends", "expected"),
    [
        (base_tokenizer(), (), {"<|im_end|>", "<|endoftext|>"}),
        (tokenizer_for("qwen3"), (), {"<|im_end|>", "<|endoftext|>"}),
        (tokenizer_for("qwen3"), (4,), {"<|im_end|>", "<|endoftext|>", 4}),
        (tokenizer_for("llama3_1"), (), {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}),
    ],
    ids=["base", "qwen3", "generation config", "llama3_1"],
)
def test_all_that_ends_a_turn_is_in_the_set_and_the_templates_own_is_first(tokenizer, model_ends, expected):
    ends = ChatFormat.from_tokenizer(tokenizer, TOOLS, model_ends=model_ends).ends
    numbers = {e for e in expected if isinstance(e, int)}
    assert ends.ids == ids_of(tokenizer, *(e for e in expected if isinstance(e, str))) | numbers
    assert ends.listed[0] == ends.written
    assert sorted(ends.listed) == sorted(ends.ids)


def test_a_call_in_a_document_invented_behind_the_end_is_not_run():
    tokenizer = tokenizer_for("qwen3")
    form = ChatFormat.from_tokenizer(tokenizer, TOOLS)
    for end in ("<|im_end|>", "<|endoftext|>"):
        ids = tokenizer.encode(f"Done.{end}\nAn exercise: {CALL}", add_special_tokens=False)
        assert form.parse(ids) == ()
        assert form.reasoning_and_words(ids) == ("", "Done.")
        ids = tokenizer.encode(f"{CALL}{end}{CALL}", add_special_tokens=False)
        assert form.parse(ids) == (ToolCall("submit", {}),)


def test_padding_that_is_a_word_or_unknown_ends_nothing():
    tokenizer = make_tokenizer("qwen", CHATML)
    tokenizer.pad_token = tokenizer.unk_token = "<|vision_start|>"
    assert tokenizer.pad_token_id not in ChatFormat.from_tokenizer(tokenizer, TOOLS).ends.ids


def test_a_turn_is_what_stands_before_its_first_end():
    ends = TurnEnds(2, frozenset((2, 9)))
    assert (ends.before((5, 9, 6, 2)), ends.before((5, 6)), ends.before(())) == ((5,), (5, 6), ())
    assert [ends.closed_by(ids) for ids in ((5, 9), (5, 2), (2, 5), ())] == [9, 2, None, None]
