"""The vLLM policy against a server that misbehaves in every way a server can."""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.http_client import Address
from sandbox_rl.policies.base import UNTRAINED, FixedVersion, TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm import progress
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.source import ExternalServers

END = 2
PROMPT = (5, 6, 7)


def settings(**fields) -> VLLMSettings:
    fields = {"backoff_s": 0.01, "retries": 2, "request_timeout_s": 30.0, "outage_s": 0.0} | fields
    return VLLMSettings(type="vllm", engine="external", base_urls=("unix:///x",), **fields)


@asynccontextmanager
async def policy_on(*fakes: FakeVLLM, version=UNTRAINED, needed_context=1, engine=None, first=0, **fields):
    # Not tmp_path: the path of a unix socket is short.
    with tempfile.TemporaryDirectory(prefix="fake") as directory:
        sockets = [Path(directory) / str(index) for index in range(len(fakes))]
        async with asyncio.timeout(120):
            runs = [fake.serving(socket) for fake, socket in zip(fakes, sockets, strict=True)]
            for run in runs:
                await run.__aenter__()
            try:
                source = ExternalServers(
                    [Address.parse(f"unix://{socket}") for socket in sockets],
                    needed_context=needed_context,
                    tokenizer=None,
                    startup_timeout_s=60,
                    engine=engine,
                )
                chosen = settings(**fields)
                ends = frozenset({END})
                async with VLLMPolicy(source, chosen, end_ids=ends, version=version, first=first) as policy:
                    yield policy
            finally:
                for run in runs:
                    await run.__aexit__(None, None, None)


async def act(policy, *, timeout=60.0):
    async with policy.session("episode") as session:
        return await session.act(PROMPT, TurnSampling(max_tokens=4, seed=3), timeout=timeout)


async def test_a_turn_is_ids_in_and_ids_out():
    fake = FakeVLLM(weights_version=7)
    async with policy_on(fake, version=FixedVersion(7)) as policy:
        action = await act(policy)
        assert policy.max_context == fake.max_model_len
    assert action.token_ids == (7, 7, 7, END)
    assert action.logprobs == (-0.5,) * 4
    assert (action.finish_reason, action.weight_version) == ("stop", 7)
    # The set that ends turns is the chat format's, and no default of the server's adds to it.
    assert (fake.requests[0]["stop_token_ids"], fake.requests[0]["ignore_eos"]) == ([END], True)
    (asked,) = fake.requests
    assert asked["prompt"] == list(PROMPT)
    assert (asked["max_tokens"], asked["seed"], asked["stop_token_ids"]) == (4, 3, [END])
    # Nothing of a server's or a model's own defaults may bend the distribution.
    assert (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (
        1.0,
        -1,
        0.0,
        1.0,
    )
    assert asked["cache_salt"] == "w7"


FAULTS = {
    "5xx": lambda body: web.Response(status=503, text="starting"),
    "429": lambda body: web.Response(status=429),
    "hangs up": lambda body: None,
    "no JSON": lambda body: web.Response(text="<html>"),
    "no choices": lambda body: web.json_response({"choices": []}),
    "no token ids": lambda body: web.json_response({"choices": [{"text": "hi"}]}),
    "a log-prob missing": lambda body: reply(body, logprobs={"token_logprobs": [-1.0]}),
    "null log-probs": lambda body: reply(body, logprobs={"token_logprobs": [None, None]}),
    "another prompt": lambda body: reply(body, prompt_token_ids=[5, 6, 8]),
    "aborted": lambda body: reply(body, finish_reason="abort"),
    "empty": lambda body: reply(body, token_ids=[], logprobs={"token_logprobs": []}),
}


def reply(body, **fields):
    choice = {
        "token_ids": [9, END],
        "prompt_token_ids": body["prompt"],
        "logprobs": {"token_logprobs": [-1.0, -1.0]},
        "finish_reason": "stop",
    }
    return web.json_response({"choices": [choice | fields]})


@pytest.mark.parametrize("name", FAULTS)
async def test_what_a_server_does_wrong_is_tried_again(name):
    fake = FakeVLLM()
    fake.faults.extend([FAULTS[name]] * 2)
    async with policy_on(fake) as policy:
        action = await act(policy)
    assert action.token_ids == (7, 7, 7, END)
    assert len(fake.requests) == 3


@pytest.mark.parametrize("name", FAULTS)
async def test_after_the_last_try_it_is_our_fault(name):
    fake = FakeVLLM()
    fake.faults.extend([FAULTS[name]] * 3)
    async with policy_on(fake) as policy:
        with pytest.raises(EngineFault, match="3 tries"):
            await act(policy)


async def test_what_a_server_refuses_is_not_asked_again():
    fake = FakeVLLM()
    fake.faults.append(lambda body: web.json_response({"error": {"message": "too long"}}, status=400))
    async with policy_on(fake) as policy:
        with pytest.raises(EngineFault, match="HTTP 400: too long"):
            await act(policy)
    assert len(fake.requests) == 1


async def test_a_server_that_hangs_is_asked_again():
    fake = FakeVLLM(delay_s=3600)
    async with policy_on(fake, request_timeout_s=0.2, retries=1) as policy:
        with pytest.raises(EngineFault, match="2 tries"):
            await act(policy)


async def test_the_end_of_the_episode_is_the_policys(monkeypatch):
    monkeypatch.setattr(progress, "LOOK_S", 0.25)
    async with policy_on(FakeVLLM(delay_s=30)) as policy:
        with pytest.raises(TimeoutError):
            await act(policy, timeout=0.3)


async def test_the_end_of_the_episode_while_a_server_is_away_is_ours(monkeypatch):
    monkeypatch.setattr(progress, "LOOK_S", 0.25)
    fake = FakeVLLM(delay_s=30)
    fake.faults.append(FAULTS["hangs up"])
    async with policy_on(fake) as policy:
        with pytest.raises(EngineFault):
            await act(policy, timeout=3.0)


async def test_an_episode_stays_and_new_ones_go_where_there_are_fewest():
    fakes = FakeVLLM(), FakeVLLM()
    async with policy_on(*fakes) as policy:
        async with policy.session("a") as a, policy.session("b") as b:
            for _ in range(3):
                await a.act(PROMPT, TurnSampling(max_tokens=4), timeout=60)
            await b.act(PROMPT, TurnSampling(max_tokens=4), timeout=60)
            assert [len(fake.requests) for fake in fakes] == [3, 1]
        async with policy.session("c") as c:
            await c.act(PROMPT, TurnSampling(max_tokens=4), timeout=60)
    assert sum(len(fake.requests) for fake in fakes) == 5


async def test_a_version_that_nobody_read_is_refused():
    with pytest.raises(SetupError, match=r"version 0\.40\.1, expected 0\.26 or newer and older than 0\.33"):
        async with policy_on(FakeVLLM(version="0.40.1")):
            pass


async def test_too_short_a_context_is_refused():
    with pytest.raises(SetupError, match="context is 512 tokens, expected at least 900"):
        async with policy_on(FakeVLLM(max_model_len=512), needed_context=900):
            pass


async def test_a_server_without_developer_routes_is_refused():
    with pytest.raises(SetupError, match=r"developer routes are off.*VLLM_SERVER_DEV_MODE=1"):
        async with policy_on(FakeVLLM(developer=False)):
            pass


async def test_log_probs_of_another_distribution_are_refused():
    with pytest.raises(SetupError, match=r"logprobs_mode 'raw_logprobs', expected 'processed_logprobs'"):
        async with policy_on(FakeVLLM(logprobs_mode="raw_logprobs")):
            pass


async def test_another_way_for_weights_is_refused_where_weights_are_published():
    fake = FakeVLLM(transfer="nccl")
    with pytest.raises(SetupError, match=r"its weight transfer is 'nccl', expected 'shm'.*policy\.transfer"):
        async with policy_on(fake, engine="shm"):
            pass
    async with policy_on(fake):  # another rank of the same run publishes nothing
        pass


async def test_no_server_is_one_line():
    with tempfile.TemporaryDirectory() as directory:
        source = ExternalServers(
            [Address.parse(f"unix://{directory}/none")],
            needed_context=1,
            tokenizer=None,
            startup_timeout_s=0.2,
        )
        with pytest.raises(SetupError, match="no vLLM answers there"):
            async with source:
                pass


async def test_processes_begin_with_different_servers():
    for first in (0, 1, 2):
        fakes = FakeVLLM(), FakeVLLM()
        async with policy_on(*fakes, first=first) as policy:
            await act(policy)
        assert [len(fake.requests) for fake in fakes] == ([0, 1] if first == 1 else [1, 0])


async def test_a_server_that_was_away_gets_episodes_again(monkeypatch):
    """Though no turn of its own waits there to find out."""
    monkeypatch.setattr("sandbox_rl.policies.vllm.policy.LOOK_AGAIN_S", 2.0)
    away, well = FakeVLLM(outage=lambda body: None), FakeVLLM()
    async with policy_on(away, well, retries=0, outage_s=0) as policy:
        with pytest.raises(EngineFault):
            await act(policy)
        await act(policy)
        away.outage = None
        await asyncio.sleep(2.0)
        await act(policy)
    assert (len(away.requests), len(well.requests)) == (2, 1)


async def test_a_probe_waits_for_a_server_and_is_asked_again(monkeypatch):
    """A server's death is noticed a moment after it stopped answering."""
    monkeypatch.setattr("sandbox_rl.policies.vllm.policy.ASK_AGAIN_S", 0.01)
    fake = FakeVLLM(faults=deque([lambda body: None] * 3))

    def scored(body):
        return web.json_response({"choices": [{"prompt_logprobs": [None, {"6": {"logprob": -1.5}}]}]})

    async with policy_on(fake) as policy:
        fake.faults.append(scored)
        assert await policy.score([5, 6]) == [(-1.5,)]
    assert len(fake.requests) == 4
