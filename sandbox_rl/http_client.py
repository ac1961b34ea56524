"""One client for HTTP endpoints that answer in JSON: vLLM servers, chat endpoints, judges.

Every request has a deadline and a bound on its reply. What fails is either `Refused`, a 4xx that another try
would meet again, or `Unreachable`: no answer, a 5xx, "too many requests", or nonsense. Only that is tried
again, after a wait that doubles, with jitter, and not before the time that the endpoint asked for. Whose
fault it is, the callers say.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self
from weakref import WeakSet

import aiohttp
import orjson  # prompts of 32,768 ids block the loop of all episodes while they are written and read

MAX_REPLY_BYTES = 32 << 20
"""A longer reply is nonsense."""
LONGEST_ASKED_S = 60.0
"""What an endpoint may ask for."""
CONNECT_S = 10.0
TRIED_AGAIN = (408, 409, 425, 429)
"""The 4xx that say nothing about the request."""

Confirm = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a URL, or a unix socket below it.

    Args:
        url: scheme, host and port, and what all routes begin with; a placeholder where `socket` is given.
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


class BadAddress(Exception):
    """No request can be sent there."""


class Refused(Exception):
    """The server understood and said no: a 4xx, or a 3xx. `detail` is what it says about it, on one line."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.status = status
        self.detail = detail


class Unreachable(Exception):
    """No answer, a 5xx, or nonsense: another try may do.

    Args:
        status: of the answer, where there was one.
        wait_s: seconds that the server asked to be left alone.
    """

    def __init__(self, reason: str, *, status: int | None = None, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status
        self.wait_s = wait_s

    @property
    def away(self) -> bool:
        """Whether it says that the server does not work, and nothing of the request."""
        return not isinstance(self, BadReply) and (self.status is None or self.status >= 500)


class BadReply(Unreachable):
    """An answer that makes no sense; whoever gave it is there."""


class _Confirming(aiohttp.BaseConnector):
    """Asks about the server behind each connection once it is open, before anything is sent over it."""

    confirm: Confirm | None = None

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        if self.confirm is None or connection.protocol in self._confirmed:
            return connection
        try:
            await self.confirm()
        except BaseException:
            connection.close()
            raise
        self._confirmed.add(connection.protocol)
        return connection

    @cached_property
    def _confirmed(self) -> WeakSet[Any]:
        return WeakSet()


class _Unix(_Confirming, aiohttp.UnixConnector):
    pass


class _TCP(_Confirming, aiohttp.TCPConnector):
    pass


class HttpClient:
    """Requests to one address. An async context manager around its connection pool.

    Args:
        headers: of every request.
        connections: open at the same time; 0 for no limit.
        proxies: whether the environment's proxies are used.
        confirm: awaited once for each connection, when it is open; what it raises the request raises, and
            nothing is sent.
    """

    def __init__(
        self,
        address: Address,
        *,
        headers: Mapping[str, str] | None = None,
        connections: int = 0,
        proxies: bool = False,
        confirm: Confirm | None = None,
    ) -> None:
        self.address = address
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._connections = connections
        self._proxies = proxies
        self._confirm = confirm
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the pool, if there is none."""
        if self._session is not None:
            return
        connector: _Confirming
        if self.address.socket is not None:
            connector = _Unix(self.address.socket, limit=self._connections, keepalive_timeout=60.0)
        else:
            connector = _TCP(limit=self._connections, keepalive_timeout=60.0)
        connector.confirm = self._confirm
        self._session = aiohttp.ClientSession(
            connector=connector, headers=self._headers, trust_env=self._proxies
        )

    async def close(self) -> None:
        """Close all connections; it can be opened again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def json(
        self,
        method: str,
        route: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float,
        query: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON that a route answers with, None where it answers with nothing.

        Raises:
            Refused, Unreachable, BadAddress: as of `content`; what is not JSON is `Unreachable` as well.
        """
        return _decoded(route, await self.content(method, route, body, timeout=timeout, query=query))

    async def content(
        self,
        method: str,
        route: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float,
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        """What a route answers with.

        Raises:
            Refused: a 4xx, or a 3xx: no redirection is followed.
            Unreachable: no answer within `timeout` seconds, a broken connection, a 5xx.
            BadAddress: the address is none.
        """
        if self._session is None:
            raise RuntimeError("the client is not open; enter it with 'async with'")
        content = None if body is None else _encoded(body)
        try:
            async with self._session.request(
                method,
                self.address.url + route,
                data=content,
                params=query,
                allow_redirects=False,  # a POST would become a GET
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(CONNECT_S, timeout)),
            ) as response:
                content = await _read(response)
        except ValueError as error:  # `InvalidURL`, or a password in it beside a key
            raise BadAddress(str(error)) from error
        except TimeoutError as error:
            raise Unreachable(f"{route}: Timeout, no answer within {timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{route}: {type(error).__name__}: {error}"[:300]) from error
        status = response.status
        if status < 300:
            return content
        detail = _detail(content)
        if status < 400:
            raise Refused(status, f"moved to {response.headers.get('Location', 'elsewhere')}")
        if status < 500 and status not in TRIED_AGAIN:
            raise Refused(status, detail)
        wait_s = _asked_wait(response.headers.get("Retry-After", ""))
        raise Unreachable(f"{route}: HTTP {status}: {detail}", status=status, wait_s=wait_s)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) > MAX_REPLY_BYTES:
            raise Unreachable(f"a reply of more than {MAX_REPLY_BYTES} bytes")
    return bytes(content)


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # half a surrogate pair in a text
        return json.dumps(body).encode()


def _decoded(route: str, content: bytes) -> Any:
    if not content:
        return None
    try:
        try:
            return orjson.loads(content)
        except ValueError:  # stricter than some endpoints are: half a surrogate pair, NaN
            return json.loads(content)
    except (ValueError, RecursionError) as error:
        shown = content[:120].decode(errors="replace")
        raise BadReply(f"{route}: answered {shown!r}, expected JSON") from error


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


def _asked_wait(header: str) -> float:
    """Seconds of a Retry-After, which is a number of them or a date (RFC 9110, 10.2.3)."""
    wait = 0.0
    if header.strip().isdigit():
        wait = float(header)
    elif header:
        with suppress(ValueError):
            wait = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
    return min(max(wait, 0.0), LONGEST_ASKED_S)
