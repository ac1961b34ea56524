"""Faults that look like a run, planted into a real one: the audit names each, and is quiet without them."""

from __future__ import annotations

import random

import pytest
import torch

from sandbox_rl.audit.alarms import AlarmName
from sandbox_rl.audit.run import RunAudit
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import EOS, make_rollout, make_trainer

STEPS = 3
"""Steps within which a planted fault must have been named."""


class Episodes:
    """Stands where the rollout engine stands; `lost` of a hundred episodes are not judged."""

    def __init__(self, seed: int = 0, lost: int = 0) -> None:
        self._random = random.Random(seed)
        self._lost = lost
        self._count = 0
        self.occupancy = Occupancy()

    async def run(self, requests, on_rollout=None):
        made = []
        for request in requests:
            self._count += 1
            reward = self._random.choice((0.0, 0.0, 1.0, 0.5))
            if self._random.randrange(100) < self._lost:
                reward = None
            made.append(make_rollout(request.task.id, reward, seed=self._count, turns=1 + self._count % 3))
        return made


def run(directory, *, episodes=None, rollouts=None, reward=outcome_reward, prepare=None, **fields):
    """A few updates under TRL, and the alarms and metrics; `rollouts`, `reward`, `prepare` plant faults."""
    audit = RunAudit.start(masks_truncated=fields.get("mask_truncated_completions", False))
    with LoopThread() as loop:
        func = (rollouts or GroupRollouts)(
            episodes or Episodes(),
            loop,
            {name: make_rollout(name, 1.0, seed=0).task for name in ("a", "b")},
            estimator="trl",
            seed=0,
            eos_id=EOS,
            audit=audit.samples,
        )
        trainer = make_trainer(
            directory,
            func,
            reward,
            cls=lambda **given: SandboxGRPOTrainer(audit=audit, **given),
            **{"max_steps": STEPS, "learning_rate": 1e-4} | fields,
        )
        if prepare is not None:
            prepare(trainer)
        trainer.train()
    return [alarm.name for alarm in audit.alarms.raised], trainer.state.log_history


class ShiftedMask(GroupRollouts):
    def __call__(self, prompts, trainer):
        rows = super().__call__(prompts, trainer)
        return {**rows, "env_mask": [[mask[-1], *mask[:-1]] for mask in rows["env_mask"]]}


class OtherTokens(GroupRollouts):
    def __call__(self, prompts, trainer):
        rows = super().__call__(prompts, trainer)
        return {**rows, "completion_ids": [[ids[0] ^ 1, *ids[1:]] for ids in rows["completion_ids"]]}


def shuffled_reward(prompts, signal, log_metric, **columns):
    return outcome_reward(prompts, signal[1:] + signal[:1], log_metric, **columns)


def faults_as_zero(prompts, signal, log_metric, **columns):
    return outcome_reward(prompts, [value or 0.0 for value in signal], log_metric, **columns)


def in_bfloat16(trainer):
    trainer.model.to(torch.bfloat16)


PLANTED = {
    "an update lost in bfloat16": (
        AlarmName.UPDATES_VANISH,
        {"prepare": in_bfloat16, "learning_rate": 1e-6},
    ),
    "a mask moved by one": (AlarmName.MASK_DIFFERS, {"rollouts": ShiftedMask}),
    "tokens that nobody sampled": (AlarmName.UNKNOWN_ROW, {"rollouts": OtherTokens}),
    "rewards of other rows": (AlarmName.ADVANTAGE_DIFFERS, {"reward": shuffled_reward}),
    "a fault that counts as 0": (AlarmName.FAULT_AS_REWARD, {"reward": faults_as_zero, "lost": 30}),
    "another end-of-turn id": (
        AlarmName.NOTHING_TRAINED,
        {
            "prepare": lambda trainer: setattr(trainer, "eos_token_ids", {7}) or drop_pad(trainer),
            "mask_truncated_completions": True,
        },
    ),
}


def drop_pad(trainer):
    """TRL takes a row that ends in padding for one that ended; here padding and end of turn are one id."""
    trainer._tokenizer.pad_token_id = 3


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_planted_fault_is_named(tmp_path, fault):
    name, planted = PLANTED[fault]
    planted = dict(planted)
    episodes = Episodes(lost=planted.pop("lost", 0))
    alarms, _ = run(tmp_path, episodes=episodes, **planted)
    assert name in alarms


@pytest.mark.parametrize("lost", [0, 10])
def test_a_healthy_run_is_quiet_and_its_classes_add_up(tmp_path, lost):
    alarms, log = run(
        tmp_path, episodes=Episodes(lost=lost), max_steps=20, num_iterations=2, save_strategy="no"
    )
    assert alarms == []
    steps = [line for line in log if "samples/tokens" in line]
    assert len(steps) == 10  # tokens of a generation are counted once, at its first update
    for line in steps:
        shares = {name: value for name, value in line.items() if name.startswith("samples/")}
        del shares["samples/tokens"], shares["samples/observed"]
        assert sum(shares.values()) == pytest.approx(1)
    assert any(line["samples/trained"] > 0.5 for line in steps)
    assert all(
        line["update/applied"] == pytest.approx(1, abs=0.01) for line in log if "update/applied" in line
    )


def test_an_episode_that_never_reaches_the_loss_is_named(tmp_path):
    """TRL trains on as many rows as it gets: one of eight replaced by a copy of its neighbour."""

    class Doubled(GroupRollouts):
        def __call__(self, prompts, trainer):
            rows = super().__call__(prompts, trainer)
            return {
                name: [values[0], values[0], *values[2:]] if name != "signal" else values
                for name, values in rows.items()
            }

    alarms, _ = run(tmp_path, rollouts=Doubled)
    assert AlarmName.LOST_ROW in alarms
