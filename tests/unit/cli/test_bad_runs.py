"""Every command that takes a run: what is none, or of another version, is one line and exit code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer

from sandbox_rl import cli
from tests.played_runs import sync_run
from tests.processes import at_work
from tests.unit.cli.bad_inputs import prepare
from tests.unit.cli.test_bad_inputs import tree

COMMANDS = {
    "bundle": ("bundle", "RUN", "--output", "new.zip"),
    "check": ("check", "RUN"),
    "compare": ("compare", "RUN", "RUN"),
    "eval": ("eval", "r.yaml", "--output", "RUN", "--resume"),
    "export": ("export", "RUN", "new"),
    "export-episodes": ("export-episodes", "RUN", "new.jsonl"),
    "replay": ("replay", "RUN", "train-000000-0000"),
    "replay --rescore": ("replay", "RUN", "--rescore", "reward.scorer=exact", "--output", "new.jsonl"),
    "replay --to-step": ("replay", "RUN", "--to-step", "2"),
    "show": ("show", "RUN"),
    "show EPISODE": ("show", "RUN", "train-000000-0000"),
    "tokens": ("tokens", "RUN", "train-000000-0000"),
    "train": ("train", "r.yaml", "--resume", "RUN"),
    "verify": ("verify", "RUN"),
    "view": ("view", "RUN", "--export", "new.html"),
}
"""Of each command that is given a run, or what one has written, a line with RUN in its place."""
READS_LIVE_RUNS = {"bundle", "export", "export-episodes", "replay", "show", "tokens", "view"}
"""What a run has written so far is whole: lines, and checkpoints once they are seen."""


def test_the_table_has_every_command_that_takes_a_run():
    app = typer.main.get_command(cli.whole_app())
    taking = {
        name
        for name, command in app.commands.items()
        if any("RUN" in (parameter.metavar or "") for parameter in command.params)
    }
    assert "show" in taking
    assert taking <= {line[0] for line in COMMANDS.values()}


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Path:
    return sync_run(tmp_path_factory.mktemp("played"), 2, save_at=(2,))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    return tmp_path


def a_file(run: Path, played: Path) -> None:
    run.write_text("mine")


def empty(run: Path, played: Path) -> None:
    run.mkdir()


def foreign(run: Path, played: Path) -> None:
    run.mkdir()
    (run / "mine.txt").write_text("mine")
    (run / "journal.txt").write_text("mine")


def newer(run: Path, played: Path) -> None:
    """As a later version may write all that has a format; what it is else nobody knows."""
    shutil.copytree(played, run)
    first, *rest = (run / "history.jsonl").read_text().splitlines(keepends=True)
    told = json.dumps(json.loads(first) | {"format": 99})
    (run / "history.jsonl").write_text("".join([told, "\n", *rest]))
    (run / "results.json").write_text('{"format": 99}')
    (run / "evaluation.json").write_text('{"format": 99}')


def half_written(run: Path, played: Path) -> None:
    """Killed as it began."""
    run.mkdir()
    (run / "history.jsonl").write_text('{"event": "sta')
    (run / "recipe.yaml").write_text("name: r\nmodel: {pa")
    (run / "evaluation.json").write_text('{"form')
    (run / "ledger.jsonl").write_text('{"led')


def missing(run: Path, played: Path) -> None:
    pass


@pytest.mark.parametrize("state", [missing, a_file, empty, foreign, newer, half_written])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_run_is_one_line_and_stays_as_it_is(place, played, capfd, command, state):
    state(place / "the-run", played)
    refused(place, capfd, command)


@pytest.mark.parametrize("command", sorted(c for c in COMMANDS if c.split()[0] not in READS_LIVE_RUNS))
def test_a_run_that_another_process_writes_is_left_alone(place, played, capfd, command):
    shutil.copytree(played, place / "the-run")
    with at_work(place / "the-run") as pid:
        said = refused(place, capfd, command)
    if command in ("check", "train"):
        assert f"process {pid}" in said


def refused(place: Path, capfd: pytest.CaptureFixture[str], command: str) -> str:
    """What the command says about the run `the-run`, which it must not take."""
    line = [word.replace("RUN", "the-run") for word in COMMANDS[command]]
    before = tree(place)
    with pytest.raises(SystemExit) as ended:
        cli.main(line)
    said = capfd.readouterr().err
    assert ended.value.code == 2, said
    errors = [text for text in said.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 1, said
    assert said.splitlines()[-1] == errors[0], said
    assert "the-run" in errors[0]
    assert "Traceback" not in said
    assert tree(place) == before
    return said
