"""A few steps of what `scripts/check_audits.py` trains: healthy steps raise no alarm."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "check_audits.py"
spec = importlib.util.spec_from_file_location("check_audits", PATH)
check_audits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_audits)


@pytest.mark.parametrize("kind", ["over-sampling, faults", "refilled groups", "parts of micro-batches"])
def test_healthy_steps_raise_no_alarm(tmp_path, kind):
    assert check_audits.sync_alarms(tmp_path, 3, check_audits.SYNC[kind]) == []


@pytest.mark.parametrize("kind", ["old tokens", "faults and masked rows"])
def test_healthy_asynchronous_steps_raise_no_alarm(tmp_path, kind):
    assert check_audits.async_alarms(tmp_path, 5, check_audits.ASYNC[kind]) == []
