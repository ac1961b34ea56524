"""The scorers beside mathematics, with the holes they must not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandbox_rl.errors import ConfigError
from sandbox_rl.rewards.base import BadGold, load_scorer
from sandbox_rl.rewards.text import clean, unbox
from sandbox_rl.rewards.units import NO_UNIT, parse_unit

from .conftest import make_task


def points(scorer: str, answer: str, gold: Any, **metadata: Any) -> Any:
    return load_scorer(scorer).score(answer, make_task(gold, scorer, **metadata))


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("B", "B", 1.0),
        ("b", "B", 1.0),
        ("(B)", "B", 1.0),
        (r"\boxed{\text{B}}", "B", 1.0),
        ("C", "B", 0.0),
        ("A,B", "B", 0.0),
        ("BAD", "B", 0.0),
        ("B because it is right", "B", 0.0),
        ("A,C", "C, A", 1.0),
        ("A and C", "A,C", 1.0),
        ("AC", "A,C", 1.0),
        ("A, C", "AC", 1.0),
        ("AC", "A", 0.0),
        ("The correct answer is **(B)**.", "B", 1.0),
        ("Therefore, my final answer is option B", "B", 1.0),
        ("The answer is not B", "B", 0.0),
        ("A", "A,C", 0.5),
        ("A,B,C,D", "A,C", 0.5),
        ("A,B,C,D,E,F,G,H,I,J", "A,C", 0.2),
        ("B,D", "A,C", 0.0),
    ],
)
def test_choice(answer: str, gold: str, expected: float) -> None:
    assert points("choice", answer, gold) == pytest.approx(expected)


ASKED = "Which is the capital of France?\nA) Rome\nB) Paris\nC) Bonn or Berlin\nD) none"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *[
            (said, 1.0)
            for said in ("**B**", "B)", "B.", "(b)", "Option B", "option (B)", "Answer: B", "`B`", "Ｂ")
        ],
        *[(said, 1.0) for said in ("B) Paris", "B. Paris", "**B) Paris**", "(B) paris.", "The answer is B")],
        *[
            (said, 1.0)
            for said in (r"\boxed{\textbf{(B)}}", r"\boxed{\text{B) Paris}}", "The correct answer is **B**")
        ],
        *[
            (said, 0.0)
            for said in ("B) Rome", "B) Paris or C) Bonn", "B. or C.", "**B** or **C**", "Option B or C")
        ],
        *[
            (said, 0.0)
            for said in ("not B", "B?", "A) Paris", "B and C", "B/C", "Paris", "B C", "C) Bonn or Berlin")
        ],
        *[
            (said, 0.0)
            for said in ("B) Paris, C) Bonn", "A) Rome B) Paris", "B, because it is", "B is wrong")
        ],
    ],
)
def test_choice_reads_the_letter_as_models_write_it(answer: str, expected: float) -> None:
    from dataclasses import replace

    task = replace(make_task("B", "choice"), prompt=ASKED)
    assert load_scorer("choice").score(answer, task) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("B) Paris", 1.0), ("B) Paris or Rome", 0.0), ("B: not A", 0.0), ("B. see C", 0.0), ("B - Paris", 1.0)],
)
def test_choice_with_a_text_where_no_options_are_known(answer: str, expected: float) -> None:
    assert points("choice", answer, "B") == expected


VARIANTS = [
    ("“Don’t panic” – now", '"Don\'t panic" - now'),
    ("zero\u200bwidth\ufeff", "zerowidth"),
    ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
    ("non\u00a0breaking", "non breaking"),
    ("−5 degrees", "-5 degrees"),
    ("ﬁne", "fine"),
    ("1‑2", "1-2"),
    ("«guillemets»", '"guillemets"'),
]


@pytest.mark.parametrize("scorer", ["exact", "f1", "rouge_l"])
@pytest.mark.parametrize(("answer", "gold"), VARIANTS)
def test_typography_does_not_decide_a_reward(scorer: str, answer: str, gold: str) -> None:
    assert points(scorer, answer, gold) == 1.0
    assert points(scorer, gold, answer) == 1.0


@pytest.mark.parametrize("scorer", ["exact", "f1", "rouge_l"])
@pytest.mark.parametrize(
    ("answer", "gold"),
    [("35", "3.5"), ("5", "-5"), ("5", "−5"), ("-3.5", "3.5"), ("3 5", "3.5"), (".5", "5")],
)
def test_decimal_points_and_minus_signs_decide(scorer: str, answer: str, gold: str) -> None:
    assert points(scorer, answer, gold) == 0.0


@pytest.mark.parametrize("scorer", ["exact", "f1"])
@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        *[
            ("105", "10⁵"),
            ("10-5", "10⁻⁵"),
            ("31/2", "3½"),
            ("-$5", "$5"),
            ("-5km", "5km"),
            ("35km", "3.5km"),
        ],
        *[("1/2", "12"), ("10:30", "1030"), ("1,5", "15"), ("2-3", "23"), ("1.2.3", "123")],
    ],
)
def test_marks_between_digits_and_raised_digits_decide(scorer: str, answer: str, gold: str) -> None:
    assert points(scorer, answer, gold) == points(scorer, gold, answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Eiffel  tower.", 1.0), ("tour eiffel", 1.0), ("Eiffel", 0.0), ("Eiffel tower or Louvre", 0.0)],
)
def test_exact_with_aliases(answer: str, expected: float) -> None:
    assert points("exact", answer, "Eiffel Tower", aliases=["Tour Eiffel"]) == expected


def test_f1_is_squads() -> None:
    assert points("f1", "the Eiffel Tower!", "eiffel tower") == 1.0
    assert points("f1", "Eiffel", "Eiffel Tower") == pytest.approx(2 / 3)
    assert points("f1", "the a an", "Eiffel Tower") == 0.0


def test_rouge_reads_powers_and_charges_with_their_signs() -> None:
    for gold, other in (("a length of 10⁻³ m", "a length of 10³ m"), ("the ion Fe³⁺", "the ion Fe³⁻")):
        assert points("rouge_l", gold.replace("⁻³", "^-3").replace("³⁺", "^3+"), gold) == 1.0
        assert points("rouge_l", other, gold) < 1.0


def test_rouge_gives_nothing_for_stop_words_or_chance() -> None:
    gold = "the cat sat on the mat in the house of a king"
    assert points("rouge_l", "the of a and in to", gold) == 0.0
    assert points("rouge_l", "a king ruled one hundred and two wide lands beyond many seas", gold) == 0.0
    assert points("rouge_l", "the cats sat on mats in the king's house", gold) > 0.5
    assert points("rouge_l", gold, gold) == 1.0
    assert points("rouge_l", "to be or not to be", "to be or not to be") == 1.0
    assert points("rouge_l", "cat " * 16_000, "cat " * 1000) == 0.0


@pytest.mark.parametrize(
    ("answer", "gold", "metadata", "expected"),
    [
        ("9.8", "9.81", {"rel_tol": 0.01}, 1.0),
        ("9.8", "9.81", {}, 0.0),
        ("0.001", "0", {"abs_tol": 0.01}, 1.0),
        ("1.2e3 J", "1.2 kJ", {}, 1.0),
        (r"1.2 \times 10^{3} \text{ J}", "1.2 kJ", {}, 1.0),
        ("5 miles", "5 km", {}, 0.0),
        ("1, 2", "1", {}, 0.0),
        ("about 5", "5", {}, 0.0),
        ("nan", "5", {}, 0.0),
        ("inf", "5", {"rel_tol": 1}, 0.0),
    ],
)
def test_numeric(answer: str, gold: str, metadata: dict[str, Any], expected: float) -> None:
    assert points("numeric", answer, gold, **metadata) == expected


@pytest.mark.parametrize("table", ["unit_pairs", "unit_table"])
def test_numbers_with_units_are_judged_right(table: str) -> None:
    lines = (Path(__file__).parent / "data" / f"{table}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    paid = [points("numeric", row["answer"], row["gold"]) for row in rows]
    assert [row for row, value in zip(rows, paid, strict=True) if value != row["equal"]] == []


def test_numeric_refuses_bad_tolerance_and_gold() -> None:
    with pytest.raises(BadGold, match="rel_tol"):
        points("numeric", "1", "1", rel_tol="much")
    with pytest.raises(BadGold, match="one number"):
        points("numeric", "1", "blue")


@pytest.mark.parametrize(
    ("spelling", "dimension"),
    [
        ("km", "length"),
        ("miles per hour", "length · time^-1"),
        ("m/s^2", "length · time^-2"),
        ("cm²", "length^2"),
    ],
)
def test_units(spelling: str, dimension: str) -> None:
    unit = parse_unit(spelling)
    assert unit is not None
    assert unit.dimension == dimension


def test_no_unit_and_no_such_unit() -> None:
    assert parse_unit("") == NO_UNIT
    assert parse_unit("not") is None


RULES = [
    ("keywords:existence", {"keywords": ["sea", "Sky"]}, "The sky and the sea", "The season"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "a Cat"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a b a", "a b"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 1, "let_relation": "less than"}, "b", "q"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        "One.",
        "One. Two.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "a b c", "a b"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "a\n\nSo it is",
        "a\n\nit is so",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\nP.S. b", "a b"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "a *b* c", "a b c"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 2},
        "PART 1\nPART 2",
        "a",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >> text"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi"}, "Say hi. hi", "hi"),
    ("startend:end_checker", {"end_phrase": "The end."}, "Well. the end.", "The end. Or not"),
    ("startend:quotation", {}, '"a"', "a"),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "at least"},
        "A b",
        "a b",
    ),
    ("change_case:english_capital", {}, "ALL", "aLL"),
    ("change_case:english_lowercase", {}, "all", "All"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), RULES, ids=[rule[0] for rule in RULES])
def test_each_rule_accepts_and_refuses(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    metadata = {"instruction_id_list": [name], "kwargs": [arguments]}
    load_scorer("rules").check_gold(make_task("-", "rules", **metadata))  # type: ignore[misc]
    assert points("rules", good, "-", **metadata) == {"value": 1.0, "rules_held": 1.0}
    assert points("rules", bad, "-", **metadata) == {"value": 0.0, "rules_held": 0.0}


def test_every_rule_is_tested() -> None:
    from sandbox_rl.rewards.rules.ifbench import IFBENCH_RULES  # in test_rules_ifbench.py
    from sandbox_rl.rewards.rules.scorer import RULES as offered

    assert {rule[0] for rule in RULES} == set(offered) - set(IFBENCH_RULES)


def test_rules_loose_and_unknown() -> None:
    metadata: dict[str, Any] = {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    assert points("rules", 'Here it is:\n"a"', "-", **metadata)["value"] == 0.0
    assert points("rules", 'Here it is:\n"a"', "-", loose=True, **metadata)["value"] == 1.0
    with pytest.raises(BadGold, match="response_language"):
        points("rules", "a", "-", instruction_id_list=["language:response_language"])
    with pytest.raises(BadGold, match="num_words"):
        points("rules", "a", "-", instruction_id_list=["length_constraints:number_words"], kwargs=[{}])


def test_reasoning_gym_wants_full_marks() -> None:
    import reasoning_gym

    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=3)[0]
    metadata = {"dataset": "chain_sum", "entry": entry}
    gold = entry["answer"]
    assert points("reasoning_gym", gold, gold, **metadata) == 1.0
    assert points("reasoning_gym", f"\\boxed{{{gold}}}", gold, **metadata) == 1.0
    hedge = f"{gold} or 17"
    assert points("reasoning_gym", hedge, gold, **metadata) == 0.0
    assert 0 < points("reasoning_gym", hedge, gold, partial=True, **metadata) < 1


def test_reasoning_gym_evaluates_arithmetic_only() -> None:
    import reasoning_gym

    entry = reasoning_gym.create_dataset("countdown", size=1, seed=1)[0]
    metadata = {"dataset": "countdown", "entry": entry}
    spaced = entry["metadata"]["expression"].replace(" ", "") + " "
    assert points("reasoning_gym", spaced, entry["answer"], **metadata) == 1.0
    assert points("reasoning_gym", "9**9**9", entry["answer"], **metadata) == 0.0


@pytest.mark.parametrize(
    ("metadata", "word"),
    [({}, "entry"), ({"dataset": "no_such", "entry": {"answer": "1", "metadata": {}}}, "no_such")],
)
def test_reasoning_gym_without_its_entry(metadata: dict[str, Any], word: str) -> None:
    with pytest.raises(BadGold, match=word):
        load_scorer("reasoning_gym").check_gold(make_task("1", **metadata))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("maths", "did you mean 'math'"),
        ("no_such_module:f", "no_such_module"),
        ("json:nothing", "nothing"),
        ("string:digits", "expected a function"),
    ],
)
def test_unknown_scorer_is_reported(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_scorer(name)


def test_answer_text_has_one_documented_form() -> None:
    assert clean("\ufeff 42\r\n\0\n") == "42"
    assert clean("a\r\nb\rc") == "a\nb\nc"


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (r"\boxed{4}", "4"),
        (r" $\boxed{\frac{1}{2}}$. ", r"\frac{1}{2}"),
        (r"\boxed{1}\boxed{2}", r"\boxed{1}\boxed{2}"),
        (r"so \boxed{1}", r"so \boxed{1}"),
        ("$1$ or $2$", "$1$ or $2$"),
        (r"\[ x \]", "x"),
    ],
)
def test_unbox(text: str, inner: str) -> None:
    assert unbox(text) == inner
