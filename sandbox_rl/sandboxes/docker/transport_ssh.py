"""An engine behind ssh: its socket is forwarded to one here, by the system's own ssh."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from urllib.parse import SplitResult, urlsplit

from sandbox_rl.errors import ConfigError, SetupError
from sandbox_rl.sandboxes.docker.transport import LOCAL_SOCKET
from sandbox_rl.sandboxes.ownership import OwnedDirectory

START_TIMEOUT_S = 30.0
PREFIX = "sandbox-rl-ssh-"
LONGEST_PAUSE_S = 10.0
OPTIONS = {
    "BatchMode": "yes",  # no questions: keys or an agent
    "ExitOnForwardFailure": "yes",
    "StreamLocalBindUnlink": "yes",
    "ServerAliveInterval": "10",  # a cut line is noticed within half a minute
    "ServerAliveCountMax": "3",
    "ConnectTimeout": "15",
    "LogLevel": "ERROR",
    "ControlPath": "none",  # a shared connection would outlive us
}


class ForwardedSocket:
    """A unix socket here that leads to an engine elsewhere, as long as this object is open.

    `~/.ssh/config` and known hosts count as ever. One connection carries all streams; when it breaks it
    is made again, while what ran over it is lost. The far end runs `cat` on a pipe that this process
    holds: when the process dies, however it dies, ssh ends, and with it every stream.

    Args:
        url: ssh://[USER@]HOST[:PORT][/PATH], the path being that of the engine's socket there.

    Raises:
        ConfigError: it is no such URL.
        SetupError: ssh is missing or does not get there.
    """

    def __init__(self, url: str) -> None:
        parts = _checked(url)
        ssh = shutil.which("ssh")
        if ssh is None:
            raise SetupError(f"sandbox.host: {url} needs the ssh command; apt-get install openssh-client")
        self._url = url
        self._directory = OwnedDirectory(PREFIX)
        self.path = str(self._directory.path / "s")  # a socket's path must be short
        self._command = [ssh, *_arguments(parts, self.path), "cat"]
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self._keeper = threading.Thread(target=self._keep, name="docker ssh", daemon=True)
        self._keeper.start()

    @property
    def breaks(self) -> int:
        """How often the connection has been found broken, now included."""
        process = self._process
        return self._made - (process is not None and process.poll() is None)

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._end()
        self._directory.close()

    def _start(self) -> None:
        """Raises SetupError with ssh's own words unless the socket answers in time."""
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the trainer
        )
        self._process = process
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if _answers(self.path):
                self._made += 1
                return
            time.sleep(0.05)
        said = self._end()
        raise SetupError(
            f"sandbox.host: {self._url} cannot be reached ({said or 'no answer'}); `ssh` must get there "
            "without a question, and the engine's socket must be open to that user"
        )

    def _end(self) -> str:
        """Stop ssh; returns its last line."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        _, errors = process.communicate()
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _keep(self) -> None:
        pause = 0.5
        while not self._closing.is_set():
            process = self._process
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
            if self._closing.is_set() or (process is not None and process.poll() is None):
                continue
            self._end()
            try:
                self._start()
                pause = 0.5
            except (SetupError, OSError):
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        self._end()


def _arguments(url: SplitResult, path: str) -> list[str]:
    options = [part for key, value in OPTIONS.items() for part in ("-o", f"{key}={value}")]
    port = ["-p", str(url.port)] if url.port else []
    user = ["-l", url.username] if url.username else []
    there = url.path.rstrip("/") or LOCAL_SOCKET
    return ["-T", *options, *port, *user, "-L", f"{path}:{there}", "--", str(url.hostname)]


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and not str(parts.hostname).startswith("-") and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.password:
        raise ConfigError(
            f"sandbox.host: {url!r} is no ssh address; expected ssh://[USER@]HOST[:PORT][/PATH/OF/docker.sock]"
        )
    return parts


def _answers(path: str) -> bool:
    """Whether ssh has opened its end; whether an engine is at the other one is for the first request."""
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.connect(path)
        except OSError:
            return False
    return True
