"""The check and the demo on a card. `SANDBOX_RL_GPU_MODEL` names the directory of a model for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
MODEL = os.environ.get("SANDBOX_RL_GPU_MODEL")
MINUTES = 25

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(60 * MINUTES + 120),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
]


def run(script: str, out: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / script), "--minutes", str(MINUTES), "--out", str(out)]
        + list(arguments)
        + (["--model", MODEL] if MODEL else []),
        capture_output=True,
        text=True,
        timeout=60 * MINUTES + 90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_everything_with_a_server_works_on_the_card(tmp_path):
    printed = run("gpu_check.py", tmp_path)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["ok"], printed
    assert found["device"] == torch.cuda.get_device_name()
    assert {"sync", "async", "restart", "sleep", "lora", "eval"} <= set(found["parts"])


def test_training_pays(tmp_path):
    printed = run("gpu_demo.py", tmp_path, "--seeds", "1")
    found = json.loads((tmp_path / "demo.json").read_text())
    assert found["gain"]["mean"] >= 0.2, printed
    assert (tmp_path / "curve.png").stat().st_size > 10_000
