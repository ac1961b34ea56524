"""The parts of asynchronous training that need no server: advantages, samples, groups, attention."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from transformers import AttentionInterface
from trl.experimental.async_grpo import packing
from trl.experimental.async_grpo.packing import TREE_ATTENTION, TreeRow

from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.rollout.tail_batches import of_group
from sandbox_rl.training import grpo
from sandbox_rl.training.async_config import async_config
from sandbox_rl.training.async_trainer import GroupProgress
from sandbox_rl.training.samples import advantages, to_samples
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
    samples = to_samples(group, group_id=9, kind="dr_grpo")
    assert len(samples) == 2  # our failure is no sample
    for sample, rollout in zip(samples, group[:2], strict=True):
        trajectory = rollout.trajectory
        assert sample.input_ids.tolist() == [*trajectory.prompt_ids, *trajectory.completion_ids]
        prompt = len(trajectory.prompt_ids)
        assert sample.completion_mask.tolist() == [0] * prompt + list(trajectory.action_mask)
        assert sample.old_log_probs.tolist() == [0.0] * prompt + list(trajectory.logprobs)
        assert (sample.group_id, sample.model_version) == (9, 0)
    assert [s.advantage for s in samples] == [0.5, -0.5]


def test_every_pass_has_each_task_once_and_an_order_of_its_own():
    tasks = [Task(id=str(i), prompt="?", answer="1") for i in range(50)]
    first = [of_group(tasks, g, seed=3).id for g in range(50)]
    second = [of_group(tasks, g, seed=3).id for g in range(50, 100)]
    assert sorted(first) == sorted(second) == sorted(t.id for t in tasks)
    assert first != second
    assert first == [of_group(tasks, g, seed=3).id for g in range(50)]
    assert first != [of_group(tasks, g, seed=4).id for g in range(50)]


def test_a_resumed_run_leaves_no_group_out_and_trains_none_twice(tmp_path):
    trained, skipped = {0, 1, 3, 6}, {2, 8}
    GroupProgress(lambda: trained, lambda: skipped).save(tmp_path)
    assert json.loads((tmp_path / "groups.json").read_text()) == {"first": 4, "ahead": [6, 8]}
    resumed = GroupProgress(lambda: {4, 5}, set)
    assert resumed.restore(tmp_path) == {0, 1, 2, 3, 6, 8}
    resumed.save(tmp_path)
    assert json.loads((tmp_path / "groups.json").read_text()) == {"first": 7, "ahead": [8]}


def config(**block):
    return async_config(
        {"max_steps": 3} | block,
        checkpoints="runs",
        name="x",
        seed=0,
        max_tokens=200,
        longest=300,
        at_once=8,
        dtype="float32",
    )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"loss_type": "dapo"}, "grpo.loss_type.*one loss.*mode: sync"),
        ({"max_inflight_tasks": 3}, "belongs elsewhere: set rollout.concurrency"),
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


def test_what_waits_is_bounded():
    args = config()
    assert args.queue_maxsize == 8
    assert args.token_budget >= 300
    assert args.max_staleness > 0


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
