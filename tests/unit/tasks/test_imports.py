"""Loading data and starting a scoring pool import nothing that they may not need."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ["torch", "transformers", "reasoning_gym", "datasets", "pyarrow", "sympy", "math_verify", "nltk"]


def test_heavy_modules_wait_for_their_first_use() -> None:
    code = (
        "import sys, sandbox_rl.tasks.load, sandbox_rl.tasks.prompts, sandbox_rl.build_data.builder\n"
        "import sandbox_rl.rewards.pool\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
