"""Only what is provably abandoned counts as such."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from sandbox_rl.sandboxes.ownership import LABEL, OwnedDirectory, is_orphan, owner_labels

PLACE, EXPIRY = "sandbox-rl.place", "sandbox-rl.expires"


def ended_owner() -> str:
    """The label of a process that has been and is gone."""
    code = "from sandbox_rl.sandboxes.ownership import *; print(owner_labels(60)[LABEL])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_a_living_owner_keeps_its_own():
    assert not is_orphan(owner_labels(60))


def test_a_dead_owner_has_left_it():
    assert is_orphan(owner_labels(60) | {LABEL: ended_owner()})


def test_another_process_with_the_same_number_is_another_owner():
    labels = owner_labels(60)
    pid, start = labels[LABEL].split(":")
    assert is_orphan(labels | {LABEL: f"{pid}:{int(start) - 1}"})


def test_expiry_counts_whoever_owns_it():
    assert is_orphan(owner_labels(-1))
    assert is_orphan(owner_labels(-1) | {PLACE: "elsewhere"})


@pytest.mark.parametrize("place", ["", "another boot/4026531836"])
def test_owners_elsewhere_cannot_be_judged(place):
    assert not is_orphan(owner_labels(60) | {LABEL: ended_owner(), PLACE: place})


@pytest.mark.parametrize("key", [LABEL, EXPIRY])
@pytest.mark.parametrize("value", ["", "nonsense", "-5", "1:2:3"])
def test_labels_that_are_not_ours_are_left_alone(key, value):
    assert not is_orphan(owner_labels(60) | {key: value})


def test_directories_of_killed_owners_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code = "from sandbox_rl.sandboxes.ownership import *; d = OwnedDirectory('x-'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    (left,) = tmp_path.glob("x-*")
    (left / "socket").touch()
    place, dead = left.name.split("-", 2)[1:]
    others = [tmp_path / f"x-{place[::-1]}-{dead}", tmp_path / f"y-{place}-{dead}", tmp_path / f"x-{place}-"]
    for directory in others:
        directory.mkdir()
    with closing(OwnedDirectory("x-")) as mine, closing(OwnedDirectory("x-")):
        assert not left.exists()
        assert mine.path.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted(others)
