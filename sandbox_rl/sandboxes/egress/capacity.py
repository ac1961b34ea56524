"""What all sandboxes with a network may take of this process together."""

from __future__ import annotations

import asyncio
import resource

__all__ = ["SharedCapacity"]

BETWEEN_ALL_S = 0.001  # of all sandboxes
MOST_CONNECTIONS = 4096
DESCRIPTORS_SHARE = 8  # two of each connection: a quarter of what this process may open


class SharedCapacity:
    """What the proxies of all sandboxes together may take of this process: descriptors, and of its loop.

    Without it a few hundred policies could leave the trainer without descriptors. Whoever comes first is
    served first, and no sandbox has more than one connection waiting here.
    """

    def __init__(self) -> None:
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        bound = descriptors // DESCRIPTORS_SHARE if descriptors > 0 else MOST_CONNECTIONS
        self._free = asyncio.Semaphore(max(8, min(bound, MOST_CONNECTIONS)))
        self._pace = asyncio.Lock()

    async def enter(self) -> None:
        """Wait for a place among all connections; `leave` gives it back."""
        async with self._pace:
            await asyncio.sleep(BETWEEN_ALL_S)
        await self._free.acquire()

    def leave(self) -> None:
        """After `enter`."""
        self._free.release()
