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
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    unshare,
)
from sandbox_rl.sandboxes.spawner.users import SHARE, own_user_namespace

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
WRITABLE = {"testbed": "testbed", "tmp": "tmp", "shm": "dev/shm", "home": "home/sandbox"}
"""Directories of one sandbox's own tmpfs, and where in the tree they are seen."""
SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "run/agent")
"""What every sandbox shows: files that all may read, which nobody of the host's locks."""
TERMINALS = 8  # of one sandbox; the machine has some 4,096 for everybody
EMPTY = ("proc", "var", "dev/pts", *WRITABLE.values())


class Tree:
    """The root directory of all sandboxes, read-only, in an empty directory on a private tmpfs.

    bubblewrap reads the whole mount table for every option that mounts something. Shown as one tree, the
    same layout costs a sandbox one bind mount: 3 ms less of its start.

    Args:
        shown: (file or directory outside, its place), parents before what is inside them.
        links: place → target.
        hidden: directories in the tree that are to be empty.
    """

    def __init__(
        self, root: str, shown: list[tuple[str, str]], links: dict[str, str], hidden: list[str]
    ) -> None:
        self.root = root
        self.empty = f"{root}.empty"  # a layer needs another one below it
        os.mkdir(root)
        os.mkdir(self.empty)
        mount(root, root, None, MS_BIND)  # a mount of its own, which can be made read-only
        os.mkdir(f"{root}/dev")
        mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID, "mode=755,size=64k")
        for name in EMPTY:
            os.makedirs(f"{root}/{name}")
        for name in DEVICES:
            if os.path.exists(f"/dev/{name}"):
                self.show(f"/dev/{name}", f"dev/{name}")
        for name, number in DEVICE_LINKS.items():
            os.symlink(f"/proc/self/fd{number}", f"{root}/dev/{name}")
        os.symlink("pts/ptmx", f"{root}/dev/ptmx")
        self.locks_shared = [inside for path, inside in shown if not self.show(path, inside.lstrip("/"))]
        for place in hidden:
            mount(self.empty, f"{root}{place}", None, MS_BIND)
        for place, target in links.items():
            os.symlink(target, f"{root}{place}")
        self.make_read_only()

    def show(self, path: str, inside: str) -> bool:
        """Show a file or directory with everything mounted in it.

        A directory that was named to be shown gets a layer of its own: advisory locks and watches are of
        the layer's files, so that nothing in a sandbox can hold up who locks the files outside. False where
        that is not available: a file, a directory with mounts in it, or a kernel that has no such layers.
        """
        target = f"{self.root}/{inside}"
        named = inside not in SYSTEM and not within_dev(f"/{inside}")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            mount(path, target, None, MS_BIND)
            return not named
        os.makedirs(target, exist_ok=True)
        real = os.path.realpath(path)
        if named and all(point == real for point in mounts_below(real)):
            try:
                layers = f"lowerdir={path}:{self.empty}"
                mount("overlay", target, "overlay", MS_RDONLY | MS_NOSUID | MS_NODEV, layers)
                return True
            except OSError:
                pass
        mount(path, target, None, MS_BIND | MS_REC)
        return not named

    def make_read_only(self) -> None:
        """Every mount of the tree: no writing, no set-user-id programs, devices only in /dev.

        Flags that a mount has already are kept: an ordinary user may not take any away. A mount that
        lets nobody look (another user's FUSE file system) is left as it is.
        """
        for point in mounts_below(self.root):
            inside = point[len(self.root) :]
            wanted = MS_RDONLY | MS_NOSUID | (0 if within_dev(inside) else MS_NODEV)
            try:
                flags = os.statvfs(point).f_flag & KEPT_FLAGS
            except PermissionError:
                continue
            mount("none", point, None, MS_BIND | MS_REMOUNT | flags | wanted)

    def add_own(self, writable: str) -> None:
        """In a launcher's mount namespace: its sandbox's own directories and terminals."""
        terminals = f"newinstance,ptmxmode=0666,mode=620,max={TERMINALS}"
        mount("devpts", f"{self.root}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, terminals)
        for name, inside in WRITABLE.items():
            mount(f"{writable}/{name}", f"{self.root}/{inside}", None, MS_BIND)


KEPT_FLAGS = 0x1 | 0x2 | 0x4 | 0x8 | 0x400 | 0x800
"""statvfs(3) and mount(2) agree on these: read-only, nosuid, nodev, noexec, noatime, nodiratime."""


def within_dev(inside: str) -> bool:
    """Whether a place of the tree is /dev or in it."""
    return inside == "/dev" or inside.startswith("/dev/")


def mounts_below(root: str) -> list[str]:
    """Mount points at and below a directory, each once."""
    points = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = line.split(" ")[4].encode("ascii", "surrogateescape").decode("unicode_escape")
            if point == root or point.startswith(root + "/"):
                points.append(point)
    return sorted(set(points))


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
        root, owner = f"{self.root}/rw", ""
        if os.geteuid() == 0:
            unshare(CLONE_NEWNS)
            owner = f"uid={uid},gid={uid},"
        else:
            own_user_namespace(SHARE)
        options = f"mode=755,{owner}size={disk_mb}m,nr_inodes={inodes}"
        mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, options)
        for name in (*WRITABLE, "testbed/documents"):
            os.mkdir(f"{root}/{name}", 0o755)
            if owner:
                os.chown(f"{root}/{name}", uid, uid)
        for name in ("tmp", "shm"):
            os.chmod(f"{root}/{name}", 0o1777)
        self.tree.add_own(root)


def within(path: str, directory: str) -> bool:
    """Whether `path` lies in `directory`."""
    return os.path.realpath(path).startswith(directory + "/") or path.startswith(directory + "/")
