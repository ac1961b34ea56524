"""The system-call filter of the embedded backend, built without libseccomp.

A deny list on top of namespaces, no capabilities and no new privileges: what has served for escapes
(mounting, namespaces, key rings, BPF, io_uring, tracing, raw clocks …) answers EPERM. `clone3` answers
ENOSYS because its flags cannot be read by a filter: the C library then falls back to `clone`, whose
flags can. Foreign ABIs (32-bit, x32) are refused whole.
"""

from __future__ import annotations

import struct

from sandbox_rl.errors import SetupError

__all__ = ["DENIED", "build_filter"]

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
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
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

_MACHINES = {
    # machine: (AUDIT_ARCH, column of DENIED, clone, clone3, ioctl, socket, socketpair)
    "x86_64": (0xC000003E, 0, 56, 435, 16, 41, 53),
    "aarch64": (0xC00000B7, 1, 220, 435, 29, 198, 199),
}
_X32_BIT = 0x40000000
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_DENIED_IOCTLS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: put characters into a terminal
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (getifaddrs)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data, low words (little endian)
_ALLOW = 0x7FFF0000
_EPERM, _ENOSYS, _EAFNOSUPPORT = (0x00050000 | number for number in (1, 38, 97))


def build_filter(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`, for `bwrap --seccomp`.

    Args:
        machine: as `platform.machine()` names it: x86_64 or aarch64.

    Raises:
        SetupError: there is no table for this machine.
    """
    if machine not in _MACHINES:
        raise SetupError(
            f"sandbox: no system-call filter for machine {machine!r} (x86_64 and aarch64 have one); "
            "use the docker backend here"
        )
    arch, column, clone, clone3, ioctl, socket, socketpair = _MACHINES[machine]
    program: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ENOSYS)]
    for number in sorted(numbers[column] for numbers in DENIED.values() if numbers[column] >= 0):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    program += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _ENOSYS)]
    program += _on_call(clone, _ARG0, [(_ANY_BIT, 0, 1, _NAMESPACE_FLAGS), (_RETURN, 0, 0, _EPERM)])
    denied = [step for value in _DENIED_IOCTLS for step in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _EPERM))]
    program += _on_call(ioctl, _ARG1, denied)
    for call in (socket, socketpair):
        known = [step for family in _FAMILIES for step in ((_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW))]
        program += _on_call(call, _ARG0, [*known, (_RETURN, 0, 0, _EAFNOSUPPORT)])
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *step) for step in program)


def _on_call(
    number: int, argument: int, steps: list[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """`steps` on one argument of one call; a call that they do not decide is allowed."""
    body = [(_LOAD, 0, 0, argument), *steps, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]
