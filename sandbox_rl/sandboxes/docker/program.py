"""Containers for a Python program of our own, such as a scoring worker: no agent, one socket.

The image gives nothing but a root: the interpreter, its libraries and the packages that this process can
import are shown from this machine, read-only, as `sandboxes.program` shows them. The program connects once to
a unix socket that is shown as well, so descriptors can be handed to it; the engine must be on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.sandboxes.bwrap import PYTHON_PREFIX, Layout
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.image import checked_image
from sandbox_rl.sandboxes.docker.options import GROUP, ContainerUsers, host_options, podman_profile
from sandbox_rl.sandboxes.egress.listener import HandoverDirectory
from sandbox_rl.sandboxes.ownership import owner_labels
from sandbox_rl.sandboxes.program import START_TIMEOUT_S, Program, program_layout, program_limits
from sandbox_rl.sandboxes.seccomp import build_compute_filter

_LIFETIME_S = 365 * 86_400.0  # a run may be long, and a program ends with its owner's socket
_PYTHON = f"{PYTHON_PREFIX}/bin/python"
_SOCKET = "/run/sandbox-program.sock"
_CONNECT = f"""\
import socket, sys
_connection = socket.socket(socket.AF_UNIX)
_connection.connect({_SOCKET!r})
sys.argv[1:] = [str(_connection.detach())]
"""


class DockerPrograms:
    """Starts programs in containers of their own, without network, capability or writable directory.

    Args:
        source: of the program, Python; `sys.argv[1]` is the descriptor of its socket.
        settings: engine, image and runtime.
        memory_mb: what one container may hold, MiB.
    """

    isolation = "docker"
    """How it is called in reports."""

    def __init__(self, source: str, settings: DockerSettings, *, memory_mb: int) -> None:
        limits = program_limits(memory_mb)
        self._source = source
        self._settings = settings.model_copy(update={"limits": limits, "read_only": {}})
        self._layout = Layout((), {}, "", {})
        self._image = ""
        self._profile: str | None = None  # see `host_options`
        self._engine: DockerEngine | None = None
        self._handovers: HandoverDirectory | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._names: set[str] = set()
        self._users = ContainerUsers()
        self.filter = build_compute_filter(platform.machine())

    async def open(self, show: Mapping[Path, str]) -> None:
        """Make ready to start programs that see these paths of the host besides, read-only.

        Raises:
            SetupError: no engine answers, it is not on this machine, or it has no such image.
        """
        settings = self._settings
        self._layout = await asyncio.to_thread(program_layout, show)
        self._engine = engine = await asyncio.to_thread(DockerEngine, settings.host, settings.tls)
        try:
            if not engine.local:
                raise SetupError(
                    "programs in containers need an engine on this machine; this one is elsewhere"
                )
            self._image = await asyncio.to_thread(checked_image, engine, settings.image, settings.digest)
            self._profile = podman_profile(engine)
            self._handovers = HandoverDirectory()
        except BaseException as error:
            await self.close()
            if isinstance(error, SandboxFault):
                raise SetupError(str(error)) from error
            raise
        self._threads = ThreadPoolExecutor(settings.create_concurrency, thread_name_prefix="programs")

    async def start(self) -> Program:
        """A new program.

        Raises:
            SandboxFault: it cannot be made.
        """
        engine, handovers = self._engine, self._handovers
        if engine is None or handovers is None:
            raise SandboxFault("containers for programs are not open")
        name = f"sandbox-rl-program-{secrets.token_hex(8)}"
        handover = handovers.socket(name)
        self._names.add(name)
        user = self._users.take()  # here, as two threads could take the same; there are enough for a run
        loop = asyncio.get_running_loop()
        making = loop.run_in_executor(self._threads, self._make, engine, name, str(handover.path), user)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(making)
                connection = await handover.connection()
        except BaseException as error:
            handover.close()
            if making.done():  # else `close` removes what comes of it
                self.remove(name)
            if isinstance(error, TimeoutError):
                why = f"in a container of {self._settings.image} a program does not start"
                raise SandboxFault(why) from None
            raise
        return Program(connection, partial(self.remove, name))  # its output goes nowhere: no complaint

    def remove(self, name: str) -> None:
        """Begin to remove a container; what cannot be removed ends by itself, as its socket is closed."""
        if self._engine is not None and self._threads is not None and name in self._names:
            self._names.discard(name)
            self._threads.submit(_remove, self._engine, name)

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)  # nothing is being made any more
        if self._engine is not None:
            names, self._names = self._names, set()
            await asyncio.gather(*(asyncio.to_thread(_remove, self._engine, name) for name in names))
            await asyncio.to_thread(self._engine.close)
            self._engine = None
        if self._handovers is not None:
            self._handovers.close()
            self._handovers = None

    def _make(self, engine: DockerEngine, name: str, handover: str, user: int) -> None:
        layout = self._layout
        host = host_options(self._settings, user, podman_profile=self._profile)
        # A link of this machine may be a directory of the image: what it leads to is shown there as well.
        linked = [(str(Path(place).resolve()), place) for place in layout.links]
        shown = [*layout.shown, *linked, (layout.python, _PYTHON)]
        host |= {
            "binds": [*(f"{outside}:{inside}:ro" for outside, inside in shown), f"{handover}:{_SOCKET}"],
            "tmpfs": dict.fromkeys(("/home", "/root"), "ro,size=4k,mode=0555"),  # not even the image's own
            "ipc_mode": "none",  # and so no /dev/shm
        }
        container = {
            "image": self._image,
            "entrypoint": [_PYTHON, "-S", "-s", "-B", "-c", _CONNECT + self._source],
            "command": [],
            "environment": dict(layout.variables),
            "user": f"{user}:{GROUP}",
            "working_dir": "/",
            "hostname": "sandbox",
            "healthcheck": {"test": ["NONE"]},
            "labels": owner_labels(_LIFETIME_S, self._settings.run),
        }
        engine.start(engine.create(name, host=host, container=container))


def _remove(engine: DockerEngine, name: str) -> None:
    with contextlib.suppress(SandboxFault):
        engine.remove(name)
