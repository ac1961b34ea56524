"""What is seen of something that takes long, with a terminal and without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sandbox_rl import terminal


def shown(monkeypatch: pytest.MonkeyPatch, *, every: float, to_terminal: bool) -> str:
    monkeypatch.setattr(terminal, "LOG_EVERY", every)
    written = io.StringIO()
    console = Console(file=written, force_terminal=to_terminal, width=100)
    with terminal.Terminal(console).progress("Fine-tuning", 3) as bar:
        bar.note("loss 0.500")
        bar.step()
        bar.advance(1.0)
        bar.advance(None)
    return written.getvalue()


def test_a_log_file_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, every=0.0, to_terminal=False).splitlines()
    assert lines[:3] == [
        "Fine-tuning: 1/3  loss 0.500",
        "Fine-tuning: 2/3  reward 1.00",
        "Fine-tuning: 3/3  reward 1.00  faults 1",
    ]


@pytest.mark.parametrize(("every", "to_terminal"), [(3600.0, False), (0.0, True)])
def test_lines_are_few_and_only_where_no_bar_is_seen(
    every: float, to_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Fine-tuning:" not in shown(monkeypatch, every=every, to_terminal=to_terminal)
