"""A checkpoint counts only when all of it is there."""

from __future__ import annotations

import pytest

from sandbox_rl.training.checkpoints import (
    SAVING,
    damage_of,
    is_complete,
    last_complete,
    last_intact,
    mark_complete,
    prune,
    publish,
)


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
    assert damage_of(path)


def test_other_content_of_the_same_size_is_found_before_a_run_goes_on_from_it(tmp_path):
    good, bad = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    (bad / "model.safetensors").write_bytes(b"y" * 1000)
    assert is_complete(bad), "a listing reads no contents"
    assert last_intact(tmp_path) == (good, {bad: "model.safetensors differs from its SHA-256"})


def test_pruning_keeps_the_newest_and_counts_only_complete_ones(tmp_path):
    for step in (1, 2, 9, 10):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 11, complete=False)
    prune(tmp_path, None)
    assert is_complete(tmp_path / "checkpoint-1")
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11", "checkpoint-9"]
    prune(tmp_path, 1)
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_a_torn_checkpoint_of_the_same_step_gives_way(tmp_path):
    torn, new = checkpoint(tmp_path, 3, complete=False), checkpoint(tmp_path / SAVING, 3, complete=False)
    publish(new, torn)
    assert damage_of(torn) is None
