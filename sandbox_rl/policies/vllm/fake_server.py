"""The fake server in a process of its own.

    python -m sandbox_rl.policies.vllm.fake_server SOCKET DELAY_S [SLOTS]

SIGUSR1 has its engine hang (`stuck`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from sandbox_rl.policies.vllm.fake import FakeVLLM


async def _serve_forever(socket: Path, delay_s: float, slots: int | None) -> None:
    fake = FakeVLLM(delay_s=delay_s, slots=slots)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: setattr(fake, "stuck", True))
    async with fake.serving(socket):
        await asyncio.Event().wait()


def main(arguments: list[str]) -> None:
    """Serve until interrupted."""
    socket, delay_s, *slots = arguments
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_forever(Path(socket), float(delay_s), int(slots[0]) if slots else None))


if __name__ == "__main__":
    main(sys.argv[1:])
