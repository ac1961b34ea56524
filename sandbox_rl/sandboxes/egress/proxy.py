"""The filtering proxy: all that a sandbox with a network can reach. It runs outside, one per sandbox.

Plain HTTP requests and CONNECT tunnels, as every client knows them by `http_proxy`. What comes from
inside is hostile: heads are bounded and parsed strictly, everything has a deadline, and after a check
the connection goes to the address that was checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket

from sandbox_rl.sandboxes.agent.network import PROXY_PORT
from sandbox_rl.sandboxes.config import NetworkLimits
from sandbox_rl.sandboxes.egress.listener import accepted
from sandbox_rl.sandboxes.egress.request import BadRequest, ProxyRequest, parse_head
from sandbox_rl.sandboxes.egress.rules import Destination, NetworkRules, Refused

log = logging.getLogger(__name__)

HEAD_BYTES = 32 << 10
HEAD_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10.0
CLOSING_S = 5.0
CHUNK = 64 << 10
BETWEEN_CONNECTIONS_S = 0.01  # of one sandbox
BETWEEN_ALL_S = 0.001  # of all sandboxes
MOST_CONNECTIONS = 4096
DESCRIPTORS_SHARE = 8  # two of each connection: a quarter of what this process may open
LOGGED = 20  # refusals of one sandbox that are logged one by one


def proxy_environment() -> dict[str, str]:
    """Variables by which clients in a sandbox find the proxy.

    Only clients that speak to a proxy get out: there is no other way.
    """
    url = f"http://127.0.0.1:{PROXY_PORT}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    return dict.fromkeys(names, url) | dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1")


class SharedCapacity:
    """What the proxies of all sandboxes together may take of this process: descriptors, and of its loop.

    Without it a few hundred policies could leave the trainer without descriptors. Whoever comes first is
    served first, and no sandbox has more than one connection waiting here.
    """

    def __init__(self) -> None:
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        bound = descriptors // DESCRIPTORS_SHARE if descriptors > 0 else MOST_CONNECTIONS
        self._free = asyncio.Semaphore(max(8, min(bound, MOST_CONNECTIONS)))
        self._pace = asyncio.Lock()

    async def enter(self) -> None:
        """Wait for a place among all connections; `leave` gives it back."""
        async with self._pace:
            await asyncio.sleep(BETWEEN_ALL_S)
        await self._free.acquire()

    def leave(self) -> None:
        self._free.release()


class FilteringProxy:
    """Serves one sandbox until it is closed.

    Args:
        sandbox: identity, for the log.
        listener: the socket that the sandbox connects to; owned by this object from now on.
        capacity: shared with the other sandboxes of this process.
    """

    def __init__(
        self,
        sandbox: str,
        listener: socket.socket,
        rules: NetworkRules,
        limits: NetworkLimits,
        capacity: SharedCapacity,
    ) -> None:
        self.refused = 0
        self._sandbox = sandbox
        self._listener = listener
        self._rules = rules
        self._limits = limits
        self._capacity = capacity
        self._bytes_left = limits.megabytes << 20
        self._free = asyncio.Semaphore(limits.connections)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
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
            await asyncio.sleep(BETWEEN_CONNECTIONS_S)
            await self._free.acquire()
            if not await self._take():
                self._free.release()

    async def _take(self) -> bool:
        """Wait for a connection and begin to serve it; False if nothing came of it."""
        # It may be gone at once, or there are no descriptors for now.
        with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            inside = await accepted(self._listener)
            undo.callback(inside.close)
            await self._capacity.enter()
            undo.callback(self._capacity.leave)
            reader, writer = await asyncio.open_connection(sock=inside, limit=HEAD_BYTES)
            undo.pop_all()
            serving = self._keep(asyncio.create_task(self._serve(reader, writer)))
            serving.add_done_callback(lambda _: self._served(writer))
            return True
        return False

    def _served(self, writer: asyncio.StreamWriter) -> None:
        self._free.release()
        self._capacity.leave()
        writer.transport.abort()  # closed already, unless it was cancelled before its first step

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
                request = parse_head(await reader.readuntil(b"\r\n\r\n"))
        except (TimeoutError, asyncio.LimitOverrunError, BadRequest) as error:
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

    async def _destination(self, request: ProxyRequest) -> Destination:
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
