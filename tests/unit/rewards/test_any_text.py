"""Whatever the answer says, a scorer gives a finite number in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_rl.rewards.base import load_scorer
from sandbox_rl.rewards.text import clean

from .conftest import make_task

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "math": (r"\frac{x+1}{2}", {}),
    "choice": ("A,C", {}),
    "exact": ("Paris", {}),
    "f1": ("the city of Paris", {}),
    "rouge_l": ("the city of Paris lies on the Seine", {}),
    "numeric": ("3.5 km", {}),
    "rules": ("-", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
}

PIECES = st.sampled_from(
    [
        *"0123456789()[]{}^!,.$%+-*/=_<>|&~'\"abexyAC \n",
        *("\\frac", "\\boxed{", "\\text{km}", "\\sqrt", "\\pi", "\\{", "\\}", "\\left(", "\\begin{pmatrix}"),
        *("or", "and", "km", "miles", "½", "∞", "²", "\u2028", "\ud800"),
    ]
)


@pytest.mark.parametrize("name", CASES)
@given(st.lists(PIECES, max_size=25).map("".join) | st.text(max_size=60))
@settings(max_examples=120, deadline=None)
def test_any_text_is_scored(name: str, text: str) -> None:
    gold, metadata = CASES[name]
    result: Any = load_scorer(name).score(clean(text) or "-", make_task(gold, name, **metadata))
    value = result["value"] if isinstance(result, Mapping) else result
    assert math.isfinite(value)
    assert 0.0 <= value <= 1.0
