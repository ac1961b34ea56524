"""Do prompts and budgets leave enough of the context to act in?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sandbox_rl.agents.base import EpisodeSettings
from sandbox_rl.builders import build_render
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.tasks.load import TaskSet
from sandbox_rl.types import ToolCall

LONGEST = 64
"""How many of the longest problem statements are rendered and counted."""

LEAST_TOKENS = 128
"""Tokens behind a prompt below which no model does anything of use, however short its calls are."""


def check_prompts(
    recipe: Recipe, base_dir: Path, chat: ChatFormat, tasks: TaskSet, *, context: int | None
) -> int:
    """The tokens of the longest prompt, once it is sure that an episode can act after each of them.

    Args:
        context: longest sequence of the model in tokens; None renders without counting.

    Raises:
        ConfigError: a task's prompt does not fit, or has no prompt set.
    """
    render = build_render(recipe, base_dir)
    longest = 0
    for task in sorted(tasks, key=lambda task: len(task.prompt), reverse=True)[:LONGEST]:
        length = len(chat.render_prompt(render(task)))
        if context is not None:
            check_context(chat, task.id, prompt=length, context=context)
        longest = max(longest, length)
    return longest


def least_tokens(chat: ChatFormat) -> int:
    """What the shortest useful episode takes: one command that writes the answer, its result, and submit."""
    command = ToolCall("execute_bash", {"command": "echo 42 > answer.txt"})
    asked = chat.render_call("", [command])
    shown = chat.render_observations(
        ["Exit code: 0\nSteps Remaining: 9"], ended_by=chat.ends.written, calls=[command]
    )
    return len(asked) + len(shown) + len(chat.render_call("", [ToolCall("submit", {})]))


def check_context(chat: ChatFormat, task: str, *, prompt: int, context: int) -> None:
    """Refuse a prompt behind which no episode can do anything.

    Args:
        task: id of the task with that prompt.
        prompt, context: in tokens.

    Raises:
        ConfigError: too few tokens are left.
    """
    least = max(least_tokens(chat), LEAST_TOKENS)
    if prompt + least > context:
        raise ConfigError(
            f"task {task!r}: its prompt has {prompt} tokens, which leaves {max(0, context - prompt)} of the "
            f"{context} that the model takes, expected at least {least}, a command and a submit; place its "
            "context in files, or use a model with a longer context"
        )


def budget_warnings(
    chat: ChatFormat, episode: EpisodeSettings, *, prompt: int, context: int
) -> Sequence[str]:
    """What a person should know about the budgets; one line each."""
    least = least_tokens(chat)
    said: list[str] = []
    if prompt + episode.max_tokens > context:
        said.append(
            f"episode.max_tokens: {episode.max_tokens}, but behind the longest prompt ({prompt} tokens) the "
            f"model's context of {context} leaves {context - prompt}: long episodes end there"
        )
    if episode.max_tokens < least:
        said.append(
            f"episode.max_tokens: {episode.max_tokens}, but a command and a submit take {least}: no episode "
            "can earn anything; raise it"
        )
    if episode.turn_tokens < (call := len(chat.render_call("", [ToolCall("submit", {})]))):
        said.append(f"episode.turn_tokens: {episode.turn_tokens}, but to call submit takes {call}; raise it")
    if episode.max_turns < 2:
        said.append("episode.max_turns: 1, but the answer must be written and submitted: expected 2 or more")
    return said
