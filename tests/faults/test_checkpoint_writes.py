"""FI-15: a save of a checkpoint that fails, or is killed, at each of its writes, flushes and renames."""

from __future__ import annotations

import sys

import pytest

from tests import prepared


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.faults)])
def test_a_cut_save_leaves_the_checkpoint_before_or_the_whole_new_one(every, tmp_path):
    done = prepared.run(
        [sys.executable, "-m", "tests.faults.interrupted_saves", str(tmp_path), str(every)], timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") >= 12
