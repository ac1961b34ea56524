"""Managed servers that die, with the shipped fake in the place of vLLM: processes of their own, restarted."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.http_client import Address, Unreachable
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm import fleet, progress, server
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.policies.vllm.fleet import ManagedServers, RestoredServers, SupervisedServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.policies.vllm.source import ExternalServers
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.payload import checksums_of
from sandbox_rl.training.publication.routes import verify
from sandbox_rl.training.publication.weights import PublishedWeights

WEIGHTS = {"model.norm.weight": torch.ones(3)}

PYTHON = """#!/bin/sh
# An "interpreter with vLLM": what would start vLLM starts the fake on the same socket.
case "$1" in -I) exec INTERPRETER "$@" ;; esac
while [ $# -gt 0 ]; do [ "$1" = --uds ] && socket=$2; shift; done
exec INTERPRETER -m sandbox_rl.policies.vllm.fake_server "$socket" {delay_s}
""".replace("INTERPRETER", sys.executable)


def restarts(caplog) -> list[tuple[str, str]]:
    """What a log says of servers that were started again."""
    return re.findall(r"(vLLM server.*?): .*; (restart \d of \d)", caplog.text)


class Model:
    def __init__(self, value: float) -> None:
        self.tensors = {name: tensor * value for name, tensor in WEIGHTS.items()}

    def named_parameters(self):
        return iter(self.tensors.items())


class Served:
    def __init__(self, loop, members, weights, policy) -> None:
        self.loop, self.members = loop, members
        self.weights, self.policy = weights, policy

    def ask(self, timeout: float = 60.0):
        async def act():
            async with self.policy.session("episode") as session:
                return await session.act((5, 6, 7), TurnSampling(max_tokens=4), timeout=timeout)

        return self.loop.run(act())

    def kill(self, number: int = 0) -> None:
        """SIGKILL, and wait until the end is known."""
        member = self.members[number]
        child, deadline = member.pid, time.monotonic() + 60
        os.kill(self.front(number), signal.SIGKILL)
        while member.pid == child:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def front(self, number: int = 0) -> int:
        """The process that a server is."""
        child = self.members[number].pid
        (front,) = Path(f"/proc/{child}/task/{child}/children").read_text().split()
        return int(front)

    def recover(self, number: int) -> None:
        self.loop.run(self.members[number].recovered())

    def holds(self, model: Model, number: int = 0) -> None:
        """Raises if the server has other weights."""
        self.loop.run(verify(self.members[number].client, checksums_of(model.tensors)))


@contextmanager
def served(directory: Path, servers: int = 1, delay_s: float = 0, **fields):
    python = directory / "python"
    python.write_text(PYTHON.format(delay_s=delay_s))
    python.chmod(0o755)
    settings = VLLMSettings(type="vllm", python=str(python), startup_timeout_s=240, backoff_s=0.05, **fields)
    with LoopThread() as loop:
        members = [
            ManagedServer(settings, model="m", log=directory / f"log-{n}", transfer="shm", gpu=False)
            for n in range(servers)
        ]
        managed = ManagedServers(members)
        weights = PublishedWeights(managed, loop, sleeps=True, keeps=True)
        supervised = SupervisedServers(managed, weights, restarts=settings.restarts)
        policy = VLLMPolicy(supervised, settings, end_ids=frozenset({2}), version=weights.version)
        with loop.entered(policy):
            yield Served(loop, members, weights, policy)
            weights.close()


def test_a_server_that_dies_comes_back_with_the_weights_that_were_published_last(tmp_path, caplog):
    with served(tmp_path) as on:
        assert on.ask().weight_version == 0
        on.weights.publish(Model(1.0), 1)
        on.weights.publish(Model(2.0), 2)
        on.kill()
        assert on.ask().weight_version == 2  # waits for the restart within the episode's time
        on.holds(Model(2.0))
        with pytest.raises(EngineFault, match="differs"):
            on.holds(Model(1.0))
        assert restarts(caplog) == [("vLLM server", "restart 1 of 3")]
        on.weights.publish(Model(3.0), 3)
        on.holds(Model(3.0))


def test_a_server_whose_engine_hangs_is_started_again_though_it_says_that_it_is_well(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(server, "HEALTH_INTERVAL_S", 0.5)
    monkeypatch.setattr(progress, "LOOK_S", 0.3)
    with served(tmp_path, delay_s=0.3, stalled_s=4.0) as on:
        on.weights.publish(Model(1.0), 1)
        os.kill(on.front(), signal.SIGUSR1)
        assert on.ask().weight_version == 1
        assert restarts(caplog) == [("vLLM server", "restart 1 of 3")]
        on.holds(Model(1.0))


def test_a_publication_waits_for_a_restart(tmp_path):
    with served(tmp_path) as on:
        on.weights.publish(Model(1.0), 1)
        on.kill()
        on.weights.publish(Model(2.0), 2)
        on.holds(Model(2.0))
        assert on.ask().weight_version == 2


def test_a_server_that_dies_asleep_is_started_again_only_when_it_is_wanted(tmp_path, caplog):
    with served(tmp_path) as on:
        on.weights.publish(Model(1.0), 1)
        on.weights.sleep()
        on.kill()
        assert restarts(caplog) == []
        on.weights.publish(Model(2.0), 2)
        assert restarts(caplog) == [("vLLM server", "restart 1 of 3")]
        on.holds(Model(2.0))


def test_a_server_that_dies_too_often_is_an_engine_fault_for_all_who_wait(tmp_path):
    with served(tmp_path, restarts=0, retries=50) as on:
        on.weights.publish(Model(1.0), 1)
        on.kill()
        with pytest.raises(EngineFault, match="failed permanently after 0 restarts: killed by signal 9"):
            on.ask()
        with pytest.raises(EngineFault, match="failed permanently"):
            on.weights.publish(Model(2.0), 2)


def test_a_server_that_dies_as_it_starts_again_is_started_once_more(tmp_path, caplog):
    """As far as the restarts go, and no further."""
    with served(tmp_path, restarts=3) as on:
        on.weights.publish(Model(1.0), 1)
        python = tmp_path / "python"
        well = python.read_text()
        once = (
            f'case "$*" in *--uds*) [ -e {tmp_path}/died ] || {{ touch {tmp_path}/died; exit 7; }} ;; esac\n'
        )
        python.write_text(well.replace("while [", f"{once}while ["))
        on.kill()
        assert on.ask().weight_version == 1
        assert [of for _, of in restarts(caplog)] == ["restart 1 of 3", "restart 2 of 3"]
        on.holds(Model(1.0))
        python.write_text(well.replace("while [", 'case "$*" in *--uds*) exit 7 ;; esac\nwhile ['))
        on.kill()
        with pytest.raises(
            EngineFault, match=r"failed permanently after 3 restarts: it could not .* exit code 7"
        ):
            on.ask()


def test_one_that_cannot_be_given_its_weights_is_looked_at_again(tmp_path, monkeypatch):
    """Whatever went wrong: a server of someone else's that was started again stays watched."""
    monkeypatch.setattr(fleet, "LOOK_S", 0.05)
    given, again = [], asyncio.Event()

    class Weights:
        async def wanted(self):
            """Never asked."""

        async def restore(self, server):
            given.append(server)
            if len(given) == 1:
                raise SetupError("the card is another's")
            again.set()

    async def twice():
        address = Address("http://localhost", str(tmp_path / "http"))
        servers = ExternalServers([address], needed_context=1, tokenizer=None, startup_timeout_s=60)
        async with (
            FakeVLLM().serving(tmp_path / "http"),
            RestoredServers(servers, Weights()),
            asyncio.timeout(60),
        ):
            await again.wait()

    asyncio.run(twice())


def test_one_of_two_that_dies_costs_its_own_turns_only_and_comes_back_with_the_newest_weights(
    tmp_path, caplog
):
    """The other goes on sampling and takes a publication meanwhile."""
    with served(tmp_path, servers=2, delay_s=0.2) as on:
        on.weights.publish(Model(1.0), 1)

        async def episodes():
            async def episode(name):
                async with on.policy.session(name) as session:
                    turn = TurnSampling(max_tokens=4)
                    return [await session.act((5, 6, 7), turn, timeout=60) for _ in range(6)]

            running = [asyncio.ensure_future(episode(str(n))) for n in range(8)]
            await asyncio.sleep(0.3)
            await asyncio.to_thread(on.kill, 1)
            await asyncio.to_thread(on.weights.publish, Model(2.0), 2)  # does not wait for the one away
            on_its_way = not on.members[1].up
            return on_its_way, await asyncio.gather(*running)

        without_the_other, actions = on.loop.run(episodes())
        assert without_the_other
        restart_s = max(action.lost_s for episode in actions for action in episode)  # others wait far less
        lost = [sum(action.lost_s > restart_s / 2 for action in episode) for episode in actions]
        assert sorted(lost) == [0] * 4 + [1] * 4, "one turn of each episode on the server that died"
        assert {a.weight_version for episode in actions for a in episode} == {1, 2}
        for number in (0, 1):
            on.holds(Model(2.0), number)
        assert restarts(caplog) == [("vLLM server 1 of 2", "restart 1 of 3")]
        on.weights.publish(Model(3.0), 3)
        for number in (0, 1):
            on.holds(Model(3.0), number)


def test_a_server_that_alone_fails_a_publication_is_started_again_with_those_weights(tmp_path, caplog):
    with served(tmp_path, servers=2) as on:
        on.weights.publish(Model(1.0), 1)
        call = on.members[1].client.call

        async def fails(method, route, *args, **kwargs):
            if route == "/finish_weight_update":
                raise Unreachable("it lost the thread")
            return await call(method, route, *args, **kwargs)

        on.members[1].client.call = fails
        on.weights.publish(Model(2.0), 2)
        assert on.weights.current(2)
        on.members[1].client.call = call
        on.recover(1)
        for number in (0, 1):
            on.holds(Model(2.0), number)
        assert restarts(caplog) == [("vLLM server 1 of 2", "restart 1 of 3")]


def test_a_server_that_died_asleep_is_awake_with_the_weights_of_the_next_publication(tmp_path, caplog):
    with served(tmp_path, servers=2) as on:
        on.weights.publish(Model(1.0), 1)
        on.weights.sleep()
        on.kill(0)
        assert restarts(caplog) == []
        on.weights.publish(Model(2.0), 2)
        on.recover(0)
        for number in (0, 1):
            on.holds(Model(2.0), number)
            paused = on.loop.run(on.members[number].client.call("GET", "/is_paused"))
            assert paused == {"is_paused": False}


def test_a_server_that_does_not_come_up_ends_all_of_them(tmp_path):
    python = tmp_path / "python"
    refuses = 'case "$*" in *m1*) exit 7 ;; esac\nwhile ['
    python.write_text(PYTHON.format(delay_s=0).replace("while [", refuses))
    python.chmod(0o755)
    settings = VLLMSettings(type="vllm", python=str(python), startup_timeout_s=60)
    members = [
        ManagedServer(settings, model=f"m{n}", log=tmp_path / f"log-{n}", transfer="shm", gpu=False)
        for n in range(2)
    ]
    with LoopThread() as loop, pytest.raises(SetupError, match=r"vLLM: exit code 7 \(log: .*log-1\)"):
        loop.run(ManagedServers(members).__aenter__())
    assert not any(Path(member.address.socket).parent.exists() for member in members)


def test_where_one_server_cannot_be_started_none_is_left(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON.format(delay_s=0))
    python.chmod(0o755)
    settings = VLLMSettings(type="vllm", python=str(python))
    members = [
        ManagedServer(settings, model="m", log=directory / "log", transfer="shm", gpu=False)
        for directory in (tmp_path, python)
    ]
    with LoopThread() as loop, pytest.raises(OSError, match=r"python"):
        loop.run(ManagedServers(members).start())
    assert not any(Path(member.address.socket).parent.exists() for member in members)
