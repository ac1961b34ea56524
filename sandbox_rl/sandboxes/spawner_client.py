"""The trainer's end of the spawner: starts it, sends requests, hears of deaths."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_rl.errors import SandboxDead, SandboxFault, SetupError
from sandbox_rl.sandboxes.bundle import spawner_source

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 5.0
"""Seconds within which a spawner says that it is there; it does nothing that takes long."""
END_NEWS_S = 10.0
"""Seconds within which the spawner has heard of the end of a sandbox that no longer speaks."""
STOP_TIMEOUT_S = 15.0
MESSAGE = 1 << 20
NO_DESCRIPTOR = "no file descriptor is left for another sandbox; raise `ulimit -n` or run fewer at once"


class SpawnedSandbox:
    """A sandbox that was asked for.

    Attributes:
        group: name of its control groups, once it is there.
        ended: done when nothing is left of it: the end of its launcher's stderr, "" where there is none.
        killed_outside: whether something killed it that was neither the policy nor the kernel nor us.
        orphaned: whether its spawner has gone, and it with that; another one may have been started since.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.group = ""
        self.killed_outside = False
        self.orphaned = False
        self.ended: asyncio.Future[str] = loop.create_future()
        self._agent: socket.socket | None = None
        self._told: asyncio.Future[None] = loop.create_future()

    async def agent(self) -> socket.socket:
        """The socket on which its agent speaks: the caller's to close.

        Raises:
            SandboxDead: it has ended before.
            SandboxFault: this process can hold no more descriptors.
        """
        await asyncio.shield(self._told)
        agent, self._agent = self._agent, None
        if agent is None:
            raise SandboxDead("its launcher has ended")
        return agent

    def close(self) -> None:
        """Close the socket if nobody has taken it, now or when it comes."""
        if self._agent is not None:
            self._agent.close()
        self._agent = None
        if not self._told.done():
            self._told.cancel()
        elif not self._told.cancelled():
            self._told.exception()  # nobody may be left to hear of it

    def handed_over(self, descriptors: Sequence[int], group: str) -> None:
        """The spawner has handed it over; there is no descriptor if the kernel could not give us one."""
        self.group = group
        if self._told.done():
            for descriptor in descriptors:
                os.close(descriptor)
        elif descriptors:
            self._agent = socket.socket(fileno=descriptors[0])
            self._agent.setblocking(False)
            self._told.set_result(None)
        else:
            self._told.set_exception(SandboxFault(NO_DESCRIPTOR))

    def has_ended(self, words: str, *, killed_outside: bool = False) -> None:
        self.killed_outside = killed_outside
        if not self._told.done():
            self._told.set_result(None)
        if not self.ended.done():
            self.ended.set_result(words)


class SpawnerClient:
    """A running spawner. Everything that it made dies with this object's process, however that ends."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}  # its description of what it can do here, once started
        self._config: Mapping[str, Any] | None = None
        self._restarting = asyncio.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._spawned: dict[str, SpawnedSandbox] = {}
        self._looks: dict[str, asyncio.Future[bool]] = {}

    @property
    def alive(self) -> bool:
        return self._control is not None and self._process is not None and self._process.poll() is None

    async def start(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Start the process with what `bwrap.spawner_config` gave, and return its description.

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
            await self._end()
            if isinstance(error, OSError | TimeoutError):
                raise SetupError(f"sandbox: the spawner process does not answer ({error})") from error
            raise
        if not answer.get("ready"):
            await self._end()
            raise SetupError(f"sandbox: {answer['error']}")
        loop.add_reader(ours.fileno(), self._news)
        self._config, self.found = config, dict(answer)
        return self.found

    async def ensure(self) -> None:
        """Start another one if it has been killed; what the old one had made is gone with it.

        Raises:
            SandboxFault: it cannot be started.
        """
        async with self._restarting:
            if self.alive or self._config is None:
                return
            await self._end()
            try:
                await self.start(self._config)
            except SetupError as error:
                raise SandboxFault(f"the sandbox spawner cannot be started again: {error}") from error

    def create(self, name: str) -> SpawnedSandbox:
        """Ask for a sandbox.

        Raises:
            SandboxFault: the spawner is gone.
        """
        spawned = SpawnedSandbox()
        self._send({"do": "create", "name": name})
        self._spawned[name] = spawned
        return spawned

    def kill(self, name: str) -> None:
        """Ask for a sandbox's end; its death is told by what `create` returned."""
        if name in self._spawned:
            with contextlib.suppress(SandboxFault):  # gone itself, and with it all sandboxes
                self._send({"do": "kill", "name": name})

    async def blame(self, name: str, spawned: SpawnedSandbox) -> str:
        """Why it is not the policy's doing that a sandbox no longer answers; "" where it is.

        No process inside can kill or stop the first one. A spawner that hangs is ended, and another is
        started for the next sandbox.
        """
        if self.alive:
            await asyncio.sleep(0.01)  # the news of its end may be on the way
        if self.alive and not spawned.orphaned:
            stopped = await self._look(name)
            if stopped is None:
                return "the sandbox spawner hangs"
            if stopped:
                return "something outside has stopped the sandbox"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_NEWS_S):
                    await asyncio.shield(spawned.ended)
        if spawned.orphaned or not self.alive:  # asked last: it may have gone meanwhile
            return "the sandbox spawner has ended"
        return "something outside has killed the sandbox" if spawned.killed_outside else ""

    async def end_if_hung(self) -> None:
        """See whether it answers, and end it if not: its sandboxes go with it."""
        if self.alive:
            await self._look("")

    async def _look(self, name: str) -> bool | None:
        """Whether something has stopped a sandbox; None where the spawner hangs, which is ended then."""
        if name not in self._looks:
            self._looks[name] = asyncio.get_running_loop().create_future()
            with contextlib.suppress(SandboxFault):
                self._send({"do": "look", "name": name})
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await asyncio.shield(self._looks[name])
        except TimeoutError:
            if (process := self._process) is not None:
                process.kill()
                await asyncio.to_thread(process.wait)
            self._lost()
            return None

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._control is None:
            raise SandboxFault("the sandbox spawner is not running")
        try:
            # A few bytes on a socket that the spawner empties at once: blocking here is brief.
            self._control.settimeout(5)
            self._control.send(json.dumps(message).encode())
        except OSError as error:
            raise SandboxFault(f"the sandbox spawner is gone: {error}") from error
        finally:
            self._control.setblocking(False)

    def _news(self) -> None:
        while self._control is not None:
            descriptors: list[int] = []
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE, 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            message = json.loads(data)
            if "seen" in message:
                if look := self._looks.pop(message["seen"], None):
                    look.set_result(bool(message["stopped"]))
            elif "made" in message:
                self._spawned[message["made"]].handed_over(descriptors, message["group"])
            elif spawned := self._spawned.pop(message["dead"], None):
                spawned.has_ended(message["error"], killed_outside=message.get("outside", False))

    def _lost(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        for spawned in self._spawned.values():
            spawned.orphaned = True
            spawned.has_ended("the spawner is gone")
        self._spawned.clear()
        for look in self._looks.values():
            if not look.done():
                look.set_result(False)
        self._looks.clear()

    async def stop(self) -> None:
        """Let it kill all sandboxes, remove their groups and leave; idempotent. It is not started again."""
        self._config = None
        await self._end()

    async def _end(self) -> None:
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
