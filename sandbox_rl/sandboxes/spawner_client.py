"""The trainer's end of the spawner: starts it, sends requests, hears of deaths."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.sandboxes.bundle import spawner_source

__all__ = ["SpawnerClient"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
MESSAGE = 1 << 20


class SpawnerClient:
    """A running spawner. Everything that it made dies with this object's process, however that ends."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: dict[str, asyncio.Future[str]] = {}

    @property
    def alive(self) -> bool:
        """Whether requests can be made."""
        return self._control is not None and self._process is not None and self._process.poll() is None

    async def start(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Start the process and return its description.

        Raises:
            SetupError: it could not lay out what sandboxes need; the message says what.
        """
        self._process, ours = _launch()
        self._control = ours
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(ours, json.dumps(config).encode())
            async with asyncio.timeout(START_TIMEOUT_S):
                answer = json.loads(await loop.sock_recv(ours, MESSAGE) or b'{"error": "it ended at once"}')
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError | TimeoutError):
                raise SetupError(f"sandbox: the spawner process does not answer ({error})") from error
            raise
        if not answer.get("ready"):
            await self.stop()
            raise SetupError(f"sandbox: {answer['error']}")
        loop.add_reader(ours.fileno(), self._news)
        return dict(answer)

    def create(self, name: str, agent: socket.socket) -> asyncio.Future[str]:
        """Ask for a sandbox whose agent speaks on `agent`.

        Returns:
            What becomes done when nothing is left of it: its launcher's last words, "" in peace.

        Raises:
            SandboxFault: the spawner is gone.
        """
        death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._deaths[name] = death
        try:
            self._send({"do": "create", "name": name}, [agent.fileno()])
        except SandboxFault:
            del self._deaths[name]
            raise
        return death

    def kill(self, name: str) -> None:
        """Ask for a sandbox's end; its death is told by the future that `create` returned."""
        if name in self._deaths:
            with contextlib.suppress(SandboxFault):  # gone itself, and with it all sandboxes
                self._send({"do": "kill", "name": name})

    def _send(self, message: Mapping[str, Any], descriptors: list[int] | None = None) -> None:
        if self._control is None:
            raise SandboxFault("the sandbox spawner is not running")
        try:
            # A few bytes on a socket that the spawner empties at once: blocking here is brief.
            self._control.setblocking(True)
            self._control.settimeout(5)
            socket.send_fds(self._control, [json.dumps(message).encode()], descriptors or [])
        except OSError as error:
            raise SandboxFault(f"the sandbox spawner is gone: {error}") from error
        finally:
            self._control.setblocking(False)

    def _news(self) -> None:
        while self._control is not None:
            try:
                data = self._control.recv(MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            message = json.loads(data)
            death = self._deaths.pop(message["dead"], None)
            if death is not None and not death.done():
                death.set_result(message["error"])

    def _lost(self) -> None:
        """The spawner has gone, and with it every sandbox."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        for death in self._deaths.values():
            if not death.done():
                death.set_result("the spawner is gone")
        self._deaths.clear()

    async def stop(self) -> None:
        """Let it kill all sandboxes, remove their groups and leave; idempotent."""
        self._lost()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its sandboxes die with it; their empty groups are removed by the next start
            await asyncio.to_thread(process.wait)


def _launch() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, with nothing of ours but one end of a socket, and the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    source = os.memfd_create("spawner")
    try:
        with os.fdopen(os.dup(source), "wb") as file:
            file.write(spawner_source().encode())
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", f"/proc/self/fd/{source}", str(theirs.fileno())],
            pass_fds=(source, theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,  # a Ctrl-C is for the trainer, which then closes the socket
        )
    except OSError as error:
        ours.close()
        raise SetupError(f"sandbox: the spawner process cannot be started: {error.strerror}") from error
    finally:
        os.close(source)
        theirs.close()
    ours.setblocking(False)
    return process, ours
