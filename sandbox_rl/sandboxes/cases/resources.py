"""Cases about using up processes, disk, descriptors, processor time and patience."""

# ruff: noqa: E501 (commands stand as they are sent)
from __future__ import annotations

from sandbox_rl.sandboxes.base import WORKING_DIR
from sandbox_rl.sandboxes.cases.checks import (
    SOON_S,
    absent,
    all_of,
    both,
    exit_code,
    holds,
    largest,
    present,
    returned_within,
    status,
    stdout_is,
    stored_at_most,
    then_stdout,
)
from sandbox_rl.sandboxes.cases.model import CASE_LIMITS, Case
from sandbox_rl.types import ExecStatus

_TIMED_OUT = status(ExecStatus.TIMEOUT)
_STORE_MB = CASE_LIMITS.memory_mb + CASE_LIMITS.disk_mb
_COUNT_TICKS = f"a=$(wc -c <{WORKING_DIR}/tick); sleep 1; b=$(wc -c <{WORKING_DIR}/tick); echo GREW $((b-a))"

RESOURCES = (
    Case(
        "RES-01",
        "A command starts processes that start processes, without end (a fork bomb).",
        "The call returns, processes are bounded, the next call works or the sandbox is dead.",
        "f(){ f|f & }; f; sleep 30",
        # Bash's own shell may be killed by its children's failure; what matters is that it ends.
        returned_within(5 + SOON_S),
        timeout=5,
        then=("echo PROCS $(ls /proc | grep -cE '^[0-9]+$')",),
    ),
    Case(
        "RES-01b",
        "A fork bomb detaches its processes from the command that started them.",
        "Processes are bounded by the limit.",
        "python3 - <<'EOF'\nimport os,time\nn=0\ntry:\n"
        "    while n<400:\n"
        "        if os.fork()==0:\n"
        "            os.setsid(); time.sleep(20); os._exit(0)\n"
        "        n+=1; print('FORKED',n,flush=True)\n"
        "except OSError as e: pass\nprint('FORKED',n,flush=True)\nEOF",
        largest("FORKED", CASE_LIMITS.pids),
    ),
    Case(
        "RES-04",
        "A command fills the disk.",
        "No space left at the cap.",
        f"i=0; while dd if=/dev/zero of={WORKING_DIR}/f$i bs=1M count=100 2>/dev/null; do i=$((i+1)); "
        f"[ $i -gt 12 ] && break; done; echo STORED $(du -sm {WORKING_DIR} | cut -f1)",
        stored_at_most("STORED", CASE_LIMITS.disk_mb + 8),
        timeout=30,
        then=(f"rm -f {WORKING_DIR}/f*; echo back >{WORKING_DIR}/g && cat {WORKING_DIR}/g",),
    ),
    Case(
        "RES-04b",
        "A command reserves disk space in every place where it may write.",
        "Space cannot be reserved beyond the caps in any directory.",
        "total=0; for d in $(find / -xdev -type d -writable 2>/dev/null | head -50) /tmp /dev/shm /run /var/tmp "
        f"{WORKING_DIR} ~; do for i in 1 2 3 4 5 6 7 8; do fallocate -l 128M $d/adv_$i 2>/dev/null || break; "
        "total=$((total+128)); [ $total -gt 2000 ] && break 2; done; done; echo RESERVED $total; "
        f"rm -f /tmp/adv_* /dev/shm/adv_* {WORKING_DIR}/adv_* ~/adv_*",
        stored_at_most("RESERVED", _STORE_MB),
    ),
    Case(
        "RES-05",
        "A command makes so many files that the disk can hold no further one.",
        "Stopped at the cap of inodes, and closing is still quick.",
        "python3 - <<'EOF'\nn=0\ntry:\n"
        f"    while n<60000: open(f'{WORKING_DIR}/{{n}}','w').close(); n+=1\n"
        "except OSError as e: print('errno',e.errno)\nprint('FILES',n)\nEOF",
        largest("FILES", CASE_LIMITS.inodes),
        timeout=30,
    ),
    Case(
        "RES-05b",
        "A command makes endless links, directories and pipes.",
        "Every kind of inode counts, in every writable place.",
        "python3 - <<'EOF'\nimport os\nn=0\n"
        "for d in ('/tmp','/dev/shm'):\n"
        "    try:\n"
        "        while n<90000:\n"
        "            os.symlink('x',f'{d}/l{n}'); os.mkdir(f'{d}/d{n}'); os.mkfifo(f'{d}/p{n}'); n+=3\n"
        "    except OSError as e: print('errno',e.errno)\nprint('MADE',n)\nEOF",
        largest("MADE", 2 * CASE_LIMITS.inodes),
        timeout=30,
    ),
    Case(
        "RES-06",
        "A command opens files until the machine has no descriptor left.",
        "Stopped at the limit of open files.",
        "python3 -c 'import os\nn=0\ntry:\n"
        '    while n<20000: os.open("/dev/null",0); n+=1\n'
        'except OSError as e: pass\nprint("OPENED",n)\'',
        largest("OPENED", CASE_LIMITS.open_files),
    ),
    Case(
        "RES-07",
        "A command keeps eight processors busy.",
        "Eight busy loops get no more than the processor limit.",
        "read a rest </proc/uptime; for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; sleep 3; "
        "kill $(jobs -p); wait 2>/dev/null; read b rest </proc/uptime; "
        "times >/tmp/times; tail -1 /tmp/times | sed 's/m/ /g; s/s//g' "
        '| awk -v took=$a,$b \'{split(took, t, ","); print "BUSY", ($1*60+$2+$3*60+$4)/(t[2]-t[1])}\'; echo end',
        all_of(present("end"), largest("BUSY", 1.25 * CASE_LIMITS.cpus)),
    ),
    Case(
        "RES-08",
        "A command starts threads without end.",
        "Threads count as processes.",
        "python3 - <<'EOF'\nimport threading,time,os\nn=0\ntry:\n"
        "    while n<1000: threading.Thread(target=time.sleep,args=(30,),daemon=True).start(); n+=1\n"
        "except RuntimeError: pass\nprint('THREADS',n,flush=True)\nos._exit(0)\nEOF",
        largest("THREADS", CASE_LIMITS.pids),
        timeout=30,
    ),
    Case(
        "RES-09",
        "A command sleeps for ever.",
        "Time-out in time; partial output kept.",
        "echo before; sleep infinity",
        all_of(_TIMED_OUT, returned_within(3 + SOON_S), stdout_is(b"before\n")),
        timeout=3,
    ),
    Case(
        "RES-10",
        "A command ignores the signals that ask it to end.",
        "Time-out in time all the same, and nothing survives.",
        "trap '' TERM INT HUP QUIT; echo before; while :; do sleep 1; done",
        all_of(_TIMED_OUT, returned_within(3 + SOON_S), then_stdout("LEFT 0")),
        timeout=3,
        then=("echo LEFT $(pgrep -xc sleep 2>/dev/null || true)",),
    ),
    Case(
        "RES-10b",
        "A command hides in a chain of detached processes that ignore signals.",
        "The time-out kills the whole tree of the command.",
        "python3 - <<'EOF'\nimport os,signal,time\nfor s in (1,2,3,15): signal.signal(s,signal.SIG_IGN)\n"
        f"for depth in range(4):\n    if os.fork(): break\n    os.setsid()\n"
        f"while True:\n    open('{WORKING_DIR}/tick','a').write('x'); time.sleep(.1)\nEOF\nsleep 600",
        all_of(_TIMED_OUT, then_stdout("GREW 0")),
        timeout=2,
        then=(_COUNT_TICKS,),
    ),
    Case(
        "RES-11",
        "A command leaves a process behind that survives the command's time-out.",
        "What the timed-out command started in the background is gone as well.",
        'setsid nohup sh -c \'trap "" TERM HUP; while :; do date +%s%N >>'
        f"{WORKING_DIR}/tick; sleep .2; done' >/dev/null 2>&1 & disown; sleep 600",
        all_of(_TIMED_OUT, then_stdout("GREW 0")),
        timeout=3,
        then=(_COUNT_TICKS,),
    ),
    Case(
        "RES-12",
        "A background process keeps the call's output open after the shell has ended.",
        "The call ends when the shell ends.",
        "echo started; sleep 300 & exit 0",
        all_of(status(ExecStatus.OK), returned_within(SOON_S), exit_code(0), stdout_is(b"started\n")),
    ),
    Case(
        "RES-12b",
        "A background process floods the output after the shell has ended.",
        "The call ends when the shell ends, and the flood harms no later call.",
        "echo started; (sleep 0.3; yes) & exit 5",
        all_of(status(ExecStatus.OK), returned_within(SOON_S), exit_code(5)),
        then=("sleep 1; pkill -9 yes; echo fine",),
    ),
    Case(
        "RES-13",
        "A command stops itself so that it never ends.",
        "Time-out: a stopped process is killed all the same.",
        "echo a; kill -STOP $$; echo b",
        all_of(_TIMED_OUT, stdout_is(b"a\n"), returned_within(3 + SOON_S)),
        timeout=3,
    ),
    Case(
        "RES-14",
        "A command raises its own limits.",
        "Hard limits stay finite.",
        "ulimit -n unlimited 2>&1; ulimit -u unlimited 2>&1; ulimit -c unlimited 2>&1; "
        "python3 -c 'import resource as r\n"
        'for n in ("RLIMIT_NOFILE","RLIMIT_CORE","RLIMIT_FSIZE"):\n'
        '    h=r.getrlimit(getattr(r,n))[1]; print("UNLIMITED" if h in (-1,r.RLIM_INFINITY) else "finite",n,h)\n'
        'print("FILES",r.getrlimit(r.RLIMIT_NOFILE)[1])\'',
        all_of(absent("UNLIMITED"), present("finite"), largest("FILES", 4096)),
    ),
    Case(
        "RES-15",
        "A command crashes to leave a copy of its memory (a core dump) on the disk.",
        "None is written, and the exit code tells of the signal.",
        f"cd {WORKING_DIR}; ulimit -c unlimited 2>/dev/null; python3 -c 'b=bytearray(100<<20)\n"
        "import os,signal; os.kill(os.getpid(),signal.SIGSEGV)'; echo rc $?; "
        f"ls core* {WORKING_DIR}/core* 2>/dev/null && echo CORE; ulimit -Hc",
        all_of(
            both("CORE", proof="rc 139"),
            holds("a hard core limit of 0", lambda s: s.first.stdout.head.endswith(b"\n0\n")),
        ),
    ),
    Case(
        "RES-16",
        "A command makes a very deep tree of directories, so that deleting it takes long.",
        "Closing is quick and leaves nothing.",
        f"python3 - <<'EOF'\nimport os\nos.chdir('{WORKING_DIR}')\n"
        "for i in range(3000): os.mkdir('d'*20); os.chdir('d'*20)\nprint('DEEP')\nEOF",
        present("DEEP"),
    ),
    Case(
        "RES-17",
        "A command leaves files whose names and rights make them hard to delete.",
        "Closing leaves nothing, whatever names and modes there are.",
        f"cd {WORKING_DIR}; mkdir -p a/b; touch a/b/x; touch -- '-rf' $'new\\nline' $'\\xff\\xfe' '*' ' lead' "
        '"q\'uote"; ln -s loop loop; mkfifo p; '
        f"python3 -c 'import socket;socket.socket(1).bind(\"{WORKING_DIR}/s\")'; chmod 000 a/b a; "
        f"chmod 555 {WORKING_DIR}; echo NAMES $(ls -a | wc -l)",
        present("NAMES"),
    ),
    Case(
        "RES-18",
        "A command leaves thousands of dead child processes behind.",
        "Bounded, and process 1 reaps the orphans.",
        "python3 - <<'EOF'\nimport os,time\nn=0\ntry:\n    for i in range(2000):\n        if os.fork()==0:\n"
        "            if os.fork()==0: time.sleep(.3); os._exit(0)\n"
        "            os._exit(0)\n"
        "        n+=1\nexcept OSError as e: pass\nprint('FORKED',n,flush=True)\nEOF",
        all_of(largest("FORKED", CASE_LIMITS.pids), then_stdout("ZOMBIES 0")),
        timeout=30,
        then=("sleep 2; echo ZOMBIES $(grep -sl '^State:.Z' /proc/[0-9]*/status | wc -l)",),
    ),
)
