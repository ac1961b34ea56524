"""A run whose every episode is masked looks like one that trained: it must not end like one."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from sandbox_rl.training.checkpoints import last_complete
from tests import prepared
from tests.smoke.support import saved_model

REPOSITORY = Path(__file__).parents[2]


def test_a_run_that_is_masked_to_the_last_token_ends_with_3_and_exports_nothing(tmp_path):
    recipe = {
        "name": "masked",
        "output_dir": str(tmp_path / "runs"),
        "model": {"path": saved_model(tmp_path / "model"), "dtype": "float32"},
        "prompts": [str(REPOSITORY / "recipes" / "prompts")],
        "data": {
            "sources": [
                {"type": "reasoning_gym", "dataset": "chain_sum", "size": 40, "domain": "arithmetic"}
            ],
            "held_out": 0.2,
        },
        # One turn is over before anything can be submitted.
        "episode": {"max_turns": 1, "max_tokens": 60, "turn_tokens": 24},
        "rollout": {"concurrency": 8, "overlong": "mask", "timed_out": "mask"},
        "reward": {"scorer": "exact", "workers": 1},  # a worker that has reasoning-gym takes seconds to start
        "evaluation": {"tasks": 0},
        "grpo": {
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "activation_checkpointing": False,
            "save_steps": 2,
        },
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = prepared.run([sys.executable, "-m", "sandbox_rl.cli", "train", str(tmp_path / "r.yaml")])
    run = tmp_path / "runs" / "masked"
    assert done.returncode == 3, done.stderr
    assert "none of 2 steps trained on anything: 100% of" in done.stderr
    assert "sampled tokens are overlong" in done.stderr
    assert not (run / "export").exists()
    assert last_complete(run / "checkpoints") is not None
