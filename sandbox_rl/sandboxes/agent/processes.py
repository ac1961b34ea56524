"""The processes of the sandbox, as its first process sees them: killing them, and the memory that they hold.

Which processes belong to a command is decided by exclusion: all that were not there when it began
and do not descend from one that was. Nothing a process does (a new session, a double fork, another
environment) takes it out of that set.
"""

from __future__ import annotations

import errno
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
            # the name in parentheses may hold anything, so read from the last one on
            rest = read_some(b"/proc/%d/stat" % int(name)).rpartition(b")")[2].split()
        except OSError:
            continue
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


SHARED_WITHOUT_NAME = (b"/dev/zero", b"/SYSV", b"/memfd:")
GONE = (errno.ENOENT, errno.ESRCH)
PEEK = 1 << 20  # of a process's list of mappings


def largest_beyond(limit: int, rows: dict[int, Row]) -> list[int]:
    """Processes to kill, the largest first, so that the others hold at most `limit` bytes together.

    Resident memory counts a page once per process that shares it, and counts no page that a process
    shares and has not touched itself: so it only tells when to look closer.
    """
    if sum(row[3] for row in rows.values()) <= limit:
        return []  # no process can hold more than it has addresses for
    shares = {}
    segments: dict[bytes, tuple[int, int]] = {}  # identity → (bytes, process)
    seen_of_segments = 0
    for pid, row in rows.items():
        shares[pid], shared = share_of_memory(pid, row)
        seen_of_segments += shared
        if row[3] > row[2] + (8 << 20):
            for identity, size in shared_segments(pid).items():
                if size > segments.get(identity, (0, 0))[0]:
                    segments[identity] = (size, pid)
    # A shared segment may be full though no process that is left has touched it: it counts as full.
    unseen = max(0, sum(size for size, _ in segments.values()) - seen_of_segments)
    total = sum(shares.values()) + unseen
    if total <= limit:
        return []
    for size, pid in segments.values():
        shares[pid] += size
    chosen = []
    for pid, share in sorted(shares.items(), key=lambda item: -item[1]):
        if total <= limit:
            break
        chosen.append(pid)
        total -= share
    return chosen


def own_place() -> bytes:
    """Of the agent, in the order in which the kernel ends processes without memory; b"" if it has none."""
    try:
        return read_some(b"/proc/self/oom_score_adj").strip()
    except OSError:
        return b""


def put_back(own: bytes, rows: dict[int, Row]) -> list[int]:
    """Put processes back to being the kernel's first choice when the machine has no memory left.

    Returns those that do not let themselves be put back. Only root can forbid leaving it.

    Args:
        own: the agent's own place in that order, as the kernel gives it.
    """
    refused = []
    for pid in rows:
        path = b"/proc/%d/oom_score_adj" % pid
        try:
            if int(read_some(path) or own) >= int(own):
                continue
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in GONE:
                refused.append(pid)
            continue
        try:
            os.write(fd, own)
        except OSError:
            pass  # it has just ended
        finally:
            os.close(fd)
    return refused


def share_of_memory(pid: int, row: Row) -> tuple[int, int]:
    """(bytes of a process, each page divided among those that share it; those of files in memory).

    All that it has addresses for, of a process that does not let itself be looked at: hiding must not
    make it smaller.
    """
    try:
        text = read_some(b"/proc/%d/smaps_rollup" % pid)
    except FileNotFoundError:
        return (row[2] if os.access(f"/proc/{pid}", os.F_OK) else 0), 0
    except OSError:
        return row[3], 0
    sizes = {words[0]: int(words[1]) << 10 for line in text.splitlines() if len(words := line.split()) == 3}
    return sizes.get(b"Pss:", row[2]), sizes.get(b"Pss_Shmem:", 0)


def shared_segments(pid: int) -> dict[bytes, int]:
    """Identity → bytes mapped, of the shared memory of a process that no file's limit bounds."""
    try:
        text = read_some(b"/proc/%d/maps" % pid)
    except OSError:
        return {}
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        words = line.split(None, 5)
        if len(words) == 6 and words[1].endswith(b"s") and words[5].startswith(SHARED_WITHOUT_NAME):
            first, last = (int(address, 16) for address in words[0].split(b"-"))
            identity = words[3] + b" " + words[4]
            found[identity] = found.get(identity, 0) + last - first
    return found


def read_some(path: bytes) -> bytes:
    """The beginning of a small file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while data := os.read(fd, 1 << 16):
            parts.append(data)
            if len(parts) * 4096 >= PEEK:
                break
        return b"".join(parts)
    except OSError:
        return b""  # it has just ended
    finally:
        os.close(fd)
