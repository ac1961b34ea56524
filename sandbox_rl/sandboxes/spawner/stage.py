"""What all sandboxes of a backend share, laid out on a private tmpfs before the first one is made.

The spawner's mount namespace is its own, so nothing here is visible on the host or needs removing.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from typing import Any

from sandbox_rl.sandboxes.spawner.system import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    unshare,
)
from sandbox_rl.sandboxes.spawner.tree import WRITABLE, Tree

COUNTED_LIMITS = (resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_MEMLOCK)
INOTIFY = {"max_inotify_instances": "max_user_instances", "max_inotify_watches": "max_user_watches"}
"""What the kernel counts per user: limits of processes, and its settings by namespace → for all."""
SHARE = {"max_inotify_instances": 8, "max_inotify_watches": 4096}
"""Of one sandbox, where all count as one user."""
PLACES = ("/mnt", "/media", "/srv", "/opt", "/tmp")
ETC_COPIES = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types")
ETC_FILES = {
    "passwd": "sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
    "group": "sandbox:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "",
    "shells": "/bin/sh\n/bin/bash\n",
}
COMPILE = (
    "import sys,marshal,__future__ as f,importlib.util as u;"
    "s=sys.stdin.buffer.read().replace(b'from __future__ import annotations',b'',1);"
    "c=compile(s,'<agent>','exec',f.annotations.compiler_flag,True,2);"
    "sys.stdout.buffer.write(u.MAGIC_NUMBER+bytes(12)+marshal.dumps(c))"
)
"""Leaves out docstrings and the import of `__future__`: both cost every sandbox start-up time."""


def enter_private_namespaces() -> bool:
    """A mount namespace of our own; an ordinary user first needs a user namespace for that.

    Returns whether what the kernel counts per user is divided: True for root, whose sandboxes are users of
    their own. An ordinary user's count as him, and he keeps the other half of everything countable.
    """
    divided = True
    if os.geteuid() == 0:
        unshare(CLONE_NEWNS)
    else:
        for kind in COUNTED_LIMITS:
            lower_limit(kind, resource.getrlimit(kind)[1] // 2)
        most = [read_number(f"/proc/sys/fs/inotify/{INOTIFY[name]}") // 2 for name in INOTIFY]
        divided = own_user_namespace(dict(zip(INOTIFY, most, strict=True)))
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    return divided


def own_user_namespace(counted: dict[str, int]) -> bool:
    """A user and a mount namespace in which this user may have so much of what is counted per user.

    False if the kernel's settings cannot be written here, so that nothing bounds it.
    """
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as out:
            out.write(text)
    try:
        for name, value in counted.items():
            with open(f"/proc/sys/user/{name}", "w", encoding="ascii") as out:
                out.write(str(value))
    except OSError:
        return False
    return True


def lower_limit(kind: int, value: int) -> None:
    """Both limits of this process, at most what they are."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    if value >= 0:
        resource.setrlimit(kind, (value, value))


def read_number(path: str) -> int:
    """What a file of the kernel's settings says; a small number if it is not there."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 16


class Stage:
    """The shared layout below `self.root`.

    Args:
        config: `agent` (source) and the fields of a `bwrap.Layout`.
        seccomp: the system-call filter, in hex.
    """

    def __init__(self, config: dict[str, Any], seccomp: str) -> None:
        beside = [config["bwrap_directory"]] if config["bwrap_directory"] else []
        outside = [*(path for path, _ in config["shown"]), *beside]
        needed = [config["bwrap"], config["python"], *outside]
        self.root = next(p for p in PLACES if os.path.isdir(p) and not any(within(n, p) for n in needed))
        # Resolved while this process still has its own rights: the user that the launcher runs as
        # may not be able to pass through, say, /root.
        held = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in outside]
        mount("tmpfs", self.root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=256m")
        for name in ("etc", "agent", "rw"):
            os.mkdir(f"{self.root}/{name}")
        self.make_etc()
        self.make_agent(config)
        self.bwrap: str = config["bwrap"]
        if beside:
            os.mkdir(f"{self.root}/bwrap")
            mount(f"/proc/self/fd/{held[-1]}", f"{self.root}/bwrap", None, MS_BIND | MS_REC)
            self.bwrap = f"{self.root}/bwrap/{os.path.relpath(config['bwrap'], beside[0])}"
        shown = [
            (f"/proc/self/fd/{fd}", inside) for fd, (_, inside) in zip(held, config["shown"], strict=False)
        ]
        own = [(f"{self.root}/{name}", inside) for name, inside in (("etc", "/etc"), ("agent", "/run/agent"))]
        self.tree = Tree(f"{self.root}/root", [*own, *shown], config["links"], config["hidden"])
        for fd in held:
            os.close(fd)
        arguments = [a.format(root=self.tree.root) for a in config["arguments"]]
        self.store("arguments", "".join(a + "\0" for a in arguments).encode())
        self.store("seccomp", bytes.fromhex(seccomp))

    def make_etc(self) -> None:
        """A made-up /etc: the host's users, keys and names are nobody's business."""
        for name, text in ETC_FILES.items():
            self.store(f"etc/{name}", text.encode())
        for name in ETC_COPIES:
            source, target = f"/etc/{name}", f"{self.root}/etc/{name}"
            if os.path.isdir(source):
                shutil.copytree(source, target, symlinks=True)
            elif os.path.exists(source):
                shutil.copyfile(source, target)

    def make_agent(self, config: dict[str, Any]) -> None:
        """The agent compiled by the interpreter that will run it, and a copy of that interpreter.

        The copy may be executed but not read. The kernel then treats the process as undumpable: what
        runs in the sandbox as the same user can neither trace it nor open its memory or environment.
        """
        compiled = subprocess.run(
            [config["python"], "-I", "-S", "-c", COMPILE],
            input=config["agent"].encode(),
            capture_output=True,
            timeout=30,
            env={},
            check=True,
        ).stdout
        self.store("agent/agent.pyc", compiled)
        shutil.copyfile(os.path.realpath(config["python"]), f"{self.root}/agent/python")
        os.chmod(f"{self.root}/agent/python", 0o111)

    def store(self, name: str, data: bytes) -> None:
        """A file that everyone may read."""
        with open(f"{self.root}/{name}", "wb") as file:
            file.write(data)
        os.chmod(f"{self.root}/{name}", 0o644)

    def mount_writable(self, uid: int, disk_mb: int, inodes: int) -> None:
        """The writable directories of one sandbox, on one tmpfs bounded in bytes and inodes.

        Called in the sandbox's own launcher, in a further mount namespace: it goes when that goes. An
        ordinary user's is in a user namespace as well, where this sandbox has its own share.
        """
        if os.geteuid() == 0:
            unshare(CLONE_NEWNS)
        else:
            own_user_namespace(SHARE)
        root = f"{self.root}/rw"
        options = f"mode=755,uid={uid},gid={uid},size={disk_mb}m,nr_inodes={inodes}"
        if os.geteuid() != 0:
            options = f"mode=755,size={disk_mb}m,nr_inodes={inodes}"
        mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, options)
        for name in WRITABLE:
            os.mkdir(f"{root}/{name}", 0o755)
        os.mkdir(f"{root}/testbed/documents", 0o755)
        if os.geteuid() == 0:
            for name in (*WRITABLE, "testbed/documents"):
                os.chown(f"{root}/{name}", uid, uid)
        for name in ("tmp", "shm"):
            os.chmod(f"{root}/{name}", 0o1777)
        self.tree.add_own(root)


def within(path: str, directory: str) -> bool:
    """Whether `path` lies in `directory`."""
    return os.path.realpath(path).startswith(directory + "/") or path.startswith(directory + "/")
