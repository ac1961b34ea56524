"""A publication that does not act is named after the first one that should have changed something."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sandbox_rl.audit.alarms import Alarms
from sandbox_rl.audit.sampler import Cause, PublicationAudit
from sandbox_rl.training.probe import PublicationProbe, trainer_scores
from sandbox_rl.training.publication.merge import checkpoint_tensors
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer

PROBE = tuple(range(10, 60))
TOKENIZER = tiny_tokenizer()


class Server:
    """A model of its own that weights are copied into, as far as `faults` let them."""

    def __init__(self, model, *, faults=()) -> None:
        self.model = copy.deepcopy(model).eval()
        self._faults = faults
        self._head = self.model.get_output_embeddings().weight.detach().clone()

    def load(self, model) -> None:
        if "nothing arrives" in self._faults:
            return
        if "adapters stay behind" in self._faults:
            model = model.get_base_model()
            tensors = {
                n.replace(".base_layer", ""): p for n, p in model.named_parameters() if "lora" not in n
            }
        else:
            tensors = dict(checkpoint_tensors(model))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[name])

    def score(self, ids):
        if "a stale head" in self._faults:
            scores = trainer_scores(self.model, ids, self._head)
            return [scores.first_head]
        return [trainer_scores(self.model, ids).present]


def update(model, seed: int, *, size: float = 1e-3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def publish(model, server, *, times: int, every: int = 1, size: float = 1e-3):
    alarms = Alarms()
    audit = PublicationAudit(alarms, ceiling=0.1, every=every)
    probe = PublicationProbe(audit, PROBE, server.score)
    seen = []
    for version in range(times):
        with probe.around(model, version):
            server.load(model)
        seen.append(audit.take())
        update(model, version, size=size)
    return [alarm.detail for alarm in alarms.raised], seen


@pytest.mark.parametrize(("fault", "cause"), [("nothing arrives", Cause.FIRST), ("a stale head", Cause.HEAD)])
def test_full_weights_that_do_not_act(fault, cause):
    model = tiny_model(TOKENIZER)
    details, _ = publish(model, Server(model, faults=(fault,)), times=3)
    assert details
    assert all(cause.value in detail for detail in details)


def test_adapters_that_were_not_delivered():
    base = tiny_model(TOKENIZER)
    server = Server(base, faults=("adapters stay behind",))
    adapters = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    details, _ = publish(get_peft_model(base, adapters), server, times=3, size=1e-2)
    assert details
    assert all(Cause.ADAPTER.value in detail for detail in details)


@pytest.mark.parametrize("size", [1e-7, 1e-4, 1e-2])
@pytest.mark.parametrize("lora", [False, True])
def test_a_healthy_publication_is_quiet_and_moves_both_sides_alike(size, lora):
    model = tiny_model(TOKENIZER)
    server = Server(model)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    details, seen = publish(model, server, times=30, every=5, size=size)
    assert details == []
    looked = [metrics for metrics in seen if metrics]
    assert len(looked) == 3 + 6  # the first three, then each fifth
    for metrics in looked[1:3]:
        assert metrics["publication/served_moved"] == pytest.approx(metrics["publication/moved"], abs=2e-5)


def test_a_server_that_stops_taking_weights_is_found_by_the_version_that_it_kept():
    model = tiny_model(TOKENIZER)
    server = Server(model)
    alarms = Alarms()
    audit = PublicationAudit(alarms, ceiling=0.1, every=1)
    probe = PublicationProbe(audit, PROBE, server.score)
    for version in range(6):
        with probe.around(model, version):
            if version < 4:
                server.load(model)
        update(model, version)
    assert [alarm.step for alarm in alarms.raised] == [4, 5]
    assert all(Cause.STALE.value in a.detail and "(version 3)" in a.detail for a in alarms.raised)
