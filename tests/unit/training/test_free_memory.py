"""What a warm-up has used is there for what comes after it."""

from __future__ import annotations

import platform

import psutil
import pytest

from sandbox_rl.training.host_memory import free_memory

MIB = 2**20


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by themselves"
)
def test_memory_that_is_free_goes_back_to_the_system() -> None:
    used = psutil.Process().memory_info
    blocks = [bytearray(64 * 1024) for _ in range(4096)]  # small ones: from the heap, not mapped one by one
    kept = blocks[::512]  # as what a run keeps lies between what it frees
    full = used().rss
    del blocks
    free_memory()
    assert full - used().rss > 150 * MIB
    assert len(kept) == 8
