"""Where scoring workers run: a Protocol, the choice among several, and the place without isolation."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sandbox_rl.errors import SandboxFault, SetupError

logger = logging.getLogger(__name__)

PROGRAM = "from sandbox_rl.rewards.worker import main\nmain()\n"
"""The source of a worker, for a place that makes programs."""


class WorkerHandle(Protocol):
    """A worker that was started."""

    @property
    def socket(self) -> socket.socket:
        """Its standing connection, non-blocking."""
        ...

    @property
    def complaint(self) -> str:
        """Why it ended, if anybody said so."""
        ...

    def kill(self) -> None:
        """End it; idempotent."""
        ...


class Place(Protocol):
    """Starts workers. `sandboxes.program` and `sandboxes.docker.program` have those with isolation."""

    @property
    def isolation(self) -> str:
        """ "sandbox", "docker" or "none"."""
        ...

    @property
    def filter(self) -> bytes:
        """System-call filter that a process loads before it looks at an answer; empty for none."""
        ...

    async def open(self, show: Mapping[Path, str]) -> None:
        """Make ready; workers will see these paths of the host besides their Python, read-only.

        Raises:
            SetupError: workers cannot be started here.
        """
        ...

    async def start(self) -> WorkerHandle:
        """A new worker.

        Raises:
            SandboxFault: it cannot be made.
        """
        ...

    async def close(self) -> None:
        """End all workers; idempotent."""
        ...


class FirstPlace:
    """The first of several places in which workers can be started on this machine.

    Args:
        places: in order of preference, with what each is called in a warning.
    """

    def __init__(self, places: Sequence[tuple[str, Place]]) -> None:
        self._places = places
        self._chosen = places[0][1]

    @property
    def isolation(self) -> str:
        return self._chosen.isolation

    @property
    def filter(self) -> bytes:
        return self._chosen.filter

    async def open(self, show: Mapping[Path, str]) -> None:
        """Try one after another; a worker is started and ended in each but the last.

        Raises:
            SetupError: workers can be started in none; the message says of each why.
        """
        problems: list[str] = []
        for number, (name, place) in enumerate(self._places, 1):
            try:
                await place.open(show)
                if number < len(self._places):
                    (await place.start()).kill()
            except (SetupError, SandboxFault) as error:
                await place.close()
                problems.append(str(error))
                continue
            if problems:
                logger.warning("answers are scored in %s: %s", name, "; ".join(problems))
            self._chosen = place
            return
        raise SetupError("; ".join(problems))

    async def start(self) -> WorkerHandle:
        return await self._chosen.start()

    async def close(self) -> None:
        await self._chosen.close()


class _PlainWorker:
    complaint = ""

    def __init__(self, path: Sequence[str]) -> None:
        self.socket, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-B", "-c", PROGRAM, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": ":".join(path), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        except OSError as error:
            self.socket.close()
            raise SandboxFault(f"a scoring process cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
        self.socket.setblocking(False)

    def kill(self) -> None:
        """End it with what it has started; idempotent."""
        self.socket.close()
        if self.process.returncode is None:  # not waited for, so that its number is still that of its group
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class PlainPlace:
    """Workers as plain processes of this user: whatever gets to run in one can do what this user can."""

    isolation = "none"
    filter = b""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._workers: list[_PlainWorker] = []

    async def open(self, show: Mapping[Path, str]) -> None:
        """Paths are found where they are."""
        self._path = list(dict.fromkeys([*(str(path.parent) for path in show), *filter(None, sys.path)]))

    async def start(self) -> _PlainWorker:
        worker = _PlainWorker(self._path)
        self._workers = [*(w for w in self._workers if w.process.returncode is None), worker]
        return worker

    async def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []
