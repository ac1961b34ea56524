"""Cases about rights: mounts, namespaces, tracing, capabilities, devices, kernel interfaces."""

# ruff: noqa: E501 (commands stand as they are sent)
from __future__ import annotations

import re

from sandbox_rl.sandboxes.cases.checks import absent, all_of, both, holds, lines_within, present
from sandbox_rl.sandboxes.cases.model import Case

_DEVICES = "null zero full random urandom tty ptmx pts shm fd stdin stdout stderr core mqueue console"

# Numbers of system calls that must be refused before they look at their arguments: given nonsense
# they answer EFAULT or EINVAL where they are let through, EPERM or ENOSYS where they are filtered.
_CALLS = """
import ctypes,os,platform
l=ctypes.CDLL(None,use_errno=True)
N={'x86_64':dict(add_key=248,request_key=249,keyctl=250,bpf=321,perf_event_open=298,userfaultfd=323,
 open_by_handle_at=304,init_module=175,finit_module=313,kexec_load=246,setns=308,swapon=167,reboot=169,
 process_vm_readv=310,process_vm_writev=311,ptrace=101,acct=163,syslog=103,quotactl=179,mount=165,
 umount2=166,pivot_root=155,unshare=272,lookup_dcookie=212,move_pages=279),
 'aarch64':dict(add_key=217,request_key=218,keyctl=219,bpf=280,perf_event_open=241,userfaultfd=282,
 open_by_handle_at=265,init_module=105,finit_module=273,kexec_load=104,setns=268,swapon=224,reboot=142,
 process_vm_readv=270,process_vm_writev=271,ptrace=117,acct=89,syslog=116,quotactl=60,mount=40,
 umount2=39,pivot_root=41,unshare=97,lookup_dcookie=18,move_pages=239)}[platform.machine()]
N.update(io_uring_setup=425,open_tree=428,move_mount=429,fsopen=430,fsconfig=431,fsmount=432,fspick=433,
 pidfd_getfd=438,mount_setattr=442)
"""


def _refused(id: str, title: str, required: str, names: str) -> Case:
    command = (
        "python3 - <<'EOF'" + _CALLS + f"for n in {tuple(names.split())!r}:\n"
        "    ctypes.set_errno(0); r=l.syscall(N[n],0x7fffffff,0x7fffffff,0x7fffffff,0x7fffffff,0)\n"
        "    e=ctypes.get_errno(); print('refused' if r==-1 and e in (1,38) else 'REACHED',n,r,e)\n"
        "print('end')\nEOF"
    )
    return Case(id, title, required, command, both("REACHED"))


PRIVILEGES = (
    Case(
        "ISO-11",
        "A command mounts a file system over another.",
        "Nothing can be mounted, in a nested namespace neither.",
        "mkdir -p /tmp/m 2>/dev/null; mount -t tmpfs t /tmp/m 2>&1 && echo MOUNTED; "
        "mount --bind /usr /tmp/m 2>&1 && echo MOUNTED\n"
        "unshare -rm sh -c 'mount -t tmpfs t /mnt && echo MOUNTED' 2>&1; echo end",
        both("MOUNTED"),
    ),
    _refused(
        "ISO-11b",
        "A command mounts by the kernel's newer system calls.",
        "Every system call that mounts is refused.",
        "mount umount2 pivot_root open_tree move_mount fsopen mount_setattr",
    ),
    Case(
        "ISO-12",
        "A command makes itself root in a user namespace of its own.",
        "None can be made.",
        "unshare -Ur sh -c 'id -u; echo NESTED-ROOT' 2>&1; python3 -c 'import ctypes,os\n"
        'l=ctypes.CDLL(None,use_errno=True); r=l.unshare(0x10000000); print("RAW",r,os.getuid())\'; echo end',
        all_of(both("NESTED-ROOT"), present("RAW -1")),
    ),
    Case(
        "ISO-12b",
        "A command makes or enters a user namespace by system calls.",
        "None can be made or entered.",
        "python3 - <<'EOF'"
        + _CALLS
        + "import signal\n"
        + "CLONE=56 if platform.machine()=='x86_64' else 220\n"
        + "for flags in (0x10000000,0x30000000,0x40000000,0x20000000):\n"
        + "    r=l.syscall(CLONE,flags|signal.SIGCHLD,0,0,0,0)\n"
        + "    if r==0: os._exit(0)\n"
        + "    print('CLONED' if r>0 else 'no',hex(flags),ctypes.get_errno())\n"
        + "a=(ctypes.c_uint64*11)(0x10000000,0,0,0,signal.SIGCHLD)\n"
        + "r=l.syscall(435,a,88)\n"
        + "if r==0: os._exit(0)\n"
        + "print('CLONED' if r>0 else 'no','clone3',ctypes.get_errno())\n"
        + "for n in ('user','mnt','net','pid'):\n"
        + "    try: f=os.open('/proc/1/ns/'+n,0)\n"
        + "    except OSError: continue\n"
        + "    print('ENTERED' if l.setns(f,0)==0 else 'no',n)\n"
        + "print('end')\nEOF",
        both("CLONED", "ENTERED"),
    ),
    Case(
        "ISO-12c",
        "A command makes forbidden system calls by the processor's 32-bit entry.",
        "The filter holds for the other gates of the processor as well.",
        "python3 - <<'EOF'\nimport ctypes,mmap,platform\n"
        "if platform.machine()=='x86_64':\n"
        "    m=mmap.mmap(-1,4096,prot=7)\n"
        # push rbx; mov eax,310 (unshare); mov ebx,CLONE_NEWUSER; int 0x80; pop rbx; ret
        "    m.write(bytes.fromhex('53b836010000bb00000010cd805bc3'))\n"
        "    f=ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
        "    print('GATE',f(),flush=True)\n"
        "EOF\n"
        "python3 -c 'import ctypes\n"
        "l=ctypes.CDLL(None,use_errno=True)\n"
        'print("X32",l.syscall(0x40000000+39))\'; echo end',
        all_of(
            both("GATE 0"),
            holds("the x32 gate is closed", lambda s: not re.search(r"X32 \d", s.text)),
        ),
    ),
    Case(
        "ISO-13",
        "A command takes control of the sandbox's first process and opens its memory.",
        "The init process of the sandbox can neither be traced nor opened.",
        "python3 - <<'EOF'\nimport ctypes,os\nl=ctypes.CDLL(None,use_errno=True)\n"
        "for pid in {1,os.getppid()}:\n"
        '    print("PT",pid,l.ptrace(16,pid,0,0),ctypes.get_errno())\n'
        '    try: os.open(f"/proc/{pid}/mem",os.O_RDWR); print("MEM-OPEN",pid)\n'
        '    except OSError as e: print("mem",pid,e.errno)\nEOF',
        all_of(absent("MEM-OPEN 1\n"), present("PT 1 -1")),
    ),
    Case(
        "ISO-13b",
        "A command reads the memory and environment of the sandbox's first process.",
        "Its memory map, environment, descriptors and executable are closed; so are the calls that copy them.",
        "for f in environ maps mem auxv io stack syscall; do head -c 1 /proc/1/$f 2>/dev/null | grep -q . && "
        "echo OPENED $f; done; for l in exe cwd root; do readlink /proc/1/$l >/dev/null 2>&1 && echo OPENED $l; "
        "done; ls /proc/1/fd/ 2>/dev/null | grep -q . && echo OPENED fd; echo end",
        both("OPENED"),
    ),
    _refused(
        "ISO-13c",
        "A command copies open files and memory out of another process.",
        "The system calls for it are refused.",
        "process_vm_readv process_vm_writev pidfd_getfd",
    ),
    Case(
        "ISO-14",
        "A command looks for any privilege that it still has.",
        "No capability of any kind, no new privileges, a filter, and not the host's root.",
        "grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status; id -u; "
        "cat /proc/self/uid_map",
        all_of(
            lines_within(r"^Cap\w+:\s*([0-9a-f]+)", "0" * 16),
            lines_within(r"^NoNewPrivs:\s*(\d)", "1"),
            lines_within(r"^Seccomp:\s*(\d)", "2"),
            holds("a user that is not 0", lambda seen: "\n0\n" not in seen.text),
        ),
    ),
    Case(
        "ISO-15",
        "A command becomes root by programs such as su.",
        "No new privileges, no effective user 0, no su.",
        "cp /bin/bash /tmp/b 2>/dev/null; chmod 4755 /tmp/b 2>/dev/null; "
        "/tmp/b -p -c 'grep ^Uid: /proc/self/status' 2>/dev/null\n"
        "su -c 'echo SU-ROOT' </dev/null 2>&1 | head -1; sudo -n id 2>&1 | head -1; "
        "grep NoNewPrivs /proc/self/status; echo end",
        all_of(
            both("SU-ROOT", "uid=0"),
            lines_within(r"^NoNewPrivs:\s*(\d)", "1"),
            holds("no effective user 0", lambda seen: "Uid:\t0\t0" not in seen.text),
        ),
    ),
    Case(
        "ISO-16",
        "A command opens devices of the machine, or makes one.",
        "/dev holds the harmless ones only and none can be made.",
        "for n in $(ls /dev); do echo NODE $n; done; mknod /tmp/blk b 8 0 2>&1 && echo MKNOD; "
        "for d in mem kmem kmsg port sda vda kvm fuse net/tun nvidia0 nvidiactl loop0 vsock; do "
        "[ -e /dev/$d ] && echo DEV $d; done; echo end",
        all_of(both("MKNOD", "DEV "), lines_within(r"^NODE (\S+)", _DEVICES)),
    ),
    Case(
        "ISO-16b",
        "A command makes a device by a system call.",
        "mknod is refused for every kind of device.",
        "python3 - <<'EOF'\nimport os,stat\nfor kind,major,minor in ((stat.S_IFCHR,1,1),(stat.S_IFBLK,254,0),"
        "(stat.S_IFCHR,10,229),(stat.S_IFCHR,5,1)):\n"
        "    try: os.mknod('/tmp/n%d_%d'%(major,minor),kind|0o666,os.makedev(major,minor)); print('MADE',major)\n"
        "    except OSError as e: print('no',e.errno)\nprint('end')\nEOF",
        both("MADE"),
    ),
    Case(
        "ISO-17",
        "A command changes settings of the kernel.",
        "No file of /proc/sys, /sys or the like opens for writing.",
        'python3 - <<\'EOF\'\nimport os\nfor f in ("/proc/sys/kernel/core_pattern","/proc/sys/kernel/modprobe",'
        '"/proc/sys/vm/drop_caches","/proc/sys/vm/overcommit_memory","/proc/sysrq-trigger",'
        '"/proc/sys/fs/binfmt_misc/register","/sys/kernel/uevent_helper","/sys/power/state",'
        '"/sys/fs/cgroup/release_agent","/proc/sys/kernel/hostname","/proc/sys/net/ipv4/ip_forward",'
        '"/proc/sys/kernel/ns_last_pid"):\n'
        '    try: os.close(os.open(f,os.O_WRONLY)); print("OPENED",f)  # opened only: nothing is written\n'
        '    except OSError as e: print("no",f,e.errno)\nprint("end")\nEOF',
        both("OPENED"),
    ),
    Case(
        "ISO-17b",
        "A command reads the kernel's memory and log.",
        "No interface gives kernel memory, addresses or the log.",
        "for f in /proc/kcore /proc/kmsg /dev/mem /dev/kmsg /proc/sched_debug /proc/timer_list /proc/keys "
        "/proc/latency_stats; do head -c 1 $f 2>/dev/null | grep -q . && echo READ $f; done; "
        "dmesg >/dev/null 2>&1 && echo READ dmesg; "
        "grep -m1 -vE '^0+ ' /proc/kallsyms 2>/dev/null | grep -q . && echo READ kallsyms; echo end",
        both("READ"),
    ),
    Case(
        "ISO-18",
        "A command raises the limits of its own control group.",
        "No control file opens, no group can be made, and the own group's path tells nothing.",
        "sed 's/^[0-9]*:[^:]*:/PATH /' /proc/self/cgroup; for f in /sys/fs/cgroup/cgroup.procs "
        "/sys/fs/cgroup/../cgroup.procs /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max "
        "/sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/cgroup.procs; do "
        "[ -e $f ] && { (exec 3>>$f) 2>/dev/null && echo OPENED $f; }; done; "
        "mkdir /sys/fs/cgroup/adv /sys/fs/cgroup/memory/adv 2>/dev/null && echo MKCG; echo end",
        all_of(both("OPENED", "MKCG"), lines_within(r"^PATH (.*)$", "/")),
    ),
    _refused(
        "ISO-19",
        "A command uses keys from the kernel's keyring.",
        "Keys cannot be added, asked for or read: keyrings belong to no namespace.",
        "add_key request_key keyctl",
    ),
    _refused(
        "ISO-19b",
        "A command tries kernel interfaces that are known for security holes.",
        "Each is refused before it looks at its arguments.",
        "bpf perf_event_open userfaultfd open_by_handle_at init_module "
        "finit_module kexec_load setns swapon reboot acct syslog quotactl unshare ptrace",
    ),
    Case(
        "ISO-20",
        "A command opens io_uring and rare kinds of network sockets.",
        "None is allowed.",
        "python3 - <<'EOF'\nimport ctypes,socket\n"
        "l=ctypes.CDLL(None,use_errno=True); b=ctypes.create_string_buffer(256)\n"
        'r=l.syscall(425,4,b); print("IOURING","ALLOWED" if r>=0 else "no",ctypes.get_errno())\n'
        'for n,f in (("VSOCK",40),("ALG",38),("PACKET",17),("BLUETOOTH",31),("KEY",15),("TIPC",30),("RDS",21),'
        '("XDP",44),("NFC",39),("CAN",29)):\n'
        "    for k in (1,2,3,5):\n"
        '        try: socket.socket(f,k,0).close(); print("SOCK-ALLOWED",n,k)\n'
        '        except OSError as e: pass\nprint("end")\nEOF',
        both("ALLOWED"),
    ),
    Case(
        "ISO-20b",
        "A command reads and forges raw network packets.",
        "None is allowed.",
        "python3 - <<'EOF'\nimport socket\nfor f in (2,10):\n"
        "    for p in (1,6,255):\n"
        '        try: socket.socket(f,3,p).close(); print("RAW-ALLOWED",f,p)\n'
        '        except OSError as e: print("no",e.errno)\nprint("end")\nEOF',
        both("RAW-ALLOWED"),
    ),
    Case(
        "ISO-21",
        "A command changes the machine's clock.",
        "It cannot be set, and the host's does not move.",
        "date -s '2001-01-01' 2>&1; python3 -c 'import time\n"
        'try: time.clock_settime(0,1e9); print("SET")\n'
        'except OSError as e: print("no",e.errno)\'; echo end',
        both("SET"),
    ),
)
