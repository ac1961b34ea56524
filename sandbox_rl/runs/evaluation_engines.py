"""The engines of an evaluation: which policy, with or without a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from heapq import nlargest
from pathlib import Path

from accelerate import PartialState

from sandbox_rl.agents.messages import MessageAgent
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.builders import (
    build_backend,
    build_chat,
    build_engine,
    build_policy,
    build_render,
)
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.config.run import RunSettings
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.plan import MODES
from sandbox_rl.policies.base import Policy, PolicySession, Sampling, TurnSampling
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.policies.openai_chat import ChatClient, EndpointSettings
from sandbox_rl.rollout import RolloutEngine
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import configured_context, generation_ends, load_model, load_tokenizer
from sandbox_rl.training.publication.served import ServedModel, serve, starting_log
from sandbox_rl.types import Message, Task

__all__ = ["Engines", "endpoint_engines", "local_engines"]

Engines = Mapping[str, AbstractAsyncContextManager[RolloutEngine]]

Render = Callable[[Task], Sequence[Message]]

LONGEST = 16
"""How many of the longest prompts are counted in tokens."""

GREETING_S = 120.0
"""Seconds that an endpoint has for its first, short reply; some load the model then."""


@contextmanager
def local_engines(
    recipe: RunSettings,
    modes: Sequence[str],
    model: ModelSettings,
    *,
    base_dir: Path,
    tasks: Sequence[Task],
    loop: LoopThread,
    log: Path,
    display: Display,
) -> Iterator[Engines]:
    """A model in this process, or in a vLLM server of ours where the recipe says so; the same for all modes.

    Args:
        tasks: what will be asked; a server is given context for the longest.
        loop: where the engines will run.
        log: where the server's log goes.

    Raises:
        ModelError: it cannot be used.
        SetupError: no interpreter with vLLM.
        ConfigError: several processes were started, or the recipe names servers of someone else.
    """
    state = PartialState()
    if state.num_processes > 1:
        raise ConfigError(
            f"eval: started in {state.num_processes} processes, expected one; serve the model on several "
            "GPUs and give its address by --base-url"
        )
    tokenizer = load_tokenizer(model)
    ends = generation_ends(model)
    chats = {mode: build_chat(recipe, tokenizer, ends, tools=mode == "sandbox") for mode in MODES}
    chat = chats["sandbox"]
    with ExitStack() as stack:
        policy: Policy
        if isinstance(recipe.policy, TransformersSettings):
            policy = build_policy(recipe.policy, load_model(model).to(state.device), tokenizer, chat)
            stack.enter_context(loop.entered(policy))
        else:
            if recipe.policy.engine == "external":
                raise ConfigError(
                    "policy.engine: 'external' servers are given what the trainer publishes; evaluate what "
                    "they serve with --base-url, or set policy.engine=managed"
                )
            context = configured_context(model)
            longest = max(
                _longest(chats[mode], build_render(recipe, base_dir, plain=mode == "plain"), tasks)
                for mode in modes
            )
            longest_prompt = min(longest, context - 1)
            served = serve(
                recipe.policy,
                ServedModel(
                    model.path,
                    model.dtype,
                    tokenizer,
                    end_ids=chat.ends.ids,
                    longest_prompt=longest_prompt,
                    longest=min(context, longest_prompt + recipe.episode.max_tokens),
                ),
                loop=loop,
                log=starting_log(Path(recipe.output_dir), recipe.name),
                say=display.say,
            )
            stack.callback(served.stop)
            policy = served.policy
            stack.enter_context(loop.entered(policy))
            served.keep_log(log)
        borrowed = _Borrowed(policy)
        yield {
            mode: build_engine(
                recipe,
                base_dir=base_dir,
                agent=TokenAgent(borrowed, chats[mode]),
                sampling=Sampling(),
                backend=build_backend(recipe) if mode == "sandbox" else None,
            )
            for mode in modes
        }


class _Borrowed:
    """A policy that outlives the engines that use it one after the other."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def max_context(self) -> int:
        return self._policy.max_context

    def session(self, episode_id: str) -> AbstractAsyncContextManager[PolicySession]:
        return self._policy.session(episode_id)

    async def __aenter__(self) -> _Borrowed:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


def _longest(chat: ChatFormat, render: Render, tasks: Sequence[Task]) -> int:
    """Tokens of the longest prompt, among those of the most characters."""
    messages = (render(task) for task in tasks)
    most = nlargest(LONGEST, messages, key=lambda found: sum(len(message.content) for message in found))
    return max(len(chat.render_prompt(found)) for found in most)


def endpoint_engines(
    recipe: RunSettings, modes: Sequence[str], endpoint: EndpointSettings, *, base_dir: Path
) -> Engines:
    """A model behind a chat endpoint."""
    return {
        mode: _greeted(
            endpoint,
            build_engine(
                recipe,
                base_dir=base_dir,
                agent=MessageAgent(ChatClient(endpoint)),
                sampling=Sampling(),
                backend=build_backend(recipe) if mode == "sandbox" else None,
            ),
        )
        for mode in modes
    }


@asynccontextmanager
async def _greeted(
    endpoint: EndpointSettings, engine: AbstractAsyncContextManager[RolloutEngine]
) -> AsyncIterator[RolloutEngine]:
    """The engine, once the endpoint has said anything at all: a wrong address costs no thousand retries."""
    async with ChatClient(endpoint) as client:
        try:
            await client.reply(
                [{"role": "user", "content": "Say hello."}],
                (),
                TurnSampling(max_tokens=16),
                timeout=GREETING_S,
            )
        except TimeoutError as error:
            raise ConfigError(
                f"--base-url {endpoint.base_url!r}: no reply within {GREETING_S:.0f} s; see whether it is up"
            ) from error
    async with engine as entered:
        yield entered
