"""A server without a model that knows the tiny model's tokenizer: `python -m tests.faults.served SOCKET`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.training.tiny import tiny_tokenizer


async def main(socket: Path) -> None:
    """Until it is ended."""
    async with FakeVLLM(delay_s=0.05, tokenizer=tiny_tokenizer()).serving(socket):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
