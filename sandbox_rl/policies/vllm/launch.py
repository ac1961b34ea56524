"""The command line, environment and log of a managed vLLM server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandbox_rl.errors import SetupError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.processors import cores

PLUGIN = Path(__file__).parent / "plugin"
STARTING_SOCKET = "starting"
"""Name of a server's socket until its weights are right; only then does it get the name that clients know."""
LONGEST_DIRECTORY = 107 - 37
"""Bytes of the directory for temporary files: a unix socket's path has at most 107, and vLLM's own sockets
are called by 36 characters there."""
PYTHON_VARIABLE = "SANDBOX_RL_VLLM_PYTHON"
SERVED_MODEL = "policy"
ENGINES = {"shm": "shm", "ipc": "ipc", "nccl": "process_group", "gloo": "process_group"}
"""Transfer → vLLM's name of the engine; all but `ipc` are the plug-in's."""

_CPU_DEFAULTS: Mapping[str, Any] = {
    "enforce-eager": True,
    "kv-cache-memory-bytes": 1 << 30,  # a share of the memory, its default, fails on CPUs
    "max-num-seqs": 64,
    # A prompt that is read in parts ends the engine when its request has a seed: CPU generators cannot be
    # wound back (vLLM 0.31, "CPU Generator does not use offset").
    "enable-chunked-prefill": False,
}
_IN_THE_ENGINE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""The model in the engine's own process, as vLLM does by itself on one card. On CPUs it takes another one,
and keeps a core for the engine beside it: one less to compute with (scripts/bench_cpu_server.py). The cores
are `OMP_NUM_THREADS` then (`environment`); of several workers, and where it is told, vLLM decides itself."""
_BINDS = "VLLM_CPU_OMP_THREADS_BIND"
"""Cores that vLLM binds a worker beside the engine to; in the engine it does not look at it."""
_OF_A_RANK = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"),
)
_OF_A_LAUNCHER = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_")
"""What begins so. With TORCHELASTIC_USE_AGENT_STORE torch makes no store for a group of a server's own, and
the server waits for one that nobody makes (older vLLM meets by tcp://, as data parallelism does)."""
LONGEST_BATCH = 8_192
"""Tokens of one pass on a CPU, or one whole context: prompts are not cut."""


_CAUSES = (
    (r"unrecognized arguments: (.+)", "policy.arguments: vLLM does not know {0}; see `vllm serve --help`"),
    (r"error: (argument .+)", "policy.arguments: {0}"),
    (
        r"Free memory on device .*? is less than desired .*? GiB\)",
        "{all}; lower policy.arguments.gpu-memory-utilization, or free the card",
    ),
    (r"(?:CUDA )?[Oo]ut of memory[^.]*", "{all}; lower policy.arguments.gpu-memory-utilization"),
    (r"No available memory for the cache blocks", "{all}; raise policy.arguments.gpu-memory-utilization"),
    (
        r"To serve at least one request .*?cache is needed, .*? memory \([\d.]+ GiB\)",
        "{all}; lower policy.arguments.max-model-len (or episode.max_tokens), or raise "
        "policy.arguments.gpu-memory-utilization (on CPUs kv-cache-memory-bytes)",
    ),
    (r"max_model_len .*? is greater than .*", "{all}; lower policy.arguments.max-model-len"),
    (
        r"No module named '?vllm'?(?:\n|$)",
        "there is no vLLM in that environment; install it or set policy.python",
    ),
)
"""What a log says → what the user is told. The first that matches counts."""
_FOLLOWS = r"See root cause above|Engine core initialization failed| (WARNING|INFO) "
"""Lines that only say that there was an error before, or might be one."""


def check_socket_path() -> None:
    """Refuse a place for temporary files in which no unix socket can be made.

    Raises:
        SetupError: its path is too long.
    """
    directory = tempfile.gettempdir()
    if (length := len(os.fsencode(directory))) > LONGEST_DIRECTORY:
        raise SetupError(
            f"TMPDIR: {directory!r} has {length} bytes, expected at most {LONGEST_DIRECTORY}, for the unix "
            "sockets of a vLLM server have to fit in; set TMPDIR to a shorter one, e.g. /tmp"
        )


def interpreter(settings: VLLMSettings) -> str:
    """The Python that runs the server.

    Raises:
        SetupError: it has no vLLM, or does not exist.
    """
    chosen = settings.python or os.environ.get(PYTHON_VARIABLE)
    if chosen is None:
        if importlib.util.find_spec("vllm") is None:
            raise SetupError(
                f"policy.type: 'vllm', but {sys.executable} has no vLLM; install it (pip install "
                f"'sandbox-rl[vllm]'), or name an interpreter that has it in policy.python or "
                f"${PYTHON_VARIABLE}"
            )
        return sys.executable
    if not os.access(chosen, os.X_OK):
        raise SetupError(f"policy.python: {chosen!r}, expected an interpreter that can be run and has vLLM")
    return chosen


def check_startable(settings: VLLMSettings) -> None:
    """Refuse what keeps a server of ours from starting here, before anything else takes its time.

    Raises:
        SetupError: no vLLM, or no place for its sockets.
    """
    if settings.engine == "managed":
        interpreter(settings)
        check_socket_path()


def server_command(
    settings: VLLMSettings, *, python: str, model: str, transfer: str, directory: Path, gpu: bool
) -> list[str]:
    """What to run, under the supervisor.

    Args:
        transfer: `shm`, `ipc`, `nccl` or `gloo`.
        directory: private folder for the socket; removed when the server ends.
        gpu: whether the server has one.
    """
    arguments: dict[str, Any] = {} if gpu else dict(_CPU_DEFAULTS)
    arguments |= settings.plain_arguments
    if not gpu:
        longest = max(LONGEST_BATCH, int(arguments.get("max-model-len", 0)))
        arguments.setdefault("max-num-batched-tokens", longest)
        if settings.cards_each == 1 and _BINDS not in (os.environ | settings.environment):
            arguments.setdefault("distributed-executor-backend", _IN_THE_ENGINE)
    arguments |= {
        "model": model,
        "served-model-name": SERVED_MODEL,
        "logprobs-mode": "processed_logprobs",
        "generation-config": "vllm",
        "worker-extension-cls": "sandbox_rl_vllm.WorkerExtension",
        "weight-transfer-config": {"backend": ENGINES[transfer]},
    }
    if settings.sleep is True and gpu:
        arguments["enable-sleep-mode"] = True  # refused on CPUs, where sleeping frees nothing
    arguments |= {"uds": str(directory / STARTING_SOCKET)}
    supervisor = [python, "-I", "-S", str(PLUGIN / "sandbox_rl_supervise.py"), str(directory)]
    return [*supervisor, python, "-m", "vllm.entrypoints.openai.api_server", *_flags(arguments)]


def without_launcher() -> dict[str, str]:
    """The environment for another program, which is no rank of this process's group."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_RANK and not name.startswith(_OF_A_LAUNCHER)
    }
    if "WORLD_SIZE" in os.environ:
        ours.pop("OMP_NUM_THREADS", None)  # what a launcher gives to each of its processes
    return ours


def environment(settings: VLLMSettings, *, gpu: bool, servers: int = 1) -> dict[str, str]:
    """The server's environment: ours, with the plug-in on its path and its telemetry off.

    Args:
        servers: that compute on this machine's cores, which are divided between them.
    """
    ours = without_launcher()
    ours["PYTHONPATH"] = os.pathsep.join(p for p in (str(PLUGIN), ours.get("PYTHONPATH")) if p)
    ours |= {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # CUDA handles travel pickled. The only client that can reach the socket is this user.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if not gpu:
        ours.setdefault("TORCH_COMPILE_DISABLE", "1")
        ours.setdefault("OMP_NUM_THREADS", str(max(1, cores() // servers)))
        ours.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the trainer and others want the cores too
    return ours | settings.environment


def why_it_died(log: Path, code: int | None, *, since: int = 0) -> str:
    """One line about a server that ended or never came up, by its log from byte `since` on."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - 200_000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        text = ""
    for pattern, message in _CAUSES:
        found = re.search(pattern, text)
        if found:
            return message.format(*found.groups(), all=found.group(0))
    how = f"killed by signal {code - 128}" if code is not None and code > 128 else f"exit code {code}"
    errors = [
        line
        for line in text.splitlines()
        if re.search(r"\b\w*(Error|Exception): \S", line) and not re.search(_FOLLOWS, line)
    ]
    return f"{how}: {' '.join(errors[-1].split())[-300:]}" if errors else how


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in arguments.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is False:
            flags.append(f"--no-{name}")
        elif isinstance(value, list | tuple):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags
