"""A sandbox backend of your own: `sandbox: {type: "own_backend:Counted", inner: {type: docker}}`.

It makes the sandboxes of another backend and counts what is asked of them. What is named below is all that a
sandbox and a backend need (`sandbox_rl.Sandbox` and `SandboxBackend` say what each promises): with it they
work in the pool, in training and in evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sandbox_rl import (
    BackendSettings,
    EmbeddedSettings,
    Sandbox,
    SandboxBackend,
    SandboxInfo,
    SandboxSettings,
)


class Counted(BackendSettings):
    """Settings of the backend, which make it. Fields are keys of the recipe's `sandbox` block."""

    inner: SandboxSettings = EmbeddedSettings()
    """What really makes sandboxes."""

    def backend(self) -> SandboxBackend:
        """With this block's limits."""
        return CountedBackend(self.inner.model_copy(update={"limits": self.limits}).backend())


def counted(name: str) -> Any:
    """A method that hands the call on."""

    async def method(self: CountedSandbox, *given: Any, **named: Any) -> Any:
        self.calls[name] += 1
        return await getattr(self.inner, name)(*given, **named)

    return method


class CountedSandbox:
    """One sandbox."""

    def __init__(self, inner: Sandbox, calls: Counter[str]) -> None:
        self.id, self.inner, self.calls = inner.id, inner, calls

    exec, read_file, write_file = counted("exec"), counted("read_file"), counted("write_file")
    list_dir, get_files, read_answer = counted("list_dir"), counted("get_files"), counted("read_answer")


class CountedBackend:
    """Makes them; entering it starts what they share."""

    def __init__(self, inner: SandboxBackend) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()

    @property
    def info(self) -> SandboxInfo:
        return self.inner.info

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[Sandbox]:
        async with self.inner.sandbox(files, timeout=timeout) as made:
            yield CountedSandbox(made, self.calls)

    async def __aenter__(self) -> SandboxBackend:
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.inner.__aexit__(*exc)
