"""Cases about using up memory, by every way of holding it that nobody may charge."""

# ruff: noqa: E501 (commands stand as they are sent)
from __future__ import annotations

from sandbox_rl.sandboxes.cases.checks import (
    alive_or_dead,
    all_of,
    holds,
    largest,
    returned_within,
    stored_at_most,
)
from sandbox_rl.sandboxes.cases.model import CASE_LIMITS, Case
from sandbox_rl.types import ExecStatus

__all__ = ["MEMORY"]

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
                returned_within(10),
                holds(
                    "AFTER or a typed end", lambda s: "AFTER" in s.text or s.first.status is ExecStatus.OOM
                ),
            )
        ),
        timeout=20,
    ),
    Case(
        "RES-02b",
        "A command takes all memory by many small processes.",
        "The limit holds for the whole tree, not for each process.",
        'for i in $(seq 12); do python3 -c \'b=b"x"*(100<<20); print("up",flush=True); import time; '
        "time.sleep(60)' & done; sleep 4; n=0; for j in $(jobs -p); do kill -0 $j 2>/dev/null && "
        "[ \"$(awk '/VmRSS/{print ($2>90000)}' /proc/$j/status 2>/dev/null)\" = 1 ] && n=$((n+100)); done; "
        "echo HELD $n; kill -9 $(jobs -p) 2>/dev/null; wait 2>/dev/null; echo end",
        stored_at_most("HELD", CASE_LIMITS.memory_mb),
        timeout=25,
    ),
    Case(
        "RES-03",
        "A command takes memory by writing to file systems that lie in memory.",
        "Each write stops at its cap, and together they stay below memory plus disk.",
        "dd if=/dev/zero of=/dev/shm/f bs=1M count=1500 2>&1 | tail -1; "
        "dd if=/dev/zero of=/tmp/f bs=1M count=1500 2>&1 | tail -1; "
        "echo STORED $(du -sm -c /dev/shm /tmp 2>/dev/null | tail -1 | cut -f1); rm -f /dev/shm/f /tmp/f",
        stored_at_most("STORED", _STORE_MB),
        timeout=15,
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
        timeout=15,
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
        timeout=15,
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
        timeout=15,
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
        timeout=15,
    ),
)
