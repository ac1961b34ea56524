"""Lines that a person types, read without blocking the event loop and without a thread that outlives it."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TextIO

MAX_LINE_BYTES = 1 << 20


class Keyboard:
    """Reads lines from a terminal, a pipe or a file.

    Args:
        idle_timeout_s: seconds after which silence counts as the end.
    """

    def __init__(self, source: TextIO | None = None, *, idle_timeout_s: float = 3_600.0) -> None:
        self._fd = (source if source is not None else sys.stdin).fileno()
        self._idle_timeout_s = idle_timeout_s
        self._buffer = b""
        self._ended = False

    async def line(self) -> str | None:
        """The next line that holds anything, without its end; None at the end or after long silence."""
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                while True:
                    text = await self._next()
                    if text is None or text.strip():
                        return text
        except TimeoutError:
            return None

    async def _next(self) -> str | None:
        while b"\n" not in self._buffer and not self._ended and len(self._buffer) < MAX_LINE_BYTES:
            await self._readable()
            data = os.read(self._fd, 65_536)
            self._ended = not data
            self._buffer += data
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("utf-8", "replace").rstrip("\r")

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except PermissionError:
            return  # epoll takes no regular files: they never block
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)
