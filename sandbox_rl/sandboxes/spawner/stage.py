"""What all sandboxes of a backend share, laid out on a private tmpfs before the first one is made.

The spawner's mount namespace is its own, so nothing here is visible on the host or needs removing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from sandbox_rl.sandboxes.spawner.system import (
    CLONE_NEWNS,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_REC,
    mount,
    unshare,
)
from sandbox_rl.sandboxes.spawner.tree import WRITABLE, Tree
from sandbox_rl.sandboxes.spawner.users import SHARE, own_user_namespace

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
