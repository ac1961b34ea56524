"""What was freed goes back: to the system, and to the device.

glibc keeps what a process has freed, in holes between what is still in use: after tensors of many sizes those
are most of the process, which has to share the machine with servers and sandboxes.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch
from accelerate.utils.memory import clear_device_cache


def trim_heap() -> None:
    """Give the free pages of the heap back to the system: some tens of milliseconds for a gigabyte."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    if torch.cuda.is_available():
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
    clear_device_cache(garbage_collection=True)
    trim_heap()
