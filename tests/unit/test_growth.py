"""The judge of how work grows tells what is linear from what is not."""

from __future__ import annotations

import pytest

from tests.growth import assert_linear


def test_linear_work_passes():
    assert_linear(lambda size: sum(range(size)), 400_000)


def test_quadratic_work_is_found():
    with pytest.raises(AssertionError, match="times as long"):
        assert_linear(lambda size: [sum(range(size)) for _ in range(size)], 1600)
