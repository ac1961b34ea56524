"""The embedded backend's system-call rules in the form that container engines read."""

from __future__ import annotations

import json
from typing import Any

from sandbox_rl.sandboxes.seccomp import (
    DENIED,
    DENIED_FCNTLS,
    DENIED_IOCTLS,
    FIRST,
    HUGE_PAGES,
    PRIO_PROCESS,
)

__all__ = ["seccomp_profile"]

_EPERM, _ENOMEM, _ENOSYS, _EAFNOSUPPORT = 1, 12, 38, 97
_NAMESPACE_FLAGS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK


def seccomp_profile() -> str:
    """A profile as JSON. Foreign ABIs are refused because only the native one is named.

    Each rule compares an argument once: engines join several comparisons of one argument by "or".
    """
    rules = [_rule(sorted(DENIED), _EPERM), _rule(["clone3"], _ENOSYS)]
    for flag in _NAMESPACE_FLAGS:
        rules.append(_rule(["clone"], _EPERM, 0, "SCMP_CMP_MASKED_EQ", flag, flag))
    for call, requests in (("ioctl", DENIED_IOCTLS), ("fcntl", DENIED_FCNTLS)):
        rules += [_low_half([call], 1, request) for request in requests]
    for call, (argument, bit) in HUGE_PAGES.items():
        rules.append(_rule([call], _ENOMEM, argument, "SCMP_CMP_MASKED_EQ", bit, bit))
    rules.append(_low_half(["sched_setaffinity"], 0, FIRST))
    rules.append(_rule(["setpriority"], _EPERM, 0, "SCMP_CMP_NE", PRIO_PROCESS))
    rules.append(_low_half(["setpriority"], 1, FIRST))
    new_limits = _low_half(["prlimit64"], 0, FIRST)
    new_limits["args"].append({"index": 2, "value": 0, "valueTwo": 0, "op": "SCMP_CMP_NE"})
    rules.append(new_limits)
    refused = [family for family in range(max(_FAMILIES)) if family not in _FAMILIES]
    for call in ("socket", "socketpair"):
        rules += [_rule([call], _EAFNOSUPPORT, 0, "SCMP_CMP_EQ", family) for family in refused]
        rules.append(_rule([call], _EAFNOSUPPORT, 0, "SCMP_CMP_GT", max(_FAMILIES)))
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def _low_half(names: list[str], argument: int, value: int) -> dict[str, Any]:
    """Refuses where the low 32 bits of an argument are `value`: the kernel looks at no more of these."""
    return _rule(names, _EPERM, argument, "SCMP_CMP_MASKED_EQ", 0xFFFFFFFF, value)


def _rule(
    names: list[str], error: int, argument: int = -1, how: str = "", value: int = 0, second: int = 0
) -> dict[str, Any]:
    arguments = [{"index": argument, "value": value, "valueTwo": second, "op": how}] if how else []
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": arguments}
