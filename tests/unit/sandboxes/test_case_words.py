"""What `self-check` shows of a case."""

from __future__ import annotations

import pytest

from sandbox_rl.sandboxes.cases import ALL_CASES, CONTROLS


@pytest.mark.parametrize("case", [*CONTROLS, *ALL_CASES], ids=lambda case: case.id)
def test_an_attack_is_named_in_a_sentence(case):
    """Which says who does what; those that show a command in the end of it have no full stop."""
    assert case.title[0].isupper()
    assert case.title.endswith(".") or ": " in case.title
    assert len(case.title.split()) >= 5
    assert case.required.endswith(".")
