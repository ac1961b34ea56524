"""Published weights are what the server samples from, with tied embeddings and without.

vLLM 0.31 on CPUs answers every update with 200 and keeps a stale head where embeddings are tied. So
each parity test looks three times: equal before, different once the trainer moved on, equal after.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from sandbox_rl.audit.alarms import Alarms
from sandbox_rl.audit.sampler import Cause, PublicationAudit
from sandbox_rl.errors import EngineFault
from sandbox_rl.training.probe import PublicationProbe
from sandbox_rl.training.publication import routes
from sandbox_rl.training.publication.payload import checksums_of, write_safetensors
from tests.vllm.conftest import save_tiny, served
from tests.vllm.support import PROMPT, Broken, ask, disturb, front, gap, logprobs

SAME = 1e-5
DIFFERENT = 1e-2


def parity(on, *, same: float = SAME, different: float = DIFFERENT) -> None:
    """Equal before, different once the trainer moved on, equal after; the bounds are in nats per token."""
    assert gap(on.model, PROMPT, ask(on)) < same
    version = on.weights.version.value
    disturb(on.model, seed=version)
    assert gap(on.model, PROMPT, ask(on)) > different
    on.publish()
    action = ask(on)
    assert gap(on.model, PROMPT, action) < same
    assert action.weight_version == version + 1


def test_tied(shared):
    parity(shared)
    parity(shared)


def test_in_parts(shared, monkeypatch):
    """A layer's weights may come in several: a part has 64 KiB here, the model some 2 MiB."""
    monkeypatch.setattr("sandbox_rl.training.publication.transports.PART_BYTES", 1 << 16)
    parity(shared)


def test_lora(shared):
    """The server gets the merged weights under the base model's names."""
    shared.publish()
    adapters = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(shared.model), adapters).eval()
    assert gap(model, PROMPT, ask(shared)) < SAME  # B is zero at first
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    assert gap(model, PROMPT, ask(shared)) > DIFFERENT
    try:
        shared.weights.publish(model, shared.weights.version.value + 1)
        assert gap(model, PROMPT, ask(shared)) < SAME
    finally:
        shared.publish()


def test_weights_that_did_not_arrive_are_noticed(shared):
    shared.publish()
    (server,) = shared.server.servers
    ours = dict(shared.model.named_parameters())
    shared.loop.run(routes.verify(server, checksums_of(ours)))
    others = {name: tensor + 1 for name, tensor in ours.items()}
    with pytest.raises(EngineFault, match="differs from the trainer's"):
        shared.loop.run(routes.verify(server, checksums_of(others)))


def test_what_a_real_server_computes_with_is_audited(shared):
    """Quiet while the trainer's weights arrive; others pass every checksum, and are found."""
    shared.publish()
    alarms = Alarms()
    probe = PublicationProbe(
        PublicationAudit(alarms, ceiling=0.1, every=1),
        PROMPT,
        lambda ids: shared.loop.run(shared.policy.score(ids)),
    )

    def look(model) -> None:
        version = shared.weights.version.value + 1
        with probe.around(shared.model, version):
            shared.weights.publish(model, version)

    for seed in range(3):
        look(shared.model)
        disturb(shared.model, seed=seed)
    look(shared.model)
    assert not alarms.raised

    kept = copy.deepcopy(shared.model)
    disturb(shared.model, seed=7)
    look(kept)
    shared.publish()
    (alarm,) = alarms.raised
    assert Cause.STALE.value in alarm.detail


def test_frozen_requests_go_on_after_the_transfer(shared):
    """An update in the middle of a turn pauses it; each token has the version that it was sampled with."""
    for _ in range(5):  # on a busy machine the turn can be over before the update comes
        before, version, (action,) = updated_in_turns(shared, 1)
        if action.weight_switches:
            break
    assert action.weight_version == version
    ((first, after),) = action.weight_switches
    assert after == version + 1
    assert len(action.versions) == len(action.token_ids) == len(action.logprobs)
    # The model from before has sampled those in front of the switch, and none after it.
    differs = (logprobs(before, PROMPT, action.token_ids) - torch.tensor(action.logprobs)).abs()
    assert differs[:first].max() < SAME
    assert differs[first] > SAME
    assert differs[first:].mean() > DIFFERENT
    assert gap(shared.model, PROMPT, ask(shared)) < SAME


def updated_in_turns(shared, *seeds):
    """The model that began turns with these seeds, its version, and the turns."""
    shared.publish()
    version, before = shared.weights.version.value, copy.deepcopy(shared.model)
    disturb(shared.model, seed=99)

    def said() -> float:
        (server,) = shared.server.servers
        return shared.loop.run(server.engine_counts(timeout=5)).tokens

    async def begun() -> asyncio.Future:
        return asyncio.gather(*(_act(shared, seed, max_tokens=900) for seed in seeds))

    idle = said()
    long = shared.loop.run(begun())
    while said() < idle + len(seeds) * (len(PROMPT) + 5):  # they are being sampled
        time.sleep(0.01)
    shared.publish()
    return before, version, shared.loop.run(asyncio.wait_for(long, 120))


async def _act(on, seed, *, max_tokens):
    from sandbox_rl.policies.base import TurnSampling

    async with on.policy.session(f"long {seed}") as session:
        return await session.act(PROMPT, TurnSampling(max_tokens=max_tokens, seed=seed), timeout=120)


def test_the_file_in_shared_memory_is_safetensors(tmp_path):
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.tensor(2.5, dtype=torch.bfloat16),
        "c": torch.ones(0, 4, dtype=torch.float16),
    }
    with (tmp_path / "file").open("wb") as file:
        write_safetensors(tensors, file)
    read = load_file(tmp_path / "file")
    assert json.loads(json.dumps(sorted(read))) == ["a", "b", "c"]
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert all(read[name].dtype == tensors[name].dtype for name in tensors)


def test_over_a_process_group_and_through_a_restart(vllm_python, tmp_path):
    """What servers on other hosts get, here over TCP; `nccl` is the same lines with another backend. What
    arrived is loaded by the same lines as from shared memory, here into a head of its own. A transfer that
    broke is never sampled from, and a server that is started again serves the last good weights."""
    model = save_tiny(tmp_path / "model", tied=False)
    run = served(model, vllm_python, tmp_path / "vllm.log", transfer="gloo")
    on = next(run)
    try:
        assert on.model.lm_head.weight is not on.model.model.embed_tokens.weight
        parity(on)
        parity(on)
        good, version = copy.deepcopy(on.model), on.weights.version.value
        disturb(on.model, seed=8)
        with pytest.raises(EngineFault, match="weight transfer to"):
            on.weights.publish(Broken(on.model), version + 1)
        (server,) = on.server.servers
        assert on.loop.run(server.call("GET", "/is_paused")) == {"is_paused": True}
        assert on.weights.version.value == version
        with pytest.raises((EngineFault, TimeoutError)):
            ask(on, timeout=2.0)
        (pid,) = front(on)
        os.kill(pid, signal.SIGKILL)  # the new process is in no group, and gets the weights beside it
        action = ask(on, timeout=240.0)  # waits for the restart within the episode's time
        assert gap(good, PROMPT, action) < SAME
        assert action.weight_version == version
        on.publish()
        parity(on)
    finally:
        assert next(run, None) is None
