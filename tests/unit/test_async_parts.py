"""The parts of asynchronous training that need no server: advantages, samples, groups, attention."""

from __future__ import annotations

import copy
import math
import queue
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AttentionInterface
from trl.experimental.async_grpo import packing
from trl.experimental.async_grpo.packing import TREE_ATTENTION, TreeRow

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.policies.base import UNTRAINED
from sandbox_rl.rollout.order import of_group
from sandbox_rl.training import grpo
from sandbox_rl.training.asynchronous.config import async_config
from sandbox_rl.training.asynchronous.progress import Admission, GroupProgress
from sandbox_rl.training.asynchronous.rows import age_metrics
from sandbox_rl.training.asynchronous.source import RolloutSource
from sandbox_rl.training.estimator import advantage_of, to_rows
from sandbox_rl.training.groups import advantages, group_requests
from sandbox_rl.training.samples import failed_group, finished_group
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from sandbox_rl.training.tree_attention import register_tree_attention
from sandbox_rl.types import Task
from tests.smoke.support import make_rollout


def test_advantages_by_hand():
    rewards = [1.0, 0.0, None, 0.0, 1.0, 1.0]
    mean, std = 0.6, math.sqrt(0.3)
    expected = [0.4, -0.6, None, -0.6, 0.4, 0.4]
    assert advantages(rewards, "dr_grpo") == pytest.approx(expected)
    grpo = [None if e is None else e / (std + 1e-4) for e in expected]
    assert advantages(rewards, "grpo") == pytest.approx(grpo)
    leave_one_out = [
        None if r is None else r - (sum(x for x in rewards if x is not None) - r) / 4 for r in rewards
    ]
    assert advantages(rewards, "rloo") == pytest.approx(leave_one_out)
    assert mean == pytest.approx(sum(r for r in rewards if r is not None) / 5)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_groups_that_teach_nothing_have_no_advantage(kind):
    assert advantages([1.0, 1.0, 1.0], kind) == [0.0, 0.0, 0.0]
    assert advantages([1.0, None], kind) == [0.0, None]
    assert advantages([None, None], kind) == [None, None]


def test_samples_are_the_tokens_as_sampled():
    group = [make_rollout("a", reward, seed=i) for i, reward in enumerate((1.0, 0.0, None))]
    made = finished_group(group, number=9, kind="dr_grpo")
    assert made.left_out == {2: SampleEnd.NOT_JUDGED}  # our failure is no sample
    for index, (sample, rollout) in enumerate(zip(made.samples, group[:2], strict=True)):
        trajectory = rollout.trajectory
        assert sample.input_ids.tolist() == [*trajectory.prompt_ids, *trajectory.completion_ids]
        prompt = len(trajectory.prompt_ids)
        assert sample.completion_mask.tolist() == [0] * prompt + list(trajectory.action_mask)
        assert sample.old_log_probs.tolist() == [0.0] * prompt + list(trajectory.logprobs)
        assert (sample.group, sample.index) == (9, index)
    assert [s.advantage for s in made.samples] == [0.5, -0.5]
    twice = finished_group([group[0], group[0]], number=0, kind="dr_grpo")
    trajectory = group[0].trajectory
    assert twice.tokens == len(trajectory.prompt_ids) + 2 * len(trajectory.completion_ids)  # prompt once


def test_a_token_is_as_old_as_the_weights_that_sampled_it():
    """Not as the oldest turn of its episode."""
    rollout = make_rollout("a", 1.0, seed=0)
    turns = tuple(
        replace(turn, action=replace(turn.action, weight_version=version))
        for turn, version in zip(rollout.trajectory.turns, (3, 5), strict=False)
    )
    rollout = replace(rollout, trajectory=replace(rollout.trajectory, turns=turns))
    (sample,) = finished_group([rollout], number=0, kind="dr_grpo").samples
    expected = [v for turn, v in zip(turns, (3, 5), strict=False) for _ in turn.action.token_ids]
    assert sample.versions[sample.completion_mask == 1].tolist() == expected
    assert sample.ages(step=6).tolist() == [6 - version for version in expected]
    metrics = age_metrics([sample], step=6)
    assert metrics["off_policy/age_max"] == 6 - min(expected)
    assert metrics["off_policy/age_mean"] == (sum(6 - v for v in expected), len(expected))
    shares = {name: value for name, value in metrics.items() if name[len("off_policy/age_")].isdigit()}
    assert sum(count for count, _ in shares.values()) == len(expected)
    assert metrics["off_policy/age_3"] == (expected.count(3), len(expected))


def test_what_is_not_trained_is_reported_why():
    masked = make_rollout("a", None, seed=1)
    masked = replace(masked, reward=replace(masked.reward, masked=True))
    silent = make_rollout("a", 0.0, seed=2)
    silent = replace(silent, trajectory=replace(silent.trajectory, turns=()))
    made = finished_group([make_rollout("a", 1.0, seed=0), masked, silent], number=0, kind="rloo")
    assert [s.index for s in made.samples] == [0]
    assert made.left_out == {1: SampleEnd.OVERLONG, 2: SampleEnd.NO_TOKENS}


def test_seeds_and_tasks_follow_from_the_number_alone_and_ids_name_one_attempt():
    tasks = [Task(id=str(i), prompt="?", answer="1") for i in range(5)]

    def requests(number, attempt=0):
        task = of_group(tasks, number, seed=3)
        return group_requests(task, number, seed=3, size=4, again=attempt)

    passes = [requests(number) for number in range(15)]
    assert len({r.seed for group in passes for r in group}) == 60, "past the first pass too"
    again = [requests(number, attempt=2) for number in range(15)]
    assert [[(r.task.id, r.seed) for r in g] for g in again] == [
        [(r.task.id, r.seed) for r in g] for g in passes
    ]
    assert not {r.id for g in again for r in g} & {r.id for g in passes for r in g}
    assert again[7][2].id == "train-000007-0002-r2"


def test_what_is_sampled_for_another_reason_has_a_name_of_its_own():
    """A group that takes another's place is another draw; one that was cancelled is the same draw again."""
    task = Task(id="a", prompt="?", answer="1")
    first, refill, retried = (
        group_requests(task, 7, seed=3, size=2, **how) for how in ({}, {"refill": 0}, {"retried": True})
    )
    names = [request.id for group in (first, refill, retried) for request in group]
    assert len(set(names)) == 6
    assert [r.seed for r in retried] == [r.seed for r in first]
    assert not {r.seed for r in refill} & {r.seed for r in first}


def test_both_ways_of_training_take_the_same_advantages():
    """The paper's baseline, with a fault in the group."""
    group = [make_rollout("a", reward, seed=i) for i, reward in enumerate((1.0, 0.0, None, 0.25))]
    rows = to_rows([group], estimator="paper", eos_id=0)
    made = finished_group(group, number=0, kind=advantage_of("paper"))
    assert [value for value in rows["signal"] if value is not None] == [s.advantage for s in made.samples]
    assert rows["signal"][2] is None
    assert sum(s.advantage for s in made.samples) == pytest.approx(0, abs=1e-12)  # nothing left to centre
    for sample in made.samples:
        masks = sample.completion_mask[-len(rows["env_mask"][sample.index]) :].tolist()
        assert masks == rows["env_mask"][sample.index]


def test_a_group_without_differences_is_left_out_where_others_take_its_place():
    group = [make_rollout("a", 1.0, seed=i) for i in range(3)]
    made = finished_group(group, number=0, kind="rloo", leave_out_equal=True)
    assert set(made.left_out.values()) == {SampleEnd.EQUAL_REWARDS}
    assert sum(made.left_tokens.values()) == sum(sum(r.trajectory.action_mask) for r in group)
    assert len(finished_group(group, number=0, kind="rloo").samples) == 3


def test_every_pass_has_each_task_once_and_an_order_of_its_own():
    tasks = [Task(id=str(i), prompt="?", answer="1") for i in range(50)]
    first = [of_group(tasks, g, seed=3).id for g in range(50)]
    second = [of_group(tasks, g, seed=3).id for g in range(50, 100)]
    assert sorted(first) == sorted(second) == sorted(t.id for t in tasks)
    assert first != second
    assert first == [of_group(tasks, g, seed=3).id for g in range(50)]
    assert first != [of_group(tasks, g, seed=4).id for g in range(50)]


def config(**block):
    return async_config(
        {"max_steps": 3} | block,
        checkpoints="runs",
        name="x",
        seed=0,
        max_tokens=200,
        longest=300,
        dtype=torch.float32,
    )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"loss_type": "dapo"}, "grpo.loss_type.*one loss.*mode: sync"),
        ({"max_inflight_tasks": 3}, "belongs elsewhere: set rollout.concurrency"),
        ({"queue_maxsize": 3}, "leave it out: grpo.max_staleness bounds what waits"),
        ({"max_staleness": -1}, "max_staleness: -1, expected at least 0"),
        ({"max_staleness": 1, "weight_sync_steps": 4}, "max_staleness: 1, expected at least 3.*every 4"),
        ({"token_budget": 0}, "token_budget: 0, expected at least 1;"),
        ({"max_stalenes": 3}, "did you mean 'max_staleness'"),
        ({"max_steps": 0}, "grpo.max_steps: mode 'async' needs one"),
        ({"token_budget": 200}, "token_budget: 200, expected at least 300"),
        ({"top_p": 0.9}, "truncated sampling biases"),
        (
            {"optim": "paged_adamw_32bit"},
            "grpo.optim: 'paged_adamw_32bit' is bitsandbytes', which is not installed",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(block, message, monkeypatch):
    monkeypatch.setattr(grpo, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        config(**block)


def test_the_bound_on_staleness_has_a_default_and_defaults_fit():
    args = config()
    assert args.max_staleness == 4
    assert args.token_budget >= 300


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.type=transformers", "'transformers', expected 'vllm'"),
        ("curriculum.sampling=difficulty", "expected neither"),
        ("update.micro_batch_tokens=9", "set grpo.token_budget"),
    ],
)
def test_async_needs_servers_and_plain_passes(tmp_path, override, message):
    path = tmp_path / "r.yaml"
    path.write_text(
        "mode: async\npolicy: {type: vllm}\ndata: {sources: [{type: reasoning_gym, dataset: chain_sum}]}\n"
    )
    assert load_recipe(path).mode == "async"
    with pytest.raises(ConfigError, match=message):
        load_recipe(path, [override])


@pytest.mark.parametrize("window", [None, 3])
def test_packed_attention_is_the_models_own(window):
    """Two conversations with a common start, packed: the same log-probs and gradients as one by one."""
    tokenizer = tiny_tokenizer()
    common = list(range(10, 17))
    rows = [[*common, 30, 31, 32, 33], [*common, 40, 41], [50, 51, 52]]
    plain = tiny_model(tokenizer, seed=1)
    if window:
        plain.config.use_sliding_window, plain.config.sliding_window = True, window
        plain.config.layer_types = ["sliding_attention"] * plain.config.num_hidden_layers
        plain = type(plain)(plain.config)
    plain.set_attn_implementation("eager")
    packed = type(plain)(copy.deepcopy(plain.config))
    packed.load_state_dict(plain.state_dict())
    packing.register_tree_attention()  # as building a trainer does
    register_tree_attention()
    assert AttentionInterface()[TREE_ATTENTION].__module__ == "sandbox_rl.training.tree_attention"
    packed.set_attn_implementation(TREE_ATTENTION)

    expected = []
    for row in rows:
        logits = plain(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        expected.append(logits[torch.arange(len(row) - 1), torch.tensor(row[1:])])
    sum(e.sum() for e in expected).backward()

    tree = TreeRow()
    for number, row in enumerate(rows):
        tree.add(
            {
                "input_ids": np.array(row),
                "completion_mask": np.array([0] + [1] * (len(row) - 1)),
                "old_log_probs": np.zeros(len(row), dtype=np.float32),
                "advantage": 1.0,
                "group_id": number,
            }
        )
    batch = tree.pack()
    longest_q, longest_k = batch["tree_max_seqlens"].tolist()
    logits = packed(
        batch["input_ids"][None],
        position_ids=batch["position_ids"][None],
        tree_kv_index=batch["tree_kv_index"],
        tree_cu_seqlens_q=batch["tree_cu_seqlens_q"],
        tree_cu_seqlens_k=batch["tree_cu_seqlens_k"],
        tree_max_seqlen_q=longest_q,
        tree_max_seqlen_k=longest_k,
    ).logits[0]
    targets = torch.tensor([token for row in rows for token in row[1:]])
    seen = logits[batch["token_index"]].log_softmax(-1)[torch.arange(len(targets)), targets]
    seen.sum().backward()

    assert len(batch["input_ids"]) < sum(map(len, rows))
    assert torch.allclose(seen, torch.cat(expected), atol=1e-5)
    for (name, a), (_, b) in zip(plain.named_parameters(), packed.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-4, rtol=1e-3), name


class TenFail:
    """Ten groups, of which every episode is lost."""

    def __init__(self) -> None:
        self.rollout_buffer: queue.Queue = queue.Queue()

    def admit(self, numbers) -> None:
        for number in [number for number in numbers if number < 10]:
            self.rollout_buffer.put(failed_group(number, "t", [f"{number}-{n}" for n in range(8)], "no disk"))

    def check_health(self, stale_after_s) -> None:
        pass


def test_episodes_lost_in_the_other_process_are_an_alarm_of_the_trainers() -> None:
    audit = RunAudit.start()
    source = RolloutSource(
        TenFail(),
        Admission(GroupProgress(), max_staleness=1, tokens=100, at_once=8),
        step=lambda: 0,
        version=UNTRAINED,
        metrics=defaultdict(list),
        ranks=1,
        token_budget=100,
        pad_token_id=0,
        stale_after_s=60.0,
        audit=audit,
    )
    assert source.poll(0.1) is None
    audit.faults.look(0)
    (alarm,) = audit.alarms.raised
    assert "the commonest cause (50): no disk" in alarm.detail
