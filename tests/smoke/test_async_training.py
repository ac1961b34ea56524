"""The asynchronous trainer itself: what an update is made of, what a checkpoint knows, how a run ends."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl.experimental.async_grpo import async_grpo_trainer
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from sandbox_rl.errors import EngineFault
from sandbox_rl.ledger import Ledger, SampleEnd, read_ledger
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.callbacks import LogMetrics
from sandbox_rl.training.checkpoints import last_complete
from tests.documented_metrics import UPDATE
from tests.smoke.async_support import (
    SIZE,
    PlayedRollouts,
    PlayedWeights,
    logged,
    make_async_trainer,
    played_group,
)
from tests.smoke.support import RecordGradients


class Packed(GroupProgress):
    """Knows the groups of the update that is being computed."""

    def __init__(self) -> None:
        super().__init__()
        self.now: set[int] = set()

    def pack(self, groups):
        groups = list(groups)
        self.now |= {group.number for group in groups}
        super().pack(groups)

    def finish_update(self, **how):
        self.now = set()
        return super().finish_update(**how)


class Used(TrainerCallback):
    """What each update was made of, seen right before its optimizer step: step → samples, packed so far."""

    def __init__(self, progress: Packed) -> None:
        self._progress = progress
        self.steps: dict[int, set[tuple[int, int]]] = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        packed = self._progress.now
        self.steps[state.global_step] = {(group, index) for group in packed for index in range(SIZE)}


class Killed(Exception):
    """The process is gone."""


class KillIn(TrainerCallback):
    """Ends the run in the middle of an update: gradients are computed, the optimizer has not stepped."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            raise Killed


def run(directory, worker, *, resume=False, **options):
    progress = Packed()
    used = Used(progress)
    checkpoint = last_complete(directory / "run") if resume else None
    if checkpoint is not None:
        progress.restore(checkpoint)
    callbacks = [used, *options.pop("callbacks", ())]
    trainer = make_async_trainer(directory, worker, progress=progress, callbacks=callbacks, **options)
    with suppress(Killed):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer, used.steps


def test_updates_are_made_of_whole_groups_each_trained_once(tmp_path):
    worker, seen = PlayedRollouts(late={1: 2, 5: 1}), LogMetrics(tmp_path / "metrics.jsonl")
    trainer, steps = run(tmp_path, worker, max_steps=6, max_staleness=2, token_budget=100, callbacks=[seen])
    trained = Counter(key for samples in steps.values() for key in samples)
    assert set(trained.values()) == {1}
    for samples in steps.values():
        groups = {group for group, _ in samples}
        assert samples == {(group, index) for group in groups for index in range(SIZE)}
    assert trainer.progress.behind == {group for group, _ in trained}
    written = list(read_ledger(tmp_path / "ledger.jsonl"))
    assert [update.number for update in written] == [1, 2, 3, 4, 5, 6]
    for update in written:  # numbered from 1
        groups = {group for group, _ in steps[update.number - 1]}
        assert {group.number for group in update.groups} == groups
        for group in update.groups:
            made = played_group(group.number, 0).samples
            assert [s.end for s in group.samples] == [SampleEnd.USED] * SIZE
            assert [s.advantage for s in group.samples] == [sample.advantage for sample in made]
            assert [s.episode for s in group.samples] == [f"{group.number}-{i}" for i in range(SIZE)]
    assert worker.weights.published == list(range(7)), "a version is the number of updates"
    metrics = logged(trainer)
    assert {"", "pause_", "barrier_", "transfer_"} == {
        name.removeprefix("perf/weight_sync_")[:-1] for name in metrics if "weight_sync" in name
    }
    assert max(metrics["off_policy/age_max"]) <= 2
    shares = [metrics[f"off_policy/age_{age}"] for age in range(3)]
    assert [sum(parts) for parts in zip(*shares, strict=True)] == pytest.approx([1.0] * 6)
    assert set(metrics["left_out/not_judged_total"]) == {0.0}
    assert all(count >= 1 for count in metrics["batch/groups_per_step"])
    updates = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for update in (update for update in updates if "loss" in update):
        assert set(UPDATE) <= update.keys()
        assert 0 < update["time/update"] < update["time/step"]
        assert update["mismatch_kl"] == update["kl"]
        assert update["perf/throughput"] > 0


def test_a_kill_in_an_update_loses_no_group_and_trains_none_twice(tmp_path):
    first = PlayedRollouts()
    _, before = run(tmp_path, first, callbacks=[KillIn(3)], max_steps=6, save_steps=2)
    checkpoint = last_complete(tmp_path / "run")
    assert checkpoint.name == "checkpoint-2"
    behind = GroupProgress().restore(checkpoint)
    assert behind == {group for step in (0, 1) for group, _ in before[step]}
    lost = {group for group, _ in before[2] | before[3]}
    assert lost
    assert not lost & behind, "updates 2 and 3 were never saved"

    second = PlayedRollouts()
    _, after = run(tmp_path, second, resume=True, max_steps=6, save_steps=2)
    assert sorted(after) == [2, 3, 4, 5]
    trained = Counter(
        key for steps in ({0: before[0], 1: before[1]}, after) for s in steps.values() for key in s
    )
    assert set(trained.values()) == {1}
    groups = sorted({group for group, _ in trained})
    assert groups == list(range(len(groups))), "no hole"
    assert after[2] == before[2], "sampled again from the same seeds, trained in the same update"
    assert second.admitted[0][1] == 2, "weights are as old after a resume as before it"


def test_a_checkpoint_knows_nothing_of_what_runs_waits_or_is_computed(tmp_path):
    _, steps = run(tmp_path, PlayedRollouts(), max_steps=3, save_steps=1, save_total_limit=3)
    used = set()
    for step in range(3):
        used |= {group for group, _ in steps[step]}
        state = json.loads((tmp_path / "run" / f"checkpoint-{step + 1}" / "groups.json").read_text())
        assert set(range(state["first"])) | set(state["ahead"]) == used
        ledger = tmp_path / "ledger.jsonl"
        committed = Ledger.committed(ledger, tmp_path / "run" / f"checkpoint-{step + 1}")
        assert ledger.read_bytes()[:committed].count(b"\n") == step + 2  # the first line is no update's


@pytest.mark.parametrize("tokens", [50, 60, 400])
def test_an_update_has_the_same_gradient_however_it_is_packed(tmp_path, tokens):
    """The mean over all tokens of the update, each weighted by its bounded ratio and its advantage."""
    recorded = RecordGradients()
    options = {"max_staleness": 0, "at_once": 3, "max_steps": 1}
    _, steps = run(tmp_path, PlayedRollouts(), callbacks=[recorded], token_budget=tokens, **options)
    groups = sorted({group for group, _ in steps[0]})
    assert len(groups) >= 3
    trainer = make_async_trainer(tmp_path, PlayedRollouts(), token_budget=4000)
    model = trainer.model.eval()
    model.set_attn_implementation("eager")
    total, count, truncated = torch.zeros(()), 0, 0
    for sample in (s for number in groups for s in played_group(number, 0).samples):
        ids = torch.tensor(sample.input_ids)[None]
        mask = torch.tensor(sample.completion_mask[1:]).bool()
        logits = model.forward(ids).logits[0, :-1].float()
        log_probs = logits.log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]][mask]
        ratio = (log_probs - torch.tensor(sample.old_log_probs[1:])[mask]).exp()
        clipped = ratio.clamp(1 - 0.2, 1 + 0.28)
        if sample.advantage > 0:
            total = total - torch.min(ratio, clipped).sum() * sample.advantage
        else:  # the gradient of a truncated ratio is that at its bound
            bound = torch.where(ratio > 3, 3 * log_probs, torch.max(ratio, clipped))
            truncated += int((ratio > 3).sum())
            total = total - bound.sum() * sample.advantage
        count += int(mask.sum())
    (total / count).backward()
    assert truncated > 0
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(recorded.steps[0]) == set(expected)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-4
    for name, gradient in recorded.steps[0].items():
        largest = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() <= 1e-6 + 1e-4 * largest, name


def test_a_signal_while_waiting_saves_and_ends(tmp_path):
    """Updates may be hours apart: the run does not wait for the next."""
    worker = PlayedRollouts(silent_after=6)
    ended = []
    trainer, steps = run(
        tmp_path,
        worker,
        stop=lambda: worker.asked >= 1,  # asked while nothing comes
        stopped=lambda: ended.append(True),
        max_steps=50,
    )
    done = trainer.state.global_step
    assert 0 < done < 50
    assert ended == [True]
    checkpoint = last_complete(tmp_path / "run")
    assert checkpoint.name == f"checkpoint-{done}"
    assert GroupProgress().restore(checkpoint) == {g for samples in steps.values() for g, _ in samples}


def test_a_signal_in_the_last_update_is_noticed(tmp_path):
    ended, progress = [], Packed()
    used = Used(progress)
    trainer = make_async_trainer(
        tmp_path,
        PlayedRollouts(),
        progress=progress,
        callbacks=[used],
        stop=lambda: 1 in used.steps,
        stopped=lambda: ended.append(True),
        max_steps=2,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert ended == [True]


def test_a_signal_before_the_first_update_ends_without_a_checkpoint(tmp_path):
    trainer, _ = run(tmp_path, PlayedRollouts(silent_after=0), stop=lambda: True)
    assert trainer.state.global_step == 0
    assert last_complete(tmp_path / "run") is None


def test_the_end_of_the_rollouts_ends_the_run(tmp_path):
    worker = PlayedRollouts(silent_after=6, failure=EngineFault("the rollout process ended: exit code 7"))
    with pytest.raises(EngineFault, match="exit code 7"):
        run(tmp_path, worker, max_steps=50)


def test_servers_that_refuse_the_weights_end_the_run(tmp_path):
    class Refuses(PlayedWeights):
        def publish(self, model, step):
            if step == 2:
                raise EngineFault("unix:x: after the weight transfer 'a' differs")
            return super().publish(model, step)

    with pytest.raises(EngineFault, match="after the weight transfer"):
        run(tmp_path, PlayedRollouts(Refuses()))


def test_trls_own_rule_on_staleness_is_not_in_the_way(tmp_path):
    """TRL drops single samples when it takes them from the queue; our trainer does not read through that."""
    none = np.zeros(0)
    old = RolloutSample([], [], none, none, none, advantage=1.0, model_version=0, group_id=0, metrics={})
    taken = PlayedRollouts().rollout_buffer
    taken.put(old)
    dropped = {"sample/dropped_stale_total": []}

    class Empty(Exception):
        pass

    def nothing_more(_):
        raise Empty

    source = async_grpo_trainer.RolloutQueueDataset(
        taken, lambda: 9, nothing_more, 1.0, dropped, max_staleness=3, poll_interval_s=0.01
    )
    with pytest.raises(Empty):
        next(iter(source))
    assert dropped["sample/dropped_stale_total"] == [1.0], "if TRL has changed its mind, read it again"

    trainer, _ = run(tmp_path, PlayedRollouts(), max_steps=2)
    assert type(trainer.get_train_dataloader()).__module__.startswith("sandbox_rl.")
    assert "sample/dropped_stale_total" not in logged(trainer)
