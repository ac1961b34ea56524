"""The same planted faults in asynchronous training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from sandbox_rl.audit.alarms import AlarmName
from sandbox_rl.audit.run import RunAudit
from sandbox_rl.training.groups import advantages
from sandbox_rl.training.probe import plain_forward
from tests.smoke.async_support import SIZE, PlayedRollouts, logged, make_async_trainer


class Worker(PlayedRollouts):
    """Groups of random tokens whose log-probs are those of `model`, changed by `spoil`."""

    def __init__(self, spoil=lambda sample: sample) -> None:
        super().__init__()
        self.model = None
        self._spoil = spoil

    def admit(self, numbers) -> None:
        super().admit(numbers)
        waiting = []
        while not self.rollout_buffer.empty():
            waiting.append(self.rollout_buffer.get())
        for group in waiting:
            samples = tuple(self._spoil(self._sampled_now(sample)) for sample in group.samples)
            self.rollout_buffer.put(replace(group, samples=samples))

    def _sampled_now(self, sample):
        ids = torch.tensor(sample.input_ids)
        with plain_forward(self.model):
            scores = self.model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
        of_token = np.zeros(len(ids), dtype=np.float32)
        of_token[1:] = scores[:-1].gather(-1, ids[1:, None]).squeeze(-1).numpy()
        return replace(sample, old_log_probs=of_token * sample.completion_mask)


def run(directory, *, spoil=lambda sample: sample, prepare=None, **block):
    audit = RunAudit.start(advantages=partial(advantages, kind="rloo"), group_size=SIZE)
    worker = Worker(spoil)
    trainer = make_async_trainer(
        directory, worker, at_once=1, audit=audit, **{"max_steps": 3, "learning_rate": 1e-4} | block
    )
    worker.model = trainer.model
    if prepare is not None:
        prepare(trainer)
    trainer.train()
    return {alarm.name for alarm in audit.alarms.raised}, logged(trainer)


def other_advantage(sample):
    return replace(sample, advantage=-sample.advantage)


def without_temperature(sample):
    return replace(sample, old_log_probs=sample.old_log_probs * 0.5)


def louder(sample):
    return replace(sample, advantage=1.5 * sample.advantage)


def louder_rows(trainer):
    """Between the composed groups and the loss."""
    inner = trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        return inner(model, {**inputs, "advantages": 1.5 * inputs["advantages"]}, *args, **kwargs)

    trainer.compute_loss = compute_loss


PLANTED = {
    "advantages that are multiplied": (AlarmName.ADVANTAGE_DIFFERS, {"spoil": louder}),
    "advantages that are multiplied in packed rows": (
        AlarmName.ADVANTAGE_DIFFERS,
        {"prepare": louder_rows},
    ),
    "rewards of other rows": (AlarmName.ADVANTAGE_DIFFERS, {"spoil": other_advantage}),
    "log-probs of another distribution": (AlarmName.SAMPLER_DIFFERS, {"spoil": without_temperature}),
    "an update lost in bfloat16": (
        AlarmName.UPDATES_VANISH,
        {"prepare": lambda trainer: trainer.model.to(torch.bfloat16), "learning_rate": 1e-6},
    ),
}


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_planted_fault_is_named(tmp_path, fault):
    name, planted = PLANTED[fault]
    alarms, _ = run(tmp_path, **planted)
    assert name in alarms


def test_a_healthy_run_is_quiet_and_its_classes_add_up(tmp_path):
    alarms, metrics = run(tmp_path, max_steps=40)
    assert not alarms
    shares = zip(metrics["samples/trained"], metrics["samples/zero_advantage"], strict=False)
    assert all(trained == pytest.approx(1 - zero) for trained, zero in shares)
    assert len(metrics["samples/trained"]) == 40
    assert all(0.99 < applied < 1.01 for applied in metrics["update/applied"])
