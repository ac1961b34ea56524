"""Cases about what serves and ends the sandbox: keeping it from its turn, and using up what is counted
per user for everybody."""

# ruff: noqa: E501 (commands stand as they are sent)
from __future__ import annotations

from sandbox_rl.sandboxes.cases.checks import both
from sandbox_rl.sandboxes.cases.model import Case

__all__ = ["STARVATION"]

_ATTEMPT = """python3 - <<'EOF'
import ctypes,os,platform,resource as r
libc=ctypes.CDLL(None,use_errno=True)
def attempt(name,function,*arguments):
    try: done=function(*arguments)!=-1
    except OSError: done=False
    print('CHANGED' if done else 'kept',name)
"""

STARVATION = (
    Case(
        "RES-19",
        "change the scheduling of the first process",
        "It keeps its turn, whatever its class, priority and processors are asked to be.",
        _ATTEMPT + "attempt('idle',os.sched_setscheduler,1,os.SCHED_IDLE,os.sched_param(0))\n"
        "attempt('nice',os.setpriority,os.PRIO_PROCESS,1,19)\n"
        "attempt('group',os.setpriority,os.PRIO_PGRP,1,19)\n"
        "attempt('user',os.setpriority,os.PRIO_USER,0,19)\n"
        "attempt('processors',os.sched_setaffinity,1,{min(os.sched_getaffinity(0))})\nEOF\necho end",
        both("CHANGED"),
    ),
    Case(
        "RES-19b",
        "limit the first process",
        "Its limits are its own.",
        _ATTEMPT + "for n in ('NOFILE','FSIZE','AS','CPU'):\n"
        "    l=r.getrlimit(getattr(r,'RLIMIT_'+n)); attempt(n,r.prlimit,1,getattr(r,'RLIMIT_'+n),(l[0],l[1]))\nEOF\necho end",
        both("CHANGED"),
    ),
    Case(
        "RES-19c",
        "the same with numbers of 64 bits of which the kernel takes 32",
        "A filter that compares more than the kernel does is no filter.",
        _ATTEMPT
        + "i=0 if platform.machine()=='x86_64' else 1; one=ctypes.c_ulong(1<<32|1); mask=ctypes.c_ulong(3)\n"
        "attempt('nice',libc.syscall,(141,140)[i],ctypes.c_ulong(1<<32),one,19)\n"
        "attempt('processors',libc.syscall,(203,122)[i],one,ctypes.c_ulong(8),ctypes.byref(mask))\n"
        "most=(ctypes.c_ulong*2)(1024,1024)\n"
        "attempt('limits',libc.syscall,(302,261)[i],one,ctypes.c_ulong(7),ctypes.byref(most),None)\nEOF\necho end",
        both("CHANGED"),
    ),
)
