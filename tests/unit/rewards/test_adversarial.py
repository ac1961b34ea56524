"""Answers made to stall, crash or deceive a scorer. The gold answer is 42 throughout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile_answers import BACKTRACKING, FACTORIALS, NESTING, TOWERS

from .conftest import ScoreNow

BOMBS = {
    "towers": TOWERS,
    "factorials and sums": FACTORIALS,
    "nesting": NESTING,
    "backtracking": BACKTRACKING,
    "huge integers": ["9" * 5000, "9" * 60000],
}

HEDGES = [
    " ".join(map(str, range(1000))),
    "41 42",
    "42 or 43",
    "42\n43",
    r"\boxed{41} \boxed{42}",
    r"\boxed{\{0,1,...,99\}}",
    r"\boxed{41=42}",
    "The answer is not 42.",
    "not 42",
    "Candidates: 1, 2, 42",
    r"\boxed{\mathbb{R}}",
    r"\boxed{x}",
    "42%",
]

NOT_FINITE = ["nan", "NaN", "inf", "-inf", r"\boxed{\infty}", r"\boxed{0/0}", r"\boxed{\frac{1}{0}}", "zoo"]
NOT_FINITE += [r"\boxed{\text{nan}}"]


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_score_zero_at_once(score: ScoreNow, kind: str) -> None:
    """By the scorer's own verdict: one that is killed, after 1.5 s of a processor, says so."""
    for answer in BOMBS[kind]:
        reward = score(answer, "42")
        assert (reward.value, reward.parts, reward.detail) == (0.0, {}, ""), answer[:40]
    assert score("42", "42").value == 1.0


def test_leading_zeros_are_judged(score: ScoreNow) -> None:
    assert score("0" * 5000 + "42", "42").value in (0.0, 1.0)


@pytest.mark.parametrize("answer", HEDGES + NOT_FINITE)
def test_hedges_and_non_numbers_score_zero(score: ScoreNow, answer: str) -> None:
    assert score(answer, "42").value == 0.0


def test_nan_gold_is_finite_or_unjudged(score: ScoreNow) -> None:
    assert score("nan", "nan").value in (0.0, 1.0, None)


@pytest.mark.parametrize("scorer", ["math", "reasoning_gym", "numeric"])
def test_code_is_never_run(score: ScoreNow, scorer: str, tmp_path: Path) -> None:
    target = tmp_path / "PWNED"
    entry = {"question": "", "answer": "42", "metadata": {"numbers": [6, 7], "target": 42}}
    answers = [
        f"__import__('os').system('touch {target}')",
        f"exec(\"open('{target}','w')\")",
        f"open('{target}', 'w')",
        f"open({target.as_posix()!r}, 'w') and 42",
        "().__class__.__base__.__subclasses__()",
        f"\\boxed{{__import__('os').system('touch {target}')}}",
        "lambda: 42",
        "Symbol('x').subs",
    ]
    for answer in answers:
        assert score(answer, "42", scorer, dataset="countdown", entry=entry).value == 0.0, answer
    assert not target.exists()
