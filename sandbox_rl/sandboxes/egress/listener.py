"""How the host gets the listener that an agent has opened inside its sandbox.

The embedded backend takes it from the agent's own channel; containers connect once, before any command
has run, to a unix socket that is shown in them and is closed as soon as one has connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from sandbox_rl.errors import SandboxDead
from sandbox_rl.sandboxes.agent.network import LISTENER_SENT
from sandbox_rl.sandboxes.ownership import OwnedDirectory

HANDOVER_BY_CHANNEL = "-"
HANDOVER_IN_CONTAINER = "/run/sandbox-network.sock"
PREFIX = "sandbox_rl-net-"
_NO_LISTENER = "the agent sent no listener"


async def take_listener(way: socket.socket) -> socket.socket:
    """The listener that comes over `way`, a non-blocking unix socket; waits for as long as its caller does.

    Raises:
        SandboxDead: something else came, or the end.
    """
    try:
        await _readable(way)
        # Exactly one byte: what follows on a channel is the agent's hello.
        data, descriptors, _, _ = socket.recv_fds(way, 1, 4)
    except OSError as error:
        raise SandboxDead(f"{_NO_LISTENER} ({error})") from None
    sockets = [socket.socket(fileno=fd) for fd in descriptors if _is_listener(fd)]
    for fd in set(descriptors) - {made.fileno() for made in sockets}:
        os.close(fd)
    if data == LISTENER_SENT and len(descriptors) == len(sockets) == 1:
        return sockets[0]
    for made in sockets:
        made.close()
    raise SandboxDead(_NO_LISTENER)


async def accepted(listener: socket.socket) -> socket.socket:
    """The next connection to a non-blocking listener, non-blocking; waits for as long as its caller does.

    `loop.sock_accept` loses what it has taken where its caller is cancelled before that goes on.

    Raises:
        OSError: it has gone, or there are no descriptors.
    """
    await _readable(listener)
    connection, _ = listener.accept()
    connection.setblocking(False)
    return connection


async def _readable(way: socket.socket) -> None:
    loop, fd, readable = asyncio.get_running_loop(), way.fileno(), asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)


def _is_listener(fd: int) -> bool:
    """Whether it is a TCP socket that listens: nothing else is ever handed to the event loop."""
    duplicate = os.dup(fd)
    try:
        with socket.socket(fileno=duplicate) as made:
            listens = made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return bool(listens) and made.family == socket.AF_INET and made.type == socket.SOCK_STREAM
    except OSError:
        with contextlib.suppress(OSError):
            os.close(duplicate)
        return False


class HandoverSocket:
    """A unix socket on the host for one container, which lets one connection in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(path))
            path.chmod(0o666)
            self._socket.listen(1)
        except OSError:
            self.close()
            raise

    async def connection(self) -> socket.socket:
        """The one that is let in, non-blocking."""
        try:
            return await accepted(self._socket)
        finally:
            self.close()

    async def listener(self) -> socket.socket:
        """What the agent hands out. Raises SandboxDead."""
        with await self.connection() as way:
            return await take_listener(way)

    def close(self) -> None:
        """Nothing can connect any more; idempotent."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


class HandoverDirectory(OwnedDirectory):
    """A directory of this machine for the sockets of one backend."""

    def __init__(self) -> None:
        super().__init__(PREFIX, mode=0o711)

    def socket(self, name: str) -> HandoverSocket:
        return HandoverSocket(self.path / name)
