"""Reading tool calls out of text: what counts, what is malformed, and that nothing ever raises."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_rl.chat.calls import MAX_CALLS, CallReader
from sandbox_rl.chat.dialects import CALL_FORMATS, detect, make
from sandbox_rl.types import MalformedCall, ToolCall
from tests.growth import assert_linear
from tests.unit.chat.tokenizers_for_tests import TOOLS, shipped_template


def reader(name: str, *, starts_thinking: bool = False) -> CallReader:
    return CallReader(make(name, TOOLS), "EXAMPLE", ("<|im_start|>", "<tool_response>"), starts_thinking)


READERS = {name: reader(name) for name in CALL_FORMATS}
HERMES, XML, LLAMA = (READERS[name] for name in ("hermes", "qwen_xml", "llama_json"))
BASH = ToolCall("execute_bash", {"command": "ls"})
SUBMIT = ToolCall("submit", {})
BASH_TEXT = '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "ls"}}\n</tool_call>'
SUBMIT_TEXT = '<tool_call>{"name": "submit", "arguments": {}}</tool_call>'


def reason(got: tuple[ToolCall | MalformedCall, ...]) -> str:
    assert len(got) == 1
    assert isinstance(got[0], MalformedCall)
    return got[0].reason


def test_calls_come_in_order_and_text_around_them_is_passed_over() -> None:
    assert HERMES.read(f"First I look.\n{BASH_TEXT}\nthen\n{SUBMIT_TEXT} done") == (BASH, SUBMIT)
    assert HERMES.read("no call, but {} and </tool_call>") == ()
    assert HERMES.read("") == ()


def test_a_closing_tag_inside_a_string_does_not_end_the_call() -> None:
    text = '<tool_call>{"name": "execute_bash", "arguments": {"command": "echo </tool_call>"}}</tool_call>'
    assert HERMES.read(text) == (ToolCall("execute_bash", {"command": "echo </tool_call>"}),)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{", "not valid JSON"),
        ("", "a JSON object beginning with {"),
        ("[]", "a JSON object beginning with {"),
        ('{"name": null, "arguments": {}}', '"name" must be a string'),
        ('{"name": "", "arguments": {}}', '"name" must be a string'),
        ('{"name": "submit", "arguments": "x"}', '"arguments" must be a JSON object'),
        ('{"name": "submit", "arguments": null}', '"arguments" must be a JSON object'),
        ('{"name": "submit"}', 'keys must be exactly "name" and "arguments"'),
        ('{"name": "submit", "arguments": {}, "command": 1}', "keys must be exactly"),
        ('{"name": "submit", "name": "submit", "arguments": {}}', '"name" occurs twice'),
        ('{"name": "submit", "arguments": {"a": 1, "a": 2}}', '"a" occurs twice'),
        ('{"name": "submit", "arguments": {"a": NaN}}', "NaN is not JSON"),
        ('{"name": "submit", "arguments": {"a": 1e999}}', "1e999 is too large"),
        ('{"name": "submit", "arguments": {"a": ' + "9" * 5000 + "}}", "not valid JSON"),
        ("{" * 5000, "not valid JSON"),
        ('{"a":' * 5000, "nested too deep"),
        ('{"name": "submit", "arguments": {}} x', "</tool_call> is missing before"),
    ],
)
def test_a_malformed_call_is_named_and_shown_how_to_write(body: str, why: str) -> None:
    got = reason(HERMES.read(f"<tool_call>\n{body}\n</tool_call>"))
    assert why in got
    assert got.endswith("EXAMPLE")
    assert len(got) < 600


def test_a_call_that_is_whole_without_its_closing_tag_counts_and_one_that_is_cut_does_not() -> None:
    whole = BASH_TEXT.removesuffix("\n</tool_call>")
    assert HERMES.read(whole) == HERMES.read(f"{whole}\n") == (BASH,)
    assert HERMES.read(f"{whole}\n{SUBMIT_TEXT}") == (BASH, SUBMIT)
    assert "</tool_call> is missing before" in reason(HERMES.read(f"{whole} and then"))
    assert "not valid JSON" in reason(HERMES.read(whole.removesuffix("}")))


def test_line_breaks_may_stand_in_strings_and_a_call_may_have_an_id() -> None:
    text = '<tool_call>{"name": "execute_bash", "arguments": {"command": "a\n\tb"}, "id": "x1"}</tool_call>'
    assert HERMES.read(text) == (ToolCall("execute_bash", {"command": "a\n\tb"}, "x1"),)


def test_after_a_call_with_known_borders_reading_goes_on() -> None:
    got = HERMES.read(f'<tool_call>{{"name": 1, "arguments": {{}}}}</tool_call>{BASH_TEXT}')
    assert isinstance(got[0], MalformedCall)
    assert got[1:] == (BASH,)


def test_nothing_inside_or_after_a_broken_call_is_run() -> None:
    start = '<tool_call>{"name": "execute_bash", "arguments": {"command": "echo "'
    assert "was not run" in reason(
        HERMES.read(f'{start}</tool_call>{SUBMIT_TEXT}"}}}}</tool_call>{SUBMIT_TEXT}')
    )


def test_reasoning_holds_no_calls() -> None:
    assert HERMES.read(f"<think>{SUBMIT_TEXT}</think>{BASH_TEXT}") == (BASH,)
    assert HERMES.read(f"<think>never closed {SUBMIT_TEXT}") == ()
    thinking = reader("hermes", starts_thinking=True)
    assert thinking.read(f"{SUBMIT_TEXT}</think>{BASH_TEXT}") == (BASH,)
    assert thinking.read(BASH_TEXT) == ()
    in_a_string = '<tool_call>{"name": "execute_bash", "arguments": {"command": "<think>"}}</tool_call>'
    assert HERMES.read(in_a_string + SUBMIT_TEXT)[1:] == (SUBMIT,)


def test_invented_results_and_roles_end_what_counts() -> None:
    for tag in ("<tool_response>", "<|im_start|>"):
        first, second = HERMES.read(f"{BASH_TEXT}{tag}42{SUBMIT_TEXT}")
        assert first == BASH
        assert isinstance(second, MalformedCall)
        assert tag in second.reason


def test_a_flood_of_calls_is_cut() -> None:
    got = HERMES.read(BASH_TEXT * 1000)
    assert len(got) == MAX_CALLS + 1
    assert got[:-1] == (BASH,) * MAX_CALLS
    assert isinstance(got[-1], MalformedCall)


def xml(name: str, body: str) -> str:
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def test_xml_values_are_text_unless_the_schema_says_otherwise() -> None:
    body = (
        "<parameter=command>\nprint('a')\n\n</parameter>\n<parameter=count>\n3\n</parameter>\n"
        "<parameter=x>\n4\n</parameter>\n"
    )
    assert XML.read(xml("execute_bash", body)) == (
        ToolCall("execute_bash", {"command": "print('a')\n", "count": 3, "x": "4"}),
    )
    assert XML.read(xml("execute_bash", "<parameter=count>\nmany\n</parameter>\n")) == (
        ToolCall("execute_bash", {"count": "many"}),
    )
    assert XML.read(xml("submit", "")) == (SUBMIT,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<tool_call>\n</tool_call>", "<function=NAME> must follow"),
        ("<tool_call><function=a><parameter=b>c", "not closed by </parameter>"),
        ("<tool_call><function=a><parameter=b>c</function></tool_call>", "not closed by </parameter>"),
        (xml("a", "<parameter=b>1</parameter><parameter=b>2</parameter>"), "occurs twice"),
        (xml("a", "junk"), "</function> is missing"),
        ("<tool_call><function=a></function> x", "</tool_call> is missing"),
        ("<function=execute_bash><parameter=command>rm -r /testbed/a", "not closed by </parameter>"),
    ],
)
def test_malformed_xml(text: str, why: str) -> None:
    assert why in reason(XML.read(text))


@pytest.mark.parametrize(
    "text",
    [
        "<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>",
        "I look.\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>",
        "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>",
        "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</tool_call>",
        "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n",
    ],
)
def test_xml_with_tags_missing_where_nothing_else_can_be_meant(text: str) -> None:
    assert XML.read(text) == (BASH,)
    assert XML.read(f"{text.strip()}\n{xml('submit', '')}") == (BASH, SUBMIT)


def test_a_parameter_that_another_one_follows_is_closed() -> None:
    body = "<parameter=command>\nls\n<parameter=count>\n3\n</parameter>\n"
    assert XML.read(xml("execute_bash", body)) == (ToolCall("execute_bash", {"command": "ls", "count": 3}),)


def test_xml_values_may_hold_tags() -> None:
    value = "</parameter> <tool_call> </function> <parameter=z>"
    assert XML.read(xml("a", f"<parameter=b>\n{value}\n</parameter>\n")) == (ToolCall("a", {"b": value}),)


LLAMA_BASH = '{"name": "execute_bash", "parameters": {"command": "ls"}}'


@pytest.mark.parametrize(
    "text",
    [
        LLAMA_BASH,
        f"<|python_tag|>{LLAMA_BASH}",
        f"  \n{LLAMA_BASH}",
        f"I look first.\n{LLAMA_BASH}\nthat is all",
        '{"type": "function", "name": "execute_bash", "parameters": {"command": "ls"}}',
        '{"name": "execute_bash", "arguments": {"command": "ls"}}',
    ],
)
def test_llama_calls(text: str) -> None:
    assert LLAMA.read(text) == (BASH,)


def test_several_llama_calls() -> None:
    submit = '{"name": "submit", "parameters": {}}'
    assert LLAMA.read(f"{LLAMA_BASH}; {submit}") == (BASH, SUBMIT)
    assert LLAMA.read(f"{LLAMA_BASH}\n{submit}") == (BASH, SUBMIT)


def test_llama_text_without_a_call() -> None:
    assert LLAMA.read('The set {"name"} is not {"a": 1} a call: {"name": "submit", "parameters": {}}') == ()
    assert "not valid JSON" in reason(LLAMA.read("{ x"))
    assert "beginning with {" in reason(LLAMA.read("<|python_tag|>print(1)"))


def test_the_format_is_read_off_the_template() -> None:
    found = {
        n: detect(shipped_template(n))
        for n in ("qwen2_5", "qwen3", "qwen3_6", "llama3_1", "llama3", "glm4moe")
    }
    assert found == {
        "qwen2_5": "hermes",
        "qwen3": "hermes",
        "qwen3_6": "qwen_xml",
        "llama3_1": "llama_json",
        "llama3": None,
        "glm4moe": "glm",
    }


SEEDS = (
    '{"name":"execute_bash","arguments":{"command":"echo hi"}}',
    '{"name":"submit","parameters":{}}',
    "[]",
    '{"name":null}',
    '{"name":"submit","arguments":"x"}',
    '{"name":"nope","arguments":{}}',
    '{"arguments":{}}',
    "{" * 5000,
    "[{}]",
    "<function=submit>\n</function>",
    "<function=a><parameter=b>\n1\n</parameter></function>",
)
SPOIL = ("", '"', "}", "\\", "\x00", "\ud800", ",", "NaN", "1e999", "<", "</tool_call>", "<think>", "\n")


@pytest.mark.parametrize("reads", [HERMES, XML, LLAMA], ids=["hermes", "qwen_xml", "llama_json"])
def test_ten_thousand_spoilt_calls_never_raise_and_never_submit_by_accident(reads: CallReader) -> None:
    rng = random.Random(0)
    for _ in range(10_000):
        body = rng.choice(SEEDS)
        at = rng.randrange(len(body) + 1)
        body = body[:at] + rng.choice(SPOIL) + body[at + rng.randrange(3) :]
        text = body if reads is LLAMA else f"<tool_call>\n{body}\n</tool_call>"
        got = reads.read(text)
        if reads is not LLAMA:
            assert got, text
        for call in got:
            if isinstance(call, ToolCall) and reads is not XML:
                start = body.index("{")
                value, length = json.JSONDecoder(strict=False).raw_decode(body[start:])
                key = "parameters" if "parameters" in value else "arguments"
                assert value == {"name": call.name, key: call.arguments}
                rest = body[start + length :].strip()
                assert reads is LLAMA or not rest or rest.startswith("</tool_call>")
            elif isinstance(call, ToolCall):
                assert f"<function={call.name}>" in body.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("reads", [HERMES, XML, LLAMA], ids=["hermes", "qwen_xml", "llama_json"])
def test_a_hostile_turn_takes_time_by_its_length(reads: CallReader) -> None:
    units = (";", "{", "} ", "\n", "<tool_call>", "<think></think>", "<tool_call><function=a>", "{}\n{")

    def read(length: int) -> None:
        for unit in units:
            reads.read(unit * (length // len(unit)))
        reads.read("<tool_call><function=a><parameter=b>" + "</parameter> " * (length // 13))

    assert_linear(read, 100_000)


BEGUN = (
    "<tool_call>",
    "<tool_call><function=a><parameter=b>",
    "<tool_call>a<arg_key>b</arg_key><arg_value>",
    "<|python_tag|>",
    "[TOOL_CALLS]a[CALL_ID]b",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a",
    "to=functions.a<|channel|>commentary",
    "<|channel|>commentary to=functions.a",
    '<|tool_call>call:a{b:<|"|>',
)


@pytest.mark.parametrize("name", CALL_FORMATS)
@pytest.mark.parametrize("unit", [" ", "\n", "a ", "</parameter> ", "<|constrain|>"])
def test_a_call_that_is_begun_and_never_ends_takes_time_by_its_length(name: str, unit: str) -> None:
    def read(length: int) -> None:
        for begun in BEGUN:
            text = begun + unit * (length // len(unit)) + "."
            READERS[name].read(text)
            READERS[name].reasoning_and_words(text)

    assert_linear(read, 20_000)


@pytest.mark.parametrize("reads", [HERMES, XML, LLAMA], ids=["hermes", "qwen_xml", "llama_json"])
@given(
    text=st.lists(
        st.one_of(
            st.text(max_size=5),
            st.sampled_from(
                ["<tool_call>", "</tool_call>", "<think>", "</think>", "<function=a>", *SEEDS[:3]]
            ),
            st.sampled_from(
                ["<function=a>", "<parameter=b>", "</parameter>", "</function>", "<|python_tag|>", ";", "\n"]
            ),
        )
    ).map("".join)
)
@settings(max_examples=150, deadline=None)
def test_reading_never_raises(reads: CallReader, text: str) -> None:
    for call in reads.read(text):
        assert isinstance(call, ToolCall | MalformedCall)
