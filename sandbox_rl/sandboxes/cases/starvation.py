"""Cases about what serves and ends the sandbox: keeping it from its turn, and using up what is counted
per user for everybody."""

# ruff: noqa: E501 (commands stand as they are sent)
from __future__ import annotations

from sandbox_rl.sandboxes.cases.checks import all_of, both, elsewhere_absent, largest, present
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
        "A command changes how the sandbox's first process is scheduled.",
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
        "A command puts limits on the sandbox's first process.",
        "Its limits are its own.",
        _ATTEMPT + "for n in ('NOFILE','FSIZE','AS','CPU'):\n"
        "    l=r.getrlimit(getattr(r,'RLIMIT_'+n)); attempt(n,r.prlimit,1,getattr(r,'RLIMIT_'+n),(l[0],l[1]))\nEOF\necho end",
        both("CHANGED"),
    ),
    Case(
        "RES-19c",
        "A command does the same by numbers that a filter and the kernel read differently.",
        "A filter that compares more than the kernel does is no filter.",
        _ATTEMPT
        + "i=0 if platform.machine()=='x86_64' else 1; one=ctypes.c_ulong(1<<32|1); mask=ctypes.c_ulong(3)\n"
        "attempt('nice',libc.syscall,(141,140)[i],ctypes.c_ulong(1<<32),one,19)\n"
        "attempt('processors',libc.syscall,(203,122)[i],one,ctypes.c_ulong(8),ctypes.byref(mask))\n"
        "most=(ctypes.c_ulong*2)(1024,1024)\n"
        "attempt('limits',libc.syscall,(302,261)[i],one,ctypes.c_ulong(7),ctypes.byref(most),None)\nEOF\necho end",
        both("CHANGED"),
    ),
    Case(
        "RES-20",
        "A command takes all terminals of the machine.",
        "A sandbox has a few of its own; the machine's are for everybody.",
        "python3 - <<'EOF'\nimport os\nn=0\ntry:\n"
        "    while n<900: os.open('/dev/ptmx',os.O_RDWR|os.O_NOCTTY); n+=1\n"
        "except OSError: pass\nprint('TERMINALS',n)\nEOF",
        largest("TERMINALS", 64),
    ),
    Case(
        "RES-20b",
        "A command uses up what the kernel counts for each user, such as file watches and signals.",
        "Another sandbox still gets its own.",
        "python3 - <<'EOF' >/dev/null &\nimport ctypes,os,signal,time\nlibc=ctypes.CDLL(None)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK,[40])\n"
        "while libc.inotify_init1(0)>=0: pass\n"
        "while libc.sigqueue(os.getpid(),40,None)==0: pass\n"
        "open('/tmp/taken','w').close(); time.sleep(60)\nEOF\n"
        "until [ -e /tmp/taken ]; do sleep .05; done; echo end",
        all_of(present("end"), elsewhere_absent("STARVED")),
        timeout=15,
        elsewhere="python3 - <<'EOF'\nimport ctypes,os,signal\nlibc=ctypes.CDLL(None)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK,[40])\n"
        "print('STARVED' if libc.inotify_init1(0)<0 else 'inotify')\n"
        "print('STARVED' if any(libc.sigqueue(os.getpid(),40,None) for _ in range(8)) else 'signals')\nEOF",
    ),
    Case(
        "RES-20c",
        "A command uses up what the machine has once for all, such as huge pages.",
        "Nothing of it: no user and no group is counted there, so that one sandbox could take all.",
        "python3 - <<'EOF'\nimport ctypes,mmap,os,platform\nlibc=ctypes.CDLL(None)\n"
        "context=ctypes.c_ulong(0); call=206 if platform.machine()=='x86_64' else 0\n"
        "if libc.syscall(call,1,ctypes.byref(context))==0: print('TAKEN: asynchronous I/O')\n"
        "try: os.memfd_create('x',os.MFD_HUGETLB); print('TAKEN: a file of huge pages')\n"
        "except OSError: pass\n"
        "try: mmap.mmap(-1,1<<21,flags=0x40022); print('TAKEN: huge pages')\n"
        "except OSError: pass\nEOF\necho end",
        both("TAKEN"),
    ),
    Case(
        "RES-21",
        "A command has the kernel end the trainer before itself when memory runs out.",
        "Sandboxes go first: the trainer's place in that order is never above theirs.",
        "for v in 0 -500 -1000; do echo $v >/proc/self/oom_score_adj; done 2>/dev/null; sleep .5; "
        "echo PLACE $((1000 - $(cat /proc/$$/oom_score_adj)))",
        largest("PLACE", 0),
    ),
)
