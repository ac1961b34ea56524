"""No episode starts while the disk that it would be recorded on is full; those that run go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from pathlib import Path

from sandbox_rl.errors import SetupError

logger = logging.getLogger(__name__)

NEEDED_MB = 64
"""MiB that must be free: what 64 episodes of 65,536 tokens write, and more."""
LOOK_S = 1.0
SAY_S = 60.0
PATIENCE_S = 1800.0


class DiskSpace:
    """What is free where a run is recorded.

    Args:
        directory: need not be there yet.
        needed_mb: MiB that an episode needs to start.
    """

    def __init__(self, directory: Path, needed_mb: int = NEEDED_MB) -> None:
        self._directory = directory.absolute()
        self._needed_mb = needed_mb
        self._said = -SAY_S

    def free_mb(self) -> int:
        """MiB; as much as is needed where the file system does not say."""
        with contextlib.suppress(OSError):
            place = next(p for p in (self._directory, *self._directory.parents) if p.exists())
            return shutil.disk_usage(place).free >> 20
        return self._needed_mb

    async def wait(self) -> None:
        """Until enough is free; said again each minute.

        Raises:
            SetupError: half an hour was not enough.
        """
        began = time.monotonic()
        while (free := self.free_mb()) < self._needed_mb:
            now = time.monotonic()
            lacks = f"{self._directory}: {free} MiB are free there, expected {self._needed_mb}"
            if now - began > PATIENCE_S:
                raise SetupError(f"{lacks}; free some space and go on with --resume")
            if now - self._said >= SAY_S:
                self._said = now
                logger.warning("%s: no episode starts before there is more; free some space", lacks)
            await asyncio.sleep(LOOK_S)
