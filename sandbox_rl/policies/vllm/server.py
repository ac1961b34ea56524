"""A vLLM server as a child of the run: started early, watched, restarted, and gone with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.api import Address, VLLMServer
from sandbox_rl.policies.vllm.check import ServerFacts, TokenizerProbe, check_server, check_tokenizer
from sandbox_rl.policies.vllm.launch import (
    STARTING_SOCKET,
    check_socket_room,
    environment,
    interpreter,
    server_command,
    why_it_died,
)

__all__ = ["ManagedServer"]

logger = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 5.0
"""Seconds between two looks at a server that runs."""
HEALTH_FAILURES = 6
"""Looks in a row that find no answer before it counts as hung."""
STOP_TIMEOUT_S = 15.0
SOCKET = "http"
"""Name of a server's socket once clients may use it."""


class ManagedServer:
    """One vLLM server as a child: started early, watched, restarted, and gone with this process.

    Call `start` as soon as the model is known; entering waits until the server answers. The child runs
    under a supervisor that kills it and all its descendants once this process is gone, even by SIGKILL.

    Args:
        model: directory or Hub id that it loads.
        log: file that its output goes to.
        transfer: `shm`, `ipc`, `nccl` or `gloo`.
        gpu: whether it has one.
        needed_context: tokens that the longest prompt and one turn take.
        republish: gives a restarted server the newest weights before clients reach it.
        say: told how the start goes.
    """

    def __init__(
        self,
        settings: VLLMSettings,
        *,
        model: str,
        log: Path,
        transfer: str,
        gpu: bool,
        needed_context: int = 1,
        tokenizer: TokenizerProbe | None = None,
        republish: Callable[[VLLMServer], Awaitable[None]] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._model = model
        self._log = log
        self._log_start = 0
        self._transfer = transfer
        self._gpu = gpu
        self._tokenizer = tokenizer
        self._say = say
        self._python = interpreter(settings)
        check_socket_room()
        self._room: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._client: VLLMServer | None = None
        self._private: VLLMServer | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._lost: str | None = None
        self._restarts = 0
        self._needed_context = needed_context
        self.facts: list[ServerFacts] = []
        self._republish = republish
        self._wanted = asyncio.Event()
        self._wanted.set()

    @property
    def servers(self) -> Sequence[VLLMServer]:
        """The one server."""
        assert self._client is not None, "entered first"
        return [self._client]

    @property
    def private(self) -> VLLMServer:
        """The server under the name that it has while it starts."""
        assert self._private is not None, "started first"
        return self._private

    @property
    def served_model(self) -> str:
        """The name that requests must carry."""
        return self.facts[0].served_model

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens, by the server's own word."""
        return self.facts[0].max_context

    @property
    def address(self) -> Address:
        """Where clients find it, once started; the socket appears when the weights behind it are right."""
        assert self._room is not None, "started first"
        return Address("http://localhost", str(self._room / SOCKET))

    def move_log(self, path: Path) -> None:
        """Continue the log elsewhere on the same file system, once there is a run to keep it."""
        os.replace(self._log, path)
        self._log = path

    async def start(self) -> None:
        """Start the child and return at once."""
        # The room and the client stay the same over restarts: living sessions and other ranks know them.
        if self._room is None:
            self._room = Path(tempfile.mkdtemp(prefix="sbx-vllm-"))  # short, as socket paths must be
        self._room.mkdir(mode=0o700, exist_ok=True)
        if self._client is None:
            self._client = VLLMServer(self.address)
            self._private = VLLMServer(Address("http://localhost", str(self._room / STARTING_SOCKET)))
            await self._client.__aenter__()
            await self._private.__aenter__()
        command = server_command(
            self._settings,
            python=self._python,
            model=self._model,
            transfer=self._transfer,
            room=self._room,
            gpu=self._gpu,
        )
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(self._settings, gpu=self._gpu),
                start_new_session=True,
            )

    async def __aenter__(self) -> ManagedServer:
        try:
            if self._process is None:
                await self.start()
            await self._wait_until_up()
            server = self.private
            self.facts = [await check_server(server, needed_context=self._needed_context)]
            if self._tokenizer is not None:
                await check_tokenizer(server, self.served_model, self._tokenizer)
        except BaseException:
            await self.stop()
            raise
        self._open()
        self._up.set()
        self._watcher = asyncio.create_task(self._watch(), name="watch vLLM")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End the child and everything of it."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        await self._end_process()
        for client in (self._client, self._private):
            if client is not None:
                await client.__aexit__(None, None, None)
        self._client = self._private = None
        room, self._room = self._room, None
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)

    async def recovered(self, server: VLLMServer) -> None:
        """Wait for a restart that is going on.

        Raises:
            EngineFault: the server is gone for good.
        """
        await self._up.wait()
        if self._lost is not None:
            raise EngineFault(self._lost)

    def rest(self) -> None:
        """It sleeps and its memory is another's: one that dies is not started again before `wake`."""
        self._wanted.clear()

    async def wake(self) -> None:
        """Wait until it is there, asleep or started anew.

        Raises:
            EngineFault: the server is gone for good.
        """
        self._wanted.set()
        await self.recovered(self.servers[0])

    def _open(self) -> None:
        """Give the socket the name that clients know."""
        assert self._room is not None
        os.replace(self._room / STARTING_SOCKET, self._room / SOCKET)

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # the supervisor kills the whole tree
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()

    async def _wait_until_up(self) -> None:
        assert self._process is not None
        assert self._private is not None
        started = time.monotonic()
        said = started
        died = asyncio.create_task(self._process.wait())
        try:
            while not await self._private.healthy():
                await asyncio.wait([died], timeout=0.25)
                if died.done():
                    why = why_it_died(self._log, died.result(), since=self._log_start)
                    raise SetupError(f"vLLM: {why} (log: {self._log})")
                now = time.monotonic()
                if now - started > self._settings.startup_timeout_s:
                    raise SetupError(
                        f"vLLM did not answer within policy.startup_timeout_s="
                        f"{self._settings.startup_timeout_s:g} s; look at {self._log}, or raise it"
                    )
                if now - said > 15:
                    said = now
                    self._say(f"vLLM is starting, {now - started:.0f} s so far (log: {self._log})")
        finally:
            died.cancel()
        self._say(f"vLLM is up after {time.monotonic() - started:.0f} s of waiting")

    async def _watch(self) -> None:
        """Restart what died or hangs, until there were too many restarts."""
        while True:
            reason = await self._next_failure()
            self._up.clear()
            await self._wanted.wait()
            if self._restarts >= self._settings.restarts:
                self._lost = f"the vLLM server failed for good after {self._restarts} restarts: {reason}"
                break
            self._restarts += 1
            logger.warning(
                "vLLM server: %s; restart %d of %d", reason, self._restarts, self._settings.restarts
            )
            try:
                await self._end_process()
                await self.start()
                await self._wait_until_up()
                if self._republish is not None:
                    await self._republish(self.private)
                self._open()
            except Exception as error:
                self._lost = f"the vLLM server could not be restarted: {error}"
                break
            self._up.set()
        logger.error("%s", self._lost)
        self._up.set()  # those who wait learn of it

    async def _next_failure(self) -> str:
        assert self._process is not None
        assert self._client is not None
        died = asyncio.create_task(self._process.wait())
        failures = 0
        try:
            while failures < HEALTH_FAILURES:
                await asyncio.wait([died], timeout=HEALTH_INTERVAL_S)
                if died.done():
                    return why_it_died(self._log, died.result(), since=self._log_start)
                failures = 0 if await self._client.healthy(timeout=HEALTH_INTERVAL_S) else failures + 1
        finally:
            died.cancel()
        return f"no answer for {HEALTH_FAILURES * HEALTH_INTERVAL_S:.0f} s and more"
