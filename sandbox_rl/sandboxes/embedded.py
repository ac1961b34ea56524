"""Sandboxes on this machine without a daemon: bubblewrap holding one agent each."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sandbox_rl.errors import SandboxDead, SandboxFault, SandboxRLError, SetupError
from sandbox_rl.sandboxes.agent_backend import AgentBackend, Connected
from sandbox_rl.sandboxes.agent_sandbox import AgentSandbox, rising
from sandbox_rl.sandboxes.base import SandboxInfo
from sandbox_rl.sandboxes.bundle import agent_source
from sandbox_rl.sandboxes.bwrap import (
    Bubblewrap,
    find_bubblewrap,
    make_layout,
    show_certificates,
    spawner_config,
)
from sandbox_rl.sandboxes.config import EmbeddedSettings
from sandbox_rl.sandboxes.egress.listener import HANDOVER_BY_CHANNEL, take_listener
from sandbox_rl.sandboxes.egress.proxy import announce, proxy_environment
from sandbox_rl.sandboxes.egress.rules import NetworkRules
from sandbox_rl.sandboxes.protocol import AgentChannel
from sandbox_rl.sandboxes.spawner_client import SpawnedSandbox, SpawnerClient

DEATH_TIMEOUT_S = 10.0
ALLOW_NAMESPACES = (
    "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
    "user.max_user_namespaces > 0 and, on Ubuntu 23.10 or later, "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container also a seccomp profile that "
    "permits unshare and mount), or use the docker backend"
)


class EmbeddedBackend(AgentBackend[EmbeddedSettings]):
    """Makes sandboxes from Linux namespaces through bubblewrap.

    Entering it starts one clean spawner process and makes one sandbox to find out what works here.
    """

    def __init__(
        self, settings: EmbeddedSettings | None = None, *, rules: NetworkRules | None = None
    ) -> None:
        super().__init__(settings or EmbeddedSettings(), rules)
        self._spawner = SpawnerClient()

    async def __aenter__(self) -> EmbeddedBackend:
        settings = self._settings
        environment, read_only = settings.environment, settings.read_only
        if self._rules.mode != "off":
            certificates, read_only = show_certificates(read_only)
            environment = proxy_environment() | certificates | environment | {"": HANDOVER_BY_CHANNEL}
            announce(self._rules)
        bubblewrap = await asyncio.to_thread(find_bubblewrap, settings.bwrap)
        layout = make_layout(
            python_env=settings.python_env,
            read_only=read_only,
            environment=environment,
            hidden_packages=settings.hidden_packages,
        )
        config = spawner_config(
            bubblewrap, layout, source=agent_source(), limits=settings.limits, cgroups=settings.cgroups
        )
        try:
            found = await self._spawner.start(config)
        except SetupError as error:
            raise SetupError(f"{error}; {ALLOW_NAMESPACES}") from error
        self._info = _describe(bubblewrap, found, self._rules)
        try:
            async with self.sandbox(timeout=30) as probe:
                await probe.ping()
        except BaseException as error:
            await self._spawner.stop()
            if isinstance(error, SandboxRLError):
                raise SetupError(
                    f"sandbox: bubblewrap cannot make a sandbox here ({error}); {ALLOW_NAMESPACES}"
                ) from error
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._info = None
        await self._spawner.stop()

    @asynccontextmanager
    async def _connected(self, name: str) -> AsyncIterator[Connected]:
        """See `AgentBackend._connected`. From the request to the spawner on, it is found by its name."""
        await self._spawner.ensure()
        spawned = self._spawner.create(name)
        listener: socket.socket | None = None
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._destroy, name, spawned)
            try:
                with ExitStack() as unused:
                    agent = stack.enter_context(await spawned.agent())
                    if self._rules.mode != "off":
                        listener = unused.enter_context(await take_listener(agent))
                    _, channel = await asyncio.get_running_loop().create_connection(AgentChannel, sock=agent)
                    stack.callback(channel.close)
                    await channel.hello
                    unused.pop_all()  # the listener is the proxy's from now on
            except SandboxDead as error:
                await self._destroy(name, spawned)
                if spawned.ended.done() and spawned.ended.result():
                    raise SandboxDead(spawned.ended.result()) from error
                raise
            events = self._spawner.found["events"]
            counter = rising(Path(events.format(group=spawned.group))) if events else None
            check_host, limits = partial(self._check_host, name, spawned), self._settings.limits
            sandbox = AgentSandbox(name, channel, limits, check_host, counter)
            yield sandbox, listener

    async def _destroy(self, name: str, spawned: SpawnedSandbox) -> None:
        """Kill it and wait until nothing is left, cancelled or not.

        The kill itself is sent before anything is awaited.
        """
        spawned.close()
        self._spawner.kill(name)
        try:
            async with asyncio.timeout(DEATH_TIMEOUT_S):
                await asyncio.shield(spawned.ended)
        except TimeoutError:
            await self._spawner.end_if_hung()

    async def _check_host(self, name: str, spawned: SpawnedSandbox) -> None:
        """Raises SandboxFault if it is not the policy's doing that a sandbox is dead."""
        if why := await self._spawner.blame(name, spawned):
            raise SandboxFault(why)


def _describe(bubblewrap: Bubblewrap, found: Mapping[str, Any], rules: NetworkRules) -> SandboxInfo:
    controllers = found["controllers"]
    lacks = []
    known_limits: tuple[str, ...] = ()
    if not found["memory"]:
        lacks.append(
            "Memory is bounded by a watchdog that looks every 0.1 s and by a limit per process, "
            "not by a cgroup; what the kernel itself holds for a sandbox (buffers of pipes and sockets, "
            "page tables) is not counted, and anonymous files and System V objects are refused."
        )
    if not ("" in controllers or "cpu" in controllers):
        lacks.append("CPU time is not bounded: one sandbox can slow the others down.")
        known_limits += ("RES-07", "CTL-06")
    if found["users_shared"]:
        lacks.append(
            f"All sandboxes run as the same host user, since {found['users_shared']}: buffers of pipes, "
            "descriptors in flight and epoll watches are counted for all of them and for you together."
        )
    if not found["divided"]:
        lacks.append(
            "One sandbox can take all inotify instances of this user: /proc/sys/user is read-only here."
        )
        known_limits += ("RES-20b",)
    if found["locks_shared"]:
        lacks.append(
            f"A sandbox can hold an advisory lock on the host's own {', '.join(found['locks_shared'])}."
        )
    return SandboxInfo(
        backend="embedded",
        tier="namespaces+cgroup" if found["memory"] else "namespaces+watchdog",
        version=f"bubblewrap {bubblewrap.version} ({bubblewrap.source})",
        lacks=tuple(lacks),
        known_limits=known_limits,
        details={
            "cgroup": ", ".join(c or "v2" for c in controllers) or f"none ({found['refused']})",
            "user": "the user's own uid" if found["users_shared"] else "one unused host uid per sandbox",
            "network": str(rules),
        },
    )
