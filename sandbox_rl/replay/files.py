"""What each turn of an episode changed in its sandbox's working directory, seen while it is played again.

Training pays nothing for it: the files are looked at when somebody wants to know, in a replay. They are those
of the run's own sandbox as far as the replay comes out the same.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sandbox_rl.agents.base import Around, EpisodeRequest
from sandbox_rl.errors import SandboxCondition
from sandbox_rl.observer import Observer
from sandbox_rl.outputs import write_atomically
from sandbox_rl.sandboxes.base import WORKING_DIR, Sandbox, SandboxBackend, SandboxInfo
from sandbox_rl.sandboxes.forwarding import WatchedSandbox
from sandbox_rl.types import ExecResult, Turn
from sandbox_rl.view.episode import file_of

MAX_BYTES = 16 << 20
"""Of all files together; of more nothing is said."""
MAX_LINES, MAX_CHARS = 400, 20_000
"""Of one file's difference."""


class ChangedFiles(Around[SandboxBackend], Observer):
    """A `SandboxBackend` for one episode that looks at the files after each call, and the episode's observer.

    Args:
        backend: that makes the sandbox.
    """

    def __init__(self, backend: SandboxBackend) -> None:
        super().__init__(backend)
        self._before: Mapping[str, bytes] = {}
        self._now: Mapping[str, bytes] = {}
        self.turns: list[list[dict[str, Any]]] = []
        """Of each turn its changes: `path`, `what` (added, changed, removed), `bytes`, `diff`."""

    @property
    def info(self) -> SandboxInfo:
        """The backend's."""
        return self.inner.info

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[Sandbox]:
        async with self.inner.sandbox(files, timeout=timeout) as sandbox:
            await self.look(sandbox)
            self._before = self._now
            yield _Looking(sandbox, self)

    async def look(self, sandbox: Sandbox) -> None:
        """Take the files as they are now; where they are not available, as they were."""
        try:
            self._now = dict(await sandbox.get_files(WORKING_DIR, max_bytes=MAX_BYTES))
        except SandboxCondition:  # too many, or the sandbox is dead: that is no failure of the episode's
            return

    def turn(self, episode: EpisodeRequest, turn: Turn) -> None:
        """The calls of a turn have been answered."""
        before, self._before = self._before, self._now
        paths = sorted(before.keys() | self._now.keys())
        changed = [path for path in paths if before.get(path) != self._now.get(path)]
        self.turns.append([_change(path, before.get(path), self._now.get(path)) for path in changed])


class _Looking(WatchedSandbox):
    """A sandbox whose files are looked at after whatever may change them."""

    def __init__(self, sandbox: Sandbox, files: ChangedFiles) -> None:
        super().__init__(sandbox)
        self._files = files

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        found = await super().exec(command, timeout=timeout, cwd=cwd)
        await self._files.look(self._sandbox)
        return found

    async def write_file(self, path: str, data: bytes) -> None:
        await super().write_file(path, data)
        await self._files.look(self._sandbox)


def write_changes(run: Path, episode: str, changes: ChangedFiles) -> None:
    """Write them beside the run's records; what an earlier replay wrote there is replaced.

    Raises:
        OSError: the file system refuses.
    """
    path = file_of(run, episode)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps({"episode": episode, "turns": changes.turns}) + "\n")


def _change(path: str, before: bytes | None, now: bytes | None) -> dict[str, Any]:
    what = "added" if before is None else "removed" if now is None else "changed"
    size = len(now if now is not None else before or b"")
    return {"path": path, "what": what, "bytes": size, "diff": _diff(before or b"", now or b"")}


def _diff(before: bytes, now: bytes) -> str:
    """Lines with "+ ", "- " or two blanks before them; nothing of files that are no text."""
    try:
        old, new = before.decode().splitlines(), now.decode().splitlines()
    except UnicodeDecodeError:
        return ""
    if "\0" in before.decode() or "\0" in now.decode() or max(len(old), len(new)) > 50 * MAX_LINES:
        return ""
    lines = [
        line if line.startswith("@@") else f"{line[:1]} {line[1:]}"
        for line in list(difflib.unified_diff(old, new, n=2, lineterm=""))[2:]
    ]
    more = len(lines) - MAX_LINES
    text = "\n".join(lines[:MAX_LINES] + ([f"… {more} more lines"] if more > 0 else []))
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + " …"
