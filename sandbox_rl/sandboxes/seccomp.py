"""The system-call filters: of every sandbox, and of a process in one that may compute and nothing else.

The first is a deny list on top of namespaces, no capabilities and no new privileges: what has served for
escapes (mounting, namespaces, key rings, BPF, io_uring, tracing, raw clocks …) answers EPERM. `clone3`
answers ENOSYS because its flags cannot be read by a filter: the C library then falls back to `clone`, whose
flags can. Foreign ABIs (32-bit, x32) are refused whole. Both are built without libseccomp.

The first process of a sandbox has the commands' user, who may otherwise change its scheduling and limits
and so keep it from serving, and from dying. What would do that to process 1 answers EPERM; a program may
still lower its own priority, limit itself and choose its own processors.

The second is put on top by a process made for one untrusted text: it may read files, use memory and threads,
write to what is open already, and end. It makes no process, no file, no socket and no shared memory, and
touches no other process, so nothing of it outlives it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from sandbox_rl.errors import SetupError

_TABLE = """
accept 43 202 c, accept4 288 242 c, acct 163 89 s, add_key 248 217 s, adjtimex 159 171 s, bind 49 200 c,
bpf 321 280 s, chmod 90 - c, chown 92 - c, chroot 161 51 s, clock_adjtime 305 266 s, clock_settime 227 112 s,
clone 56 220 -, clone3 435 435 -, connect 42 203 c, creat 85 - c, create_module 174 - s,
delete_module 176 106 s, execve 59 221 c, execveat 322 281 c, fallocate 285 47 c, fanotify_init 300 262 s,
fanotify_mark 301 263 s, fchmod 91 52 c, fchmodat 268 53 c, fchmodat2 452 452 c, fchown 93 55 c,
fchownat 260 54 c, fcntl 72 25 -, finit_module 313 273 s, flock 73 32 c, fork 57 - c, fremovexattr 199 16 c,
fsconfig 431 431 s, fsetxattr 190 7 c, fsmount 432 432 s, fsopen 430 430 s, fspick 433 433 s,
ftruncate 77 46 c, futimesat 261 - c, get_mempolicy 239 236 s, init_module 175 105 s, inotify_init 253 - c,
inotify_init1 294 26 c, io_setup 206 0 sc, io_uring_enter 426 426 s, io_uring_register 427 427 s,
io_uring_setup 425 425 s, ioctl 16 29 -, ioperm 173 - s, iopl 172 - s, ioprio_set 251 30 sc, kcmp 312 272 s,
kexec_file_load 320 294 s, kexec_load 246 104 s, keyctl 250 219 s, kill 62 129 c, lchown 94 - c, link 86 - c,
linkat 265 37 c, listen 50 201 c, lookup_dcookie 212 18 s, lremovexattr 198 15 c, lsetxattr 189 6 c,
mbind 237 235 s, memfd_create 319 279 c, memfd_secret 447 447 s, migrate_pages 256 238 s, mkdir 83 - c,
mkdirat 258 34 c, mknod 133 - c, mknodat 259 33 c, mmap 9 222 -, modify_ldt 154 - s, mount 165 40 s,
mount_setattr 442 442 s, move_mount 429 429 s, move_pages 279 239 s, mq_open 240 180 c, mq_unlink 241 181 c,
msgctl 71 187 c, msgget 68 186 c, msgrcv 70 188 c, msgsnd 69 189 c, name_to_handle_at 303 264 s,
nfsservctl 180 42 s, open 2 - -, open_by_handle_at 304 265 s, open_tree 428 428 s, openat 257 56 -,
openat2 437 437 c, perf_event_open 298 241 s, personality 135 92 s, pidfd_getfd 438 438 s,
pidfd_open 434 434 c, pidfd_send_signal 424 424 c, pivot_root 155 41 s, prlimit64 302 261 -,
process_madvise 440 440 c, process_mrelease 448 448 c, process_vm_readv 310 270 s,
process_vm_writev 311 271 s, ptrace 101 117 s, quotactl 179 60 s, quotactl_fd 443 443 s, reboot 169 142 s,
removexattr 197 14 c, rename 82 - c, renameat 264 38 c, renameat2 316 276 c, request_key 249 218 s,
rmdir 84 - c, rt_sigqueueinfo 129 138 c, rt_tgsigqueueinfo 297 240 c, sched_setaffinity 203 122 c,
sched_setattr 314 274 sc, sched_setparam 142 118 sc, sched_setscheduler 144 119 sc, semctl 66 191 c,
semget 64 190 c, semop 65 193 c, semtimedop 220 192 c, sendmmsg 307 269 c, sendmsg 46 211 c, sendto 44 206 c,
set_mempolicy 238 237 s, set_mempolicy_home_node 450 450 s, setdomainname 171 162 s, sethostname 170 161 s,
setns 308 268 s, setpgid 109 154 c, setpriority 141 140 c, settimeofday 164 170 s, setxattr 188 5 c,
shmat 30 196 c, shmctl 31 195 c, shmget 29 194 c, socket 41 198 c, socketpair 53 199 c, swapoff 168 225 s,
swapon 167 224 s, symlink 88 - c, symlinkat 266 36 c, sysfs 139 - s, syslog 103 116 s, tgkill 234 131 c,
timer_create 222 107 c, tkill 200 130 c, truncate 76 45 c, umount2 166 39 s, unlink 87 - c,
unlinkat 263 35 c, unshare 272 97 s, uselib 134 - s, userfaultfd 323 282 s, ustat 136 - s, utime 132 - c,
utimensat 280 88 c, utimes 235 - c, vfork 58 - c, vhangup 153 58 s, vmsplice 278 75 s
"""
"""Name, number on x86_64 and on aarch64 ("-" where the call does not exist), and to whom it is refused: "s"
in every sandbox, "c" to who computes, "-" by its arguments. `io_setup` takes from what the machine has."""

_CALLS = [row.split() for row in _TABLE.split(",")]
DENIED = tuple(name for name, _, _, to in _CALLS if "s" in to)
_COMPUTE_DENIED = tuple(name for name, _, _, to in _CALLS if "c" in to)

_MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}
"""Machine → (AUDIT_ARCH, column of the table)."""

Step = tuple[int, int, int, int]
"""Code, steps to skip if true, if false, operand."""

ALLOW = 0x7FFF0000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
EPERM, ENOMEM, ENOSYS, EAFNOSUPPORT = (0x00050000 | number for number in (1, 12, 38, 97))
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def numbers_of(machine: str, key: str) -> dict[str, int]:
    """Name → number of the calls that a machine has.

    Args:
        key: of the recipe, for the message.

    Raises:
        SetupError: there is no table for this machine.
    """
    if machine not in _MACHINES:
        raise SetupError(
            f"{key}: no system-call filter for machine {machine!r} (x86_64 and aarch64 have one); use one of "
            "these, or run commands in containers (type: docker)"
        )
    column = _MACHINES[machine][1]
    return {call[0]: int(call[column]) for call in _CALLS if call[column] != "-"}


def _load(argument: int, *, high_half: bool = False) -> Step:
    """Load 32 bits of an argument of the call, counted from 0."""
    return (LOAD, 0, 0, _ARGUMENTS + 8 * argument + 4 * high_half)


def _answer(verdict: int) -> Step:
    return (RETURN, 0, 0, verdict)


def _answer_to(verdict: int, *values: int) -> list[Step]:
    """Answer so where what is loaded is one of these."""
    return [step for value in values for step in ((EQUAL, 0, 1, value), _answer(verdict))]


def _on_call(number: int, *steps: Step) -> list[Step]:
    """`steps`, which begin with a load, on one call; what they do not decide is allowed."""
    return [(EQUAL, 0, len(steps) + 1, number), *steps, _answer(ALLOW)]


def _assemble(machine: str, steps: Sequence[Step]) -> bytes:
    """`steps`, before which the call's number is loaded, as an array of `struct sock_filter`."""
    foreign = [(LOAD, 0, 0, _ARCH), (EQUAL, 1, 0, _MACHINES[machine][0]), _answer(EPERM)]
    program = [*foreign, (LOAD, 0, 0, _NUMBER), *steps, _answer(ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in program)


FIRST = 1
"""Process id of the agent, in the sandbox's own process namespace."""

UNCHARGED = ("memfd_create", "msgget", "semget", "shmget")
"""What holds memory that belongs to no process, so that only a cgroup can charge it. Without one these
answer ENOSYS, as on a kernel that lacks them: programs then use files in /dev/shm or /tmp."""

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
FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (getifaddrs)

_CLONE_THREAD = 0x00010000
_WRITING = 0x1 | 0x2 | 0x40 | 0x200 | 0x400 | 0x400000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND and O_TMPFILE of open(2)."""
_OWNERS = (8, 10, 15)
"""F_SETOWN, F_SETSIG and F_SETOWN_EX of fcntl(2): signals by way of a descriptor."""
_LOCKS = (6, 7, 37, 38)
"""F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW: locks on files that others see."""


def build_filter(machine: str, *, charged: bool = True) -> bytes:
    """The filter of a sandbox as an array of `struct sock_filter`, for `bwrap --seccomp`.

    Args:
        machine: as `platform.machine()` names it: x86_64 or aarch64.
        charged: whether a cgroup bounds all memory; without one, `UNCHARGED` is refused as well.

    Raises:
        SetupError: there is no table for this machine.
    """
    numbers = numbers_of(machine, "sandbox")
    steps: list[Step] = []
    if machine == "x86_64":
        steps += [(AT_LEAST, 0, 1, _X32_BIT), _answer(ENOSYS)]
    steps += _answer_to(EPERM, *sorted(numbers[name] for name in DENIED if name in numbers))
    absent = ("clone3", *(() if charged else UNCHARGED))
    steps += _answer_to(ENOSYS, *(numbers[name] for name in absent))
    for name, judgement in _judgements().items():
        steps += _on_call(numbers[name], *judgement)
    return _assemble(machine, steps)


def _judgements() -> dict[str, list[Step]]:
    """Per call, what refuses it by its arguments."""
    only_known = [_load(0), *_answer_to(ALLOW, *FAMILIES), _answer(EAFNOSUPPORT)]
    huge = {
        call: [_load(argument), (ANY_BIT, 0, 1, bit), _answer(ENOMEM)]
        for call, (argument, bit) in HUGE_PAGES.items()
    }
    return huge | {
        "clone": [_load(0), (ANY_BIT, 0, 1, _NAMESPACE_FLAGS), _answer(EPERM)],
        "fcntl": [_load(1), *_answer_to(EPERM, *DENIED_FCNTLS)],
        "ioctl": [_load(1), *_answer_to(EPERM, *DENIED_IOCTLS)],
        "prlimit64": [
            *(_load(0), (EQUAL, 0, 5, FIRST)),
            *(_load(2), (EQUAL, 0, 2, 0)),  # new limits: either half of the pointer is not 0
            *(_load(2, high_half=True), (EQUAL, 1, 0, 0), _answer(EPERM)),
        ],
        "sched_setaffinity": [_load(0), *_answer_to(EPERM, FIRST)],
        "setpriority": [
            *(_load(0), (EQUAL, 1, 0, PRIO_PROCESS), _answer(EPERM)),
            *(_load(1), *_answer_to(EPERM, FIRST)),
        ],
        "socket": only_known,
        "socketpair": only_known,
    }


def build_compute_filter(machine: str) -> bytes:
    """The filter of a process that computes, to be loaded by the process that it binds.

    Args:
        machine: as for `build_filter`.

    Raises:
        SetupError: there is no table for this machine.
    """
    numbers = numbers_of(machine, "reward.isolation")
    steps = _answer_to(EPERM, *sorted(numbers[name] for name in _COMPUTE_DENIED if name in numbers))
    writing = ((ANY_BIT, 0, 1, _WRITING), _answer(EPERM))
    if "open" in numbers:
        steps += _on_call(numbers["open"], _load(1), *writing)
    steps += _on_call(numbers["openat"], _load(2), *writing)
    steps += _on_call(numbers["clone"], _load(0), (ANY_BIT, 1, 0, _CLONE_THREAD), _answer(EPERM))
    steps += _on_call(numbers["prlimit64"], _load(0), (EQUAL, 1, 0, 0), _answer(EPERM))  # of others
    steps += _on_call(numbers["fcntl"], _load(1), *_answer_to(EPERM, *_OWNERS, *_LOCKS))
    return _assemble(machine, steps)


def seccomp_profile() -> str:
    """The sandbox's rules as JSON, in the form that container engines read.

    Foreign ABIs are refused because only the native one is named. Each rule compares an argument once:
    engines join several comparisons of one argument by "or".
    """
    rules = [_rule(sorted(DENIED), EPERM), _rule(["clone3"], ENOSYS)]
    for flag in (1 << bit for bit in range(32) if _NAMESPACE_FLAGS >> bit & 1):
        rules.append(_rule(["clone"], EPERM, 0, "SCMP_CMP_MASKED_EQ", flag, flag))
    for call, requests in (("ioctl", DENIED_IOCTLS), ("fcntl", DENIED_FCNTLS)):
        rules += [_low_half([call], 1, request) for request in requests]
    for call, (argument, bit) in HUGE_PAGES.items():
        rules.append(_rule([call], ENOMEM, argument, "SCMP_CMP_MASKED_EQ", bit, bit))
    rules.append(_low_half(["sched_setaffinity"], 0, FIRST))
    rules.append(_rule(["setpriority"], EPERM, 0, "SCMP_CMP_NE", PRIO_PROCESS))
    rules.append(_low_half(["setpriority"], 1, FIRST))
    new_limits = _low_half(["prlimit64"], 0, FIRST)
    new_limits["args"].append({"index": 2, "value": 0, "valueTwo": 0, "op": "SCMP_CMP_NE"})
    rules.append(new_limits)
    refused = [family for family in range(max(FAMILIES)) if family not in FAMILIES]
    for call in ("socket", "socketpair"):
        rules += [_rule([call], EAFNOSUPPORT, 0, "SCMP_CMP_EQ", family) for family in refused]
        rules.append(_rule([call], EAFNOSUPPORT, 0, "SCMP_CMP_GT", max(FAMILIES)))
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def _low_half(names: list[str], argument: int, value: int) -> dict[str, Any]:
    """Refuses where the low 32 bits of an argument are `value`: the kernel looks at no more of these."""
    return _rule(names, EPERM, argument, "SCMP_CMP_MASKED_EQ", 0xFFFFFFFF, value)


def _rule(
    names: list[str], error: int, argument: int = -1, how: str = "", value: int = 0, second: int = 0
) -> dict[str, Any]:
    arguments = [{"index": argument, "value": value, "valueTwo": second, "op": how}] if how else []
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error & 0xFFFF, "args": arguments}
