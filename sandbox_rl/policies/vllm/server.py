"""A vLLM server as a child of the run: started early, checked, started again, and gone with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.http_client import Address
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.check import ServerFacts, TokenizerProbe, check_server, check_tokenizer
from sandbox_rl.policies.vllm.launch import (
    STARTING_SOCKET,
    check_socket_path,
    environment,
    interpreter,
    server_command,
    why_it_died,
)
from sandbox_rl.policies.vllm.progress import EngineProgress

HEALTH_INTERVAL_S = 5.0
"""Seconds between two looks at a server that runs."""
HEALTH_FAILURES = 6
"""Looks in a row that find no answer before it counts as hung."""
STOP_TIMEOUT_S = 15.0
SOCKET = "http"
"""Name of a server's socket once clients may use it."""


@dataclass(eq=False)
class ManagedServer:
    """One vLLM server as a child: started early and gone with this process, even by SIGKILL.

    One of a fleet (`fleet.py`). Call `start` as soon as the model is known; `check` waits until it answers.
    Restarts are the supervisor's decision (`fleet.py`). The connections and the address are there from
    the beginning and stay the same over restarts: living sessions and other processes know them.

    Args:
        model: directory or Hub id that it loads.
        log: file that its output goes to.
        transfer: `shm`, `ipc`, `nccl` or `gloo`.
        gpu: whether it has one.
        servers: that share this machine's cores where there is none, itself included.
        needed_context: tokens that the longest prompt and one turn take.
        tokenizer: that its own is held against.
        say: told how the start goes.
    """

    settings: VLLMSettings
    _: KW_ONLY
    model: str
    log: Path
    transfer: str
    gpu: bool
    servers: int = 1
    needed_context: int = 1
    tokenizer: TokenizerProbe | None = None
    say: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self._log_start = 0
        self._python = interpreter(self.settings)
        check_socket_path()
        self._directory = Path(tempfile.mkdtemp(prefix="sbx-vllm-"))  # short, as socket paths must be
        self.address = Address("http://localhost", str(self._directory / SOCKET))
        """Where clients find it; the socket appears when the weights behind it are right."""
        self.client = VLLMServer(self.address)
        self._private = VLLMServer(Address("http://localhost", str(self._directory / STARTING_SOCKET)))
        self._process: asyncio.subprocess.Process | None = None
        self._up = asyncio.Event()
        self._watched = False
        self.lost: str | None = None
        """Why it is gone permanently, if it is."""
        self._why_ended: str | None = None

    @property
    def up(self) -> bool:
        """Whether clients may use it; one that has ended is not, though nobody may have seen it yet."""
        return self._up.is_set() and self.lost is None and not self._ended

    @property
    def pid(self) -> int | None:
        """The child that the server runs below; None while there is none. Each start has another one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def move_log(self, path: Path) -> None:
        """Continue the log elsewhere on the same file system, once there is a run to keep it."""
        os.replace(self.log, path)
        self.log = path

    async def start(self) -> None:
        """Start the child and return at once."""
        self._directory.mkdir(mode=0o700, exist_ok=True)  # the child's own supervisor removes it
        self._why_ended = None
        await self.client.open()
        await self._private.open()
        command = server_command(
            self.settings,
            python=self._python,
            model=self.model,
            transfer=self.transfer,
            directory=self._directory,
            gpu=self.gpu,
        )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(self.settings, gpu=self.gpu, servers=self.servers),
                start_new_session=True,
            )

    async def check(self) -> ServerFacts:
        """Start it if need be, wait until it answers, hold it against what is needed, and let clients in.

        Raises:
            SetupError, ModelError: it does not come up, or does not fit.
        """
        if self._process is None:
            await self.start()
        await self._wait_until_up()
        facts = await check_server(self._private, needed_context=self.needed_context)
        if self.tokenizer is not None:
            await check_tokenizer(self._private, facts.served_model, self.tokenizer)
        self._open_to_clients()
        return facts

    async def stop(self) -> None:
        """End the child and everything of it."""
        await self._end_process()
        await self.client.close()
        await self._private.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def recovered(self) -> None:
        """Wait for a restart that is going on.

        Raises:
            EngineFault: the server is gone permanently.
        """
        if self._ended and self._watched and self.lost is None:
            self._up.clear()  # its supervisor is about to see it
        await self._up.wait()
        if self.lost is not None:
            raise EngineFault(self.lost)

    async def end_because(self, why: str) -> None:
        """End a server that must not be sampled from any more; its supervisor starts another.

        One that is known to have ended is being started again already.
        """
        if self._up.is_set():
            self._why_ended = why
            self._up.clear()
            await self._end_process()

    # --- for the supervisor ---------------------------------------------------------------------------

    async def failed(self) -> str:
        """Wait until it has died or hangs; returns why. From then on clients wait in `recovered`."""
        self._watched = True
        reason = await self._next_failure()
        self._up.clear()
        return reason

    async def restart(self, prepare: Callable[[VLLMServer], Awaitable[None]]) -> None:
        """Start it again.

        Args:
            prepare: gives the new server its weights, while clients cannot reach it yet.
        """
        await self._end_process()
        await self.start()
        await self._wait_until_up()
        await prepare(self._private)
        self._open_to_clients()

    def give_up(self, why: str) -> None:
        """It is gone permanently, and those who wait for it learn of it."""
        self.lost = why
        self._up.set()

    def _open_to_clients(self) -> None:
        """Give the socket the name that clients know."""
        os.replace(self._directory / STARTING_SOCKET, self._directory / SOCKET)
        self._up.set()

    @property
    def _ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def _next_failure(self) -> str:
        if self._process is None:  # ended before it was watched
            return self._why_ended or "it was ended"
        died = asyncio.create_task(self._process.wait())
        failures, idle_s = 0, 0.0
        progress = EngineProgress(self.client)
        try:
            while failures < HEALTH_FAILURES and idle_s < self.settings.stalled_s:
                await asyncio.wait([died], timeout=HEALTH_INTERVAL_S)
                if died.done():
                    ended = why_it_died(self.log, died.result(), since=self._log_start)
                    return self._why_ended or ended
                healthy = await self.client.healthy(timeout=HEALTH_INTERVAL_S)
                failures = 0 if healthy else failures + 1
                idle_s = await progress.idle_s(turn_waits=False) if healthy else 0.0
        finally:
            died.cancel()
        if failures < HEALTH_FAILURES:
            return f"its engine has sampled nothing for {idle_s:.0f} s while turns waited"
        return f"no answer for {HEALTH_FAILURES * HEALTH_INTERVAL_S:.0f} s and more"

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # the child's own supervisor kills the whole tree
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()

    async def _wait_until_up(self) -> None:
        assert self._process is not None
        started = time.monotonic()
        said = started
        died = asyncio.create_task(self._process.wait())
        try:
            while not await self._private.healthy():
                await asyncio.wait([died], timeout=0.25)
                if died.done():
                    why = why_it_died(self.log, died.result(), since=self._log_start)
                    raise SetupError(f"vLLM: {why} (log: {self.log})")
                now = time.monotonic()
                if now - started > self.settings.startup_timeout_s:
                    raise SetupError(
                        f"vLLM did not answer within policy.startup_timeout_s="
                        f"{self.settings.startup_timeout_s:g} s; look at {self.log}, or raise it"
                    )
                if now - said > 15:
                    said = now
                    self.say(f"vLLM is starting, {now - started:.0f} s so far (log: {self.log})")
        finally:
            died.cancel()
        self.say(f"vLLM is up after {time.monotonic() - started:.0f} s of waiting")
