"""Directories of small runs, recorded with real parts and a scripted policy, to be played again in tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.builders import build_backend, build_chat, build_engine
from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import Recipe, resolved
from sandbox_rl.journal import Journal, JournalObserver
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.rollout.order import of_group
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.groups import group_requests
from sandbox_rl.types import ToolCall
from tests.smoke.support import TOKENIZER, saved_model

__all__ = ["bash", "recipe_of", "record", "submit", "training_scripts"]

Turn = Sequence[ToolCall] | str
"""What a turn says: calls, or words without any."""

GOLDS = {"sum": "12", "word": "a cat"}
"""Task → its gold answer."""


def bash(command: str) -> tuple[ToolCall, ...]:
    return (ToolCall("execute_bash", {"command": command}),)


def submit() -> tuple[ToolCall, ...]:
    return (ToolCall("submit", {}),)


def recipe_of(directory: Path, **changes: Any) -> Recipe:
    """A recipe in `directory` with its data and a tiny model whose context holds prompts in bytes."""
    model = Path(saved_model(directory / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 14}))
    rows = [{"id": name, "prompt": f"The {name}?", "answer": gold} for name, gold in GOLDS.items()]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {
        "name": "r",
        "output_dir": str(directory / "runs"),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {
            "sources": [{"type": "table", "path": "rows.jsonl", "scorer": "exact", "columns": {"id": "id"}}],
            "held_out": 0.0,
        },
        "episode": {"max_tokens": 4000, "max_turns": 4, "timeout_s": 600, "exec_timeout_s": 60},
        "pool": {"warm": 0},
        "reward": {"workers": 1},
        "grpo": {"max_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2},
        **changes,
    }
    (directory / "r.yaml").write_text(yaml.safe_dump(told))
    return load_recipe(directory / "r.yaml")


def record(
    recipe: Recipe,
    scripts: Iterable[tuple[str, Sequence[Sequence[Turn]]]],
    *,
    backend: Any = None,
    attempt: int = 0,
) -> Path:
    """A run's directory with a journal of scripted episodes.

    Args:
        scripts: of each group in order, its task and the turns of each of its episodes.
        backend: instead of the recipe's.
    """
    run = Path(recipe.output_dir) / recipe.name
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(resolved(recipe))
    asyncio.run(_record(recipe, scripts, backend or build_backend(recipe), run, attempt))
    return run


def training_scripts(
    recipe: Recipe, groups: int, script: Callable[[str, int], Sequence[Turn]], *, size: int
) -> list[tuple[str, list[Sequence[Turn]]]]:
    """What `record` takes of the first groups of a training run: their tasks in the order of training.

    Args:
        script: task and index of the sample → its turns.
    """
    tasks = [task.id for task in load_tasks(recipe.data, split="train", base_dir=Path())]
    names = [of_group(tasks, number, seed=recipe.seed) for number in range(groups)]
    return [(name, [script(name, index) for index in range(size)]) for name in names]


async def _record(recipe: Recipe, scripts: Any, backend: Any, run: Path, attempt: int) -> None:
    chat = build_chat(recipe, TOKENIZER)
    tasks = {task.id: task for task in load_tasks(recipe.data, split="train", base_dir=run)}
    played: dict[str, list[Any]] = {}
    requests = []
    for number, (name, group) in enumerate(scripts):
        found = group_requests(tasks[name], number, seed=0, size=len(group), again=attempt)
        played |= {request.id: list(turns) for request, turns in zip(found, group, strict=True)}
        requests += found

    def script(id: str, turn: int, ids: Sequence[int]) -> Sequence[int]:
        said = played[id][turn]
        return chat.render_call(said, ()) if isinstance(said, str) else chat.render_call("", said)

    engine = build_engine(
        recipe,
        base_dir=run,
        agent=TokenAgent(ScriptedPolicy(script, max_context=1 << 14), chat),
        sampling=Sampling(),
        backend=backend,
    )
    async with engine:
        with Journal(run / "journal") as journal:
            observer = JournalObserver(journal, lambda _: {"phase": "train", "step": 0})
            await engine.run(requests, observer=observer)
