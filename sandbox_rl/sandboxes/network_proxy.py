"""The filtering proxy: all that a sandbox with a network can reach. It runs outside, one per sandbox.

Plain HTTP requests and CONNECT tunnels, as every client knows them by `http_proxy`. What comes from
inside is hostile: heads are bounded and parsed strictly, everything has a deadline, and after a check
the connection goes to the address that was checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from dataclasses import dataclass

from sandbox_rl.sandboxes.agent.network import PROXY_PORT
from sandbox_rl.sandboxes.config import NetworkLimits
from sandbox_rl.sandboxes.network_rules import Destination, NetworkRules, Refused

__all__ = ["FilteringProxy", "announce", "proxy_environment"]

log = logging.getLogger(__name__)

HEAD_BYTES = 32 << 10
HEAD_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10.0
CLOSING_S = 5.0
CHUNK = 64 << 10
BETWEEN_CONNECTIONS_S = 0.01
LOGGED = 20  # refusals of one sandbox that are logged one by one
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s/@:\[\]]+)(?::(\d{1,5}))?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[^\r\n\0]*")
_LINE = re.compile(r"([A-Z]{1,16}) ([!-~]{1,16384}) HTTP/1\.[01]")
_OWN_FIELDS = (b"host", b"connection", b"keep-alive", b"upgrade", b"proxy-")  # fields that begin like these


@dataclass(frozen=True, slots=True)
class _Request:
    """A request's head: where it goes, and what is sent there instead of it (nothing for a tunnel)."""

    host: str
    port: int
    head: bytes

    @property
    def tunnel(self) -> bool:
        return not self.head


class _BadRequest(Exception):
    """It is not HTTP as a proxy is spoken to."""


def proxy_environment() -> dict[str, str]:
    """Variables by which clients in a sandbox find the proxy.

    Only clients that speak to a proxy get out: there is no other way.
    """
    url = f"http://127.0.0.1:{PROXY_PORT}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    return dict.fromkeys(names, url) | dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1")


class FilteringProxy:
    """Serves one sandbox until it is closed.

    Args:
        sandbox: identity, for the log.
        listener: the socket that the sandbox connects to; owned by this object from now on.
    """

    def __init__(
        self, sandbox: str, listener: socket.socket, rules: NetworkRules, limits: NetworkLimits
    ) -> None:
        self.refused = 0
        self._sandbox = sandbox
        self._listener = listener
        self._rules = rules
        self._limits = limits
        self._bytes_left = limits.megabytes << 20
        self._free = asyncio.Semaphore(limits.connections)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to serve."""
        self._listener.setblocking(False)
        self._keep(asyncio.create_task(self._accept())).add_done_callback(lambda _: self._listener.close())

    def close(self) -> None:
        """End everything; idempotent. Nothing is awaited, so that no cancellation can come between."""
        for task in self._tasks:
            task.cancel()

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        """Take connections no faster than a client needs: what comes on top waits in the sandbox's kernel,
        and costs the trainer's loop nothing.
        """
        while True:
            await self._free.acquire()
            try:
                inside, _ = await asyncio.get_running_loop().sock_accept(self._listener)
                reader, writer = await asyncio.open_connection(sock=inside, limit=HEAD_BYTES)
            except OSError:  # it was gone at once, or there are no descriptors for now
                self._free.release()
            else:
                serving = self._keep(asyncio.create_task(self._serve(reader, writer)))
                serving.add_done_callback(lambda _, writer=writer: self._served(writer))  # type: ignore[misc]
            await asyncio.sleep(BETWEEN_CONNECTIONS_S)

    def _served(self, writer: asyncio.StreamWriter) -> None:
        self._free.release()
        writer.transport.abort()  # closed already, unless it was cancelled before its first step

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._answer(reader, writer)
        except TimeoutError:
            self._note(f"a connection of more than {self._limits.seconds:g} s")
        except (OSError, EOFError):
            return  # one of the two sides went away
        finally:
            await _closed(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                request = _parsed(await reader.readuntil(b"\r\n\r\n"))
        except (TimeoutError, asyncio.LimitOverrunError, _BadRequest) as error:
            await _say(writer, "400 Bad Request", str(error) or "no request came")
            return
        try:
            destination = await self._destination(request)
            outside, away = await _connected(destination)
        except Refused as error:
            self._note(str(error))
            await _say(writer, "403 Forbidden", str(error))
            return
        except OSError as error:
            await _say(writer, "502 Bad Gateway", f"{request.host}:{request.port}: {error}")
            return
        try:
            if request.tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                away.write(request.head)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, away))
                both.create_task(self._pass_on(outside, writer))
        except* (OSError, EOFError):
            pass  # one of the two sides went away, or may send no more
        finally:
            await _closed(away)

    async def _destination(self, request: _Request) -> Destination:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await self._rules.destination(request.host, request.port)
        except TimeoutError:
            raise Refused(f"{request.host} was not resolved in {CONNECT_TIMEOUT_S:g} s") from None

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """One direction, until it ends or the sandbox has had its bytes."""
        while data := await source.read(CHUNK):
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                self._note(f"more than {self._limits.megabytes} MiB in all")
                raise EOFError
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()

    def _note(self, what: str) -> None:
        """Tell the operator, but do not let a sandbox fill the log."""
        self.refused += 1
        if self.refused <= LOGGED:
            shown = what.encode("ascii", "backslashreplace").decode()[:300]
            log.warning("sandbox %s: network refused: %s", self._sandbox, shown)
            if self.refused == LOGGED:
                log.warning("sandbox %s: further refusals are not logged", self._sandbox)


def announce(rules: NetworkRules) -> None:
    """Say at every start what nobody should overlook."""
    if rules.mode == "full":
        log.warning(
            "sandbox.network is full: policies can reach every public host, and tell it what is in the "
            "sandbox; name hosts by network: allowlist where that is enough"
        )


async def _connected(destination: Destination) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first of the checked addresses that answers; no name is looked up again.

    Raises:
        OSError: none does.
    """
    problem = OSError("no address")
    for address in destination.addresses:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.open_connection(address, destination.port, limit=CHUNK)
        except OSError as error:  # a time-out is one as well
            problem = error
    raise OSError(problem.strerror or "it does not answer")


def _parsed(head: bytes) -> _Request:
    """A request's head as a proxy gets it. Raises _BadRequest for anything else.

    Towards the server the Host field is the host that was checked, whatever the request said.
    """
    line, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    found = _LINE.fullmatch(line.decode("latin-1"))
    if not found:
        raise _BadRequest("not an HTTP/1 request")
    if not all(_FIELD.fullmatch(field) for field in fields):
        raise _BadRequest("a malformed header field")
    method, target = found.groups()
    if method == "CONNECT":
        return _Request(*_authority(target, None), b"")
    authority, slash, path = target.removeprefix("http://").partition("/")
    if not target.startswith("http://"):
        raise _BadRequest("expected CONNECT, or a URL of http://")
    host, port = _authority(authority, 80)
    kept = [
        f for f in fields if (n := f.partition(b":")[0].lower()) not in _OWN_FIELDS and n[:6] != b"proxy-"
    ]
    first = f"{method} {slash or '/'}{path} HTTP/1.1".encode("ascii")
    own = (f"Host: {authority}".encode("latin-1"), b"Connection: close")
    return _Request(host, port, b"\r\n".join((first, *own, *kept)) + b"\r\n\r\n")


def _authority(text: str, default: int | None) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(text)
    if not match or not text.isascii() or (match[2] is None and default is None):
        raise _BadRequest("expected host:port")
    return match[1], int(match[2]) if match[2] else default or 0


async def _say(writer: asyncio.StreamWriter, status: str, why: str) -> None:
    """An answer of the proxy's own."""
    body = (why[:500] + "\n").encode("utf-8", "replace")
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode("ascii") + b"Connection: close\r\n\r\n" + body)
    await writer.drain()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSING_S):
            await writer.wait_closed()
