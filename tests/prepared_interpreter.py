"""The interpreter of `tests.prepared`: imports what is slow, then forks whoever is asked for.

Whoever was forked so has this module under its name: `tests.prepared` forks it there, and imports nothing.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

SLOW = (
    "numpy",
    "torch",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "transformers.trainer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3.modeling_qwen3",
    "datasets",
    "accelerate",
    "peft",
    "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
    "trl.experimental.async_grpo",
    "reasoning_gym",
    "sympy",
    "pint",
    "aiohttp",
    "tenacity",
    "pydantic",
    "typer",
    "rich.console",
)
"""Nothing of the project: a child imports that as a new interpreter would."""


def serve(control: socket.socket) -> str | None:
    """Fork a child per request; there, return what it is to run. None at the end."""
    while True:
        header, files, *_ = socket.recv_fds(control, 8, 3)
        if not header:
            return None
        told = control.recv(int.from_bytes(header), socket.MSG_WAITALL)
        between = os.fork()
        if between == 0:
            between = os.getpid()
            child = os.fork()
            if child:
                control.sendall(child.to_bytes(8))
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.001)
            control.close()
            return become(json.loads(told.decode("utf-8", "surrogateescape")), files)
        for number in files:
            os.close(number)
        os.waitpid(between, 0)
        control.sendall(b".")  # the child has its new parent


def become(request: dict[str, Any], files: list[int]) -> str:
    """Make this child what a new interpreter would be."""
    if request["session"]:
        os.setsid()
    for standard, number in enumerate(files):
        os.dup2(number, standard)
    for number in files:
        os.close(number)
    sys.modules["tests.prepared_interpreter"] = sys.modules["__main__"]
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["numpy"].random.seed()  # the only generator that a fork does not seed anew
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=request["unbuffered"])
    program, *rest = request["arguments"]
    named = program in ("-c", "-m")  # sys.argv then begins with the code, or the module
    sys.argv = rest if named else [program, *rest]
    sys.path[0] = request["cwd"] if named else os.path.dirname(os.path.abspath(program))
    return program


def main(control: socket.socket) -> NoReturn:
    """Serve, and in each child be the program that was asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (program := serve(control)) is None:
        os._exit(0)
    if program == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif program == "-c":
        code, sys.argv[0] = sys.argv[0], program
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(program, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # while it imports, too
    for name in SLOW:
        importlib.import_module(name)
    # A table of all its models, which transformers makes when it loads the first one.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen3")
    gc.collect()
    gc.freeze()
    # jemalloc, which is pyarrow's, starts its thread again in a child; any other would be lost.
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    lost = names - {Path("/proc/self/comm").read_text().strip(), "jemalloc_bg_thd"}
    assert not lost, f"a fork would lose the threads {lost}"
    main(socket.socket(fileno=int(sys.argv[1])))
