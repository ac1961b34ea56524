"""The watchdog's reading of how much memory the processes of a sandbox hold, where no cgroup counts it."""

from __future__ import annotations

import errno
import posix as os

from sandbox_rl.sandboxes.agent.processes import Row

SHARED_WITHOUT_NAME = (b"/dev/zero", b"/SYSV", b"/memfd:")
GONE = (errno.ENOENT, errno.ESRCH)
PEEK = 1 << 20  # of a process's list of mappings


def largest_beyond(limit: int, rows: dict[int, Row]) -> list[int]:
    """Processes to kill, the largest first, so that the others hold at most `limit` bytes together.

    Resident memory counts a page once per process that shares it, and counts no page that a process
    shares and has not touched itself: so it only tells when to look closer.
    """
    if sum(row[3] for row in rows.values()) <= limit:
        return []  # nobody can hold more than he has addresses for
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
