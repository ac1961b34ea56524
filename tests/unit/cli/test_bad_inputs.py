"""One table over all commands: a wrong input is one line that names it, exit code 2, nothing changed."""

from __future__ import annotations

import os

import pytest
import typer

from sandbox_rl import cli
from tests.unit.cli.bad_inputs import prepare, rows

ROWS = rows()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("inputs")
    prepare(directory)
    return directory


def tree(directory):
    return {
        str(p.relative_to(directory)): (
            p.lstat().st_mode,
            None if p.is_dir() or p.is_symlink() else p.read_bytes(),
        )
        for p in sorted(directory.rglob("*"))
    }


def test_the_table_is_long_and_covers_every_command():
    assert len(ROWS) >= 110
    commands = set(typer.main.get_command(cli.whole_app()).commands)
    assert commands <= {line[0] for line, _ in ROWS} | {"version"}


@pytest.mark.parametrize(("line", "named"), ROWS, ids=[" ".join(line) for line, _ in ROWS])
def test_a_wrong_input_is_one_line_and_changes_nothing(place, monkeypatch, capfd, line, named):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    before = tree(place)
    environment = dict(os.environ)
    with pytest.raises(SystemExit) as ended:
        cli.main(list(line))
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    said = capfd.readouterr().err
    assert ended.value.code == 2, said
    assert "Traceback" not in said
    for word in named:
        assert word in said, said
    errors = [text for text in said.splitlines() if text.startswith("Error: ")]
    usage = said.startswith("Usage:")  # what Typer itself says about options and arguments
    assert usage or len(errors) == 1, said
    if not usage:
        assert said.splitlines()[-1] == errors[0], said
    assert tree(place) == before
