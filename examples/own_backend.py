"""A sandbox backend of your own: `sandbox: {type: "own_backend:Counted", inner: {type: docker}}`.

It makes the sandboxes of another backend and counts what is asked of them. The methods below are all that a
sandbox needs (`sandbox_rl.Sandbox` says what each promises): with them it works in the pool, in training
and in evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sandbox_rl import (
    Answer,
    BackendSettings,
    EmbeddedSettings,
    ExecResult,
    Sandbox,
    SandboxBackend,
    SandboxInfo,
)
from sandbox_rl.sandboxes.config import SandboxSettings


class Counted(BackendSettings):
    """Settings of the backend, which make it. Fields are keys of the recipe's `sandbox` block."""

    inner: SandboxSettings = EmbeddedSettings()
    """What really makes sandboxes."""

    def backend(self) -> SandboxBackend:
        """With this block's limits."""
        return CountedBackend(self.inner.model_copy(update={"limits": self.limits}).backend())


class CountedSandbox:
    """One sandbox."""

    def __init__(self, inner: Sandbox, calls: Counter[str]) -> None:
        self._inner = inner
        self._calls = calls

    @property
    def id(self) -> str:
        return self._inner.id

    async def exec(self, command: str, **how: Any) -> ExecResult:
        self._calls["exec"] += 1
        return await self._inner.exec(command, **how)

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        return await self._inner.read_file(path, max_bytes=max_bytes)

    async def write_file(self, path: str, data: bytes) -> None:
        self._calls["write_file"] += 1
        await self._inner.write_file(path, data)

    async def list_dir(self, path: str, *, max_entries: int) -> tuple[str, ...]:
        return await self._inner.list_dir(path, max_entries=max_entries)

    async def get_files(self, root: str, *, max_bytes: int) -> Mapping[str, bytes]:
        return await self._inner.get_files(root, max_bytes=max_bytes)

    async def read_answer(self, *place: str, max_bytes: int = 65_536) -> Answer:
        return await self._inner.read_answer(*place, max_bytes=max_bytes)


class CountedBackend:
    """Makes them; entering it starts what they share."""

    def __init__(self, inner: SandboxBackend) -> None:
        self._inner = inner
        self.calls: Counter[str] = Counter()

    @property
    def info(self) -> SandboxInfo:
        return self._inner.info

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[Sandbox]:
        async with self._inner.sandbox(files, timeout=timeout) as made:
            yield CountedSandbox(made, self.calls)

    async def __aenter__(self) -> SandboxBackend:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._inner.__aexit__(*exc)
