"""A model divided by DeepSpeed's ZeRO-3: trained, published, saved, resumed and exported by two processes."""

from __future__ import annotations

import json

import pytest

from tests import prepared


def test_two_processes_divide_one_model_by_zero_3(tmp_path, monkeypatch):
    """DeepSpeed is not among what the project installs: an extra."""
    pytest.importorskip("deepspeed", reason="pip install 'sandbox-rl[deepspeed]' to run this")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    processes = prepared.ranks(2, "tests.smoke.zero3", tmp_path)
    printed = prepared.outputs(processes, within_s=560)
    assert [process.returncode for process in processes] == [0, 0], printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["version"] == 5, "gathered, sent and verified"
    assert found["dtypes"] == ["torch.float32"]
    assert found["share"] >= 0.99, "updates at a rate of 1e-6 are not lost to rounding"
    assert found["between"], "the checkpoint lies before the end"
    assert found["resumed"], "to the bit"
    assert found["moved"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
