"""Sandboxes for a Python program of our own, such as a scoring worker: no agent, one socket.

The spawner, the namespaces, the system-call filter, the user and the control groups are those of the
embedded backend. Inside are the interpreter's libraries, the packages that this process can import and
what is shown besides, read-only; the program is the first process and speaks on a socket.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import sandbox_rl
from sandbox_rl.errors import SandboxDead, SandboxFault
from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.bwrap import PYTHON_PREFIX, Layout, directories, find_bubblewrap, spawner_config
from sandbox_rl.sandboxes.seccomp import build_compute_filter
from sandbox_rl.sandboxes.spawner_client import SpawnerClient

START_TIMEOUT_S = 60.0
_OURS = "/opt/sandbox_rl"
_SITES = "/opt/site"
_QUIET = {
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""A program that forks must have no threads that a library made unasked."""


def program_limits(memory_mb: int) -> SandboxLimits:
    """Of a sandbox in which a program computes and stores nothing."""
    return SandboxLimits(memory_mb=memory_mb, pids=64, disk_mb=1, inodes=64, open_files=256, file_size_mb=1)


class Program:
    """A running program.

    Args:
        connection: its standing one, non-blocking.
        end: ends it and everything in its sandbox.
        ended: the end of its launcher's stderr, once it has ended, where there is one.
    """

    def __init__(
        self, connection: socket.socket, end: Callable[[], None], ended: asyncio.Future[str] | None = None
    ) -> None:
        self.socket = connection
        self._end = end
        self._ended = ended

    @property
    def complaint(self) -> str:
        """Why it ended; "" if that is not known, or while it lives."""
        ended = self._ended
        return ended.result() if ended and ended.done() and not ended.cancelled() else ""

    def kill(self) -> None:
        """End it; idempotent."""
        self.socket.close()
        self._end()


class ProgramSandboxes:
    """Starts programs in sandboxes of their own.

    Args:
        source: of the program, one Python file; `sys.argv[1]` is the descriptor of its socket.
        memory_mb: what one sandbox may hold, MiB.
        start_timeout_s: after which a spawner that does not make one is looked at, and ended if it hangs.
    """

    isolation = "sandbox"
    """How it is called in reports."""

    def __init__(
        self,
        source: str,
        *,
        memory_mb: int,
        bwrap: Path | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._source = source
        self._start_timeout_s = start_timeout_s
        self._limits = program_limits(memory_mb)
        self._bwrap = bwrap
        self._spawner = SpawnerClient()
        self.filter = build_compute_filter(platform.machine())

    async def open(self, show: Mapping[Path, str]) -> None:
        """Make ready to start programs that see these paths of the host besides, read-only.

        Raises:
            SetupError: sandboxes cannot be made here; the message says what is missing.
        """
        bubblewrap, layout = find_bubblewrap(self._bwrap), program_layout(show)
        await self._spawner.start(
            spawner_config(bubblewrap, layout, source=self._source, limits=self._limits, for_commands=False)
        )

    async def start(self) -> Program:
        """A new program.

        Raises:
            SandboxFault: it cannot be made.
        """
        await self._spawner.ensure()
        name = secrets.token_hex(8)
        spawned = self._spawner.create(name)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                connection = await spawned.agent()
        except SandboxDead as error:
            words = spawned.ended.result() if spawned.ended.done() else ""
            raise SandboxFault(f"a sandbox for scoring cannot be made: {words or error}") from error
        except BaseException as error:
            spawned.close()
            self._spawner.kill(name)
            if isinstance(error, TimeoutError):
                await self._spawner.end_if_hung()
                why = f"a sandbox for scoring is not made within {self._start_timeout_s:g} s"
                raise SandboxFault(why) from None
            raise
        return Program(connection, partial(self._spawner.kill, name), spawned.ended)

    async def close(self) -> None:
        await self._spawner.stop()


def program_layout(show: Mapping[Path, str]) -> Layout:
    """The interpreter's libraries, the packages that this process can import, and what is shown besides."""
    shown, links = directories(("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64"))
    for name in {"lib", sys.platlibdir}:  # of Python itself
        if os.path.isdir(f"{sys.base_prefix}/{name}"):
            shown.append((f"{sys.base_prefix}/{name}", f"{PYTHON_PREFIX}/{name}"))
    places = [_OURS]
    package = Path(sandbox_rl.__file__).parent
    shown.append((str(package), f"{_OURS}/{package.name}"))
    for number, site in enumerate(_sites()):
        shown.append((site, f"{_SITES}/{number}"))
        places.append(f"{_SITES}/{number}")
    for host, inside in show.items():
        shown.append((str(host), inside))
    variables = _QUIET | {"PYTHONHOME": PYTHON_PREFIX, "PYTHONPATH": ":".join(places)}
    if any(Path(sys.base_prefix).glob("lib/libpython*.so*")) and sys.base_prefix != "/usr":
        # A shared library is looked for where it was installed, which is elsewhere on the host.
        variables["LD_LIBRARY_PATH"] = f"{PYTHON_PREFIX}/lib"
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return Layout(tuple(shown), links, python, variables)


def _sites() -> list[str]:
    """Where this process finds installed packages."""
    found = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages") and os.path.isdir(p)]
    return list(dict.fromkeys(os.path.realpath(path) for path in found))
