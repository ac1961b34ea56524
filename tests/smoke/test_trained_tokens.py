"""What a run records of each token in a loss is what the loss did, in both ways of training."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sandbox_rl.journal.trained import TrainedTokens, read_rows
from sandbox_rl.training.generations import GenerationLedger, Generations
from sandbox_rl.training.groups import NumberedGroup
from sandbox_rl.training.tiny import tiny_model
from sandbox_rl.training.trained_tokens import TokenRecorder
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.async_support import PlayedRollouts, PlayedWeights, make_async_trainer, played_group
from tests.smoke.support import TOKENIZER, given_reward, make_rollout, make_trainer, rows_of

REWARDS = (1.0, 0.0, 0.25, 1.0, 0.0, 0.5, 0.0, None)


def log_probs_of(model: torch.nn.Module, ids: list[int], mask: list[int]) -> np.ndarray:
    """Of the tokens in the mask, by a forward pass of nothing but these ids."""
    with torch.no_grad():
        logits = model(torch.tensor(ids)[None]).logits[0, :-1].float()
    found = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return found[torch.tensor(mask[1:]).bool()].numpy()


def recorded(directory: Path, update: int) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Episode → log-probs and gradients of its tokens in an update, its parts in their order."""
    parts = defaultdict(list)
    for line in (directory / "0000-0000.jsonl").read_text().splitlines():
        if (value := json.loads(line))["update"] == update:
            for row in read_rows(directory, "0000-0000", value):
                parts[row.episode].append(row)
    found = {}
    for episode, rows in parts.items():
        rows.sort(key=lambda row: row.first)
        assert [row.first for row in rows] == [0, *np.cumsum([len(r.log_probs) for r in rows])[:-1]]
        found[episode] = tuple(
            np.concatenate([getattr(row, name) for row in rows]) for name in ("log_probs", "gradients")
        )
    return found


def assert_shares(found: np.ndarray, expected: np.ndarray) -> None:
    """Both as parts of their sum."""
    assert np.allclose(found / found.sum(), expected / expected.sum(), rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo"])
def test_a_token_weighs_what_the_loss_gives_it(tmp_path, loss_type):
    """Advantage, correction for the sampler, mask and the loss's own weights, through shuffled parts."""
    rollouts = [
        make_rollout("a" if i < 4 else "b", reward, seed=i, turns=1 + i % 3, length=4 + 5 * (i % 3))
        for i, reward in enumerate(REWARDS)
    ]
    rows = rows_of(rollouts)
    rows["env_mask"][7] = [0] * len(rows["env_mask"][7])  # as `to_rows` does where there is no reward
    rows["logprobs"] = [[-5.0 - 0.7 * (i % 3) for i, _ in enumerate(row)] for row in rows["logprobs"]]
    ledger = GenerationLedger(Generations(every=1, accumulation=1, groups=2), None)
    tokens = TokenRecorder(TrainedTokens(tmp_path / "trained", start=0, process=0))

    def roll_out(prompts, trainer):
        groups = [NumberedGroup(n, None, rollouts[4 * n : 4 * n + 4]) for n in range(2)]
        ledger.rolled_out(0, groups, [])
        return rows

    trainer = make_trainer(
        tmp_path,
        roll_out,
        given_reward,
        cls=partial(SandboxGRPOTrainer, weights=PlayedWeights(), micro_batch_tokens=60),
        parts={"ledger": ledger, "tokens": tokens},
        loss_type=loss_type,
        vllm_importance_sampling_mode="token_truncate",
        scale_rewards="none",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_completion_length=64,
    )
    trainer.train()
    found = recorded(tmp_path / "trained", 1)
    assert set(found) == {rollout.trajectory.episode_id for rollout in rollouts[:7]}
    model = tiny_model(TOKENIZER, seed=0)
    most = trainer.args.vllm_importance_sampling_clip_max
    expected, gradients = [], []
    for number, rollout in enumerate(rollouts[:7]):
        trajectory, group = rollout.trajectory, REWARDS[:4] if number < 4 else REWARDS[4:7]
        ids = [*trajectory.prompt_ids, *trajectory.completion_ids]
        mask = [0] * len(trajectory.prompt_ids) + list(trajectory.action_mask)
        log_probs, gradient = found[trajectory.episode_id]
        assert np.allclose(log_probs, log_probs_of(model, ids, mask), atol=1e-5)
        sampler = np.array(rows["logprobs"][number])[np.array(trajectory.action_mask, bool)]
        advantage = REWARDS[number] - sum(group) / len(group)
        weight = 1.0 if loss_type == "dr_grpo" else 1 / len(sampler)
        expected.append(abs(advantage) * np.minimum(np.exp(log_probs - sampler), most) * weight)
        gradients.append(gradient)
        assert (np.sign(gradient) == -np.sign(advantage)).all()  # what is rewarded becomes likelier
    assert_shares(np.abs(np.concatenate(gradients)), np.concatenate(expected))


@pytest.mark.parametrize("budget", [50, 400])
def test_packed_samples_are_told_apart_however_they_are_packed(tmp_path, budget):
    tokens = TokenRecorder(TrainedTokens(tmp_path / "trained", start=0, process=0))
    worker = PlayedRollouts()
    trainer = make_async_trainer(
        tmp_path, worker, tokens=tokens, token_budget=budget, max_staleness=0, max_steps=1
    )
    model = tiny_model(TOKENIZER)
    trainer.train()
    found = recorded(tmp_path / "trained", 1)
    numbers = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()[1:]]
    samples = [s for group in numbers[0]["groups"] for s in played_group(group["number"], 0).samples]
    assert set(found) == {sample.episode for sample in samples}
    expected, gradients = [], []
    for sample in samples:
        log_probs, gradient = found[sample.episode]
        own = log_probs_of(model, sample.input_ids.tolist(), sample.completion_mask.tolist())
        assert np.allclose(log_probs, own, atol=1e-4)
        ratio = np.exp(own - sample.old_log_probs[sample.completion_mask == 1])
        if sample.advantage > 0:
            weighs = np.where(ratio > 1.28, 0.0, ratio)
        else:
            weighs = np.where(ratio < 0.8, 0.0, np.minimum(ratio, 3.0))
        expected.append(abs(sample.advantage) * weighs)
        gradients.append(np.abs(gradient))
    assert not math.isclose(min(map(np.min, expected)), max(map(np.max, expected)))
    assert_shares(np.concatenate(gradients), np.concatenate(expected))
