"""The audit of updates where several processes train: each watches the weights that it holds."""

from __future__ import annotations

import pytest

from sandbox_rl.audit.alarms import AlarmName
from tests.smoke.audit_paths import STEPS
from tests.smoke.test_launch import in_two_processes


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_weights_that_something_else_writes_to_are_named_where_they_lie(way, tmp_path):
    in_two_processes("audit_paths", way, tmp_path)
    said = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert said["healthy-0"] == said["healthy-1"] == f"[] {STEPS} 1.00 1.00"
    assert AlarmName.WEIGHTS_CHANGED not in said["undone-0"]
    assert AlarmName.WEIGHTS_CHANGED in said["undone-1"]
