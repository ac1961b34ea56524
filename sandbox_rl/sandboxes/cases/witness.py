"""The host's side of the cases: canaries that nothing in a sandbox may see, touch or move.

A witness holds, for as long as it is entered: a world-readable file in several places, an
environment variable, TCP listeners on all addresses, an abstract unix listener and a System V
shared memory segment, all with one random canary in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

CANARY_PREFIX = "CANARY-FILE-"
ENV_NAME = "ADV_CANARY_API_KEY"

_MARKER_DIRS = ("/", "/usr/bin", "/usr/lib", "/etc", "/bin", "/lib", "/opt", "/usr/local/bin")
_ANSWERS = "reference_answers.jsonl"
_CLOCK_SLACK_S = 30.0  # a policy would move it by more, what keeps a host's clock right by less
_IPC_CREAT, _IPC_RMID = 0o1000, 0


class HostWitness:
    """Enter it before the backend, so that the environment canary is there to be inherited.

    Args:
        directories: further places of the canary file (caches, checkpoints, checkouts …).
    """

    def __init__(self, directories: Iterable[Path] = ()) -> None:
        self.canary = CANARY_PREFIX + secrets.token_hex(12)
        # Random, so that several witnesses can stand on one machine.
        self._abstract_name = "adv_canary_" + secrets.token_hex(4)
        self._key = 0x4000_0000 | secrets.randbits(24)
        self._directories = tuple(directories)
        self._cleanup = contextlib.ExitStack()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.port = 0
        self.path = ""

    def __enter__(self) -> HostWitness:
        own = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="adv-witness-")))
        own.chmod(0o755)
        self.path = str(own / _ANSWERS)
        for directory in (own, *self._directories):
            file = directory / _ANSWERS
            file.write_text(f'{{"answer": "{self.canary}"}}\n')
            file.chmod(0o644)
            self._cleanup.callback(file.unlink, missing_ok=True)
        os.environ[ENV_NAME] = self.canary
        self._cleanup.callback(os.environ.pop, ENV_NAME, None)
        self._listen()
        self._make_segment()
        self._clock = time.time() - time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5)
        self._cleanup.close()

    def fill_in(self, command: str) -> str:
        """`command` with the path, port, names and keys of the canaries put in."""
        known = {
            "$HOST_CANARY_PATH": self.path,
            "$HOST_PORT": str(self.port),
            "$HOST_SOCKET": self._abstract_name,
            "$HOST_KEY": str(self._key),
            "$HOST_NAME": os.uname().nodename,
        }
        for name, value in known.items():
            command = command.replace(name, value)
        return command

    def problems(self) -> tuple[str, ...]:
        """What happened to the host since entering that must not happen."""
        found = []
        if self.connections:
            found.append(f"{self.connections} connections reached a listener of the host")
        marks = [d for d in _MARKER_DIRS if os.path.lexists(os.path.join(d, "adv_marker"))]
        if marks:
            found.append(f"adv_marker was written to {marks} of the host")
        moved = time.time() - time.monotonic() - self._clock
        if abs(moved) > _CLOCK_SLACK_S:
            found.append(f"the host's clock moved by {moved:.1f} s")
        if os.path.lexists("/tmp/PWNED"):
            found.append("/tmp/PWNED appeared on the host")
        return tuple(found)

    def _listen(self) -> None:
        listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self.port = listeners[0].getsockname()[1]
        listeners[1].bind("\0" + self._abstract_name)
        listeners[1].listen(8)
        with contextlib.suppress(OSError):  # a host without IPv6 cannot be reached there either
            listeners.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listener in listeners:
            self._cleanup.callback(listener.close)
            listener.settimeout(0.2)
            thread = threading.Thread(target=self._accept, args=(listener,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.settimeout(1)
                with contextlib.suppress(OSError):
                    connection.sendall(self.canary.encode())

    def _make_segment(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.shmat.restype = ctypes.c_void_p
        libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
        libc.shmdt.argtypes = (ctypes.c_void_p,)
        segment = libc.shmget(self._key, 4096, _IPC_CREAT | 0o666)
        if segment < 0:
            return
        self._cleanup.callback(libc.shmctl, segment, _IPC_RMID, None)
        address = libc.shmat(segment, None, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            return
        ctypes.memmove(address, self.canary.encode() + b"\0", len(self.canary) + 1)
        libc.shmdt(address)
