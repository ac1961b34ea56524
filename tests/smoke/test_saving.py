"""A file of a checkpoint that one of two processes cannot write ends both, alike, and leaves nothing torn."""

from __future__ import annotations

import pytest

from sandbox_rl.training.checkpoints import is_complete
from tests.smoke.saves import FAULTS
from tests.smoke.test_launch import in_two_processes


@pytest.mark.parametrize("way", FAULTS)
def test_a_write_that_fails_ends_both_processes_with_one_message(way, tmp_path):
    in_two_processes("saves", way, tmp_path)
    for fault in FAULTS[way]:
        name = fault.replace("/", ".")
        said = [(tmp_path / f"{name}-{rank}.txt").read_text() for rank in range(2)]
        assert [text.partition(":")[0] for text in said] == [
            "SetupError said_elsewhere=False",
            "SetupError said_elsewhere=True",
        ], (fault, said)
        assert all("no space" in text.lower() for text in said), (fault, said)
        left = {path.name for path in (tmp_path / name).iterdir()}
        assert left <= {"README.md"}, fault
    assert is_complete(tmp_path / "none" / "checkpoint-2")
