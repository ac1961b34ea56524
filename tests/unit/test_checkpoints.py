"""A checkpoint counts only when all of it is there."""

from __future__ import annotations

import pytest

from sandbox_rl.training.checkpoints import is_complete, last_complete, mark_complete


def checkpoint(directory, step, *, complete=True):
    path = directory / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * 1000)
    (path / "inner" / "state.json").write_text("{}")
    if complete:
        mark_complete(path)
    return path


def test_the_newest_complete_checkpoint_is_chosen(tmp_path):
    checkpoint(tmp_path, 9)
    expected = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, complete=False)
    (tmp_path / "checkpoint-tmp").mkdir()
    assert last_complete(tmp_path) == expected


def test_there_may_be_none(tmp_path):
    assert last_complete(tmp_path / "missing") is None
    checkpoint(tmp_path, 1, complete=False)
    assert last_complete(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "model.safetensors").write_bytes(b"x" * 999),
        lambda path: (path / "inner" / "state.json").unlink(),
        lambda path: (path / "complete.json").write_text('{"files": {}}'),
        lambda path: (path / "complete.json").write_text('{"files'),
        lambda path: (path / "complete.json").write_text("[]"),
    ],
)
def test_a_damaged_checkpoint_is_not_complete(tmp_path, damage):
    path = checkpoint(tmp_path, 1)
    assert is_complete(path)
    damage(path)
    assert not is_complete(path)
