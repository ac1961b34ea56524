"""A server without a model that knows the tiny model's tokenizer: `python -m tests.faults.served SOCKET`.

Each of its turns writes an answer that follows from the turn's seed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.tools.toolbox import make_toolbox
from sandbox_rl.training.tiny import tiny_tokenizer
from sandbox_rl.types import ToolCall
from tests import prepared

STARTS_WITHIN_S = 120.0


@contextmanager
def served() -> Iterator[str]:
    """The address of a new server in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="served-") as directory:
        socket, deadline = Path(directory) / "s", time.monotonic() + STARTS_WITHIN_S
        process = prepared.start("tests.faults.served", socket)
        try:
            while not socket.exists():
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            process.kill()
            process.communicate()


async def main(socket: Path) -> None:
    """Until it is ended."""
    tokenizer = tiny_tokenizer()
    chat = ChatFormat.from_tokenizer(tokenizer, make_toolbox().schemas)
    commands = [f"echo {answer} > /testbed/answer.txt" for answer in range(2)]
    turns = [chat.render_call("", [ToolCall("execute_bash", {"command": command})]) for command in commands]

    def script(body: dict[str, Any]) -> Sequence[int]:
        return turns[body["seed"] % len(turns)]

    async with FakeVLLM(delay_s=0.05, tokenizer=tokenizer, script=script).serving(socket):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
