"""The engines of an evaluation: which policy, with or without a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.commands.parts import (
    build_backend,
    build_chat,
    build_engine,
    build_policy,
    build_render,
    build_scoring,
    build_toolbox,
)
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.episode import SamplingSettings
from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.engines import ChatEngine, PlainChatEngine, PlainEngine
from sandbox_rl.evaluation.run import EpisodeEngine
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.policies.openai_chat import ChatClient, EndpointSettings
from sandbox_rl.tasks.prompts import PromptSet, load_prompt_set, render_plain
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.models import load_model, load_tokenizer
from sandbox_rl.types import Message, Task

__all__ = ["Engines", "build_plain_render", "endpoint_engines", "local_engines"]

Engines = Mapping[str, AbstractAsyncContextManager[EpisodeEngine]]

GREETING_S = 120.0
"""Seconds that an endpoint has for its first, short reply; some load the model then."""


def build_plain_render(recipe: Recipe) -> Callable[[Task], tuple[Message, ...]]:
    """The function from a task to the messages that ask it without a sandbox."""
    directories = tuple(Path(directory) for directory in recipe.prompts)
    sets: dict[str, PromptSet] = {}

    def rendered(task: Task) -> tuple[Message, ...]:
        if task.domain not in sets:
            sets[task.domain] = load_prompt_set(task.domain, directories)
        return render_plain(task, sets[task.domain])

    return rendered


def local_engines(recipe: Recipe, modes: Sequence[str], model: ModelSettings, *, base_dir: Path) -> Engines:
    """A model in this process, loaded once for all modes.

    Raises:
        ModelError: it cannot be used.
        ConfigError: several processes were started.
    """
    state = PartialState()
    if state.num_processes > 1:
        raise ConfigError(
            f"eval: started in {state.num_processes} processes, expected one; serve the model on several "
            "GPUs and give its address by --base-url"
        )
    tokenizer, loaded = load_tokenizer(model), load_model(model).to(state.device)
    chat = build_chat(recipe, tokenizer)
    # A recipe that trains with a server is measured in this process; `--base-url` measures a served model.
    sampler = recipe.policy if isinstance(recipe.policy, TransformersSettings) else TransformersSettings()
    policy = build_policy(sampler, loaded, tokenizer, chat)
    engines: dict[str, AbstractAsyncContextManager[EpisodeEngine]] = {}
    if "sandbox" in modes:
        engines["sandbox"] = build_engine(
            recipe, base_dir=base_dir, policy=policy, chat=chat, sampling=SamplingSettings()
        )
    if "plain" in modes:
        without_tools = ChatFormat.from_tokenizer(
            tokenizer,
            (),
            call_format=recipe.chat.call_format,
            template_options=dict(recipe.chat.template_options),
        )
        engines["plain"] = PlainEngine(
            policy=policy, chat=without_tools, render=build_plain_render(recipe), **_common(recipe)
        )
    return engines


def endpoint_engines(
    recipe: Recipe, modes: Sequence[str], endpoint: EndpointSettings, *, base_dir: Path
) -> Engines:
    """A model behind a chat endpoint."""
    engines: dict[str, AbstractAsyncContextManager[EpisodeEngine]] = {}
    if "sandbox" in modes:
        engine = ChatEngine(
            client=ChatClient(endpoint),
            backend=build_backend(recipe),
            toolbox=build_toolbox(recipe),
            render=build_render(recipe, base_dir),
            **_common(recipe),
        )
        engines["sandbox"] = _greeted(endpoint, engine)
    if "plain" in modes:
        plain = PlainChatEngine(
            client=ChatClient(endpoint), render=build_plain_render(recipe), **_common(recipe)
        )
        engines["plain"] = _greeted(endpoint, plain)
    return engines


def _common(recipe: Recipe) -> dict[str, Any]:
    return {"scoring": build_scoring(recipe), "episode": recipe.episode, "settings": recipe.rollout}


@asynccontextmanager
async def _greeted(
    endpoint: EndpointSettings, engine: AbstractAsyncContextManager[EpisodeEngine]
) -> AsyncIterator[EpisodeEngine]:
    """The engine, once the endpoint has said anything at all: a wrong address costs no thousand retries."""
    async with ChatClient(endpoint) as client:
        try:
            await client.reply(
                [{"role": "user", "content": "Say hello."}], (), Sampling(16), timeout=GREETING_S
            )
        except TimeoutError as error:
            raise ConfigError(
                f"--base-url {endpoint.base_url!r}: no reply within {GREETING_S:.0f} s; see whether it is up"
            ) from error
    async with engine as entered:
        yield entered
