"""A row of 65,536 tokens on a card: it is computed, and in the memory that the dry run names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("lora", [(), ("--lora",)], ids=["full", "lora"])
def test_a_row_of_65k_tokens_takes_what_is_estimated(tmp_path, lora):
    report = tmp_path / "long.json"
    done = subprocess.run(
        [
            *(sys.executable, "scripts/bench_long.py", "--shape", "0.6b", "--lengths", "65536"),
            *("--ways", "tiles", "parts", "--json", str(report), *lora),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(report.read_text())["records"]
    assert [record["way"] for record in records] == ["tiles", "parts"], done.stdout
    for record in records:
        assert record["peak"] <= 1.15 * record["estimated"], done.stdout
        assert record["peak"] >= 0.4 * record["estimated"], done.stdout
