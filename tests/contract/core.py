"""The heart of the contract in one go, for the many ways to an engine that need not run all of it."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from sandbox_rl.errors import SandboxFileError
from sandbox_rl.sandboxes.base import ANSWER_FILE, SandboxBackend
from sandbox_rl.types import Answer, AnswerStatus, ExecStatus

__all__ = ["check_core"]

MB = 1 << 20


async def check_core(backend: SandboxBackend) -> None:
    """Streams, floods, large commands and files, time-outs, answers, several at once, cancellation."""
    async with backend.sandbox({"a.txt": b"alpha\n"}) as sandbox:
        result = await sandbox.exec("cat documents/a.txt; echo err >&2; exit 7", timeout=60)
        assert (result.status, result.exit_code) == (ExecStatus.OK, 7)
        assert (result.stdout.head, result.stderr.head) == (b"alpha\n", b"err\n")
        flood = await sandbox.exec("yes | head -c 50000000", timeout=60)
        assert flood.stdout.total_bytes == 50_000_000
        assert flood.stdout.truncated
        command = f"# {'x' * 2 * MB}\necho whole"
        assert (await sandbox.exec(command, timeout=60)).stdout.head == b"whole\n"
        data = os.urandom(20 * MB)
        await sandbox.write_file("/tmp/large", data)
        told = await sandbox.exec("sha256sum < /tmp/large", timeout=60)
        assert told.stdout.head.split()[0].decode() == hashlib.sha256(data).hexdigest()
        assert await sandbox.read_file("/tmp/large", max_bytes=32 * MB) == data
        with pytest.raises(SandboxFileError):
            await sandbox.read_file("/nowhere", max_bytes=1)
        late = await sandbox.exec("echo before; sleep 300", timeout=4)
        assert (late.status, late.stdout.head) == (ExecStatus.TIMEOUT, b"before\n")
        assert (await sandbox.exec("ls /sys/class/net", timeout=60)).stdout.head in (b"lo\n", b"")
        await sandbox.write_file(ANSWER_FILE, b"42")
        assert await sandbox.read_answer() == Answer(AnswerStatus.OK, "42")

    async def one(number: int) -> bytes:
        async with backend.sandbox(timeout=60) as sandbox:
            return (await sandbox.exec(f"sleep 0.2; echo {number}", timeout=60)).stdout.head

    assert await asyncio.gather(*map(one, range(6))) == [b"%d\n" % number for number in range(6)]

    async def endless() -> None:
        async with backend.sandbox(timeout=60) as sandbox:
            await sandbox.exec("sleep 600", timeout=600)

    task = asyncio.create_task(endless())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task], timeout=90)
    assert task.cancelled()
