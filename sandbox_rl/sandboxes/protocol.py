"""The host's end of the agent protocol: every reply is checked and bounded before it is used.

The program at the other end may have been taken over. It can lie about its own sandbox; it must not be
able to make the host wait, grow, raise something unexpected or read anything but bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from sandbox_rl.errors import FileProblem, SandboxDead, SandboxFileError
from sandbox_rl.sandboxes.agent import wire
from sandbox_rl.types import ExecResult, ExecStatus, Stream

SMALL_REPLY = 64 << 10
_HELLO = 0
_STATUS = {
    wire.RAN: ExecStatus.OK,
    wire.TIMED_OUT: ExecStatus.TIMEOUT,
    wire.FLOODED: ExecStatus.OUTPUT_LIMIT,
    wire.MEMORY: ExecStatus.OOM,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An agent's reply, well-formed but not yet believed."""

    code: int
    fields: list[bytes]


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[Reply]
    max_bytes: int


class AgentChannel(asyncio.Protocol):
    """One agent's stream. Any departure from the protocol closes it permanently: the sandbox is dead.

    It buffers at most the largest reply that is being waited for.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._next = _HELLO + 1
        self._pending: dict[int, _Pending] = {_HELLO: _Pending(loop.create_future(), SMALL_REPLY)}
        self.hello = self._pending[_HELLO].future
        self.dead = False
        self.why_dead = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.dead:  # it was given up while the connection was on its way
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take complete frames out of what has come."""
        self._received += data
        try:
            while len(self._received) >= wire.HEADER:
                size = int.from_bytes(self._received[: wire.HEADER], "big")
                allowed = max((p.max_bytes for p in self._pending.values()), default=0)
                if size > allowed:
                    raise wire.WireError(f"frame of {size} bytes, at most {allowed} expected")
                end = wire.HEADER + size
                if len(self._received) < end:
                    return
                body = bytes(memoryview(self._received)[wire.HEADER : end])
                del self._received[:end]
                self._deliver(body)
        except wire.WireError as error:
            self.close(f"protocol broken: {error}")

    def _deliver(self, body: bytes) -> None:
        request, code, fields = wire.decode(body)
        pending = self._pending.pop(request, None)
        if pending is None:
            raise wire.WireError(f"reply to request {request}, which is not waited for")
        if len(body) > pending.max_bytes:
            pending.future.cancel()
            raise wire.WireError(f"reply of {len(body)} bytes, at most {pending.max_bytes} expected")
        if not pending.future.done():
            pending.future.set_result(Reply(code, fields))

    def connection_lost(self, exc: Exception | None) -> None:
        self.close("the agent is gone")

    def close(self, reason: str = "closed") -> None:
        """Drop the connection; everything that waits gets SandboxDead."""
        if self.dead:
            return
        self.dead, self.why_dead = True, reason
        if self._transport is not None:
            self._transport.abort()
        self._received.clear()
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(SandboxDead(reason))
                pending.future.exception()  # waited for or not, it is not "never retrieved"
        self._pending.clear()

    async def request(
        self, code: int, fields: Iterable[bytes], *, timeout: float, max_reply: int = SMALL_REPLY
    ) -> Reply:
        """Send a request and wait for its reply.

        Args:
            timeout: seconds after which the agent counts as dead.
            max_reply: size in bytes beyond which a reply breaks the protocol.

        Raises:
            SandboxDead: there is no such reply.
        """
        if self.dead or self._transport is None:
            raise SandboxDead(self.why_dead)
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending[number] = _Pending(future, max_reply)
        self._transport.write(wire.encode(number, code, fields))
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            self.close(f"no reply within {timeout:g} s")
            raise SandboxDead(self.why_dead) from None
        except asyncio.CancelledError:
            if code == wire.EXEC and not self.dead:
                # The reply still comes and is dropped; the command should not go on until then.
                cancel, self._next = self._next, self._next + 1
                self._pending[cancel] = _Pending(asyncio.get_running_loop().create_future(), SMALL_REPLY)
                self._transport.write(wire.encode(cancel, wire.CANCEL, [wire.number(number)]))
            raise


def exec_result(reply: Reply, *, cap: int, elapsed: float) -> ExecResult:
    """The outcome of a command as far as it can be believed.

    Args:
        cap: bytes per stream that were asked for.
        elapsed: seconds measured by the host; nothing can have taken longer.

    Raises:
        WireError: the reply does not follow the protocol.
    """
    if reply.code != wire.OK:
        raise wire.WireError(f"status {reply.code} in reply to a command")
    how, status, wall, cpu, peak, *streams = wire.take(reply.fields, 11)
    kind = wire.integer(how, 0, max(_STATUS))
    wait_status = wire.integer(status, 0, 0xFFFF)
    signal_number = wait_status & 0x7F
    exit_code = 128 + signal_number if signal_number else wait_status >> 8
    return ExecResult(
        status=_STATUS[kind],
        exit_code=None if kind == wire.TIMED_OUT else exit_code,
        stdout=_stream(streams[:3], cap),
        stderr=_stream(streams[3:], cap),
        seconds=min(wire.integer(wall) / 1e6, elapsed),
        cpu_seconds=wire.integer(cpu) / 1e6,
        peak_memory_bytes=wire.integer(peak),
    )


def _stream(fields: list[bytes], cap: int) -> Stream:
    head, tail, total = fields
    kept = len(head) + len(tail)
    count = wire.integer(total, kept)
    if kept > cap or (count == kept and tail):
        raise wire.WireError(f"stream of {kept} bytes kept, {count} in all, cap {cap}")
    return Stream(head, tail, count)


def file_error(reply: Reply, path: str) -> SandboxFileError:
    """The typed error that a file operation's reply reports.

    Raises:
        WireError: it reports none.
    """
    if reply.code == wire.BAD_REQUEST:
        return SandboxFileError(FileProblem.BAD_PATH, path)
    if reply.code != wire.FILE_ERROR:
        raise wire.WireError(f"status {reply.code} in reply to a file operation")
    problem, detail = wire.take(reply.fields, 2)
    try:
        kind = FileProblem(problem.decode("ascii"))
    except ValueError:
        raise wire.WireError(f"unknown file problem {problem[:40]!r}") from None
    return SandboxFileError(kind, path, detail[:200].decode("utf-8", "replace"))
