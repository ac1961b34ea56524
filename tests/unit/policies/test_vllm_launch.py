"""The command of a managed server, and one line about one that did not come up."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import uuid

import pytest

from sandbox_rl import processors
from sandbox_rl.errors import SetupError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm import launch
from sandbox_rl.policies.vllm.launch import (
    LONGEST_DIRECTORY,
    check_socket_path,
    environment,
    interpreter,
    server_command,
    why_it_died,
)

PREFIX = "(EngineCore pid=71) ERROR 11-20 10:00:00 [core.py:1] "
CAME_AFTER = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"

FREE = "Free memory on device cuda:0 (9.12/79.11 GiB) on startup is less than desired"

DEATHS = {
    "no memory left on the card": (
        f"ValueError: {FREE} GPU memory utilization (0.4, 31.64 GiB). Decrease GPU memory utilization or "
        "reduce GPU memory used by other processes.",
        f"{FREE} GPU memory utilization (0.4, 31.64 GiB); lower policy.arguments.gpu-memory-utilization, or "
        "free the card",
    ),
    "out of memory while it loads": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity",
        "CUDA out of memory; lower policy.arguments.gpu-memory-utilization",
    ),
    "no memory for a cache": (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "No available memory for the cache blocks; raise policy.arguments.gpu-memory-utilization",
    ),
    "no memory for one episode": (
        "ValueError: To serve at least one request with the model's max seq len (65536), (7.00 GiB KV cache "
        "is needed, which is larger than the available KV cache memory (1.0 GiB). Based on the available",
        "To serve at least one request with the model's max seq len (65536), (7.00 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (1.0 GiB); lower policy.arguments.max-model-len "
        "(or episode.max_tokens), or raise policy.arguments.gpu-memory-utilization (on CPUs "
        "kv-cache-memory-bytes)",
    ),
    "a context that the model does not have": (
        "ValueError: User-specified max_model_len (9000) is greater than the derived max_model_len (4096).",
        "max_model_len (9000) is greater than the derived max_model_len (4096).; lower "
        "policy.arguments.max-model-len",
    ),
    "an argument that is not one": (
        "api_server.py: error: unrecognized arguments: --nonsense 3",
        "policy.arguments: vLLM does not know --nonsense 3; see `vllm serve --help`",
    ),
    "an environment without vLLM": (
        "/usr/bin/python: Error while finding module spec: No module named 'vllm'",
        "there is no vLLM in that environment; install it or set policy.python",
    ),
    "anything else": (
        "KeyError: 'rope_type'\n" + PREFIX + "TypeError: unknown quantisation",
        "exit code 1: " + PREFIX + "TypeError: unknown quantisation",
    ),
}


@pytest.mark.parametrize("name", DEATHS)
def test_the_cause_is_one_line_with_its_fix(name, tmp_path):
    said, expected = DEATHS[name]
    log = tmp_path / "log"
    log.write_text(f"INFO starting\n{PREFIX}{said}\nERROR {CAME_AFTER}\n")
    found = why_it_died(log, 1)
    assert found == expected


def test_only_what_this_start_wrote_counts(tmp_path):
    log = tmp_path / "log"
    log.write_text("ValueError: an earlier start\n")
    since = log.stat().st_size
    with log.open("a") as file:
        file.write(
            "(APIServer pid=1) WARNING 11-23 limits can cause errors like `OSError: [Errno 24] Too many`\n"
        )
    assert why_it_died(log, 137, since=since) == "killed by signal 9"


def command(tmp_path, *, gpu=False, transfer="shm", **fields):
    settings = VLLMSettings(type="vllm", **fields)
    return server_command(settings, python="py", model="m", transfer=transfer, directory=tmp_path, gpu=gpu)


def test_both_transfers_over_a_group_use_one_engine_of_the_plug_in(tmp_path):
    for transfer, engine in {
        "shm": "shm",
        "ipc": "ipc",
        "nccl": "process_group",
        "gloo": "process_group",
    }.items():
        words = command(tmp_path, transfer=transfer)
        assert json.loads(words[words.index("--weight-transfer-config") + 1]) == {"backend": engine}


def test_a_server_is_told_that_it_will_sleep_where_it_can(tmp_path):
    assert "--enable-sleep-mode" in command(tmp_path, gpu=True, sleep=True)
    assert "--enable-sleep-mode" not in command(tmp_path, gpu=True)
    assert "--enable-sleep-mode" not in command(tmp_path, gpu=False, sleep=True)  # vLLM refuses it there


def test_on_cpus_the_engine_computes_in_its_own_process_unless_there_are_several_workers(tmp_path):
    name = "--distributed-executor-backend"
    words = command(tmp_path)
    assert words[words.index(name) + 1].endswith(".UniProcExecutor")
    assert name not in command(tmp_path, gpu=True)
    assert name not in command(tmp_path, arguments={"tensor-parallel-size": 2})
    assert name in command(tmp_path, arguments={"tensor_parallel_size": 1})
    words = command(tmp_path, arguments={"distributed_executor_backend": "mp"})
    assert words[words.index(name) + 1] == "mp"
    bound = {"VLLM_CPU_OMP_THREADS_BIND": "0-3"}
    assert name not in command(tmp_path, environment=bound), "it binds workers beside the engine only"


def test_a_server_is_no_rank_of_the_trainer(monkeypatch):
    """Not even where torch looks for a store: with the launcher's it would wait for one that nobody makes."""
    of_a_rank = {
        "RANK": "1",
        "GROUP_RANK": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "ACCELERATE_USE_FSDP": "true",
    }
    for name, value in of_a_rank.items():
        monkeypatch.setenv(name, value)
    found = environment(VLLMSettings(type="vllm", environment={"CUDA_VISIBLE_DEVICES": "3"}), gpu=True)
    assert not of_a_rank.keys() & found.keys()
    assert (found["VLLM_SERVER_DEV_MODE"], found["CUDA_VISIBLE_DEVICES"]) == ("1", "3")


def test_servers_on_cpus_divide_the_cores_whatever_a_launcher_gave_its_processes(monkeypatch):
    settings = VLLMSettings(type="vllm")
    monkeypatch.setattr(launch, "cores", lambda: 8)

    def threads(**given):
        return environment(settings, **{"gpu": False} | given).get("OMP_NUM_THREADS")

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert [threads(servers=n) for n in (1, 3, 16)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads(servers=2) == "7", "whoever starts a run by hand may say it"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert threads() == "8"
    assert threads(gpu=True) is None
    settings = VLLMSettings(type="vllm", environment={"OMP_NUM_THREADS": "3"})
    assert threads() == "3"


def test_two_threads_of_a_core_are_one(monkeypatch, tmp_path):
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(processors, "PROCESSORS", tmp_path)
    for allowed, count in (({0, 1, 2, 3}, 2), ({0, 2}, 1), ({0, 1}, 2), ({4, 5, 6}, 3)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, allowed=allowed: allowed)
        assert processors.cores() == count


def test_an_interpreter_that_is_none_is_one_line(tmp_path):
    with pytest.raises(SetupError, match=r"policy\.python: '.*/nothing', expected an interpreter"):
        interpreter(VLLMSettings(type="vllm", python=str(tmp_path / "nothing")))


def test_a_place_for_temporary_files_that_no_socket_fits_in_is_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (LONGEST_DIRECTORY - 1))
    check_socket_path()
    long = "/" + "x" * LONGEST_DIRECTORY
    monkeypatch.setattr(tempfile, "tempdir", long)
    with pytest.raises(SetupError, match=f"TMPDIR: '{long}' has 71 bytes, expected at most 70.*set TMPDIR"):
        check_socket_path()
    with socket.socket(socket.AF_UNIX) as trial, pytest.raises(OSError, match="too long"):
        trial.bind(f"{long}/{uuid.uuid4()}")
