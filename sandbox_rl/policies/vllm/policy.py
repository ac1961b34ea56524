"""A policy served by vLLM over `/v1/completions`: token ids in, token ids out.

An episode stays on one server, whose prefix cache then holds its conversation; new episodes go to the
server with the fewest. Cached prefixes are salted with the weight version, so that no turn is ever
sampled on a mixture of keys computed by different weights. Each connection is to a server that has said
which weights it has: one that was started again is not sampled from before it has the newest.

Whose fault is it? A turn that outlasts the episode's own time is the policy's (`TimeoutError`), if the
engine was seen to work to the end: a verdict that is waited for (`progress.py`). What the server does is
retried within that time and then an `EngineFault`: some times where it fails this request alone, up to
`outage_s` where it answers nobody. The time that went is not the episode's (`Action.lost_s`). A 4xx is a
fault at once: the same request would be refused again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sandbox_rl.errors import EngineFault
from sandbox_rl.http_client import Refused, Unreachable
from sandbox_rl.policies.base import UNTRAINED, PolicySession, TurnSampling, WeightVersion
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.api import VLLMServer, action_of, divided
from sandbox_rl.policies.vllm.progress import EngineProgress
from sandbox_rl.policies.vllm.source import Servers
from sandbox_rl.retries import GaveUp, Retries
from sandbox_rl.types import Action

HEALTH_S = 5.0
"""Seconds within which a server must say that it is there."""
ASK_AGAIN_S = 1.0
"""Between two tries of a probe."""
LOOK_AGAIN_S = 10.0
"""Seconds after which a server that was away is asked again whether it is there."""


@dataclass(slots=True)
class _Slot:
    server: VLLMServer
    turns: VLLMServer
    """The same, by connections that carry nothing else, each to a server that has said its version."""
    progress: EngineProgress
    live: int = field(default=0)
    answered: int = field(default=0)
    away: bool = field(default=False)
    failed_at: float = field(default=0.0)
    """When it was last away, on the monotonic clock."""


class VLLMPolicy:
    """Samples turns from vLLM servers.

    Args:
        source: gives the servers, entered and left together with the policy.
        end_ids: ids that end a turn.
        version: of the servers' weights; a turn begins with the number from before it began, and so never
            with one newer than its tokens. Where weights are published meanwhile, servers say from which
            token on the new ones were used.
        first: number of the server that gets the first of equally many episodes; several processes that
            sample from the same servers have different ones.
    """

    def __init__(
        self,
        source: AbstractAsyncContextManager[Servers],
        settings: VLLMSettings,
        *,
        end_ids: frozenset[int],
        version: WeightVersion = UNTRAINED,
        first: int = 0,
    ) -> None:
        self._source = source
        self._first = first
        self._settings = settings
        self._end_ids = sorted(end_ids)
        self._version = version
        self._entered: Servers | None = None
        self._slots: list[_Slot] = []
        self._stack: AsyncExitStack | None = None

    @property
    def _servers(self) -> Servers:
        if self._entered is None:
            raise RuntimeError("the policy is not open; enter it with 'async with'")
        return self._entered

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens, by the servers' own word."""
        return self._servers.max_context

    @property
    def version(self) -> int:
        """Of the servers' weights."""
        return self._version.value

    @property
    def loads(self) -> list[dict[str, Any]]:
        """Of each server: episodes of this process, and whether it is away; for any thread."""
        return [{"episodes": slot.live, "away": slot.away} for slot in self._slots]

    async def __aenter__(self) -> VLLMPolicy:
        async with AsyncExitStack() as stack:
            self._entered = await stack.enter_async_context(self._source)
            slots = []
            for server in self._servers.servers:
                turns = VLLMServer(server.address, confirm=partial(self._confirm, server))
                await stack.enter_async_context(turns)
                slots.append(_Slot(server, turns, EngineProgress(server)))
            first = self._first % len(slots)
            self._slots = slots[first:] + slots[:first]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    @asynccontextmanager
    async def session(self, episode_id: str) -> AsyncIterator[PolicySession]:
        """A session on the server with the fewest episodes, of those that answer."""
        await self._look_again()
        slot = min(self._slots, key=lambda slot: (slot.away, slot.live))
        slot.live += 1
        try:
            yield _Session(self, slot)
        finally:
            slot.live -= 1

    async def _confirm(self, server: VLLMServer) -> None:
        """That the server behind a new connection has the weights published last, or newer ones.

        Asked over another connection, once the first is open: an answer that comes over the first is then
        of the process that was asked, since a process that has ended has no connections left.

        Raises:
            Unreachable: it was started again, and has none of them yet.
        """
        wanted = self._version.value
        if wanted <= 0:  # it has loaded those by itself
            return
        held = await server.weights_version()
        if held is None or held < wanted:
            raise Unreachable(f"it has not the weights of version {wanted} (its own: {held})")

    async def _look_again(self) -> None:
        """Servers that were away and answer now get episodes again, though no turn there waits to tell."""
        for slot in self._slots:
            now = time.monotonic()
            if slot.away and now - slot.failed_at > LOOK_AGAIN_S:
                slot.failed_at = now  # nobody else need look meanwhile
                slot.away = not await slot.server.healthy(timeout=HEALTH_S)

    async def score(self, ids: Sequence[int]) -> list[tuple[float, ...]]:
        """Log-probs of `ids[1:]`, each given those before it, by every server, at temperature 1.

        One that is being started again is waited for.

        Raises:
            EngineFault: a server does not say.
        """
        scores = []
        for slot in self._slots:
            body = {
                "model": self._servers.served_model,
                "prompt": list(ids),
                "max_tokens": 1,
                "prompt_logprobs": 0,
                "seed": 0,
                "cache_salt": secrets.token_hex(8),  # nothing computed by other weights may serve it
            }
            try:
                answer = await self._once_up(slot, body)
                said = answer["choices"][0]["prompt_logprobs"]
                scores.append(tuple(said[i][str(ids[i])]["logprob"] for i in range(1, len(ids))))
            except (Refused, Unreachable) as error:
                raise EngineFault(f"{slot.server.address}: no score of a probe: {error}") from error
            except (TypeError, KeyError, IndexError) as error:
                raise EngineFault(f"{slot.server.address}: a score of a probe without {error!r}") from error
        return scores

    async def _once_up(self, slot: _Slot, body: dict[str, Any]) -> Any:
        """The answer of a server, asked again where it was lost with it: its death is noticed a moment later
        than by whoever asks it, and then it takes as long as a start."""
        timeout = self._settings.request_timeout_s
        deadline = time.monotonic() + self._settings.startup_timeout_s
        while True:
            await self._servers.recovered(slot.server)
            try:
                return await slot.turns.call("POST", "/v1/completions", body, timeout=timeout)
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(ASK_AGAIN_S)

    async def _act(
        self, slot: _Slot, prompt_ids: Sequence[int], sampling: TurnSampling, timeout: float
    ) -> Action:
        server, answered, started = slot.server, slot.answered, time.monotonic()
        settings, deadline = self._settings, started + timeout

        async def attempt() -> Action:
            lost_s = time.monotonic() - started
            version = self._version.value  # known before any token is sampled
            name = secrets.token_hex(16)
            body = self._body(prompt_ids, sampling, version) | {"request_id": name}
            asked = slot.turns.call("POST", "/v1/completions", body, timeout=settings.request_timeout_s)
            answer = await slot.progress.watched(asked, deadline=deadline, stalled_s=settings.stalled_s)
            slot.answered += 1
            slot.away = False
            action = replace(action_of(answer, prompt_ids, version), lost_s=lost_s)
            if self._version.value == version:
                return action
            return divided(action, await self._switches(server, name))

        def away(failure: Unreachable) -> bool:
            """Whether nobody has had an answer since the failure before; else only this request fails."""
            nonlocal answered
            nobody, answered = slot.answered == answered, slot.answered
            slot.away = failure.away and nobody
            slot.failed_at = time.monotonic()
            return slot.away

        retries = Retries(settings.retries, settings.backoff_s, settings.outage_s)
        try:
            return await retries.run(
                attempt, begin_within=timeout, between=lambda: self._servers.recovered(server), away=away
            )
        except Refused as error:
            raise EngineFault(f"{server.address} refused a turn: {error}") from error
        except GaveUp as error:
            # Where the time went to a server that was away, that is not the policy's doing.
            raise EngineFault(f"{server.address}: {error}; {len(error.failures)} tries") from error

    async def _switches(self, server: VLLMServer, name: str) -> Sequence[Sequence[int]] | None:
        """(tokens that it had by then, version of the weights that it went on with), by publications during
        a turn; None where the server does not say."""
        try:
            return max(await server.rpc("sandbox_rl_switches", name), key=len, default=())
        except (Refused, Unreachable):
            return None

    def _body(self, prompt_ids: Sequence[int], sampling: TurnSampling, version: int) -> dict[str, Any]:
        return {
            "model": self._servers.served_model,
            "prompt": list(prompt_ids),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            # A server's or a model's own defaults would bend the distribution that is trained on.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": sampling.seed & ((1 << 63) - 1),
            "stop_token_ids": self._end_ids,
            "ignore_eos": True,  # all that ends a turn is named above
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "cache_salt": f"w{version}",
        }


class _Session:
    def __init__(self, policy: VLLMPolicy, slot: _Slot) -> None:
        self._policy = policy
        self._slot = slot

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        return await self._policy._act(self._slot, prompt_ids, sampling, timeout)
