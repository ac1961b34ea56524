"""A managed server that dies, with the shipped fake in the place of vLLM: a process of its own, restarted."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.policies.vllm.supervisor import SupervisedServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.payload import checksums_of
from sandbox_rl.training.publication.routes import verify
from sandbox_rl.training.publication.weights import PublishedWeights

WEIGHTS = {"model.norm.weight": torch.ones(3)}

PYTHON = f"""#!/bin/sh
# An "interpreter with vLLM": what would start vLLM starts the fake on the same socket.
case "$1" in -I) exec {sys.executable} "$@" ;; esac
while [ $# -gt 0 ]; do [ "$1" = --uds ] && socket=$2; shift; done
exec {sys.executable} -m sandbox_rl.policies.vllm.fake "$socket" 0
"""


class Model:
    def __init__(self, value: float) -> None:
        self.tensors = {name: tensor * value for name, tensor in WEIGHTS.items()}

    def named_parameters(self):
        return iter(self.tensors.items())


class Served:
    def __init__(self, loop, server, supervised, weights, policy) -> None:
        self.loop, self.server, self.supervised = loop, server, supervised
        self.weights, self.policy = weights, policy

    def ask(self, timeout: float = 60.0):
        async def act():
            async with self.policy.session("episode") as session:
                return await session.act((5, 6, 7), TurnSampling(max_tokens=4), timeout=timeout)

        return self.loop.run(act())

    def kill(self) -> None:
        pid = self.server._process.pid
        (front,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(front), signal.SIGKILL)

    def holds(self, model: Model) -> None:
        """Raises if the server has other weights."""
        (server,) = self.server.servers
        self.loop.run(verify(server, checksums_of(model.tensors)))


@contextmanager
def served(directory: Path, **fields):
    python = directory / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    settings = VLLMSettings(type="vllm", python=str(python), startup_timeout_s=60, backoff_s=0.05, **fields)
    with LoopThread() as loop:
        server = ManagedServer(settings, model="m", log=directory / "log", transfer="shm", gpu=False)
        weights = PublishedWeights(server, loop, sleeps=True)
        supervised = SupervisedServer(server, weights, restarts=settings.restarts)
        policy = VLLMPolicy(supervised, settings, end_ids=frozenset({2}), version=weights.version)
        with loop.entered(policy):
            yield Served(loop, server, supervised, weights, policy)
            weights.close()


def test_a_server_that_dies_comes_back_with_the_weights_that_were_published_last(tmp_path):
    with served(tmp_path) as on:
        assert on.ask().weight_version == 0
        on.weights.publish(Model(1.0), 1)
        on.weights.publish(Model(2.0), 2)
        on.kill()
        assert on.ask().weight_version == 2  # waits for the restart within the episode's time
        on.holds(Model(2.0))
        with pytest.raises(EngineFault, match="differs"):
            on.holds(Model(1.0))
        assert on.supervised.restarts_left == 2
        on.weights.publish(Model(3.0), 3)
        on.holds(Model(3.0))


def test_a_publication_waits_for_a_restart(tmp_path):
    with served(tmp_path) as on:
        on.weights.publish(Model(1.0), 1)
        on.kill()
        on.loop.run(died(on.server))
        on.weights.publish(Model(2.0), 2)
        on.holds(Model(2.0))
        assert on.ask().weight_version == 2


def test_a_server_that_dies_asleep_is_started_again_only_when_it_is_wanted(tmp_path):
    with served(tmp_path) as on:
        on.weights.publish(Model(1.0), 1)
        on.weights.sleep()
        on.kill()
        on.loop.run(died(on.server))
        assert on.supervised.restarts_left == 3
        on.weights.publish(Model(2.0), 2)
        assert on.supervised.restarts_left == 2
        on.holds(Model(2.0))


def test_a_server_that_dies_too_often_is_an_engine_fault_for_all_who_wait(tmp_path):
    with served(tmp_path, restarts=0, retries=50) as on:
        on.weights.publish(Model(1.0), 1)
        on.kill()
        with pytest.raises(EngineFault, match="failed for good after 0 restarts: killed by signal 9"):
            on.ask()
        with pytest.raises(EngineFault, match="failed for good"):
            on.weights.publish(Model(2.0), 2)


async def died(server: ManagedServer) -> None:
    """Wait until its end is known."""
    process = server._process
    assert process is not None
    await process.wait()
