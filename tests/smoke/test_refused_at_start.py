"""What cannot work stops a run at the command line, before the warm-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import prepared

PROMPTS = str(Path(__file__).parents[2] / "recipes" / "prompts")
GOLD = "\ndef score(answer, task):\n    return float(answer == task.answer)\n"
BAD = {
    "raises": "def score(answer, task):\n    raise RuntimeError('no such column')\n",
    "none": "def score(answer, task):\n    return None\n",
    "hangs": "import time\ndef score(answer, task):\n    time.sleep(600)\n",
    "bought": "def score(answer, task):\n    return float(bool(answer))\n",
}
DEAD = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}


def recipe(directory: Path, policy: object = None, **reward: object) -> None:
    told = {
        "name": "r",
        "model": {"path": "tiny", "dtype": "float32"},
        "prompts": [PROMPTS],
        "data": {
            "sources": [{"type": "reasoning_gym", "dataset": "chain_sum", "size": 60, "domain": "arithmetic"}]
        },
        "warmup": {"episodes": 4, "sft": {"max_steps": 1, "per_device_train_batch_size": 4}},
        "evaluation": {"tasks": 2},
        "episode": {"max_turns": 1, "max_tokens": 64, "turn_tokens": 16},
        "grpo": {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 6, "save_steps": 1},
        "reward": {"timeout_s": 0.5, "workers": 1, **reward},
    } | ({"policy": policy} if policy else {})
    (directory / "r.yaml").write_text(yaml.safe_dump(told))


def train(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox_rl.cli", "train", str(directory / "r.yaml"), *more]
    return prepared.run(command, cwd=directory)


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    words = " ".join(done.stderr.split())
    assert all(part in words for part in said), words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [*((kind, ("--dry-run",)) for kind in BAD), ("raises", ())],
    ids=[*BAD, "raises, without --dry-run"],
)
def test_a_scorer_beside_the_recipe_that_cannot_work_is_refused(kind, more, tmp_path):
    (tmp_path / "mine.py").write_text(BAD[kind])
    recipe(tmp_path, scorer="mine:score")
    refused(train(tmp_path, *more), "source chain_sum", "mine:score")
    assert not list(tmp_path.glob("runs/r*"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--dry-run",), ()], ids=["dry run", "start"])
def test_a_dead_judge_is_refused(more, tmp_path):
    recipe(tmp_path, scorer="judge", judge=DEAD)
    refused(train(tmp_path, *more), "reward.judge", "http://127.0.0.1:9/v1")


@pytest.mark.slow
def test_a_scorer_beside_the_recipe_is_found_without_a_path(tmp_path):
    (tmp_path / "mine.py").write_text(GOLD)
    recipe(tmp_path, scorer="mine:score")
    done = train(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--dry-run",), ()], ids=["dry run", "start"])
def test_a_server_that_cannot_be_started_is_refused(more, tmp_path):
    recipe(tmp_path, policy={"type": "vllm", "python": "/no/python"})
    refused(train(tmp_path, *more), "policy.python", "/no/python")
    assert not list(tmp_path.glob("runs/*"))
