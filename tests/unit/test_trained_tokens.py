"""The column of what updates made of tokens: what was written comes back, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sandbox_rl.journal.columns import ColumnError
from sandbox_rl.journal.trained import BYTES, TrainedRow, TrainedTokens, read_rows


def row(episode: str, *values: float, first: int = 0) -> TrainedRow:
    logs = np.linspace(-3, -0.001, len(values)).astype(np.float32)
    return TrainedRow(episode, first, logs, np.array(values, np.float32))


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "0002-0001.jsonl").read_text().splitlines()]


def test_rows_come_back(tmp_path):
    rows = [row("a", 0.5, -0.25, 1e-9), row("b"), row("c", 0.0, 0.0, first=7)]
    tokens = TrainedTokens(tmp_path / "trained", start=2, process=1)
    tokens.write(4, rows)
    tokens.write(5, [row("a", -3e-8, 1e-8)])
    first, second = lines(tmp_path / "trained")
    assert (first["update"], second["update"]) == (4, 5)
    assert first["gradient"] == pytest.approx(0.75)
    for line, written in ((first, rows), (second, [row("a", -3e-8, 1e-8)])):
        for found, made in zip(read_rows(tmp_path / "trained", "0002-0001", line), written, strict=True):
            assert (found.episode, found.first) == (made.episode, made.first)
            assert np.array_equal(found.log_probs, made.log_probs)
            largest = np.abs(made.gradients).max(initial=0.0)
            assert np.allclose(found.gradients, made.gradients, rtol=1e-3, atol=1e-6 * largest)
    assert (tmp_path / "trained" / "0002-0001.values").stat().st_size == BYTES * 7


def test_a_gradient_that_is_not_finite_is_no_number(tmp_path):
    TrainedTokens(tmp_path / "trained", start=2, process=1).write(1, [row("a", float("nan"), 1.0)])
    (line,) = lines(tmp_path / "trained")
    assert line["gradient"] is None
    (found,) = read_rows(tmp_path / "trained", "0002-0001", line)
    assert np.isnan(found.gradients).all()
    assert np.isfinite(found.log_probs).all()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_values_that_were_changed_are_refused(tmp_path, damage):
    TrainedTokens(tmp_path / "trained", start=2, process=1).write(1, [row("a", 0.5, 1.0)])
    values = tmp_path / "trained" / "0002-0001.values"
    values.write_bytes(damage(values.read_bytes()))
    (line,) = lines(tmp_path / "trained")
    with pytest.raises(ColumnError, match="cut or changed"):
        read_rows(tmp_path / "trained", "0002-0001", line)
