"""What counts as the same mathematical answer, and what does not."""

from __future__ import annotations

import pytest

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.maths import check_gold, equal

from .conftest import make_task

EQUAL = [
    ("42", "42"),
    (r"\boxed{42}", "42"),
    ("$\\boxed{42}$.", "42"),
    ("x = 42", "42"),
    ("42.0", "42"),
    ("1,000", "1000"),
    (r"1{,}000", "1000"),
    ("0.5", r"\frac{1}{2}"),
    ("1/2", r"\frac12"),
    ("3 1/2", "7/2"),
    ("1.5e3", "1500"),
    (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2"),
    (r"\frac{2}{3}\pi", r"\frac{2\pi}{3}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2x+1", "y = 2x+1"),
    ("2, 1", "1, 2"),
    ("x=1, x=2", "1,2"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("(1,2)", "(1, 2)"),
    (r"(-\infty, 3]", r"(-\infty,3]"),
    (r"(1,2)\cup(3,4)", r"(1,2) \cup (3,4)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("5 km", r"5\text{ km}"),
    ("5000 m", "5 km"),
    ("5", "5 km"),
    ("3 m/s", "3 meters per second"),
    ("12 square meters", "12 m^2"),
    (r"60^\circ", "60"),
    ("$5", "5 dollars"),
    ("42%", "0.42"),
    (r"42\%", "42%"),
    (r"\text{Friday}", "Friday"),
    ("no", "No"),
    ("6!", "720"),
    ("2^{10}", "1024"),
]

DIFFERENT = [
    ("41", "42"),
    ("-42", "42"),
    ("5 miles", "5 km"),
    ("5 km/h", "5 km"),
    ("5 km", "5 km^2"),
    ("42%", "42"),
    ("No way", "No"),
    ("cat", "tac"),
    ("42 apples", "42"),
    ("42 pears", "42 apples"),
    ("y=5", "x=5"),
    ("1,2", "1"),
    ("1", "1,2"),
    ("1,1", "1,2"),
    ("(0,1)", "[0,1]"),
    ("(2,1)", "(1,2)"),
    ("x^2+2x+2", "(x+1)^2"),
    (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt{2}}{2}"),
    ("2x+1 = 3", "2x+1"),
    ("the answer is 42", "42"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer: str, gold: str) -> None:
    assert equal(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer: str, gold: str) -> None:
    assert not equal(answer, gold)


@pytest.mark.parametrize("gold", [None, 42, "", "\\frac{", "\\boxed{1} or \\boxed{2}", "1 2 3"])
def test_malformed_gold_is_told(gold: object) -> None:
    with pytest.raises(BadGold, match="gold answer"):
        check_gold(make_task(gold))


@pytest.mark.parametrize("gold", [gold for _, gold in EQUAL])
def test_sound_gold_passes(gold: str) -> None:
    check_gold(make_task(gold))
