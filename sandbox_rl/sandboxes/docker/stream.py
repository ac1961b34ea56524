"""The stream of a container: the agent's frames inside the engine's own frames."""

from __future__ import annotations

import asyncio
import re

from sandbox_rl.sandboxes.protocol import AgentChannel

__all__ = ["LOADER", "AttachedStream"]

_HEADER = 8  # stream (1 output, 2 errors), three zeros, length of what follows, big endian
_OUTPUT = 1
LONGEST_HEAD = 16 << 10

LOADER = """\
import os
def take(n):
    data = b""
    while len(data) < n:
        more = os.read(0, n - len(data))
        if not more:
            os._exit(0)
        data += more
    return data
exec(compile(take(int.from_bytes(take(4), "big")), "<agent>", "exec"))
"""
"""What an image's Python runs: it takes the agent's source from standard input and becomes the agent."""


class AttachedStream(asyncio.Protocol):
    """Hands what the container says on its standard output to the channel, piece by piece.

    Nothing is buffered here but the rest of a header, so the channel's own bounds hold.

    Args:
        upgrade: whether the engine's answer to the request for a stream comes first.
    """

    def __init__(self, channel: AgentChannel, *, upgrade: bool = False) -> None:
        self.channel = channel
        self.upgraded: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """What the engine says instead of giving the stream; "" when it does."""
        self._head: bytearray | None = bytearray() if upgrade else None
        self._header = bytearray()
        self._left = 0
        self._wanted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop's notice."""
        self.channel.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """The event loop's notice."""
        if self._head is not None:
            self._head += data
            data = self._rest()
        at = 0
        while at < len(data) and not self.channel.dead:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                if self._wanted:
                    self.channel.data_received(piece)
                continue
            need = _HEADER - len(self._header)
            self._header += data[at : at + need]
            at += need
            if len(self._header) == _HEADER:
                self._wanted = self._header[0] == _OUTPUT
                self._left = int.from_bytes(self._header[4:], "big")
                self._header.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """The event loop's notice."""
        self._settle(f"it closed the connection ({exc})" if exc else "it closed the connection")
        self.channel.connection_lost(exc)

    def _rest(self) -> bytes:
        """What follows the engine's answer, once that is whole."""
        assert self._head is not None
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end and len(self._head) < LONGEST_HEAD:
            return b""
        status = bytes(head.partition(b"\r\n")[0][:200]).decode("latin-1")
        if not re.match(r"HTTP/1\.[01] (101|200) ", status + " "):
            said = bytes(rest[:300]).decode("utf-8", "replace").strip()
            self._settle(" ".join(f"{status} {said}".split()) or "an empty answer")
            return b""
        self._head = None
        self._settle("")
        return bytes(rest)

    def _settle(self, refusal: str) -> None:
        if not self.upgraded.done():
            self.upgraded.set_result(refusal)
