"""A model as judge, behind an OpenAI-compatible chat endpoint.

Whose fault is a missing verdict? The answer is sent once more, and at the same time the gold answer of its
row. If only the gold gets a verdict the answer did it, whatever the failure was: 0.0, with the part
`judge_no_verdict`. If the gold gets none either, the endpoint or the row is at fault: None. So an answer buys
neither a missing reward nor the fallback.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from sandbox_rl.errors import ConfigError
from sandbox_rl.http_client import Address, BadAddress, HttpClient, Refused, Unreachable
from sandbox_rl.retries import GaveUp, Retries
from sandbox_rl.rewards.config import JudgeSettings
from sandbox_rl.rewards.judge_prompt import PROMPT_VERSION, body_of, verdict_of
from sandbox_rl.types import Reward, Task

logger = logging.getLogger(__name__)

_NOT_THE_ANSWER = (401, 403, 404, 429)
"""HTTP statuses that say nothing about the text that was sent."""


class _NotJudged(Exception):
    """No verdict within the retries. `ours`: for a reason that no text can bring about."""

    def __init__(self, reason: str, *, ours: bool) -> None:
        super().__init__(reason)
        self.ours = ours


class Judge:
    """Asks the endpoint; an async context manager.

    Raises:
        ConfigError: on construction, when the variable that should hold the key is not set.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        headers = {}
        if settings.api_key_env is not None:
            if not (key := os.environ.get(settings.api_key_env)):
                raise ConfigError(
                    f"reward.judge.api_key_env: variable {settings.api_key_env!r} is not set; "
                    "export it with the endpoint's key"
                )
            headers["Authorization"] = f"Bearer {key}"
        address = Address(settings.base_url.rstrip("/"))
        self._client = HttpClient(address, headers=headers, proxies=True)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._next_start = 0.0
        self._name = f"verdict_{secrets.token_hex(4)}"
        self._constrained = True
        self._form_known = False
        self._form_lock = asyncio.Lock()
        self._memory: dict[str, bool] = {}
        self._cache = Path(settings.cache_dir) if settings.cache_dir is not None else None

    async def __aenter__(self) -> Judge:
        await self._client.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.close()

    async def score(self, task: Task, answer: str) -> Reward:
        """1.0 if most votes say that the answer is correct, else 0.0; None when it could not be judged.

        Parts: `judge_votes` (votes cast) and `judge_agreement` (share that said correct), or
        `judge_no_verdict` (see the module).
        """
        votes = await self._votes(task, answer)
        failed = [vote for vote in votes if isinstance(vote, _NotJudged)]
        if failed and not any(failure.ours for failure in failed):
            votes, probe = await asyncio.gather(
                self._votes(task, answer), self._attempt(self._ask(task, str(task.answer)))
            )
            failed = [vote for vote in votes if isinstance(vote, _NotJudged)]
            if failed and isinstance(probe, bool) and not any(failure.ours for failure in failed):
                why = f"no verdict on this answer, but on the gold answer: {failed[0]}"
                return Reward(0.0, {"judge_no_verdict": 1.0}, why)
        if failed:
            return Reward(None, detail=f"not judged: {failed[0]}")
        agreement = sum(vote is True for vote in votes) / len(votes)
        parts = {"judge_votes": float(len(votes)), "judge_agreement": agreement}
        return Reward(float(agreement > 0.5), parts)

    async def _votes(self, task: Task, answer: str) -> list[bool | _NotJudged]:
        return await asyncio.gather(
            *(self._attempt(self._vote(task, answer, number)) for number in range(self.settings.votes))
        )

    async def _attempt(self, verdict: Coroutine[Any, Any, bool]) -> bool | _NotJudged:
        try:
            return await verdict
        except _NotJudged as failure:
            return failure

    async def _vote(self, task: Task, answer: str, number: int) -> bool:
        key = self._key(task, answer, number)
        if (known := self._recall(key)) is not None:
            return known
        verdict = await self._ask(task, answer)
        self._keep(key, verdict)
        return verdict

    async def _ask(self, task: Task, answer: str) -> bool:
        """A verdict.

        Raises:
            _NotJudged: none within the retries.
        """
        try:
            return await Retries(self.settings.retries).run(lambda: self._try(task, answer))
        except GaveUp as error:
            ours = error.failures[-1].status in _NOT_THE_ANSWER
            where = f"judge {self.settings.model!r} at {self.settings.base_url}"
            raise _NotJudged(f"{where}: {str(error)[:200]}", ours=ours) from error

    async def _try(self, task: Task, answer: str) -> bool:
        constrained = self._constrained
        try:
            reply = await self._request(task, answer, constrained=constrained)
        except Unreachable as error:
            if error.status is not None and error.status <= 501 and error.status not in _NOT_THE_ANSWER:
                await self._settle_form()
            if constrained == self._constrained:
                raise
            reply = await self._request(task, answer, constrained=self._constrained)
        self._form_known = True
        verdict = verdict_of(reply, self._name)
        if verdict is None:
            raise Unreachable(f"the reply holds no verdict: {reply[-80:]!r}")
        return verdict

    async def _settle_form(self) -> None:
        """Once: whether the endpoint refuses the constrained form, found with a text of ours.

        So no answer can choose the form in which it is judged.
        """
        async with self._form_lock:
            for constrained in () if self._form_known else (True, False):
                try:
                    probe = Task("probe", "What is 6 * 7?", "42", scorer="judge")
                    await self._request(probe, "42", constrained=constrained)
                except Unreachable as error:
                    if error.status is None:
                        return
                    continue
                self._constrained, self._form_known = constrained, True
                if not constrained:
                    logger.warning(
                        "judge %r at %s refuses response_format; verdicts are asked for in words alone",
                        self.settings.model,
                        self.settings.base_url,
                    )
                return

    async def _request(self, task: Task, answer: str, *, constrained: bool) -> str:
        body = body_of(task, answer, self._name, constrained=constrained) | {
            "model": self.settings.model,
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
        }
        async with self._slots:
            await self._pace()
            try:
                content = await self._client.json(
                    "POST", "/chat/completions", body, timeout=self.settings.timeout_s
                )
            except BadAddress as error:
                raise ConfigError(
                    f"reward.judge.base_url: {self.settings.base_url!r}: {error}; give http://HOST:PORT/v1"
                ) from error
            except Refused as error:  # by this judge perhaps, by the next try perhaps not
                raise Unreachable(str(error), status=error.status) from error
        try:
            reply = content["choices"][0]["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise Unreachable(f"the reply is no chat completion ({type(error).__name__})") from error
        if not isinstance(reply, str):
            raise Unreachable("the reply holds no text")
        return reply

    async def _pace(self) -> None:
        """Wait for this request's turn in the rate limit."""
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 1 / self.settings.requests_per_second
        await asyncio.sleep(start - now)

    def _key(self, task: Task, answer: str, number: int) -> str:
        s = self.settings
        parts = [PROMPT_VERSION, s.base_url, s.model, s.temperature, task.prompt, task.answer, answer, number]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _recall(self, key: str) -> bool | None:
        if key in self._memory or self._cache is None:
            return self._memory.get(key)
        try:
            text = (self._cache / key[:2] / key).read_text()
        except OSError:
            return None
        return {"CORRECT": True, "INCORRECT": False}.get(text)

    def _keep(self, key: str, verdict: bool) -> None:
        self._memory[key] = verdict
        if self._cache is None:
            return
        path = self._cache / key[:2] / key
        partial = path.with_name(f"{key}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text("CORRECT" if verdict else "INCORRECT")
            partial.replace(path)
        except OSError as error:
            logger.warning("judge cache %s cannot be written: %s", self._cache, error)
