"""`--resume` with and without a run's name, wherever it stands."""

from __future__ import annotations

import pytest
import typer

from sandbox_rl import cli


@pytest.mark.parametrize(
    ("words", "resume", "overrides"),
    [
        (["r.yaml"], None, None),
        (["r.yaml", "--resume"], "", None),
        (["--resume", "r.yaml"], "", None),
        (["r.yaml", "--resume", "a.b=1"], "", ["a.b=1"]),
        (["r.yaml", "--resume", "quickstart-2", "a.b=1"], "quickstart-2", ["a.b=1"]),
        (["r.yaml", "--resume=runs/quickstart"], "runs/quickstart", None),
        (["r.yaml", "--resume", "--dry-run"], "", None),
    ],
)
def test_what_follows_it(words, resume, overrides):
    command = typer.main.get_command(cli.whole_app()).commands["train"]
    context = command.make_context("train", list(words))
    assert str(context.params["recipe"]) == "r.yaml"
    assert context.params["resume"] == resume
    assert list(context.params["overrides"] or []) == (overrides or [])
