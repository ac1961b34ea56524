"""A sandbox backend as one would write it in an hour: a plain subprocess, no isolation whatever.

It exists to prove that the cases can fail: each must fail here (or be listed in `weak_cases.py`). Never
run it outside `container.py`. Its mistakes are those that real projects have shipped: the trainer's
environment and descriptors are inherited, commands travel as an argument through a login shell, the
exit code is read from a mark in the output and exit codes that engines use are taken for the
engine's, both streams are one, collected until the pipe's end without a cap and decoded chunk by
chunk, a time-out asks one process politely, the answer is opened as any file.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from sandbox_rl.errors import SandboxFault
from sandbox_rl.sandboxes.base import ANSWER_FILE, INPUT_DIR, WORKING_DIR, SandboxInfo
from sandbox_rl.types import Answer, AnswerStatus, ExecResult, ExecStatus, Stream

_ENGINE_CODES = (124, 125, 126, 127, 137, 143, 255)
_MARK = re.compile(r"EXITCODESTART(\d+)EXITCODEEND\n?")


class WeakSandbox:
    def __init__(self, directory: Path) -> None:
        self.id = f"weak-{int(time.time())}-{os.getpid()}"
        self._directory = directory

    def host_path(self, path: str) -> Path:
        return Path(path.replace(WORKING_DIR, str(self._directory)))

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        command = command.replace(WORKING_DIR, str(self._directory))
        return await asyncio.to_thread(self._exec, command, timeout, self.host_path(cwd))

    def _exec(self, command: str, timeout: float, cwd: Path) -> ExecResult:
        started = time.monotonic()
        marked = f"{command}\necho EXITCODESTART$?EXITCODEEND"
        try:
            process = subprocess.Popen(
                ["bash", "-l", "-c", marked],
                cwd=cwd,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                close_fds=False,
            )
        except OSError as error:
            raise SandboxFault(f"cannot run the command: {error}") from error
        try:
            out, _ = process.communicate(timeout=timeout)
            status = ExecStatus.OK
        except subprocess.TimeoutExpired:
            process.terminate()
            out, _ = process.communicate()
            status = ExecStatus.TIMEOUT
        text = _decoded(out)
        found = _MARK.search(text)
        if found is None and status is ExecStatus.OK:
            raise SandboxFault("the shell was lost: no exit code in its output")
        code = int(found.group(1)) if found else process.returncode
        if code in _ENGINE_CODES or "OCI runtime" in text:
            raise SandboxFault(f"the engine failed with exit code {code}")
        text = _MARK.sub("", text, count=1)
        seconds = time.monotonic() - started
        return ExecResult(status, code, _stream(text), seconds=seconds)

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        try:
            data = await asyncio.to_thread(lambda: self.host_path(path).open("rb").read(1 << 28))
        except OSError as error:
            raise SandboxFault(f"cannot read the answer: {error}") from error
        if not data:
            return Answer(AnswerStatus.MISSING)
        return Answer(AnswerStatus.OK, data.decode("utf-8", "replace"))


class WeakBackend:
    @property
    def info(self) -> SandboxInfo:
        return SandboxInfo(backend="weak", tier="none", lacks=("It isolates nothing.",))

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[WeakSandbox]:
        directory = Path(tempfile.mkdtemp(prefix="weak-"))
        made = WeakSandbox(directory)
        for name, data in (files or {}).items():
            target = made.host_path(INPUT_DIR) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        try:
            yield made
        finally:
            try:
                shutil.rmtree(directory)
            except (OSError, RecursionError) as error:
                raise SandboxFault(f"cannot remove {directory}: {error}") from error

    async def __aenter__(self) -> WeakBackend:
        self._state = os.open(tempfile.gettempdir(), os.O_RDONLY)
        os.set_inheritable(self._state, True)
        return self

    async def __aexit__(self, *exc: object) -> None:
        os.close(self._state)


def _decoded(data: bytes) -> str:
    chunks = (data[i : i + 4096] for i in range(0, len(data), 4096))
    return "".join(c.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n") for c in chunks)


def _stream(text: str) -> Stream:
    data = text.encode()
    return Stream(head=data, total_bytes=len(data))
