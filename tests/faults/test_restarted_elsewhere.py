"""FI-09 of servers that someone else runs: one that was started again never samples with its own weights."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sandbox_rl.errors import EngineFault
from sandbox_rl.http_client import Address
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm import fleet
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.policies.vllm.fleet import RestoredServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.source import ExternalServers
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.weights import PublishedWeights
from tests.group_worker import GroupWorker

WEIGHTS = {"model.norm.weight": torch.ones(3), "model.embed.weight": torch.arange(8.0).reshape(4, 2)}


class Model:
    def __init__(self, value: float) -> None:
        self.value = value

    def named_parameters(self):
        return iter((name, tensor * self.value) for name, tensor in WEIGHTS.items())


class Somebody:
    """Runs a server on one socket, and starts others in its place. `sampled_with`: version of each turn."""

    def __init__(self, loop: LoopThread, socket: Path, transfer: str) -> None:
        self.loop, self.socket, self.transfer = loop, socket, transfer
        self.sampled_with: list[int | None] = []
        self.start()

    def start(self, **fields) -> None:
        self.fake = fake = FakeVLLM(**fields)

        def script(body):
            self.sampled_with.append(fake.weights_version)
            return [body["prompt"][-1], body["stop_token_ids"][0]]

        fake.script = script
        if self.transfer == "gloo":
            fake.instead = Receiver(fake).routes
        self._serving = fake.serving(self.socket)
        self.loop.run(self._serving.__aenter__())

    def stop(self) -> None:
        self.loop.run(self._serving.__aexit__(None, None, None))

    def restart(self, **fields) -> None:
        self.stop()
        self.start(**fields)


class Receiver(GroupWorker):
    """What it receives the fake then holds."""

    def __init__(self, fake: FakeVLLM) -> None:
        super().__init__()
        self.fake = fake

    def receive(self, body) -> None:
        super().receive(body)
        for name in body["update_info"]["names"]:
            tensor = self.tensors[name]
            self.fake.weights[name] = (list(tensor.shape), tensor.numpy().tobytes())


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


class Run:
    def __init__(self, loop, weights, policy) -> None:
        self.loop, self.weights, self.policy = loop, weights, policy

    def start_turn(self, timeout: float = 60.0):
        async def act():
            async with self.policy.session("episode") as session:
                return await session.act((5, 6, 7), TurnSampling(max_tokens=4), timeout=timeout)

        return asyncio.run_coroutine_threadsafe(act(), self.loop.run(running_loop()))


@contextmanager
def run_on(somebody: Somebody, loop: LoopThread, transfer: str, *, restores: bool = True):
    settings = VLLMSettings(
        type="vllm", engine="external", base_urls=("unix:///x",), backoff_s=0.02, outage_s=60.0
    )
    external = ExternalServers(
        [Address.parse(f"unix://{somebody.socket}")],
        needed_context=1,
        tokenizer=None,
        startup_timeout_s=60,
    )
    weights = PublishedWeights(external, loop, transfer=transfer, keeps=True, external=True)
    source = RestoredServers(external, weights) if restores else external
    policy = VLLMPolicy(source, settings, end_ids=frozenset({2}), version=weights.version)
    with loop.entered(policy):
        yield Run(loop, weights, policy)
        weights.close()


@pytest.fixture(params=["shm", "gloo"])
def transfer(request):
    return request.param


@pytest.fixture
def loop():
    with LoopThread() as loop:
        yield loop


@pytest.fixture
def somebody(loop, transfer, monkeypatch):
    monkeypatch.setattr(fleet, "LOOK_S", 0.1)
    with tempfile.TemporaryDirectory(prefix="fake") as directory:  # short, as paths of sockets are
        somebody = Somebody(loop, Path(directory) / "0", transfer)
        yield somebody
        somebody.stop()


def holds(fake: FakeVLLM, value: float) -> bool:
    return fake.weights["model.norm.weight"][1] == (WEIGHTS["model.norm.weight"] * value).numpy().tobytes()


def test_a_server_started_again_between_two_requests_samples_with_the_newest_weights_only(
    somebody, loop, transfer
):
    with run_on(somebody, loop, transfer) as run:
        run.weights.publish(Model(2.0), 3)
        assert run.start_turn().result(90).weight_version == 3
        somebody.restart()
        assert run.start_turn().result(90).weight_version == 3
        assert holds(somebody.fake, 2.0)
        run.weights.publish(Model(3.0), 4)
        assert run.start_turn().result(90).weight_version == 4
        assert holds(somebody.fake, 3.0)
    assert somebody.sampled_with == [3, 3, 4]


def test_a_turn_whose_server_is_started_again_is_sampled_anew(somebody, loop, transfer):
    with run_on(somebody, loop, transfer) as run:
        run.weights.publish(Model(2.0), 3)
        somebody.fake.delay_s = 3600
        turn = run.start_turn()
        while not somebody.fake.requests:
            time.sleep(0.01)
        somebody.restart()
        action = turn.result(90)
    assert somebody.sampled_with == [3]
    assert action.lost_s > 0


def test_a_publication_after_an_unseen_restart_prepares_the_server_anew(somebody, loop, transfer):
    with run_on(somebody, loop, transfer, restores=False) as run:
        run.weights.publish(Model(2.0), 3)
        somebody.restart()
        run.weights.publish(Model(3.0), 4)
        assert holds(somebody.fake, 3.0)
        run.start_turn().result(90)
    assert somebody.sampled_with == [4]


@pytest.mark.parametrize("transfer", ["shm"], indirect=True)
def test_where_nobody_gives_the_weights_again_turns_are_faults_of_ours(somebody, loop, transfer):
    with run_on(somebody, loop, transfer, restores=False) as run:
        run.weights.publish(Model(2.0), 3)
        somebody.restart()
        with pytest.raises(EngineFault, match=r"has not the weights of version 3 \(its own: None\)"):
            run.start_turn(timeout=5.0).result(90)
    assert somebody.sampled_with == []
