"""The system-call filter of the embedded backend, built without libseccomp.

A deny list on top of namespaces, no capabilities and no new privileges: what has served for escapes
(mounting, namespaces, key rings, BPF, io_uring, tracing, raw clocks …) answers EPERM. `clone3` answers
ENOSYS because its flags cannot be read by a filter: the C library then falls back to `clone`, whose
flags can. Foreign ABIs (32-bit, x32) are refused whole.

The first process of a sandbox has the commands' user, who may otherwise change its scheduling and limits
and so keep it from serving, and from dying. What would do that to process 1 answers EPERM; a program may
still lower its own priority, limit itself and choose its own processors.
"""

from __future__ import annotations

import struct

from sandbox_rl.errors import SetupError

__all__ = [
    "DENIED",
    "DENIED_FCNTLS",
    "DENIED_IOCTLS",
    "FIRST",
    "HUGE_PAGES",
    "PRIO_PROCESS",
    "UNCHARGED",
    "build_filter",
]

FIRST = 1
"""Process id of the agent, in the sandbox's own process namespace."""

DENIED: dict[str, tuple[int, int]] = {
    # name: (x86_64, aarch64); -1 where the call does not exist
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, -1),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_mempolicy": (239, 236),
    "init_module": (175, 105),
    "io_setup": (206, 0),  # takes from a number that the whole machine has
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, -1),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, -1),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, -1),
    "userfaultfd": (323, 282),
    "ustat": (136, -1),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
}

UNCHARGED: dict[str, tuple[int, int]] = {
    "memfd_create": (319, 279),
    "msgget": (68, 186),
    "semget": (64, 190),
    "shmget": (29, 194),
}
"""What holds memory that belongs to no process, so that only a cgroup can charge it. Without one these
answer ENOSYS, as on a kernel that lacks them: programs then use files in /dev/shm or /tmp."""

_MACHINES = {
    # machine: (AUDIT_ARCH, column of the tables)
    "x86_64": (0xC000003E, 0),
    "aarch64": (0xC00000B7, 1),
}
_JUDGED: dict[str, tuple[int, int]] = {
    # calls whose arguments decide
    "clone": (56, 220),
    "clone3": (435, 435),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "memfd_create": (319, 279),
    "mmap": (9, 222),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "setpriority": (141, 140),
    "socket": (41, 198),
    "socketpair": (53, 199),
}
_X32_BIT = 0x40000000
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
DENIED_IOCTLS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: put characters into a terminal
DENIED_FCNTLS = (1024, 1026)
"""F_SETLEASE, F_NOTIFY: a lease on a shown file would hold up whoever opens it on the host for 45 s, and
a directory's notices tell of others' doings."""
HUGE_PAGES = {"mmap": (3, 0x40000), "memfd_create": (1, 0x4)}
"""Call → (argument, bit): MAP_HUGETLB, MFD_HUGETLB. Such pages are of a pool of the machine's, and no bound
of memory counts them. ENOMEM, as where the pool is empty: programs then take ordinary ones."""
PRIO_PROCESS = 0
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (getifaddrs)

_Step = tuple[int, int, int, int]  # code, steps to skip if true, if false, operand
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARG0, _ARG1, _ARG2 = 0, 4, 16, 24, 32  # offsets in struct seccomp_data, low words first
_ALLOW = 0x7FFF0000
_EPERM, _ENOMEM, _ENOSYS, _EAFNOSUPPORT = (0x00050000 | number for number in (1, 12, 38, 97))


def build_filter(machine: str, *, charged: bool = True) -> bytes:
    """The filter as an array of `struct sock_filter`, for `bwrap --seccomp`.

    Args:
        machine: as `platform.machine()` names it: x86_64 or aarch64.
        charged: whether a cgroup bounds all memory; without one, `UNCHARGED` is refused as well.

    Raises:
        SetupError: there is no table for this machine.
    """
    if machine not in _MACHINES:
        raise SetupError(
            f"sandbox: no system-call filter for machine {machine!r} (x86_64 and aarch64 have one); "
            "use the docker backend here"
        )
    arch, column = _MACHINES[machine]
    program: list[_Step] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ENOSYS)]
    for number in sorted(numbers[column] for numbers in DENIED.values() if numbers[column] >= 0):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    absent = [_JUDGED["clone3"], *(() if charged else UNCHARGED.values())]
    for numbers in absent:
        program += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ENOSYS)]
    for name, steps in _judgements().items():
        # `steps` begin with the load of an argument; a call that they do not decide is allowed.
        body = [*steps, (_RETURN, 0, 0, _ALLOW)]
        program += [(_EQUAL, 0, len(body), _JUDGED[name][column]), *body]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *step) for step in program)


def _judgements() -> dict[str, list[_Step]]:
    """Per call, what refuses it by its arguments."""
    families = [step for value in _FAMILIES for step in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
    only_known: list[_Step] = [(_LOAD, 0, 0, _ARG0), *families, (_RETURN, 0, 0, _EAFNOSUPPORT)]
    huge: dict[str, list[_Step]] = {
        call: [(_LOAD, 0, 0, _ARG0 + 8 * argument), (_ANY_BIT, 0, 1, bit), (_RETURN, 0, 0, _ENOMEM)]
        for call, (argument, bit) in HUGE_PAGES.items()
    }
    return huge | {
        "clone": [(_LOAD, 0, 0, _ARG0), (_ANY_BIT, 0, 1, _NAMESPACE_FLAGS), (_RETURN, 0, 0, _EPERM)],
        "fcntl": [(_LOAD, 0, 0, _ARG1), *_refuse(*DENIED_FCNTLS)],
        "ioctl": [(_LOAD, 0, 0, _ARG1), *_refuse(*DENIED_IOCTLS)],
        "prlimit64": [
            (_LOAD, 0, 0, _ARG0),
            (_EQUAL, 0, 5, FIRST),
            (_LOAD, 0, 0, _ARG2),  # new limits: either half of the pointer is not 0
            (_EQUAL, 0, 2, 0),
            (_LOAD, 0, 0, _ARG2 + 4),
            (_EQUAL, 1, 0, 0),
            (_RETURN, 0, 0, _EPERM),
        ],
        "sched_setaffinity": [(_LOAD, 0, 0, _ARG0), *_refuse(FIRST)],
        "setpriority": [
            (_LOAD, 0, 0, _ARG0),
            (_EQUAL, 1, 0, PRIO_PROCESS),
            (_RETURN, 0, 0, _EPERM),
            (_LOAD, 0, 0, _ARG1),
            *_refuse(FIRST),
        ],
        "socket": only_known,
        "socketpair": only_known,
    }


def _refuse(*values: int) -> list[_Step]:
    """EPERM where the loaded argument is one of these."""
    return [step for value in values for step in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _EPERM))]
