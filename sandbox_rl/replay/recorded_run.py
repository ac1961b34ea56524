"""A run's directory as what can be replayed: its recipe, its tasks, and its chat format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.builders import build_chat
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError, DataError, UserError
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import recorded_run
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.checkpoints import last_complete
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.models import context_length
from sandbox_rl.training.pretrained import generation_ends, load_config, load_tokenizer
from sandbox_rl.training.tiny import CONTEXT
from sandbox_rl.types import Task


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run that is over, or goes on: nothing of it is written to.

    Args:
        recipe: the run's own, with overrides.
    """

    run: RunDirectory
    recipe: Recipe

    @classmethod
    def open(cls, path: Path, overrides: Sequence[str] = ()) -> RecordedRun:
        """The run of a directory.

        Raises:
            ConfigError: there is no run, a newer version has written it, or an override does not fit.
        """
        return cls(*recorded_run(path, overrides))

    def tasks(self, wanted: Iterable[str]) -> dict[str, Task]:
        """The tasks of these ids, of either split, by id.

        Raises:
            DataError: the data cannot be read, or lacks one of them.
        """
        missing, found = set(wanted), {}
        for split in ("train", "held_out"):
            if missing:
                for task in load_tasks(self.recipe.data, split=split, base_dir=self.run.path):
                    if task.id in missing:
                        missing.remove(task.id)
                        found[task.id] = task
        if missing:
            raise DataError(
                f"{self.run.recipe}: its data has no task {sorted(missing)[0]!r} any more"
                f"{f' (nor {len(missing) - 1} others)' if len(missing) > 1 else ''}, expected the data that "
                "the run was started with; restore the files that the recipe names"
            )
        return found

    def chat_and_context(self, *, tools: bool = True) -> tuple[ChatFormat, int]:
        """The chat format of the policy, and the longest sequence of its model in tokens.

        Of the recipe's model; where that comes out of a warm-up, or is not in reach, of what the run saved.

        Raises:
            ModelError: no tokenizer is available.
        """
        recipe = self.recipe
        saved = [last_complete(self.run.checkpoints), self.run.export]
        kept = [ModelSettings(path=str(path)) for path in saved if path is not None and path.is_dir()]
        warmed = recipe.warmup is not None
        failed: UserError | None = None
        for settings in kept if warmed else [recipe.model, *kept]:
            try:
                chat = build_chat(recipe, load_tokenizer(settings), generation_ends(settings), tools=tools)
                return chat, context_length(load_config(settings))
            except UserError as error:
                failed = failed or error
        tokenizer = self.run.path / "tokenizer"
        if recipe.model.path == "tiny" and tokenizer.is_dir():  # no checkpoint yet
            return build_chat(
                recipe, load_tokenizer(ModelSettings(path=str(tokenizer))), tools=tools
            ), CONTEXT
        raise failed or ConfigError(
            f"{self.run.path}: its policy came out of a warm-up, and no checkpoint of the run is left that "
            "has its tokenizer; set model.path=DIRECTORY warmup=null"
        )
