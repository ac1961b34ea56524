"""Figures of containers, and of the way that they are used without an agent; part of bench_sandbox.py.

The reference way is what agent frameworks do: a container that sleeps, and for every command a fresh
`exec` of `timeout N bash -c …` on the engine. Here it gets the kindest form: no limits, no read-only root,
no grace of ten seconds before its end.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench_sandbox_measures import Figure, at_once, leaks, timed

from sandbox_rl.sandboxes.base import ANSWER_FILE, Sandbox, SandboxBackend
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.backend import DockerBackend
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.options import USERS, container_options, host_options
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.ownership import LABEL

__all__ = ["AT_ONCE", "docker_figures"]

AT_ONCE = 32
KEPT = 32  # threads and connections that the docker backend keeps for its next calls
COMMANDS, EDITS = 8, 2
_TEXT = "one\ntwo\nthree\n"
_REPLACE = "p='/testbed/notes.txt'; s=open(p).read(); open(p,'w').write(s.replace('two','2'))"


async def episode(backend: SandboxBackend) -> None:
    """Create, eight commands, two edits (read, replace, write), the answer, destroy."""
    async with backend.sandbox(timeout=120) as sandbox:
        await sandbox.write_file("/testbed/notes.txt", _TEXT.encode())
        for _ in range(COMMANDS):
            await sandbox.exec("true", timeout=30)
        for _ in range(EDITS):
            text = await sandbox.read_file("/testbed/notes.txt", max_bytes=1 << 16)
            await sandbox.write_file("/testbed/notes.txt", text.replace(b"two", b"2"))
        await sandbox.write_file(ANSWER_FILE, b"42")
        answer = await sandbox.read_answer()
    assert answer.text == "42"


async def alone(backend: SandboxBackend, rounds: int) -> tuple[float, float]:
    """Medians of creating and of `true` on a standing stream, in ms, one sandbox at a time."""
    create, execute = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        async with backend.sandbox(timeout=120) as sandbox:
            create.append(time.perf_counter() - started)
            for _ in range(10):
                started = time.perf_counter()
                await sandbox.exec("true", timeout=30)
                execute.append(time.perf_counter() - started)
    return 1000 * statistics.median(create), 1000 * statistics.median(execute)


async def crowd(backend: SandboxBackend, count: int) -> tuple[float, float]:
    """Seconds until `count` are alive, and the median of `true` among them in ms."""
    started = time.perf_counter()
    async with AsyncExitStack() as stack:
        made: list[Sandbox] = await asyncio.gather(
            *(stack.enter_async_context(backend.sandbox(timeout=300)) for _ in range(count))
        )
        alive, seconds = time.perf_counter() - started, []
        for sandbox in made:
            started = time.perf_counter()
            await sandbox.exec("true", timeout=30)
            seconds.append(time.perf_counter() - started)
    return alive, 1000 * statistics.median(seconds)


async def left(settings: DockerSettings) -> int:
    """Containers of sandboxes that are still there once the engine has had time to remove them."""
    engine = await asyncio.to_thread(DockerEngine, settings.host)
    try:
        for _ in range(50):
            if not (found := await asyncio.to_thread(engine.labelled, LABEL)):
                return 0
            await asyncio.sleep(0.1)
        return len(found)
    finally:
        engine.close()


@dataclass
class Reference:
    """The reference way on one engine, by its SDK in threads.

    Args:
        settings: which engine and image, and the paths of the engine's machine to show.
        at_once: threads.
    """

    settings: DockerSettings
    at_once: int
    executed: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        import docker

        self._api: Any = docker.APIClient(base_url=self.settings.host or None, version="auto", timeout=120)
        self._threads = ThreadPoolExecutor(self.at_once)

    async def episode(self) -> None:
        """The same work as `episode` above."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._episode)

    def close(self) -> None:
        self._threads.shutdown()
        self._api.close()

    def _started(self) -> str:
        binds = [f"{outside}:{inside}:ro" for outside, inside in self.settings.read_only.items()]
        host = self._api.create_host_config(network_mode="none", binds=binds)
        volumes, command = list(self.settings.read_only.values()), ["sleep", "600"]
        made = self._api.create_container(self.settings.image, command, host_config=host, volumes=volumes)[
            "Id"
        ]
        self._api.start(made)
        return str(made)

    def _episode(self) -> None:
        made = self._started()
        try:
            self._exec(made, f"mkdir -p /testbed && printf '{_TEXT}' > /testbed/notes.txt")
            for _ in range(COMMANDS):
                started = time.perf_counter()
                self._exec(made, "true")
                self.executed.append(time.perf_counter() - started)
            for _ in range(EDITS):
                self._exec(made, f'python3 -c "{_REPLACE}"')
            self._exec(made, f"printf 42 > {ANSWER_FILE}")
            assert self._exec(made, f"cat {ANSWER_FILE}") == b"42"
        finally:
            self._api.remove_container(made, force=True, v=True)

    def _exec(self, container: str, command: str) -> bytes:
        made = self._api.exec_create(container, ["timeout", "30", "bash", "-c", command])
        said: bytes = self._api.exec_start(made["Id"])
        code = self._api.exec_inspect(made["Id"])["ExitCode"]
        assert code == 0, (command, code, said)
        return said


@dataclass
class Floor:
    """What the engine needs for one of our containers, limits and all, when nothing is done in it.

    Args:
        settings: those of the backend.
        at_once: threads.
    """

    settings: DockerSettings
    at_once: int

    def __post_init__(self) -> None:
        self._engine = DockerEngine(self.settings.host)
        self._threads = ThreadPoolExecutor(self.at_once)

    async def episode(self) -> None:
        """Create, start, remove."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._episode)

    def _episode(self) -> None:
        name = f"floor-{secrets.token_hex(8)}"
        options = container_options(self.settings, self.settings.image, USERS[0])
        self._engine.start(
            self._engine.create(name, host=host_options(self.settings, USERS[0]), container=options)
        )
        self._engine.remove(name)

    def close(self) -> None:
        self._threads.shutdown()
        self._engine.close()


async def docker_figures(settings: DockerSettings, quick: bool) -> list[Figure]:
    """Containers, the reference way and embedded sandboxes at the same work, by turns."""
    limit, total, many = 8, 16 if quick else 32, 16 if quick else 64
    reference, floor = Reference(settings, limit), Floor(settings, limit)
    rounds: dict[str, list[float]] = {"ours": [], "floor": [], "theirs": [], "embedded": []}
    try:
        async with DockerBackend(settings=settings) as backend, EmbeddedBackend() as embedded:
            create, execute = await alone(backend, 5 if quick else 20)
            alive, among = await crowd(backend, many)
            leaked = await leaks(backend, *((24, 8) if quick else (200, 50)))
            for _ in range(1 if quick else 3):
                for name, work, count, width in (
                    ("ours", lambda: episode(backend), total, limit),
                    ("floor", floor.episode, total, limit),
                    ("theirs", reference.episode, total // 2, limit),
                    ("embedded", lambda: episode(embedded), 10 * total, AT_ONCE),
                ):
                    rounds[name].append(count / await timed(partial(at_once, work, count, width)))
    finally:
        reference.close()
        floor.close()
    ours, least, theirs, fast = (statistics.median(rates) for rates in rounds.values())
    enough = min(3, 0.8 * least / theirs)  # nothing can be faster than the engine itself
    return [
        Figure("docker: create, p50, alone", create, None, "ms"),
        Figure("docker: exec of `true`, p50", execute, 5, "ms"),
        Figure(f"docker: until {many} at once are alive", alive, None, "s"),
        Figure(f"docker: exec among {many}, p50", among, None, "ms"),
        *(Figure(f"docker: {f.name}", f.value, f.required or KEPT, f.unit) for f in leaked),
        Figure("docker: containers left", await left(settings), 0, "things"),
        Figure("reference: exec of `true`, p50", 1000 * statistics.median(reference.executed), None, "ms"),
        Figure("reference: episodes", theirs, None, "/s"),
        Figure("engine's floor: the same container, nothing done", least, None, "/s"),
        Figure("docker: episodes", ours, None, "/s"),
        Figure("docker: episodes, of the floor", 100 * ours / least, None, "%"),
        Figure("docker: episodes, against the reference", ours / theirs, enough, "x", at_least=True),
        Figure("embedded: episodes", fast, None, "/s"),
        Figure("embedded: episodes, against the reference", fast / theirs, 20, "x", at_least=True),
    ]
