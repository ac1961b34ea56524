"""Finding and killing the processes of the sandbox, as its first process.

Which processes belong to a command is decided by exclusion: all that were not there when it began
and do not descend from one that was. Nothing a process does (a new session, a double fork, another
environment) takes it out of that set.
"""

from __future__ import annotations

import posix as os
import time

SIGKILL, SIGCONT, SIGSTOP = 9, 18, 19
ROUNDS = 50

Identity = tuple[int, int]  # process id, start time in clock ticks: never the same twice


Row = tuple[int, int, int, int]  # parent, start time, bytes resident, bytes of address space


def table() -> dict[int, Row]:
    """Process id → what is known of it, of every process but this one."""
    me = os.getpid()
    rows = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        try:
            fd = os.open("/proc/" + name + "/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # the name in parentheses may hold anything, so read from the last one on
            rest = os.read(fd, 4096).rpartition(b")")[2].split()
        except OSError:
            continue
        finally:
            os.close(fd)
        if len(rest) > 21 and rest[0] not in (b"Z", b"X"):
            rows[int(name)] = (int(rest[1]), int(rest[19]), int(rest[21]) * 4096, int(rest[20]))
    return rows


def identities() -> frozenset[Identity]:
    """The processes that exist now."""
    return frozenset((pid, row[1]) for pid, row in table().items())


def send(pid: int, number: int) -> bool:
    """Signal a process; False if there was none. -1 reaches all but the caller, in one step."""
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def kill_all() -> None:
    """Kill every process of the sandbox and reap it."""
    for _ in range(ROUNDS):
        if not send(-1, SIGKILL):
            break
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except OSError:
                return
            if pid == 0:
                break
        time.sleep(0.002)


def kill_others(spared: frozenset[Identity]) -> None:
    """Kill all processes except `spared` and their descendants.

    All are stopped first, in one step, so that none can fork while they are sorted.
    """
    if not spared:
        send(-1, SIGKILL)
        return
    send(-1, SIGSTOP)
    rows = table()
    for pid in rows:
        if not descends(pid, rows, spared):
            send(pid, SIGKILL)
    send(-1, SIGCONT)


def descends(pid: int, rows: dict[int, Row], spared: frozenset[Identity]) -> bool:
    """Whether `pid` or one of its ancestors is in `spared`."""
    for _ in range(len(rows) + 1):
        row = rows.get(pid)
        if row is None:
            return False
        if (pid, row[1]) in spared:
            return True
        pid = row[0]
    return False
