"""A run whose episodes are hand-made: what is scored again and packed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sandbox_rl.config.recipe import resolved
from sandbox_rl.journal import Journal
from sandbox_rl.types import Answer, AnswerStatus, Reward, Rollout, StopReason, Task
from tests.recorded_runs import recipe_of
from tests.smoke.support import make_rollout

ENDED = StopReason.SUBMITTED
# id, answer, why it stopped, reward; the gold answer of `sum` is 12.
EPISODES = [
    ("train-000000-0000", "12", ENDED, 1.0),
    ("train-000000-0001", "12.0", ENDED, 0.0),
    ("train-000000-0002", "13", ENDED, 0.0),
    ("train-000001-0000", "12", ENDED, 1.0),
    ("train-000001-0001-r1", "13", ENDED, 0.0),
    ("train-000001-0002", "12", StopReason.INFRA_FAULT, None),
    ("train-000001-0003", "12", StopReason.MAX_TURNS, 0.0),
    ("train-000002-0000", "12.0", ENDED, 0.0),
    ("train-000002-0001", "12.0", ENDED, 0.0),
    ("sandbox-00000-0", "12.0", StopReason.TIMEOUT, 0.0),
]


@pytest.fixture(scope="session")
def scored_run(tmp_path_factory):
    recipe = recipe_of(tmp_path_factory.mktemp("rescored"))
    path = Path(recipe.output_dir) / recipe.name
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(resolved(recipe))
    with Journal(path / "journal") as journal:
        for number, (id, answer, stop, reward) in enumerate(EPISODES):
            made = make_rollout("sum", 0.0, seed=number).trajectory
            fault = "SandboxFault: it broke" if stop is StopReason.INFRA_FAULT else ""
            trajectory = replace(
                made, episode_id=id, stop=stop, answer=Answer(AnswerStatus.OK, answer), fault=fault
            )
            phase = "train" if id.startswith("train") else "eval"
            journal.ended(Rollout(trajectory, Reward(reward), Task("sum", "?", "12")), phase=phase, step=0)
    return path
