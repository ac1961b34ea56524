"""A second system-call filter, for a process that may compute and nothing else.

It is put on top of the filter of its sandbox (`seccomp`) by a process made for one untrusted text: it
may read files, use memory and threads, write to what is open already, and end. It makes no process, no
file, no socket and no shared memory, and touches no other process, so nothing of it outlives it.
"""

from __future__ import annotations

import struct

from sandbox_rl.errors import SetupError

__all__ = ["COMPUTE_DENIED", "build_compute_filter"]

COMPUTE_DENIED: dict[str, tuple[int, int]] = {
    # name: (x86_64, aarch64); -1 where the call does not exist
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "creat": (85, -1),
    "mkdir": (83, -1),
    "mkdirat": (258, 34),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "link": (86, -1),
    "linkat": (265, 37),
    "symlink": (88, -1),
    "symlinkat": (266, 36),
    "rename": (82, -1),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "unlink": (87, -1),
    "unlinkat": (263, 35),
    "rmdir": (84, -1),
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "lchown": (94, -1),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "openat2": (437, 437),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "flock": (73, 32),
    "io_setup": (206, 0),
    "timer_create": (222, 107),
    "inotify_init": (253, -1),
    "inotify_init1": (294, 26),
}

_CLONE_THREAD = 0x00010000
_WRITING = 0x1 | 0x2 | 0x40 | 0x200 | 0x400 | 0x400000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND and O_TMPFILE of open(2)."""
_OWNERS = (8, 10, 15)
"""F_SETOWN, F_SETSIG and F_SETOWN_EX of fcntl(2): signals by way of a descriptor."""
_LOCKS = (6, 7, 37, 38)
"""F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW: locks on files that others see."""
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBER, _ARCH, _ARG0, _ARG1, _ARG2 = 0, 4, 16, 24, 32  # offsets in struct seccomp_data, low words

_Step = tuple[int, int, int, int]  # code, steps to skip if true, if false, operand
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_DENY: _Step = (_RETURN, 0, 0, 0x00050001)  # EPERM
_ALLOW: _Step = (_RETURN, 0, 0, 0x7FFF0000)


def build_compute_filter(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`, to be loaded by the process that it binds.

    Args:
        machine: as `platform.machine()` names it: x86_64 or aarch64.

    Raises:
        SetupError: there is no table for this machine.
    """
    if machine not in _ARCHITECTURES:
        raise SetupError(
            f"reward.isolation: no system-call filter for machine {machine!r} (x86_64 and aarch64 have one)"
        )
    x86 = machine == "x86_64"
    column = 0 if x86 else 1
    program: list[_Step] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        _DENY,
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in sorted(numbers[column] for numbers in COMPUTE_DENIED.values() if numbers[column] >= 0):
        program += [(_EQUAL, 0, 1, number), _DENY]
    if x86:
        program += _on_call(2, _ARG1, [(_ANY_BIT, 0, 1, _WRITING), _DENY])  # open
    program += _on_call(257 if x86 else 56, _ARG2, [(_ANY_BIT, 0, 1, _WRITING), _DENY])  # openat
    program += _on_call(56 if x86 else 220, _ARG0, [(_ANY_BIT, 1, 0, _CLONE_THREAD), _DENY])  # clone
    program += _on_call(302 if x86 else 261, _ARG0, [(_EQUAL, 1, 0, 0), _DENY])  # prlimit64 of others
    owners = [step for value in (*_OWNERS, *_LOCKS) for step in ((_EQUAL, 0, 1, value), _DENY)]
    program += _on_call(72 if x86 else 25, _ARG1, owners)  # fcntl
    program.append(_ALLOW)
    return b"".join(struct.pack("<HBBI", *step) for step in program)


def _on_call(number: int, argument: int, steps: list[_Step]) -> list[_Step]:
    """`steps` on one argument of one call; a call that they do not decide is allowed."""
    body = [(_LOAD, 0, 0, argument), *steps, _ALLOW]
    return [(_EQUAL, 0, len(body), number), *body]
