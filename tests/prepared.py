"""Processes for tests, forked from an interpreter that has imported PyTorch and TRL already.

Importing them takes about seven seconds of processor time, which is most of what a test of the command
line would do. `Popen` and `run` are those of `subprocess`, and what they start is what `python -m MODULE`
starts: a child of this process with its own id, environment, directory, files, signals and exit code, which
imports the project anew. Whatever else is asked for (another program, a variable that libraries read while
they are imported) is started from nothing, as `subprocess` does.
"""

from __future__ import annotations

import atexit
import ctypes
import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

from tests.processes import reserved_port

__all__ = ["Popen", "for_launchers", "outputs", "ranks", "run", "start"]

REPOSITORY = Path(__file__).parents[1]
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What the prepared interpreter was started with; a request need not repeat it."""
READ_AT_IMPORT = ("HF_", "LD_", "MKL_", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_", "TOKENIZERS_")
"""Variables with these beginnings cannot be changed once the libraries are imported."""
ALL_THE_SAME = (
    *("TORCHELASTIC_", "TORCH_NCCL_"),
    *("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"),
)
"""Of them, what is read later, and what decides only how much is printed: the command line sets the latter,
so its launcher's processes have them."""
INTERPRETER = "tests.prepared_interpreter"
_SUBREAPER = 36  # prctl(2)


class _Prepared:
    """The interpreter, and how to have a child forked from it."""

    def __init__(self) -> None:
        self.environment = os.environ | SETTINGS
        ours, theirs = socket.socketpair()
        self._control = ours
        if (interpreter := sys.modules.get(INTERPRETER)) is None:
            command = [sys.executable, "-m", INTERPRETER, str(theirs.fileno())]
            fds, env = [theirs.fileno()], self.environment
            null = subprocess.DEVNULL
            self._wait = subprocess.Popen(command, stdin=null, cwd=REPOSITORY, pass_fds=fds, env=env).wait
        else:
            if (pid := os.fork()) == 0:
                ours.close()
                interpreter.main(theirs)
            self._wait = lambda: os.waitpid(pid, 0)[1]
        theirs.close()
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def stop(self) -> None:
        self._control.close()
        self._wait()

    def fork(self, files: list[int], **request: Any) -> int:
        """The id of a new child of this process that runs the `arguments`, as `python` would.

        Args:
            files: its standard input, output and error.
            request: what `prepared_interpreter.become` takes.
        """
        told = json.dumps(request).encode("utf-8", "surrogateescape")
        # The child's own parent ends at once; this process inherits the child only while it says so.
        self._inherit(True)
        try:
            socket.send_fds(self._control, [len(told).to_bytes(8)], files)
            self._control.sendall(told)
            reply = self._control.recv(9, socket.MSG_WAITALL)
        finally:
            self._inherit(False)
        if len(reply) != 9:
            raise RuntimeError(f"the prepared interpreter ended with {self._wait()}")
        return int.from_bytes(reply[:8])

    def _inherit(self, wanted: bool) -> None:
        if self._prctl(_SUBREAPER, int(wanted), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


@cache
def _prepared() -> _Prepared:
    made = _Prepared()
    atexit.register(made.stop)
    return made


def _fits(command: list[str], env: dict[str, str]) -> bool:
    """Whether the prepared interpreter does what a new one would."""
    if command[0] != sys.executable or not (command[1] in ("-c", "-m") or command[1].endswith(".py")):
        return False
    have = _prepared().environment
    return all(
        env.get(name) == have.get(name) or (name not in env and name in SETTINGS)
        for name in env.keys() | have.keys()
        if name.startswith(READ_AT_IMPORT) and not name.startswith(ALL_THE_SAME)
    )


class Popen(subprocess.Popen):
    """`subprocess.Popen` that forks `[sys.executable, …]` from the prepared interpreter where it can.

    SIGINT ends such a child, as from a terminal, though whoever runs the tests has it ignored.
    """

    def _execute_child(self, *given: Any) -> None:
        names = list(inspect.signature(subprocess.Popen._execute_child).parameters)[1:]
        asked = dict(zip(names, given, strict=True))
        command = [os.fspath(part) for part in asked["args"]]
        if unbuffered := command[1:2] == ["-u"]:
            del command[1]
        env = dict(os.environ if asked["env"] is None else asked["env"])
        if asked["preexec_fn"] or asked["pass_fds"] or not _fits(command, env):
            super()._execute_child(*given)
            return
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        files = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        files = [own if number == -1 else number for own, number in enumerate(files)]
        cwd = os.path.abspath(asked["cwd"] or os.getcwd())
        try:
            session = asked["start_new_session"]
            request = {"arguments": command[1:], "env": env, "cwd": cwd, "session": session}
            self.pid = _prepared().fork(files, **request, unbuffered=unbuffered)
            self._child_created = True
        finally:
            self._close_pipe_fds(*(asked[name] for name in pipes))


def for_launchers() -> None:
    """Have torch's launcher fork what it starts from this process; call it before the project is imported."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    _prepared()
    subprocess_handler.Popen = Popen


def run(command: list[str], *, timeout: float = 560, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end and give the exit code and both outputs as text."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    with Popen(command, **how) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def ranks(count: int, *arguments: object) -> list[Popen]:
    """The processes of one group, as a launcher starts them; none is ended because another failed."""
    # Were it taken from rank 0, the others would wait for that one without a word.
    port = reserved_port()
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(*arguments, **shared, RANK=rank, LOCAL_RANK=rank) for rank in range(count)]


def outputs(processes: Sequence[Popen], *, within_s: float = 500) -> list[str]:
    """What each has printed once all have ended; whoever has not within the time is killed, and its exit code
    says so."""
    with ThreadPoolExecutor(len(processes)) as pool:
        printed = [pool.submit(process.communicate) for process in processes]
        try:
            wait(printed, within_s)
        finally:
            for process in processes:
                process.kill()
    return [each.result()[0] for each in printed]


def start(*arguments: object, **variables: object) -> Popen:
    """A module with its arguments, in the repository; both outputs in one pipe."""
    return Popen(
        [sys.executable, "-m", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {name: str(value) for name, value in variables.items()},
    )
