"""Cases about keeping what serves and ends the sandbox from its turn, and about using up what is there for
everybody: what is counted per user, and memory by every way of holding it that nobody may charge."""

# ruff: noqa: E501 (commands stand as they are sent)
from __future__ import annotations

from sandbox_rl.sandboxes.cases.checks import (
    SOON_S,
    alive_or_dead,
    all_of,
    both,
    elsewhere_absent,
    holds,
    largest,
    present,
    returned_within,
    stored_at_most,
)
from sandbox_rl.sandboxes.cases.model import CASE_LIMITS, Case
from sandbox_rl.types import ExecStatus

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
        timeout=30,
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


_STORE_MB = CASE_LIMITS.memory_mb + CASE_LIMITS.disk_mb
_SLACK_MB = 48  # what the page cache and the interpreter add to what a program counts itself
_AT_MOST = stored_at_most("HELD", CASE_LIMITS.memory_mb + _SLACK_MB)

MEMORY = (
    Case(
        "RES-02",
        "A command takes all memory.",
        "Stopped by the sandbox's limit: a typed end or an ordinary exit code, soon.",
        'python3 -c \'b=[]\nwhile len(b)<128: b.append(b"x"*(16<<20)); print("HELD",16*len(b),flush=True)\'; '
        "echo AFTER $?",
        alive_or_dead(
            all_of(
                largest("HELD", CASE_LIMITS.memory_mb),
                returned_within(2 * SOON_S),
                holds(
                    "AFTER or a typed end", lambda s: "AFTER" in s.text or s.first.status is ExecStatus.OOM
                ),
            )
        ),
        timeout=60,
    ),
    Case(
        "RES-02b",
        "A command takes all memory by many small processes.",
        "The limit holds for the whole tree, not for each process.",
        'for i in $(seq 12); do python3 -c \'import os,time; b=b"x"*(100<<20); '
        'open("/tmp/up%d"%os.getpid(),"w"); print("up",flush=True); time.sleep(60)\' & done; '
        "for j in $(jobs -p); do until [ -e /tmp/up$j ] || ! kill -0 $j 2>/dev/null; do sleep .05; done; done; "
        "n=0; for j in $(jobs -p); do kill -0 $j 2>/dev/null && "
        "[ \"$(awk '/VmRSS/{print ($2>90000)}' /proc/$j/status 2>/dev/null)\" = 1 ] && n=$((n+100)); done; "
        "echo HELD $n; kill -9 $(jobs -p) 2>/dev/null; wait 2>/dev/null; echo end",
        stored_at_most("HELD", CASE_LIMITS.memory_mb),
        timeout=60,
    ),
    Case(
        "RES-03",
        "A command takes memory by writing to file systems that lie in memory.",
        "Each write stops at its cap, and together they stay below memory plus disk.",
        "dd if=/dev/zero of=/dev/shm/f bs=1M count=1500 2>&1 | tail -1; "
        "dd if=/dev/zero of=/tmp/f bs=1M count=1500 2>&1 | tail -1; "
        "echo STORED $(du -sm -c /dev/shm /tmp 2>/dev/null | tail -1 | cut -f1); rm -f /dev/shm/f /tmp/f",
        stored_at_most("STORED", _STORE_MB),
        timeout=30,
    ),
    Case(
        "RES-03b",
        "A command takes memory by files without a name.",
        "Memory of memfd and of deleted files counts as well.",
        "python3 - <<'EOF'\nimport os\nfd=os.memfd_create('x'); block=b'x'*(16<<20); n=0\ntry:\n"
        "    while n<1500: os.write(fd,block); n+=16; print('HELD',n,flush=True)\n"
        "except OSError as e: print('stopped',e.errno)\nEOF\n"
        "echo HELD 0",
        alive_or_dead(largest("HELD", CASE_LIMITS.memory_mb + _SLACK_MB)),
        timeout=30,
    ),
    Case(
        "RES-03c",
        "A command takes memory by many unnamed files that no process has mapped.",
        "They count together, or there are none.",
        "python3 - <<'EOF'\nimport os,time\nblock=b'x'*(32<<20); n=0; print('HELD',n)\ntry:\n"
        "    while n<1500:\n"
        "        fd=os.memfd_create('x'); os.write(fd,block); os.write(fd,block); n+=64; print('HELD',n,flush=True)\n"
        "        time.sleep(.15)\n"
        "except OSError as e: print('stopped',e.errno)\nEOF",
        _AT_MOST,
        timeout=30,
    ),
    Case(
        "RES-03d",
        "A command takes memory by shared segments that no process uses.",
        "They count together, or there are none.",
        "python3 - <<'EOF'\nimport ctypes,time\nl=ctypes.CDLL(None); l.shmat.restype=ctypes.c_void_p; "
        "l.shmdt.argtypes=(ctypes.c_void_p,)\nn=0; print('HELD',n)\n"
        "while n<1500:\n    i=l.shmget(0,64<<20,0o1600)\n    if i<0: break\n"
        "    a=l.shmat(i,None,0); ctypes.memset(a,1,64<<20); l.shmdt(a)\n"
        "    n+=64; print('HELD',n,flush=True); time.sleep(.15)\nEOF",
        _AT_MOST,
        timeout=30,
    ),
    Case(
        "RES-03e",
        "A command takes memory by shared segments whose users have ended.",
        "It counts as long as somebody could touch it.",
        "python3 - <<'EOF'\nimport mmap,os,time\nkept=[]; n=0; print('HELD',n)\n"
        "while n<1500:\n    kept.append(mmap.mmap(-1,64<<20))\n"
        "    if os.fork()==0:\n        kept[-1].write(b'x'*(64<<20)); os._exit(0)\n"
        "    if os.wait()[1]: break\n"
        "    n+=64; print('HELD',n,flush=True); time.sleep(.15)\nEOF",
        _AT_MOST,
        timeout=30,
    ),
)
