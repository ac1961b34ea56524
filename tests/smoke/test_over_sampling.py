"""Early stop through the whole of `train`, killed and resumed: no group is lost, none is trained twice."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from sandbox_rl.config.load import load_recipe
from sandbox_rl.journal import read_journal
from sandbox_rl.rollout.order import of_group
from sandbox_rl.rollout.over_sampling import STATE_FILE
from sandbox_rl.runs.check import check_run
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.checkpoints import is_complete
from tests import prepared
from tests.smoke.support import saved_model

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
GROUPS, SIZE, STEPS = 2, 4, 6
DEADLINE_S = 560
RECIPE = {
    "name": "over_sampling",
    "prompts": [str(REPOSITORY / "recipes" / "prompts")],
    "data": {
        "sources": [{"type": "reasoning_gym", "dataset": "chain_sum", "size": 40, "domain": "arithmetic"}],
        "held_out": 0.2,
    },
    "episode": {"max_turns": 2, "max_tokens": 200, "turn_tokens": 32, "timeout_s": 600, "exec_timeout_s": 60},
    "rollout": {"over_sample": 0.5},
    "reward": {"scorer": "exact", "workers": 1},  # a worker that has reasoning-gym takes seconds to start
    "evaluation": {"tasks": 0},
    "grpo": {
        "max_steps": STEPS,
        "per_device_train_batch_size": GROUPS * SIZE,
        "num_generations": SIZE,
        "activation_checkpointing": False,
        "save_steps": 2,
    },
}


def start(recipe: Path, *arguments: str) -> prepared.Popen:
    return prepared.start("sandbox_rl.cli", "train", recipe, *arguments)


def episodes(run: Path, phase: str) -> list[dict]:
    return [record for record in read_journal(run / "journal") if record["phase"] == phase]


def test_a_killed_run_goes_on_with_the_groups_that_waited(tmp_path):
    path = tmp_path / "r.yaml"
    model = {"path": saved_model(tmp_path / "model"), "dtype": "float32"}
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(tmp_path / "runs"), "model": model}))
    run = tmp_path / "runs" / "over_sampling"
    deadline = time.monotonic() + DEADLINE_S
    first = start(path)
    while not is_complete(run / "checkpoints" / "checkpoint-2"):
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    done = max(int(p.name.split("-")[1]) for p in (run / "checkpoints").glob("c*") if is_complete(p))
    lost = len(episodes(run, "train")) - done * GROUPS * SIZE

    second = start(path, "--resume")
    output, _ = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0, output

    found = check_run(run)
    assert (found.violation, found.updates) == (None, STEPS), found
    trained = episodes(run, "train")
    assert len(trained) == STEPS * GROUPS * SIZE
    aside = [r for path in (run / "replaced").glob("episodes*") for r in read_journal(path)]
    assert sum(r["phase"] == "train" for r in aside) == lost
    state = json.loads((run / "checkpoints" / f"checkpoint-{STEPS}" / STATE_FILE).read_text())["ranks"][0]
    waiting = {w["group"] for w in state["waiting"]}
    recipe = load_recipe(path)
    tasks = [t.id for t in load_tasks(recipe.data, split="train", base_dir=tmp_path)]
    expected = Counter(
        of_group(tasks, group, seed=recipe.seed) for group in range(state["next"]) if group not in waiting
    )
    lasting = Counter(r["task_id"] for r in trained)
    assert lasting == Counter({task: count * SIZE for task, count in expected.items()})

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = {m["step"]: m["over_sampling/long_step"] for m in metrics if "over_sampling/long_step" in m}
    assert kinds == {1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 6: 1}
    assert {
        m["over_sampling/waiting"] for m in metrics if m.get("step") == 6 and "over_sampling/waiting" in m
    } == {0}
