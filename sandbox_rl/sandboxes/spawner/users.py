"""Which users of the host sandboxes are, and the namespaces that make it so.

Root gives each sandbox an unused id, in a container one of the container's own. An ordinary user may give
ids that the machine's administrator has set aside for him: those of /etc/subuid, which `newuidmap` (setuid
root) writes into a namespace of his. In that namespace the spawner is root, so that all else is as root does
it. Without them all sandboxes are this user.
"""

from __future__ import annotations

import errno
import os
import pwd
import resource
import shutil
import subprocess

from sandbox_rl.sandboxes.spawner.cgroups import read_text, write_text
from sandbox_rl.sandboxes.spawner.system import CLONE_NEWNS, CLONE_NEWUSER, MS_PRIVATE, MS_REC, mount, unshare

FIRST_UID = 0x70000000  # above what distributions, container engines and directories hand out
UIDS = 1 << 20
FEWEST_SUBORDINATE = 4096  # beside all that run here at once; usual are 65,536
COUNTED_LIMITS = (resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_MEMLOCK)
INOTIFY = {"max_inotify_instances": "max_user_instances", "max_inotify_watches": "max_user_watches"}
"""What the kernel counts per user: limits of processes, and its settings by namespace → for all."""
SHARE = {"max_inotify_instances": 8, "max_inotify_watches": 4096}
"""Of one sandbox, where all are counted for one user as well."""
SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
MAP_TIMEOUT_S = 20.0
SET_ASIDE = 'newgidmap "$0" 0 "$1" 1 1 "$2" "$3" && newuidmap "$0" 0 "$4" 1 1 "$5" "$3"'
"""Process id; group; first id, number of ids; user; first id. Groups first: with those alone a process can
still take its own user id for the map."""
THE_SAME_AGAIN = 'for kind in gid uid; do printf "0 0 1\\n$1 $1 $2\\n" > "/proc/$0/${kind}_map" || exit; done'
"""Process id; first id, number of ids. A line of a map must lie within one line of the map above it."""


class Users:
    """The ids that sandboxes have, as the spawner sees them.

    Attributes:
        first, count: the ids; no ids if all sandboxes are the spawner's user.
        divided: whether one sandbox can take only a share of what the kernel counts per user.
        shared_because: why sandboxes have no ids of their own; "" if they have.
    """

    def __init__(self, first: int, count: int, divided: bool, shared_because: str = "") -> None:
        self.first = first
        self.count = count
        self.divided = divided
        self.shared_because = shared_because
        self.next = int.from_bytes(os.urandom(4), "big")

    def take(self, taken: set[int]) -> int:
        """One that no sandbox of this spawner has, from a random one on: two programs seldom share any.

        Raises:
            OSError: all are taken.
        """
        if not self.count:
            return os.geteuid()
        for _ in range(self.count):
            self.next += 1
            uid = self.first + self.next % self.count
            if uid not in taken:
                return uid
        raise OSError(errno.EAGAIN, "every host user for sandboxes is taken")


def enter_private_namespaces(shown: list[str]) -> Users:
    """A mount namespace of our own; an ordinary user first needs a user namespace for that.

    What is counted per user is counted for an ordinary user as well as for the ids that he was given, since
    the namespace is his. Each sandbox gets a share of it, all together half, and he keeps the other half.

    Args:
        shown: paths of the host that sandboxes are to see; other users must be able to read them.
    """
    if os.geteuid() != 0:
        users = enter_as_ordinary_user(shown)
    elif (ids := ids_of_namespace()) == (FIRST_UID, UIDS):
        unshare(CLONE_NEWNS)
        users = Users(FIRST_UID, UIDS, divided=True)
    else:  # what is counted here is counted for whoever made this namespace as well
        half = half_of_all()
        hand_on(*ids)
        divided = bound_counts(half)
        hand_on(*ids)
        users = Users(*ids, divided=bound_counts(SHARE) and divided)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    return users


def enter_as_ordinary_user(shown: list[str]) -> Users:
    """With ids of /etc/subuid where that is available, else with this user's own."""
    half = half_of_all()
    try:
        groups, users, count = subordinate_ids(shown)
    except LookupError as error:
        return Users(0, 0, own_user_namespace(half), str(error))
    uid, gid = os.geteuid(), os.getegid()
    problem = mapped_from_outside(SET_ASIDE, gid, groups, count, uid, users)
    if problem:
        map_own_user(uid, gid)
        return Users(0, 0, bound_counts(half), f"the ids of /etc/subuid cannot be mapped ({problem})")
    divided = bound_counts(half)
    # A second one, made by the root of the first: all that is counted in it is counted for that one user.
    hand_on(1, count)
    return Users(1, count, bound_counts(SHARE) and divided)


def half_of_all() -> dict[str, int]:
    """Of what is counted per user, for all sandboxes together; limits of processes are lowered at once."""
    for kind in COUNTED_LIMITS:
        lower_limit(kind, resource.getrlimit(kind)[1] // 2)
    return {name: read_number(f"/proc/sys/fs/inotify/{INOTIFY[name]}") // 2 for name in INOTIFY}


def hand_on(first: int, count: int) -> None:
    """A further user namespace for root, with these ids as they are.

    Raises:
        OSError: not possible.
    """
    if problem := mapped_from_outside(THE_SAME_AGAIN, first, count):
        raise OSError(0, f"ids for sandboxes cannot be handed on: {problem}")


def ids_of_namespace() -> tuple[int, int]:
    """(first, how many) that root may give to sandboxes here: outside of containers ids that nobody has.

    A container has few: the third quarter of its longest range. Low ids are accounts, high ones nobody's.

    Raises:
        OSError: root has too few here.
    """
    ranges = []
    for kind in ("uid", "gid"):
        lines = [tuple(map(int, line.split())) for line in read_text(f"/proc/self/{kind}_map").splitlines()]
        first, _, count = max(lines, key=lambda line: line[2])
        if first + count >= FIRST_UID + UIDS:
            ranges.append((FIRST_UID, FIRST_UID + UIDS))
        else:
            ranges.append((first + count // 2, first + 3 * count // 4))
    first, end = max(start for start, _ in ranges), min(end for _, end in ranges)
    if end - first < FEWEST_SUBORDINATE:
        raise OSError(
            0,
            f"root of this user namespace has {max(0, end - first)} ids for sandboxes, "
            f"{FEWEST_SUBORDINATE} are needed: map more, or start as an ordinary user",
        )
    return first, end - first


def subordinate_ids(shown: list[str]) -> tuple[int, int, int]:
    """(first group, first user, how many) that were set aside for this user.

    Raises:
        LookupError: there are none that sandboxes can be; says why.
    """
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise LookupError(f"user {os.getuid()} has no name, which newuidmap asks for") from None
    for program in ("newuidmap", "newgidmap"):
        if not shutil.which(program, path=SYSTEM_PATH):
            raise LookupError(f"{program} is not installed (package uidmap)")
    ranges = [largest_range(file, {name, str(os.getuid())}) for file in ("/etc/subgid", "/etc/subuid")]
    (groups, some), (users, others) = ranges
    count = min(some, others)
    if count < FEWEST_SUBORDINATE:
        raise LookupError(
            f"/etc/subuid and /etc/subgid set {count} ids aside for {name}, "
            f"{FEWEST_SUBORDINATE} are needed (usermod --add-subuids)"
        )
    for path in shown:
        mode, needed = os.stat(path).st_mode, 0o5 if os.path.isdir(path) else 0o4
        if mode & needed != needed:
            raise LookupError(f"other users may not read {path}, which sandboxes are shown")
    return groups, users, count


def largest_range(file: str, names: set[str]) -> tuple[int, int]:
    """(first id, how many) of the longest line NAME:FIRST:COUNT for one of these names; (0, 0) without."""
    found = (0, 0)
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, rest = line.strip().partition(":")
                first, _, count = rest.partition(":")
                if name in names and first.isdecimal() and count.isdecimal():
                    found = max(found, (int(first), int(count)), key=lambda both: both[1])
    except OSError:
        return 0, 0
    return found


def mapped_from_outside(script: str, *numbers: int) -> str:
    """A user and a mount namespace whose ids a shell script writes that stays outside of them.

    Returns:
        What went wrong; "" if nothing.
    """
    arguments = [str(number) for number in (os.getpid(), *numbers)]
    with subprocess.Popen(
        ["/bin/sh", "-c", f"read -r go && {{ {script}; }}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": SYSTEM_PATH},
    ) as outside:
        try:
            unshare(CLONE_NEWUSER | CLONE_NEWNS)
            _, said = outside.communicate(b"go\n", timeout=MAP_TIMEOUT_S)
        except BaseException:
            outside.kill()
            raise
    if outside.returncode == 0:
        return ""
    return said.decode("utf-8", "replace").strip()[-300:] or f"exit code {outside.returncode}"


def own_user_namespace(counted: dict[str, int]) -> bool:
    """A user and a mount namespace in which this user may have so much of what is counted per user.

    False if the kernel's settings cannot be written here, so that nothing bounds it.
    """
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    map_own_user(uid, gid)
    return bound_counts(counted)


def map_own_user(uid: int, gid: int) -> None:
    """In a user namespace without ids: this user's stay what they were; groups mapped already stay so."""
    files = {"uid_map": f"{uid} {uid} 1"}
    if not read_text("/proc/self/gid_map"):
        files |= {"setgroups": "deny", "gid_map": f"{gid} {gid} 1"}
    for file, text in files.items():
        write_text(f"/proc/self/{file}", text)


def bound_counts(counted: dict[str, int]) -> bool:
    """Bound what is counted per user in this namespace. False if its settings cannot be written here."""
    try:
        for name, value in counted.items():
            write_text(f"/proc/sys/user/{name}", value)
    except OSError:
        return False
    return True


def lower_limit(kind: int, value: int) -> None:
    """Both limits of this process, at most what they are."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    if value >= 0:
        resource.setrlimit(kind, (value, value))


def read_number(path: str) -> int:
    """What a file of the kernel's settings says; a small number if it is not there."""
    try:
        return int(read_text(path))
    except (OSError, ValueError):
        return 16
