"""The order of a publication, and what stays shut when it breaks: the protocol against a fake server."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.policies.vllm.api import Address, VLLMServer
from sandbox_rl.policies.vllm.external import ExternalServers
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.group import address_towards
from sandbox_rl.training.publication.payload import card_uuid
from sandbox_rl.training.publication.sync import WeightSync
from sandbox_rl.training.publication.transfer import WeightPublisher

WEIGHTS = {"model.embed_tokens.weight": torch.arange(8.0).reshape(4, 2), "model.norm.weight": torch.ones(3)}
UPDATE = [
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/collective_rpc sandbox_rl_after_update",
    "/collective_rpc sandbox_rl_checksums",
    "/reset_prefix_cache",
]


@contextmanager
def publishing(*fakes: FakeVLLM, transfer="shm", **fields):
    with tempfile.TemporaryDirectory(prefix="fake") as directory, LoopThread() as loop:
        sockets = [Path(directory) / str(index) for index in range(len(fakes))]
        runs = [fake.serving(socket) for fake, socket in zip(fakes, sockets, strict=True)]
        for run in runs:
            loop.run(run.__aenter__())
        source = ExternalServers(
            [Address.parse(f"unix://{socket}") for socket in sockets],
            needed_context=1,
            tokenizer=None,
            startup_timeout_s=5,
        )
        with loop.entered(source):
            publisher = WeightPublisher(loop, lambda: source, transfer=transfer, **fields)
            for fake in fakes:
                fake.control.clear()
            yield publisher
            publisher.destroy()
        for run in runs:
            loop.run(run.__aexit__(None, None, None))


def test_requests_are_frozen_from_before_the_first_byte_until_after_the_last_check():
    fakes, told = (FakeVLLM(), FakeVLLM()), []
    with publishing(*fakes, on_version=lambda version: told.append((version, fakes[0].paused))) as publisher:
        publisher.publish(iter(WEIGHTS.items()), version=3)
        publisher.publish(iter(WEIGHTS.items()), version=4)
    for fake in fakes:
        once = ["/pause mode=keep", *UPDATE, "/resume"]
        assert fake.control == ["/init_weight_transfer_engine", *once, *once]
        assert fake.weights["model.norm.weight"] == ([3], WEIGHTS["model.norm.weight"].numpy().tobytes())
    assert told == [(3, True), (4, True)]  # nobody can sample before everybody knows
    assert publisher.version == 4


@pytest.mark.parametrize("broken", UPDATE)
def test_a_transfer_that_breaks_anywhere_leaves_the_servers_shut(broken):
    fake = FakeVLLM(control_faults={broken: 1})
    with publishing(fake) as publisher:
        with pytest.raises(EngineFault, match=rf"{broken.split()[-1]}"):
            publisher.publish(iter(WEIGHTS.items()), version=1)
        assert fake.paused
        with pytest.raises(EngineFault, match="stay paused"):
            publisher.resume()
        assert (fake.paused, publisher.version) == (True, 0)
        publisher.publish(iter(WEIGHTS.items()), version=1)  # whole weights make it right again
        assert (fake.paused, publisher.version) == (False, 1)


def test_a_server_that_holds_something_else_is_noticed():
    fake = FakeVLLM()
    with publishing(fake) as publisher:
        load = fake._load

        def lose_a_bit(update):
            load(update)
            shape, content = fake.weights["model.norm.weight"]
            fake.weights["model.norm.weight"] = (shape, bytes([content[0] ^ 1]) + content[1:])

        fake._load = lose_a_bit
        with pytest.raises(EngineFault, match=r"'model.norm.weight' differs from the trainer's \(checksum"):
            publisher.publish(iter(WEIGHTS.items()), version=1)
        assert fake.paused


def test_a_sleeper_gets_its_weights_before_its_cache_and_is_checked_before_it_serves():
    fake = FakeVLLM()
    with publishing(fake) as publisher:
        publisher.publish(iter(WEIGHTS.items()), version=1)
        fake.control.clear()
        publisher.sleep()
        publisher.sleep()  # is there already
        assert fake.asleep == {"weights", "kv_cache"}
        publisher.publish(iter(WEIGHTS.items()), version=2)
    assert fake.control == [
        "/sleep level=2",
        "/wake_up tags=weights",
        *UPDATE,
        "/wake_up tags=kv_cache",
        "/resume",
    ]
    assert (fake.asleep, publisher.asleep, publisher.version) == (set(), False, 2)


@pytest.mark.parametrize("broken", ["/wake_up", *UPDATE])
def test_a_sleeper_whose_update_breaks_serves_nothing(broken):
    fake = FakeVLLM()
    with publishing(fake) as publisher:
        publisher.publish(iter(WEIGHTS.items()), version=1)
        publisher.sleep()
        fake.control_faults[broken] = 1
        with pytest.raises(EngineFault, match="HTTP 500"):
            publisher.publish(iter(WEIGHTS.items()), version=2)
        assert "kv_cache" in fake.asleep
        assert publisher.version == 1
        assert "/wake_up tags=kv_cache" not in fake.control


def test_a_sleeper_that_was_started_anew_is_paused_for_its_weights():
    fake = FakeVLLM()
    with publishing(fake) as publisher:
        publisher.publish(iter(WEIGHTS.items()), version=1)
        publisher.sleep()
        fake.asleep.clear()  # another process answers there now
        fake.control.clear()
        (server,) = publisher._served().servers
        publisher._loop.run(publisher.republish(server))
        publisher.publish(iter(WEIGHTS.items()), version=2)
    assert fake.control[:2] == ["/init_weight_transfer_engine", "/pause mode=keep"]
    assert fake.control[-1] == "/resume"
    assert not any(route.startswith("/wake_up") for route in fake.control)


def test_servers_sleep_between_rollouts_and_the_next_publication():
    fake = FakeVLLM()
    with publishing(fake) as publisher:
        sync = WeightSync(publisher, PartialState(), sleep=True)
        sync.publish(_Model(), 5)
        assert (sync.version, sync.asleep, fake.asleep) == (5, False, set())
        sync.rest()
        sync.rest()
        assert sync.asleep
        assert fake.control.count("/sleep level=2") == 1
        sync.publish(_Model(), 6)
        assert (sync.version, sync.asleep, fake.asleep) == (6, False, set())


def test_servers_that_need_not_sleep_stay_awake():
    fake = FakeVLLM()
    with publishing(fake) as publisher:
        sync = WeightSync(publisher, PartialState())
        sync.publish(_Model(), 1)
        sync.rest()
    assert not any(route.startswith("/sleep") for route in fake.control)


class _Model:
    def named_parameters(self):
        return iter(WEIGHTS.items())


def test_handles_mean_nothing_on_another_card():
    assert card_uuid() != "GPU-of-another"
    with publishing(FakeVLLM(card="GPU-of-another"), transfer="ipc") as publisher:
        with pytest.raises(SetupError, match=r"'ipc', but the server .* does not use the trainer's card"):
            publisher.init_weight_transfer()


def test_nccl_on_the_trainers_own_card_is_refused(monkeypatch):
    fake = FakeVLLM(card="GPU-1")
    monkeypatch.setattr("sandbox_rl.training.publication.transports.card_uuid", lambda: "GPU-1")
    with publishing(fake, transfer="nccl") as publisher:
        with pytest.raises(SetupError, match=r"'nccl', but the server .* uses the trainer's own card"):
            publisher.init_weight_transfer()
    assert fake.control == ["/collective_rpc sandbox_rl_card"]


class _Worker:
    """The other end of a process group, as the plug-in's worker has it."""

    def __init__(self) -> None:
        self.init: dict = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.routes = {"/init_weight_transfer_engine": self.join, "/update_weights": self.receive}

    def join(self, body) -> None:
        self.init = init = body["init_info"]
        store = torch.distributed.TCPStore(init["host"], init["port"], None, False)
        store = torch.distributed.PrefixStore(init["group"], store)
        self.group = torch.distributed.ProcessGroupGloo(store, init["first_rank"], init["size"])

    def receive(self, body) -> None:
        update = body["update_info"]
        for name, dtype, shape in zip(update["names"], update["dtypes"], update["shapes"], strict=True):
            self.tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast(self.tensors[name], 0).wait()


def test_workers_of_several_servers_get_ranks_of_one_group():
    workers = _Worker(), _Worker()
    with publishing(*(FakeVLLM(instead=worker.routes) for worker in workers), transfer="gloo") as publisher:
        publisher.init_weight_transfer()
        assert sorted((w.init["first_rank"], w.init["size"]) for w in workers) == [(1, 3), (2, 3)]
        servers, transport = publisher._served().servers, publisher._transport
        staged = transport.stage(iter(WEIGHTS.items()), torch.bfloat16)
        publisher._loop.run(transport.send(servers, staged))
    for worker in workers:
        assert worker.tensors.keys() == WEIGHTS.keys()
        assert all(torch.equal(worker.tensors[name], WEIGHTS[name].bfloat16()) for name in WEIGHTS)


def test_a_server_that_refuses_does_not_leave_the_trainer_waiting(monkeypatch):
    monkeypatch.setattr("sandbox_rl.training.publication.group.ABANDON_S", 0.2)
    fake = FakeVLLM(control_faults={"/init_weight_transfer_engine": 1})
    monkeypatch.setattr("sandbox_rl.training.publication.group.MEETING_TIMEOUT_S", 3.0)
    with publishing(fake, transfer="gloo") as publisher:
        with pytest.raises(EngineFault, match="/init_weight_transfer_engine: HTTP 500"):
            publisher.init_weight_transfer()


def test_the_address_that_a_server_is_told():
    assert address_towards(VLLMServer(Address.parse("unix:///run/x"))) == "127.0.0.1"
    assert address_towards(VLLMServer(Address.parse("http://127.0.0.1:8000"))) == "127.0.0.1"
