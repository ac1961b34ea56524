"""The engines of an evaluation: which policy, with or without a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from heapq import nlargest
from pathlib import Path
from typing import Self

from accelerate import PartialState
from transformers import PreTrainedModel

from sandbox_rl.agents.base import Agent
from sandbox_rl.agents.messages import MessageAgent
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.builders import build_backend, build_chat, build_engine, build_render
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.plan import MODES, EvaluationPlan
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import PolicySettings, VLLMSettings
from sandbox_rl.policies.openai_chat import ChatClient, EndpointSettings
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.runs.placement import serving_placement
from sandbox_rl.runs.plan import RunModel
from sandbox_rl.runs.policy import policy_of
from sandbox_rl.runs.subjects import Subject
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import context_length, load_model
from sandbox_rl.training.pretrained import generation_ends, load_config, load_tokenizer

Engines = Mapping[str, AbstractAsyncContextManager[RolloutEngine]]

LONGEST = 16
"""How many of the longest prompts are counted in tokens."""

GREETING_S = 120.0
"""Seconds that an endpoint has for its first, short reply; some load the model then."""


@contextmanager
def engines_of(
    subject: Subject,
    plan: EvaluationPlan,
    model: ModelSettings | EndpointSettings,
    *,
    loop: LoopThread,
    log: Path,
    display: Display,
) -> Iterator[Engines]:
    """An engine for each mode of a plan, over one model.

    It is behind a chat endpoint, in this process, or in a vLLM server of ours where the settings say so.

    Args:
        loop: where the engines will run.
        log: where the server's log goes.

    Raises:
        ModelError: it cannot be used.
        SetupError: no interpreter with vLLM.
        ConfigError: several processes were started, or the settings name servers of someone else.
    """
    if isinstance(model, EndpointSettings):
        yield {
            mode: _greeted(model, _engine(subject, MessageAgent(ChatClient(model)), mode))
            for mode in plan.modes
        }
        return
    device = _only_process().device
    settings, placement = subject.settings, None
    _refuse_external(settings.policy)
    chats, described = _described(subject, plan, model)
    if isinstance(settings.policy, VLLMSettings):
        placement = serving_placement(settings.policy, described.config)

    def load() -> PreTrainedModel:
        return load_model(model).to(device)

    with (
        policy_of(settings, described, placement, load=load, loop=loop, display=display) as found,
        loop.entered(found.policy),
    ):
        if found.served is not None:
            found.served.keep_log(log)
        yield {mode: _engine(subject, _StaysOpen(found.policy, chats[mode]), mode) for mode in plan.modes}


def _only_process() -> PartialState:
    state = PartialState()
    if state.num_processes > 1:
        raise ConfigError(
            f"eval: started in {state.num_processes} processes, expected one; serve the model on several "
            "GPUs and give its address by --base-url"
        )
    return state


def _refuse_external(policy: PolicySettings) -> None:
    if isinstance(policy, VLLMSettings) and policy.engine == "external":
        raise ConfigError(
            "policy.engine: 'external' servers are given what the trainer publishes; evaluate what "
            "they serve with --base-url, or set policy.engine=managed"
        )


def _described(
    subject: Subject, plan: EvaluationPlan, model: ModelSettings
) -> tuple[dict[str, ChatFormat], RunModel]:
    """A chat format for each mode, and the model with space for the longest prompt and its episode."""
    settings, tokenizer, ends = subject.settings, load_tokenizer(model), generation_ends(model)
    chats = {mode: build_chat(settings, tokenizer, ends, tools=mode == "sandbox") for mode in MODES}
    config = load_config(model)
    context = context_length(config)
    prompt = min(max(_longest(chats[mode], subject, mode) for mode in plan.modes), context - 1)
    longest = min(context, prompt + settings.episode.max_tokens)
    return chats, RunModel(model, config, tokenizer, chats["sandbox"], context, prompt, longest)


def _engine(subject: Subject, agent: Agent, mode: str) -> RolloutEngine:
    settings = subject.settings
    return build_engine(
        settings,
        base_dir=subject.base_dir,
        agent=agent,
        sampling=subject.sampling,
        backend=build_backend(settings) if mode == "sandbox" else None,
    )


class _StaysOpen(TokenAgent):
    """Its policy outlives the engines that use it one after the other."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


def _longest(chat: ChatFormat, subject: Subject, mode: str) -> int:
    """Tokens of the longest prompt, among those of the most characters."""
    render = build_render(subject.settings, subject.base_dir, plain=mode == "plain")
    messages = (render(task) for part in subject.parts for task in part.tasks)
    most = nlargest(LONGEST, messages, key=lambda found: sum(len(message.content) for message in found))
    return max(len(chat.render_prompt(found)) for found in most)


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
