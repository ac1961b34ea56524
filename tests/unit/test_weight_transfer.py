"""The order of a publication, and what stays shut when it breaks: the protocol against a fake server."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.http_client import Address
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.policies.vllm.fake_weights import loaded
from sandbox_rl.policies.vllm.source import ExternalServers
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.base import UnsentWeights
from sandbox_rl.training.publication.group import GroupTransport, address_towards
from sandbox_rl.training.publication.payload import card_uuid
from sandbox_rl.training.publication.sending import OwnServer
from sandbox_rl.training.publication.transports import ShmTransport, staged_parts
from sandbox_rl.training.publication.weights import PublishedWeights
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from tests.group_worker import GroupWorker
from tests.version_reader import read_version

WEIGHTS = {"model.embed_tokens.weight": torch.arange(8.0).reshape(4, 2), "model.norm.weight": torch.ones(3)}
FROZEN = ["/pause mode=keep", "/collective_rpc sandbox_rl_frozen"]
UPDATE = [
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/collective_rpc sandbox_rl_after_update",
    "/collective_rpc sandbox_rl_checksums",
    "/collective_rpc sandbox_rl_version",
    "/reset_prefix_cache",
]


class Model:
    def named_parameters(self):
        return iter(WEIGHTS.items())


@contextmanager
def publishing(*fakes: FakeVLLM, transfer="shm", own: int | None = None, **fields):
    """(the owner of the weights in these servers, its loop, their connections)"""
    with tempfile.TemporaryDirectory(prefix="fake") as directory, LoopThread() as loop:
        sockets = [Path(directory) / str(index) for index in range(len(fakes))]
        runs = [fake.serving(socket) for fake, socket in zip(fakes, sockets, strict=True)]
        for run in runs:
            loop.run(run.__aenter__())
        source = ExternalServers(
            [Address.parse(f"unix://{socket}") for socket in sockets],
            needed_context=1,
            tokenizer=None,
            startup_timeout_s=60,
        )
        only = None if own is None else OwnServer(source, own)
        weights = PublishedWeights(source, loop, transfer=transfer, own=only, **fields)
        with loop.entered(source):
            for fake in fakes:
                fake.control.clear()
            try:
                yield weights, loop, source.servers
            finally:
                weights.close()
        for run in runs:
            loop.run(run.__aexit__(None, None, None))


def test_requests_are_frozen_from_before_the_first_byte_until_after_the_last_check():
    known = []

    def resume(_):
        known.append(weights.version.value)
        for fake in fakes:
            fake.paused = False

    fakes = FakeVLLM(instead={"/resume": resume}), FakeVLLM()
    with publishing(*fakes) as (weights, _, _):
        assert weights.publish(Model(), 3) == 3
        assert weights.publish(Model(), 4) == 4
    for fake in fakes:
        once = [*FROZEN, *UPDATE, "/resume"]
        assert fake.control == ["/init_weight_transfer_engine", *once, *once]
        assert fake.weights["model.norm.weight"] == ([3], WEIGHTS["model.norm.weight"].numpy().tobytes())
    assert known == [3, 4]  # everybody knows before anybody can sample
    assert weights.current(4)


def test_a_transfer_begins_only_when_everything_is_gathered():
    """Episodes stand still for the transfer, not for the gathering of shards or the folding of adapters."""
    fake = FakeVLLM()

    class Slow:
        def named_parameters(self):
            for name, tensor in WEIGHTS.items():
                assert not fake.paused
                assert "/pause mode=keep" not in fake.control
                yield name, tensor

    with publishing(fake) as (weights, _, _):
        weights.publish(Slow(), 1)
    assert "/pause mode=keep" in fake.control


def test_adapters_are_folded_into_a_copy_and_the_trained_weights_stay():
    model = tiny_model(tiny_tokenizer()).to(torch.bfloat16)
    adapters = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    name = "model.layers.0.self_attn.q_proj.weight"
    fake = FakeVLLM()
    with publishing(fake) as (weights, _, _):
        for step in range(3):
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.01)
            weights.publish(model, step)
            folded = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
            assert fake.weights[name][1] == folded.detach().numpy().tobytes(), step
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)


@pytest.mark.parametrize("broken", ["/pause", *UPDATE])
def test_a_publication_that_breaks_anywhere_leaves_the_servers_paused(broken):
    fake = FakeVLLM(control_faults={broken: 1})
    with publishing(fake) as (weights, _, _):
        with pytest.raises(EngineFault, match=rf"{broken.split()[-1]}"):
            weights.publish(Model(), 1)
        assert fake.paused or broken == "/pause"
        assert "/resume" not in fake.control
        assert (weights.version.value, weights.current(0), weights.current(1)) == (0, False, False)
        weights.publish(Model(), 1)  # whole weights make it right again
        assert (fake.paused, weights.current(1)) == (False, True)


def test_a_server_that_holds_something_else_is_noticed():
    def lose_a_bit(body):
        fake.weights |= loaded(body["update_info"]["path"])
        shape, content = fake.weights["model.norm.weight"]
        fake.weights["model.norm.weight"] = (shape, bytes([content[0] ^ 1]) + content[1:])

    fake = FakeVLLM(instead={"/update_weights": lose_a_bit})
    with publishing(fake) as (weights, _, _):
        with pytest.raises(EngineFault, match=r"'model.norm.weight' differs from the trainer's \(checksum"):
            weights.publish(Model(), 1)
        assert fake.paused


def test_a_sleeper_gets_its_weights_before_its_cache_and_is_checked_before_it_serves():
    fake = FakeVLLM()
    with publishing(fake, sleeps=True) as (weights, _, _):
        weights.publish(Model(), 1)
        fake.control.clear()
        weights.sleep()
        weights.sleep()  # is there already
        assert fake.asleep == {"weights", "kv_cache"}
        assert not weights.current(1), "whoever samples next has to publish"
        weights.publish(Model(), 2)
    assert fake.control == [
        "/sleep level=2",
        "/wake_up tags=weights",
        *UPDATE,
        "/wake_up tags=kv_cache",
        "/resume",
    ]
    assert (fake.asleep, weights.asleep, weights.current(2)) == (set(), False, True)


@pytest.mark.parametrize("broken", ["/wake_up", *UPDATE])
def test_a_sleeper_whose_update_breaks_serves_nothing(broken):
    fake = FakeVLLM()
    with publishing(fake, sleeps=True) as (weights, _, _):
        weights.publish(Model(), 1)
        weights.sleep()
        fake.control_faults[broken] = 1
        with pytest.raises(EngineFault, match="HTTP 500"):
            weights.publish(Model(), 2)
        assert "kv_cache" in fake.asleep
        assert weights.version.value == 1
        assert "/wake_up tags=kv_cache" not in fake.control


def test_a_sleeper_that_was_started_anew_is_paused_for_its_weights():
    fake = FakeVLLM()
    with publishing(fake, sleeps=True) as (weights, loop, servers):
        weights.publish(Model(), 1)
        weights.sleep()
        fake.asleep.clear()  # another process answers there now
        fake.control.clear()
        loop.run(weights.restore(servers[0]))
        weights.publish(Model(), 2)
    assert fake.control[:2] == ["/init_weight_transfer_engine", "/pause mode=keep"]
    assert fake.control[-1] == "/resume"
    assert not any(route.startswith("/wake_up") for route in fake.control)


def test_a_server_that_was_started_anew_gets_the_last_good_weights():
    fake = FakeVLLM()
    with publishing(fake, keeps=True) as (weights, loop, servers):
        loop.run(weights.restore(servers[0]))
        assert not fake.control, "the first weights it loads by itself"
        weights.publish(Model(), 1)
        good = dict(fake.weights)
        fake.control_faults["/finish_weight_update"] = 1
        with pytest.raises(EngineFault):
            weights.publish(Other(), 2)
        assert not weights.current(1), "nobody may sample from what a broken publication left behind"
        fake.weights.clear()
        fake.control.clear()
        loop.run(weights.restore(servers[0]))
        assert fake.weights == good
        load = "/collective_rpc sandbox_rl_load"  # beside its transfer engine, which may be a group's
        assert fake.control == [load, *UPDATE[-4:]]
        assert weights.current(1)
        fake.control.clear()
        weights.publish(Model(), 2)
        assert fake.control[0] == "/init_weight_transfer_engine", "the new process has met nobody yet"


def test_a_process_with_a_server_of_its_own_sends_to_no_other():
    fakes = FakeVLLM(), FakeVLLM()
    with publishing(*fakes, own=1) as (weights, _, _):
        weights.publish(Model(), 1)
    assert not fakes[0].weights
    assert fakes[0].control == [*FROZEN, "/resume"], "whoever is in charge pauses all"
    assert fakes[1].weights.keys() == WEIGHTS.keys()


def test_a_stream_of_weights_is_cut_into_parts_alike_on_all_ranks():
    sizes = {"a": 3, "b": 3, "c": 3, "d": 9, "e": 1, "f": 1}
    tensors = ((name, torch.zeros(size)) for name, size in sizes.items())
    parts = staged_parts(tensors, "cpu", torch.bfloat16, 14)  # 2 bytes a value
    assert [list(part) for part in parts] == [["a", "b"], ["c"], ["d"], ["e", "f"]]


@pytest.mark.parametrize("transfer", ["shm", "gloo"])
def test_weights_are_never_there_twice_on_their_way(monkeypatch, transfer):
    """Each is gathered, staged and let go of: beside a part there is one that was just gathered."""
    alive: list[weakref.ref] = []
    most = []

    def gathered():
        for number in range(12):
            tensor = torch.full((4,), float(number))
            alive.append(weakref.ref(tensor))
            most.append(sum(ref() is not None for ref in alive))
            yield f"layers.{number}.norm.weight", tensor
            del tensor

    for module in ("transports", "group"):
        monkeypatch.setattr(f"sandbox_rl.training.publication.{module}.PART_BYTES", 2 * 16)
    transport = ShmTransport() if transfer == "shm" else GroupTransport("gloo")
    names = []
    for part in transport.parts(gathered(), torch.float32):  # float32: sent as they were gathered
        names.append(sorted(part.checksums))
        part.close()
    assert [len(some) for some in names] == [2] * 6
    assert max(most) <= 2 + 1


@pytest.mark.parametrize("broken", ["/pause", "/update_weights", ""])
def test_no_copy_of_weights_is_left_behind(broken):
    """Each would hold as much memory as the model."""

    def copies() -> int:
        files = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        return sum("sandbox-rl-weights" in os.readlink(file) for file in files if file.is_symlink())

    gc.collect()  # what an earlier test's failure held
    before, fake = copies(), FakeVLLM()
    with publishing(fake, keeps=True) as (weights, _, _):
        weights.publish(Model(), 1)
        assert copies() == before + 1, "for a server that is started again"
        if broken:
            fake.control_faults[broken] = 1
            with pytest.raises(EngineFault):
                weights.publish(Other(), 2)
        weights.publish(Model(), 3)
        assert copies() == before + 1
    assert copies() == before


class Other:
    def named_parameters(self):
        return iter((name, tensor + 1) for name, tensor in WEIGHTS.items())


def test_while_servers_sleep_nobody_starts_them_again():
    """What the supervisor of a server that died waits for."""
    fake = FakeVLLM()
    with publishing(fake, sleeps=True) as (weights, loop, _):
        weights.publish(Model(), 1)
        loop.run(weights.wanted())
        weights.sleep()
        with pytest.raises(TimeoutError):
            loop.run(asyncio.wait_for(weights.wanted(), 0.05))
        weights.publish(Model(), 2)
        loop.run(weights.wanted())


def test_servers_that_need_not_sleep_stay_awake():
    fake = FakeVLLM()
    with publishing(fake) as (weights, _, _):
        weights.publish(Model(), 1)
        weights.sleep()
        assert weights.current(1)
    assert not any(route.startswith("/sleep") for route in fake.control)


def test_another_process_reads_the_version_that_was_published_last():
    """As the process that rolls out does: in the owner's own memory, not by being told."""
    weights = UnsentWeights()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(target=read_version, args=(weights.version, theirs))
    reader.start()
    try:
        for step in (3, 9):
            weights.publish(Model(), step)
            ours.send("?")
            assert ours.poll(60)
            assert ours.recv() == step
    finally:
        ours.send("enough")
        reader.join(30)


def test_handles_mean_nothing_on_another_card():
    assert card_uuid() != "GPU-of-another"
    with publishing(FakeVLLM(card="GPU-of-another"), transfer="ipc") as (weights, _, _):
        with pytest.raises(SetupError, match=r"'ipc', but the server .* does not use the trainer's card"):
            weights.publish(Model(), 1)


def test_nccl_on_the_trainers_own_card_is_refused(monkeypatch):
    fake = FakeVLLM(card="GPU-1")
    monkeypatch.setattr("sandbox_rl.training.publication.transports.card_uuid", lambda card=None: "GPU-1")
    with publishing(fake, transfer="nccl") as (weights, _, _):
        with pytest.raises(SetupError, match=r"'nccl', but the server .* uses the trainer's own card"):
            weights.publish(Model(), 1)
    assert fake.control == ["/collective_rpc sandbox_rl_card"]


def test_workers_of_several_servers_get_ranks_of_one_group():
    workers = GroupWorker(), GroupWorker()
    fakes = [FakeVLLM(instead=worker.routes) for worker in workers]
    with publishing(*fakes, transfer="gloo") as (_, loop, servers):
        transport = GroupTransport("gloo")
        loop.run(transport.connect(servers))
        assert sorted((w.init["first_rank"], w.init["size"]) for w in workers) == [(1, 3), (2, 3)]
        for part in transport.parts(iter(WEIGHTS.items()), torch.bfloat16):
            loop.run(part.send(servers))
    for worker in workers:
        assert worker.tensors.keys() == WEIGHTS.keys()
        assert all(torch.equal(worker.tensors[name], WEIGHTS[name].bfloat16()) for name in WEIGHTS)


def test_a_server_that_refuses_does_not_leave_the_trainer_waiting(monkeypatch):
    monkeypatch.setattr("sandbox_rl.training.publication.group.ABANDON_S", 0.2)
    fake = FakeVLLM(control_faults={"/init_weight_transfer_engine": 1})
    monkeypatch.setattr("sandbox_rl.training.publication.group.MEETING_TIMEOUT_S", 3.0)
    with publishing(fake, transfer="gloo") as (weights, _, _):
        with pytest.raises(EngineFault, match="/init_weight_transfer_engine: HTTP 500"):
            weights.publish(Model(), 1)


def test_the_address_that_a_server_is_told():
    assert address_towards(VLLMServer(Address.parse("unix:///run/x"))) == "127.0.0.1"
    assert address_towards(VLLMServer(Address.parse("http://127.0.0.1:8000"))) == "127.0.0.1"
