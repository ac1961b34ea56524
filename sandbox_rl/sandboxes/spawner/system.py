"""The few system calls that Python lacks."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
CAP_SYS_RESOURCE = 24
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def checked(result: int, what: str) -> None:
    """Raise OSError of the last system call if it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    result = LIBC.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    checked(result, f"mount {kind or source} on {target}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    checked(LIBC.unshare(flags), f"unshare {flags:#x}")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    checked(LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def has_capability(number: int) -> bool:
    """Whether this process has a capability over the machine: one in a user namespace is none."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        first = file.read().split()
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        held = next(line for line in file if line.startswith("CapEff:"))
    return first == ["0", "0", "4294967295"] and bool(int(held.split()[1], 16) >> number & 1)
