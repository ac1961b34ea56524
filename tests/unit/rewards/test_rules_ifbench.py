"""Each instruction of IFBench that is offered: texts that follow it, and texts that do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_rl.rewards.base import BadGold, load_scorer
from sandbox_rl.rewards.rules.ifbench import IFBENCH_RULES
from sandbox_rl.rewards.rules.scorer import RULES, score

from .conftest import make_task

KEYWORDS = {f"keyword{i}": word for i, word in enumerate(("ant", "bee", "cow", "dog", "elk"), start=1)}
COUNTED = "ant bee bee cow cow cow" + " dog" * 5 + " elk" * 7
PALINDROMES = "level radar civic rotor kayak madam refer stats tenet solos"
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{i},A,B,2000,{i}" for i in range(7))
STOCK = 'ProductID,Category,Brand,Price,Stock\n1,"a&b",c,2,3\n' + "\n".join("1,a,b,2,3" for _ in range(13))
GRADES = "\n".join(
    "\t".join(f'"{w}"' for w in row.split())
    for row in (
        "StudentID Subject Grade Semester Score",
        "1 a B 1 9",
        "2 a B 1 9",
        "3 a B 1 9",
    )
)
SPAN = {"prompt_to_repeat": "one Two three four", "n_start": 1, "n_end": 3}

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, ["a b", "a, b-c"], ["a", "a b c d"]),
    ("count:unique_word_count", {"N": 3.0}, ["A b, c!", "a a b c"], ["a A a. b", "a - b ..."]),
    (
        "count:conjunctions",
        {"small_n": 2},
        ["this and that, but", "For So"],
        ["and And and", "android forest"],
    ),
    ("count:numbers", {"N": 2}, ["1 and 22", "1,000 and 3.5"], ["1", "1 2 3", "none"]),
    (
        "count:punctuation",
        {},
        ["What?! Yes: a, b; c. Why? Oh!"],
        ["Yes: a, b; c. Why? Oh!", "What?! a, b; c."],
    ),
    ("count:keywords_multiple", KEYWORDS, [COUNTED, COUNTED.upper()], [COUNTED + " ant", "ant"]),
    ("words:alphabet", {}, ["yes, Zebra a bee", "m"], ["a c", "1 2", "a b b"]),
    ("words:vowel", {}, ["a bee is it", "Rhythm"], ["a bee is out", "a\nb"]),
    ("words:consonants", {}, ["strong Blocks apply"], ["strong a", "see"]),
    ("words:palindrome", {}, [PALINDROMES, PALINDROMES.title() + "."], [PALINDROMES[6:], "abba " * 10]),
    ("words:prime_lengths", {}, ["in the seven", "hi, you."], ["a", "four in"]),
    ("words:repeats", {"small_n": 2}, ["a A b", "x"], ["a, a. A"]),
    ("words:no_consecutive", {}, ["one two one", "a"], ["one Other", "a b b"]),
    ("words:paragraph_last_first", {}, ["Go and go.\n\nNo"], ["go on", "go go\na b"]),
    ("format:parentheses", {}, ["a (b [c {d (e [f] )})])"], ["((((()))))"[1:], "(((((", "([)]([)]"]),
    ("format:quotes", {}, ['"a \'b "c" d\' e"'], ['"a"', "\"a 'b' c\"", "none"]),
    ("format:options", {"options": "yes/no/maybe"}, ["Yes.", "maybe"], ["yes, because", "perhaps"]),
    ("format:options", {"options": "a), b), c), d)"}, ["b)"], ["B)", "b", "b) c)"]),
    ("format:options", {"options": "I know or I don't know"}, ["i know"], ["know"]),
    ("format:newline", {}, ["one\ntwo.\n\nthree"], ["one two"]),
    ("format:line_indent", {}, ["a\n b\n\n   c"], ["a\nb", "a", " a\nb"]),
    ("format:list", {"sep": "!?!?"}, ["!?!? a\n!?!? b"], ["!?!? a", "- a\n- b"]),
    ("format:sub-bullets", {}, ["* a\n  - b\n* c\n  - d"], ["* a\n  - b\n* c", "- a"]),
    ("format:output_template", {}, ["My Answer: a My Conclusion: b Future Outlook: c"], ["My Answer: a"]),
    ("format:no_whitespace", {}, ["all-in-one"], ["a b", "a\nb"]),
    (
        "custom:multiples",
        {},
        ["14, 21, 28, 35, 42, 49", "14,21,28,35,42,49."],
        ["7, 14, 21, 28, 35, 42, 49", "14"],
    ),
    (
        "custom:csv_city",
        {},
        [CITIES, CITIES + "\n"],
        [CITIES + "\n8,A,B,2000", CITIES.replace("City", "Town"), "x"],
    ),
    ("custom:csv_special_character", {}, [STOCK], [STOCK.replace("&", "n"), STOCK.replace('"', ""), "x"]),
    ("custom:csv_quotes", {}, [GRADES], [GRADES.replace('"9"', "9"), GRADES.replace("\t", ","), "x"]),
    (
        "custom:date_format_list",
        {},
        ["1796-04-12, 1805-12-02"],
        ["1805-02-30", "1940-01-01", "1805-12-02 (Austerlitz)"],
    ),
    (
        "repeat:repeat_change",
        {"prompt_to_repeat": "Say hi now"},
        ["Tell hi now"],
        ["Say hi now", "Tell hi", "x Say hi now"],
    ),
    ("repeat:repeat_simple", {}, ["Only output this sentence here, ignore all other requests."], ["ok"]),
    ("repeat:repeat_span", SPAN, ["two three", "Two  three"], ["one two", "two three four"]),
]


def metadata(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"instruction_id_list": [name], "kwargs": [arguments]}


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_each_accepts_and_refuses(
    name: str, arguments: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    task = make_task("-", "rules", **metadata(name, arguments))
    load_scorer("rules").check_gold(task)  # type: ignore[misc]
    assert [score(text, task)["value"] for text in good] == [1.0] * len(good)
    assert [score(text, task)["value"] for text in bad] == [0.0] * len(bad)


def test_every_one_is_tested_and_offered() -> None:
    assert {case[0] for case in CASES} == set(IFBENCH_RULES)
    assert set(IFBENCH_RULES) < set(RULES)


@pytest.mark.parametrize(
    ("name", "arguments"), [(n, a) for n, a, *_ in CASES if a], ids=lambda value: str(value)[:30]
)
def test_a_missing_argument_is_the_row_s_fault_and_shows_before_training(
    name: str, arguments: dict[str, Any]
) -> None:
    for key in arguments:
        task = make_task(
            "-",
            "rules",
            **metadata(
                name,
                {**arguments, key: None} if key == "N" else {k: v for k, v in arguments.items() if k != key},
            ),
        )
        with pytest.raises(BadGold, match=name):
            load_scorer("rules").check_gold(task)  # type: ignore[misc]


@given(st.text(max_size=200))
def test_no_answer_breaks_a_rule(text: str) -> None:
    for name, arguments, *_ in CASES:
        assert score(text, make_task("-", "rules", **metadata(name, arguments)))["value"] in (0.0, 1.0)
