"""TRL's own agent loop (`environment_factory`) on a recipe of ours: the alternative in `gpu_bench_steps.py`.

    python scripts/gpu_bench_trl.py RECIPE

The same model, prompts, tasks, tools, sandboxes, scorers and settings of GRPO as `sandbox_rl.train` would
take; rollouts are TRL's: a turn of all episodes, then their tools one after the other, and so on. As no tool
ends an episode there, one more turn follows `submit`. Writes `metrics.jsonl` into the recipe's run directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOTrainer
from trl.chat_template_utils import qwen3_template

from sandbox_rl.builders import build_backend, build_chat, build_render, build_scoring, build_toolbox
from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Silent
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.runs.warmup import warmup
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.callbacks import LogMetrics
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import load_model
from sandbox_rl.training.pretrained import load_tokenizer
from sandbox_rl.types import Task, ToolCall

GPU_SHARE = 0.3


class Host:
    """What all environments share: the sandboxes, the scorers, the tools, and the loop that they live in."""

    def __init__(self, recipe: Recipe, loop: LoopThread, tasks: dict[str, Task]) -> None:
        self.loop = loop
        self.tasks = tasks
        self.backend = build_backend(recipe)
        self.scoring = build_scoring(recipe)
        self.toolbox = build_toolbox(recipe)


class Computer:
    """One episode's sandbox behind methods, which TRL shows to the policy as tools."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stack: AsyncExitStack | None = None

    def reset(self, task: str, **row: Any) -> None:
        """A new sandbox; the one before is destroyed, which TRL never asks for."""
        self._task = self._host.tasks[task]
        self._host.loop.run(self._open())

    def execute_bash(self, command: str) -> str:
        """Run a command in bash.

        Args:
            command: what to run.

        Returns:
            its output.
        """
        return self._call("execute_bash", command=command)

    def str_replace_editor(
        self,
        command: str,
        path: str,
        file_text: str | None = None,
        old_str: str | None = None,
        new_str: str | None = None,
        insert_line: int | None = None,
        view_range: list[int] | None = None,
    ) -> str:
        """View, create and edit files.

        Args:
            command: one of view, create, str_replace, insert.
            path: absolute.
            file_text: of a new file.
            old_str: to be replaced.
            new_str: in its place, or to be inserted.
            insert_line: after which.
            view_range: first and last line.

        Returns:
            what has changed, or what is there.
        """
        given = {
            "file_text": file_text,
            "old_str": old_str,
            "new_str": new_str,
            "insert_line": insert_line,
            "view_range": view_range,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return self._call("str_replace_editor", command=command, path=path, **chosen)

    def submit(self) -> str:
        """End the episode.

        Returns:
            a confirmation.
        """
        return "submitted"

    def get_reward(self) -> float:
        """The score of the answer file."""

        async def score() -> float:
            reward = await self._host.scoring.score(self._task, await self._sandbox.read_answer())
            return reward.value or 0.0

        return self._host.loop.run(score())

    def _call(self, tool: str, **arguments: Any) -> str:
        run = self._host.toolbox.run(self._sandbox, ToolCall(tool, arguments), timeout=30.0)
        return self._host.loop.run(run).text

    async def _open(self) -> None:
        if self._stack is not None:
            await self._stack.aclose()
        self._stack = AsyncExitStack()
        opened = self._host.backend.sandbox(self._task.files or None, timeout=60.0)
        self._sandbox = await self._stack.enter_async_context(opened)

    async def _close(self) -> None:
        if self._stack is not None:
            await self._stack.aclose()


def check_prompt(trainer: GRPOTrainer, messages: list[dict[str, str]], ours: Sequence[int]) -> None:
    """Both loops must ask the policy the same, token by token."""
    theirs = trainer.processing_class.apply_chat_template(
        messages, tools=trainer.tools, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    if list(theirs) != list(ours):
        raise SystemExit(f"TRL asks {trainer.processing_class.decode(theirs)!r}, another prompt than ours")


def main(path: Path) -> int:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    recipe = load_recipe(path)
    run = Path(recipe.output_dir) / recipe.name
    run.mkdir(parents=True)
    tasks = load_tasks(recipe.data, split="train", base_dir=path.parent)
    render = build_render(recipe, path.parent)
    settings = recipe.model
    if recipe.warmup is not None:
        warm = warmup(recipe, base_dir=path.parent, display=Silent())
        settings = settings.model_copy(update={"path": str(warm.path)})
    tokenizer = load_tokenizer(settings)
    tokenizer.response_template = qwen3_template  # its calls are written as Qwen's
    args = training_arguments(recipe, run / "checkpoints")
    args.max_tool_calling_iterations = recipe.episode.max_turns
    if torch.cuda.is_available():
        args.use_vllm, args.vllm_mode = True, "colocate"
        args.vllm_gpu_memory_utilization = GPU_SHARE
    rows = {
        "task": [task.id for task in tasks],
        "prompt": [[{"role": m.role, "content": m.content} for m in render(task)] for task in tasks],
    }
    made: list[Computer] = []
    with LoopThread() as loop:
        host = Host(recipe, loop, {task.id: task for task in tasks})
        with loop.entered(host.backend), loop.entered(host.scoring):

            def computer() -> Computer:
                made.append(Computer(host))
                return made[-1]

            trainer = GRPOTrainer(
                model=load_model(settings),
                args=args,
                train_dataset=Dataset.from_dict(rows),
                processing_class=tokenizer,
                environment_factory=computer,
                callbacks=[LogMetrics(run / "metrics.jsonl")],
            )
            trainer.remove_callback(PrinterCallback)
            chat = build_chat(recipe, tokenizer)
            check_prompt(trainer, rows["prompt"][0], chat.render_prompt(render(tasks[0])))
            try:
                trainer.train()
            finally:
                for one in made:
                    loop.run(one._close())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
