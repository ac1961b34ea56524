"""Sandboxes as containers: the agent is the first process, served over the container's own stream."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from sandbox_rl.errors import SandboxFault, SandboxRLError, SetupError
from sandbox_rl.sandboxes.agent_backend import AgentBackend, Connected, to_the_end
from sandbox_rl.sandboxes.agent_sandbox import AgentSandbox, kill_counter
from sandbox_rl.sandboxes.bundle import agent_source
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.image import checked_image, fitted_image, has_python
from sandbox_rl.sandboxes.docker.options import (
    USERS,
    ContainerUsers,
    container_options,
    describe,
    host_options,
    podman_profile,
    with_network,
)
from sandbox_rl.sandboxes.egress.listener import HANDOVER_IN_CONTAINER, HandoverDirectory, HandoverSocket
from sandbox_rl.sandboxes.egress.rules import NetworkRules
from sandbox_rl.sandboxes.ownership import LABEL, is_orphan, owner_labels
from sandbox_rl.sandboxes.protocol import AgentChannel

T = TypeVar("T")

REMOVE_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 8.0
"""Seconds within which an engine says that it is there, after a sandbox of it has gone."""
REAP_INTERVAL_S = 60.0
LOOK_AGAIN_S = 0.5
"""Before an engine that has ended is looked for again."""


class DockerBackend(AgentBackend[DockerSettings]):
    """Makes sandboxes on a Docker engine.

    Entering it removes what dead owners have left on the engine and makes one sandbox as a trial. When
    this process dies, its containers lose their standard input, end and are removed by the engine.
    """

    def __init__(self, settings: DockerSettings, *, rules: NetworkRules | None = None) -> None:
        super().__init__(settings, rules)
        self._needs = f"; image {settings.image!r} needs {settings.python} 3.9 or newer"
        self._run = settings.run or secrets.token_hex(4)
        self._threads = ThreadPoolExecutor(2 * settings.create_concurrency, thread_name_prefix="docker")
        self._users = ContainerUsers()
        self._engine: DockerEngine | None = None
        self._handovers: HandoverDirectory | None = None  # where there is a network
        self._tasks: list[asyncio.Task[None]] = []
        self._left_over: set[str] = set()  # names of containers that could not be removed in time
        self._endings = 0  # of the engine, while we were connected to it
        self._image = ""
        self._python: tuple[str, ...] = ()  # what runs the agent, if not the image's own

    async def __aenter__(self) -> DockerBackend:
        try:
            self._engine = await self._in_thread(DockerEngine, self._settings.host, self._settings.tls)
            facts = await self._in_thread(self._engine.facts)
            named = (self._settings.image, self._settings.digest)
            self._image = await self._in_thread(checked_image, self._engine, *named)
            if self._rules.mode != "off":
                self._settings = with_network(self._settings, self._rules, local=self._engine.local)
                self._handovers = HandoverDirectory()
            if self._settings.runtime and self._settings.runtime not in facts.runtimes:
                raise SetupError(
                    f"sandbox.runtime: the engine does not know {self._settings.runtime!r}, only "
                    f"{', '.join(sorted(facts.runtimes))}; register it in the engine's daemon.json"
                )
            await self._reap()
            self._info = describe(facts, self._settings, self._image, self._engine, str(self._rules))
            await self._probe()
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, SandboxRLError) and not isinstance(error, SetupError):
                raise SetupError(
                    f"sandbox: the Docker engine cannot make a sandbox here ({error})"
                ) from error
            raise
        self._tasks = [
            asyncio.create_task(self._reap_periodically()),
            asyncio.create_task(self._count_endings(self._engine)),
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._info = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._engine is not None:
            await self._in_thread(self._engine.close)
            self._engine = None
        if self._handovers is not None:
            self._handovers.close()
            self._handovers = None
        await asyncio.to_thread(self._threads.shutdown)

    @asynccontextmanager
    async def _connected(self, name: str) -> AsyncIterator[Connected]:
        engine = self._running_engine()
        handover = self._handovers.socket(name) if self._handovers else None
        user = self._users.take()
        channel = AgentChannel()
        making = asyncio.create_task(self._make(name, user, channel, handover))
        check_host = partial(self._check_host, engine.breaks + self._endings)
        try:
            pid = await asyncio.shield(making)
            await channel.hello
            listener = await handover.listener() if handover else None
            counter = kill_counter(pid) if engine.local else None
            limits = self._settings.limits
            sandbox = AgentSandbox(name, channel, limits, check_host, counter)
            yield sandbox, listener
        finally:
            channel.close()
            if handover is not None:
                handover.close()
            await to_the_end(self._destroy(name, making, user))

    async def _make(
        self, name: str, user: int, channel: AgentChannel, handover: HandoverSocket | None
    ) -> int:
        """Create, attach, start; returns the first process's id on the engine's machine.

        It runs to its end even when nobody waits any more, so that `_destroy` finds what it made.
        """
        engine = self._running_engine()
        settings = self._settings
        options = container_options(settings, self._image, user, self._python)
        options |= {"labels": owner_labels(settings.lifetime_s, self._run)}

        def create() -> str:
            host = host_options(settings, user, podman_profile=podman_profile(engine))
            if handover is not None:  # shown in the container, and told to its agent
                host["binds"] = [*host["binds"], f"{handover.path}:{HANDOVER_IN_CONTAINER}"]
                options["command"] = [*options["command"], f"={HANDOVER_IN_CONTAINER}"]
            return engine.create(name, host=host, container=options)

        container = await self._in_thread(create)
        transport = await engine.attach(container, channel)
        source = agent_source().encode()
        transport.write(len(source).to_bytes(4, "big") + source)
        await self._in_thread(engine.start, container)
        return await self._in_thread(engine.process_id, container)

    async def _destroy(self, name: str, making: asyncio.Task[int], user: int) -> None:
        await asyncio.wait([making], timeout=REMOVE_TIMEOUT_S)
        # Raised already, or nobody is left to be told.
        making.add_done_callback(lambda done: done.cancelled() or done.exception())
        # What cannot be removed now, or is still being made, falls to the reaper.
        self._left_over.add(name)
        with contextlib.suppress(SandboxFault, TimeoutError):
            async with asyncio.timeout(REMOVE_TIMEOUT_S):
                await self._in_thread(self._running_engine().remove, name)
                if making.done():
                    self._left_over.discard(name)
        self._users.give_back(user)

    def _running_engine(self) -> DockerEngine:
        if self._engine is None:
            raise SandboxFault("the docker backend is not entered")
        return self._engine

    async def _check_host(self, breaks: int) -> None:
        """Raises SandboxFault if the engine does not answer, or its streams broke since `breaks`.

        One that ended and was started again in between has taken its containers with it.
        """
        engine = self._running_engine()
        if not engine.local:
            await asyncio.sleep(0.1)  # the news of a break may be on the way
        if engine.breaks + self._endings != breaks:
            raise SandboxFault(f"the connection to {self._settings.host or 'the engine'} broke")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._in_thread(engine.facts)
        except TimeoutError as error:
            raise SandboxFault(f"the Docker engine is silent for {ANSWER_TIMEOUT_S:.0f} s") from error

    async def _reap(self) -> None:
        """Remove the containers whose owner is provably gone, and what is left over of our own."""
        engine = self._running_engine()
        for name in tuple(self._left_over):
            await self._in_thread(engine.remove, name)
            self._left_over.discard(name)
        for container, labels in await self._in_thread(engine.labelled, LABEL):
            if is_orphan(labels):
                await self._in_thread(engine.remove, container)

    async def _reap_periodically(self) -> None:
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            with contextlib.suppress(SandboxFault):
                await self._reap()

    async def _count_endings(self, engine: DockerEngine) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                await engine.until_gone()
                self._endings += 1
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _probe(self) -> None:
        """Make one sandbox as a trial; where the image has no Python for the agent, put one in."""
        try:
            async with self.sandbox(timeout=60) as probe:
                await probe.ping()
        except SandboxFault:
            engine, python = self._running_engine(), self._settings.python
            host = host_options(self._settings, USERS[0], podman_profile=podman_profile(engine))
            if await self._in_thread(has_python, engine, self._image, python, host):
                raise
            self._image, self._python = await self._in_thread(fitted_image, engine, self._image)
            async with self.sandbox(timeout=60) as probe:
                await probe.ping()
            details = {**self.info.details, "agent": f"no {python} in the image; this machine's is put in"}
            self._info = replace(self.info, details=details)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
