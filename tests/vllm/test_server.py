"""What sandbox_rl needs of a real vLLM server, and gets."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import pytest

from sandbox_rl.errors import EngineFault, ModelError, SetupError
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.check import check_server, check_tokenizer
from sandbox_rl.policies.vllm.fleet import ManagedServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.training.tiny import tiny_tokenizer
from tests.vllm.support import PROMPT, ask, gap


def test_sampled_ids_come_with_the_log_probs_of_the_trainer(shared):
    action = ask(shared)
    assert len(action.token_ids) == len(action.logprobs) > 0
    assert gap(shared.model, PROMPT, action) < 1e-5


def test_a_seed_decides_a_turn(shared):
    assert ask(shared, seed=1).token_ids == ask(shared, seed=1).token_ids
    assert len({ask(shared, seed=seed).token_ids for seed in range(4)}) > 1


def test_a_turn_ends_at_its_cap_or_with_the_id_that_ends_it(shared):
    capped = ask(shared, max_tokens=3)
    assert (len(capped.token_ids), capped.finish_reason) == (3, "length")
    settings = VLLMSettings(type="vllm", python="unused")
    everything = frozenset(range(shared.model.config.vocab_size))
    policy = VLLMPolicy(nullcontext(shared.server), settings, end_ids=everything)  # it stays open

    async def act():
        async with policy, policy.session("ends") as session:
            return await session.act(PROMPT, TurnSampling(max_tokens=24, seed=1), timeout=200)

    ended = shared.loop.run(act())
    assert (len(ended.token_ids), ended.finish_reason) == (1, "stop")  # the id itself is there


def test_a_prompt_that_is_too_long_is_refused_at_once(shared):
    with pytest.raises(EngineFault, match="refused a turn: HTTP 400"):
        ask(shared, PROMPT * 40)


def test_many_at_once_each_get_their_own(shared):
    prompts = [(10 + index, *PROMPT) for index in range(64)]

    async def all_of_them():
        async def one(prompt):
            async with shared.policy.session(str(prompt[0])) as session:
                return await session.act(prompt, TurnSampling(max_tokens=8, seed=prompt[0]), timeout=200)

        return await asyncio.gather(*(one(prompt) for prompt in prompts))

    actions = shared.loop.run(all_of_them())
    assert all(gap(shared.model, p, a) < 1e-5 for p, a in zip(prompts, actions, strict=True))


def test_too_short_a_context_is_reported(shared):
    (server,) = shared.server.servers
    with pytest.raises(SetupError, match="context is 1024 tokens, expected at least 5000"):
        shared.loop.run(check_server(server, needed_context=5000))


def test_another_vocabulary_is_reported_with_its_first_difference(shared):
    (server,) = shared.server.servers
    other = tiny_tokenizer(["zebra zebra zebra zebra"] * 50)
    with pytest.raises(ModelError, match=r"another tokenizer: id \d+ is '.*' there and '.*' here"):
        shared.loop.run(check_tokenizer(server, "policy", other))


def test_another_template_is_reported_with_its_first_difference(shared):
    (server,) = shared.server.servers
    other = tiny_tokenizer()
    other.chat_template = other.chat_template.replace("assistant", "helper")
    with pytest.raises(ModelError, match=r"another chat template: token \d+ of a conversation"):
        shared.loop.run(check_tokenizer(server, "policy", other))


def test_an_argument_that_vllm_does_not_know_is_one_line(vllm_python, shared, tmp_path):
    settings = VLLMSettings(type="vllm", python=vllm_python, arguments={"no-such-thing": 3})
    server = ManagedServer(
        settings, model=str(shared.checkpoint), log=tmp_path / "log", transfer="shm", gpu=False
    )

    async def start():
        async with ManagedServers([server]):
            pass

    with pytest.raises(SetupError, match=r"vLLM does not know --no-such-thing"):
        shared.loop.run(start())
