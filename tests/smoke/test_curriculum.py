"""The curriculum through the whole of `train`: what is drawn, counted, saved, restored and drawn again."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from sandbox_rl.config.load import load_recipe
from sandbox_rl.journal import read_journal
from sandbox_rl.runs.check import check_run
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.curriculum import STATE_FILE, Curriculum
from tests import prepared
from tests.faults.served import served
from tests.smoke.support import saved_model

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
GROUPS, SIZE = 2, 4
RECIPE = {
    "name": "curriculum",
    "prompts": [str(REPOSITORY / "recipes" / "prompts")],
    "data": {
        "sources": [{"type": "table", "path": "rows.jsonl", "domain": "arithmetic", "scorer": "exact"}],
        "held_out": 0.2,
    },
    "episode": {
        "max_turns": 1,
        "max_tokens": 1000,
        "turn_tokens": 100,
        "timeout_s": 600,
        "exec_timeout_s": 60,
    },
    "rollout": {"overlong": "score"},  # all of them use up their turns
    "reward": {"workers": 1},
    "curriculum": {"sampling": "difficulty", "refill_rounds": 1},
    "evaluation": {"tasks": 0},
    "grpo": {
        "max_steps": 2,
        "per_device_train_batch_size": GROUPS * SIZE,
        "num_generations": SIZE,
        "activation_checkpointing": False,
        "save_steps": 2,
    },
}


def train(recipe: Path, *arguments: str) -> None:
    done = prepared.run([sys.executable, "-m", "sandbox_rl.cli", "train", str(recipe), *arguments])
    assert done.returncode == 0, done.stdout + done.stderr


def counts(run: Path, step: int) -> dict[str, list[float]]:
    return json.loads((run / "checkpoints" / f"checkpoint-{step}" / STATE_FILE).read_text())["tasks"]


def journal(run: Path, step: int) -> list[tuple[str, float, int]]:
    """The groups of a step, as drawn and then those of refills: task, sum of rewards, judged rollouts."""
    groups: dict[tuple[bool, str], list[dict]] = {}
    for record in read_journal(run / "journal"):
        if record["phase"] == "train" and record["step"] == step:
            name = re.sub(r"-\d{4}(-r\d+)?$", "", record["episode_id"])
            groups.setdefault((".refill" in name, name), []).append(record)
    outcomes = []
    for _, records in sorted(groups.items()):
        (task_id,) = {record["task_id"] for record in records}
        rewards = [record["reward"] for record in records if record["reward"] is not None]
        assert len(records) == SIZE
        outcomes.append((task_id, sum(rewards), len(rewards)))
    return outcomes


def fresh(recipe: Path) -> Curriculum:
    loaded = load_recipe(recipe)
    tasks = load_tasks(loaded.data, split="train", base_dir=recipe.parent)
    return Curriculum({task.id: task.domain for task in tasks}, loaded.curriculum, seed=loaded.seed)


def replay(curriculum: Curriculum, run: Path, step: int) -> None:
    """Draw and count a step from the journal; what the run drew must be what these counts draw."""
    outcomes = journal(run, step)
    assert curriculum.draw([""] * GROUPS, step) == [task_id for task_id, *_ in outcomes[:GROUPS]]
    curriculum.record(outcomes)


@pytest.fixture
def recipe(tmp_path):
    """Its episodes come from a server without a model, which solves half of them."""
    rows = [{"id": f"t{n}", "prompt": f"{n} + 1 - {n}", "answer": "1"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model = {"path": saved_model(tmp_path / "model"), "dtype": "float32"}
    path = tmp_path / "r.yaml"
    with served() as address:
        policy = {"type": "vllm", "engine": "external", "base_urls": [address]}
        told = RECIPE | {"model": model, "policy": policy, "output_dir": str(tmp_path / "runs")}
        path.write_text(yaml.safe_dump(told))
        yield path


def test_solve_rates_lie_in_the_checkpoint_and_a_resumed_run_goes_on_from_them(recipe, tmp_path):
    run = tmp_path / "runs" / "curriculum"

    train(recipe)
    before = counts(run, 2)
    control = fresh(recipe)
    for step in (0, 1):
        replay(control, run, step)
    assert counts_of(control, tmp_path) == before
    assert sum(visits for visits, *_ in before.values()) == sum(len(journal(run, s)) for s in (0, 1))
    assert len({control.solve_rate(task_id) for task_id in before}) > 1, "some are easier than others"

    train(recipe, "--resume", "grpo.max_steps=4")
    restored = fresh(recipe)
    restored.restore(run / "checkpoints" / "checkpoint-2")
    for step in (2, 3):
        replay(restored, run, step)
    assert counts_of(restored, tmp_path) == counts(run, 4)
    assert counts(run, 2) == before
    assert sum(visits for visits, *_ in counts(run, 4).values()) > sum(v for v, *_ in before.values())

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = check_run(run)
    assert (found.violation, found.updates) == (None, 4), found
    refills = [m["refill/extra_groups"] for m in metrics if "refill/extra_groups" in m]
    assert refills == [len(journal(run, step)) - GROUPS for step in range(4)]


def counts_of(curriculum: Curriculum, directory: Path) -> dict[str, list[float]]:
    curriculum.save(directory)
    return json.loads((directory / STATE_FILE).read_text())["tasks"]
