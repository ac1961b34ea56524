"""System calls of a process that change files, looked at one by one from outside, and failed or cut short.

The process installs a seccomp filter that hands such calls to a supervisor (seccomp_unotify(2)), so libraries
in C++ and Rust are met like Python. Linux 5.5 and newer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Call", "supervised"]

_X86 = platform.machine() == "x86_64"
_CALLS = {
    # name: (x86_64, aarch64, what its first arguments name)
    "write": (1, 64, "file"),
    "pwrite64": (18, 68, "file"),
    "writev": (20, 66, "file"),
    "fsync": (74, 82, "file"),
    "fdatasync": (75, 83, "file"),
    "ftruncate": (77, 46, "file"),
    "rename": (82, None, "path"),
    "renameat": (264, 38, "at"),
    "renameat2": (316, 276, "at"),
    "mkdir": (83, None, "path"),
    "mkdirat": (258, 34, "at"),
    "rmdir": (84, None, "path"),
    "unlink": (87, None, "path"),
    "unlinkat": (263, 35, "at"),
}
_NUMBERS = {
    number: (name, kind)
    for name, (x86, arm, kind) in _CALLS.items()
    if (number := x86 if _X86 else arm) is not None
}
_SECCOMP = 317 if _X86 else 277
_LISTENER, _MODE_FILTER, _NO_NEW_PRIVS = 8, 1, 38
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_LOAD, _EQUAL, _RETURN, _NOTIFY, _ALLOW = 0x20, 0x15, 0x06, 0x7FC00000, 0x7FFF0000


@dataclass(frozen=True, slots=True)
class Call:
    """A call below the watched directory.

    Args:
        number: counted from 0.
        path: relative to the directory.
    """

    number: int
    name: str
    path: str


def supervised(
    action: Callable[[], int], directory: Path, fault: Callable[[Call], int | None]
) -> tuple[int, list[Call]]:
    """Run `action` in a forked child; returns its exit code (negative: the signal) and the calls it made.

    Args:
        action: gives the exit code.
        directory: calls elsewhere go on unseen.
        fault: for each call an errno that it is to fail with, 0 to kill the process in the middle of it,
            or None to let it go on.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            ours.close()
            socket.send_fds(theirs, [b"x"], [_listener()])
            code = action()
        finally:
            os._exit(code)
    theirs.close()
    _, (listener,), *_ = socket.recv_fds(ours, 1, 1)
    ours.close()
    calls: list[Call] = []
    ended = os.pidfd_open(child)
    poll = select.poll()
    for file in (listener, ended):
        poll.register(file, select.POLLIN)
    try:
        while not any(file == ended for file, _ in poll.poll()):
            _handle(listener, child, directory, calls, fault)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(listener)
        os.close(ended)
    return os.waitstatus_to_exitcode(status), calls


def _listener() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    numbers = list(_NUMBERS)
    program = struct.pack("HBBI", _LOAD, 0, 0, 0)
    for place, number in enumerate(numbers):
        program += struct.pack("HBBI", _EQUAL, len(numbers) - place, 0, number)
    program += struct.pack("HBBI", _RETURN, 0, 0, _ALLOW) + struct.pack("HBBI", _RETURN, 0, 0, _NOTIFY)
    buffer = ctypes.create_string_buffer(program)
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    listener = libc.syscall(_SECCOMP, _MODE_FILTER, _LISTENER, whole)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


def _handle(
    listener: int, child: int, directory: Path, calls: list[Call], fault: Callable[[Call], int | None]
) -> None:
    request = bytearray(80)
    try:
        fcntl.ioctl(listener, _RECEIVE, request)
    except OSError as error:
        if error.errno == errno.ENOENT:  # the caller has gone meanwhile
            return
        raise
    ident, task, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", request)
    name, kind = _NUMBERS[number]
    path = _path(task, kind, arguments)
    wanted: int | None = None
    if path is not None and path.is_relative_to(directory):
        calls.append(Call(len(calls), name, str(path.relative_to(directory))))
        wanted = fault(calls[-1])
    if wanted == 0:
        if name in ("write", "pwrite64"):
            _write_half(task, name, arguments)
        os.kill(child, signal.SIGKILL)
        return
    answer = struct.pack("QqiI", ident, 0, -(wanted or 0), _CONTINUE if wanted is None else 0)
    try:
        fcntl.ioctl(listener, _SEND, bytearray(answer))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _path(task: int, kind: str, arguments: list[int]) -> Path | None:
    base = Path(f"/proc/{task}/cwd")
    at = struct.unpack("i", struct.pack("I", arguments[0] & 0xFFFFFFFF))[0]
    if kind == "file" or (kind == "at" and at >= 0):
        base = Path(f"/proc/{task}/fd/{at}")
    try:
        found = Path(os.readlink(base))
        if kind == "file":
            return found
        with open(f"/proc/{task}/mem", "rb") as memory:
            memory.seek(arguments[0] if kind == "path" else arguments[1])
            return found / os.fsdecode(memory.read(256).split(b"\0")[0])
    except OSError:
        return None


def _write_half(task: int, name: str, arguments: list[int]) -> None:
    file, address, length, offset = arguments[:4]
    if name == "write":
        lines = Path(f"/proc/{task}/fdinfo/{file}").read_text().splitlines()
        offset = int(lines[0].split()[1])
    with open(f"/proc/{task}/mem", "rb") as memory, open(f"/proc/{task}/fd/{file}", "r+b") as out:
        memory.seek(address)
        out.seek(offset)
        out.write(memory.read(length // 2))
