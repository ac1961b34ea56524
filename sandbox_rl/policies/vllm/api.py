"""The HTTP routes of one vLLM server: completions, control, weight transfer (vLLM 0.26 to 0.32).

Every call has a deadline. A 4xx is `Refused` and never retried here; anything else that fails is
`Unreachable`. Whose fault that is, the callers say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson  # prompts of 32,768 ids block the loop of all episodes while they are written and read

__all__ = ["Address", "Refused", "Unreachable", "VLLMServer"]

CONTROL_TIMEOUT_S = 120.0
"""Seconds that a control route may take; loading the weights of a large model takes some."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a URL, or a unix socket below it.

    Args:
        url: scheme, host and port; a placeholder where `socket` is given.
        socket: path of the unix socket.
    """

    url: str
    socket: str | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """From `http://host:port` or `unix:///path`."""
        if url.startswith("unix://"):
            return cls("http://localhost", url.removeprefix("unix://"))
        return cls(url)

    def __str__(self) -> str:
        return self.socket or self.url


class Refused(Exception):
    """The server understood and said no: a 4xx."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.status = status


class Unreachable(Exception):
    """No answer, a 5xx, or nonsense: another try may do."""


class VLLMServer:
    """One server. An async context manager around its connection pool (keep-alive, no limit of its own:
    the episodes in flight are the limit)."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> VLLMServer:
        connector: aiohttp.BaseConnector
        if self.address.socket is not None:
            connector = aiohttp.UnixConnector(self.address.socket, limit=0, keepalive_timeout=60.0)
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *exc: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self,
        method: str,
        route: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float = CONTROL_TIMEOUT_S,
        query: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON that a route answers with, None where it answers with nothing.

        Raises:
            Refused: a 4xx, with what the server says about it.
            Unreachable: no answer within `timeout`, a broken connection, a 5xx, not JSON.
        """
        assert self._session is not None, "use `async with VLLMServer(…)`"
        try:
            async with self._session.request(
                method,
                self.address.url + route,
                data=None if body is None else orjson.dumps(body),
                headers={"Content-Type": "application/json"},
                params=query,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                content = await response.read()
                status = response.status
        except TimeoutError as error:
            raise Unreachable(f"{route} did not answer within {timeout:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{route}: {type(error).__name__}: {error}") from error
        if 400 <= status < 500 and status not in (408, 429):
            raise Refused(status, _detail(content))
        if status >= 400:
            raise Unreachable(f"{route}: HTTP {status}: {_detail(content)}")
        if not content:
            return None
        try:
            return orjson.loads(content)
        except ValueError as error:
            raise Unreachable(f"{route}: answered {content[:80]!r}, expected JSON") from error

    async def healthy(self, timeout: float = 5.0) -> bool:
        """Whether it answers and its engine lives."""
        try:
            await self.call("GET", "/health", timeout=timeout)
        except (Refused, Unreachable):
            return False
        return True

    async def rpc(self, method: str, *args: str) -> list[Any]:
        """Results of a worker method, one per worker."""
        answer = await self.call("POST", "/collective_rpc", {"method": method, "args": list(args)})
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list):
            raise Unreachable(f"/collective_rpc {method}: answered {str(answer)[:80]}, expected results")
        return results

    async def wait_healthy(self, timeout: float) -> bool:
        """Whether it became healthy within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not await self.healthy():  # noqa: ASYNC110 (a process to wait for, not a task)
                    await asyncio.sleep(0.25)
        except TimeoutError:
            return False
        return True


def _detail(content: bytes) -> str:
    """What an error body says, on one line."""
    text = content[:4_000].decode("utf-8", "replace")
    try:
        data = orjson.loads(content)
    except ValueError:
        data = None
    if isinstance(data, dict):
        inner = data.get("error", data.get("detail", data))
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    return " ".join(text.split())[:500]
