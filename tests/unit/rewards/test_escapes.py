"""A right answer is not lost because a backslash was: it is paid, or the policy is told."""

from __future__ import annotations

import pytest

from sandbox_rl.rewards.escapes import other_reading, restored, swallowed
from sandbox_rl.rewards.text import clean
from tests.unit.rewards.escape_corpus import ANSWERS, WAYS, outcomes

IRRECOVERABLE = {("echo without quotes", r"\tan\theta")}
"""The shell made one word of two: `tantheta`."""


def test_every_answer_of_the_corpus_is_rewarded_or_the_policy_is_told(tmp_path):
    found = list(outcomes(tmp_path))
    assert len(found) == len(ANSWERS) * len(WAYS)
    unheard = {(o.way, o.meant) for o in found if o.as_read < 1 and o.told is None}
    assert unheard == IRRECOVERABLE
    assert sum(o.as_it_is for o in found) < 0.6 * sum(o.as_read for o in found)  # it is not for nothing


@pytest.mark.parametrize(
    ("answer", "gold", "reward"),
    [
        ("\x08oxed{7}", "7", 1.0),
        ("\x08oxed{8}", "7", 0.0),
        ("\x0crac{1}{2}", "0.5", 1.0),
        ("3\times 10^2", "300", 1.0),
        ("\nu", r"\nu", 1.0),
        ("\nu", "u", 1.0),
        ("\rho\n", r"\rho", 1.0),
        ("\nu", "v", 0.0),
        ("7\neq", "7", 0.0),
    ],
)
def test_the_pool_reads_an_answer_both_ways(score, answer, gold, reward):
    assert score(answer, gold).value == reward


def test_other_scorers_are_given_what_is_certain_and_rules_no_other_reading(score):
    assert score("\x08oxed{B}", "B", "choice").value == 1.0
    assert score("\nu", r"\nu", "exact").value == 1.0
    # Four words on two lines: whether a line break is one decides a rule, and it is one.
    rule = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert score("a\neq", "", "rules", **rule).value == 1.0


@pytest.mark.parametrize(
    "text",
    ["a\tb\nnot so\r\nend", "page\x0cChapter 2", "\x1b[1mbold\x1b[0m", "x\nu = 1", "bell\x07", "a\x08b", ""],
)
def test_ordinary_text_keeps_its_control_characters(text):
    assert restored(text) == text


def test_a_page_break_or_a_table_is_not_read_otherwise():
    assert clean("page\x0cChapter") == "page\x0cChapter"
    assert other_reading("a\tb\n1\t2\nnone\nThe text in vec") is None


def test_what_an_escape_left_in_a_call_is_found_and_code_is_left_alone():
    assert swallowed("echo '\x08oxed{7}' > answer.txt") == ("\x08", "oxed{7}' > answer.tx")
    assert swallowed("grep '\x08word'") == ("\x08", "word'")
    assert swallowed("x = '3 \times 4'") == ("\t", "imes 4'")
    assert swallowed("all:\n\techo\n\to := 1\n\tan\nnu = 2\nneq = 3\r\n") is None
