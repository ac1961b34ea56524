"""What counts as trained in asynchronous runs: samples of finished updates, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sandbox_rl.errors import ModelError
from sandbox_rl.training.asynchronous.ledger import GroupProgress
from sandbox_rl.training.asynchronous.rows import micro_batches
from sandbox_rl.training.samples import FinishedGroup, LeftOut, Sample


def sample(group: int, index: int, tokens: int = 100, versions: int = 0) -> Sample:
    """One of 100 tokens that shares none with others, as in a group without a common prompt."""
    return Sample(
        group=group,
        index=index,
        input_ids=np.arange(1000 * index, 1000 * index + tokens),
        completion_mask=np.array([0] + [1] * (tokens - 1)),
        old_log_probs=np.zeros(tokens, np.float32),
        versions=np.full(tokens, versions, np.int32),
        advantage=1.0,
        reward=0.0,
    )


def group(number: int, size: int = 8, **left_out: LeftOut) -> FinishedGroup:
    return FinishedGroup(number, tuple(sample(number, i) for i in range(size)), left_out)


def arrived(count: int) -> GroupProgress:
    progress = GroupProgress()
    for number in range(count):
        assert progress.admit(version=0) == number
        progress.arrive(group(number))
    return progress


def behind(progress: GroupProgress, tmp_path) -> set[int]:
    """What a run that is resumed from a checkpoint of this instant would not train on any more."""
    progress.save(tmp_path)
    return set(GroupProgress().restore(tmp_path))


def test_a_group_is_behind_us_once_all_its_samples_are_in_finished_updates(tmp_path):
    progress = arrived(1)
    first, second = group(0).samples[:4], group(0).samples[4:]
    progress.pack(first)
    assert behind(progress, tmp_path) == set()
    progress.finish_update()
    assert behind(progress, tmp_path) == set()
    progress.pack(second)
    assert behind(progress, tmp_path) == set()  # collated, being computed: nothing of it is certain
    progress.finish_update()
    assert behind(progress, tmp_path) == {0}


def test_what_a_loader_has_looked_ahead_at_is_not_trained(tmp_path):
    progress = arrived(3)
    progress.pack(group(0).samples)
    progress.finish_update()
    progress.pack(group(1).samples)
    assert behind(progress, tmp_path) == {0}
    assert [g.number for _, g in progress.waiting] == [2]


def test_of_a_partly_used_group_the_rest_is_trained_after_a_resume(tmp_path):
    progress = arrived(2)
    progress.pack(group(0).samples[:3])
    progress.finish_update()
    assert [len(g.samples) for _, g in progress.waiting] == [5, 8]
    progress.save(tmp_path)

    resumed = GroupProgress()
    resumed.restore(tmp_path)
    assert [resumed.admit(version=1) for _ in range(2)] == [0, 1]
    again = resumed.arrive(group(0))
    assert [s.index for s in again.samples] == [3, 4, 5, 6, 7]
    assert {i for i, why in again.left_out.items() if why is LeftOut.USED_BEFORE} == {0, 1, 2}
    resumed.pack(again.samples)
    resumed.finish_update()
    assert behind(resumed, tmp_path) == {0}
    assert resumed.ends == {"used": 8}


def test_what_is_left_out_is_named_and_leaves_no_hole(tmp_path):
    progress = GroupProgress()
    numbers = [progress.admit(version=0) for _ in range(4)]
    progress.arrive(FinishedGroup(0, (), dict.fromkeys(range(8), LeftOut.NOT_JUDGED)))
    progress.arrive(FinishedGroup(3, (), dict.fromkeys(range(8), LeftOut.EQUAL_REWARDS)))
    progress.arrive(FinishedGroup(1, group(1).samples[:6], {6: LeftOut.MASKED, 7: LeftOut.NO_TOKENS}))
    progress.pack(group(1).samples[:6])
    progress.finish_update()
    assert numbers == [0, 1, 2, 3]
    assert behind(progress, tmp_path) == {0, 1, 3}
    state = json.loads((tmp_path / "groups.json").read_text())
    assert (state["first"], state["ahead"]) == (2, [3])
    assert state["ends"] == {"equal_rewards": 8, "masked": 1, "no_tokens": 1, "not_judged": 8, "used": 6}
    resumed = GroupProgress()
    resumed.restore(tmp_path)
    assert [resumed.admit(version=0) for _ in range(3)] == [2, 4, 5]


def test_a_run_killed_and_resumed_at_any_update_trains_every_sample_once(tmp_path):
    """Kills lose the process's memory; what a checkpoint says decides what is done again."""
    rng = np.random.default_rng(0)
    used: dict[tuple[int, int], int] = {}  # what the weights of the last checkpoint have seen
    since: list[tuple[int, int]] = []
    progress = GroupProgress()
    for _ in range(400):
        if rng.random() < 0.1:
            progress, since = GroupProgress(), []
            if (tmp_path / "groups.json").exists():
                progress.restore(tmp_path)
        progress.arrive(group(progress.admit(version=0), size=4))
        waiting = [s for _, g in progress.waiting for s in g.samples]
        chosen = [waiting[i] for i in rng.permutation(len(waiting))[: rng.integers(1, 7)]]
        progress.pack(chosen)
        if rng.random() < 0.3:
            continue  # another micro-batch of the same update
        packed = list(progress._packed)
        progress.finish_update()
        since += packed
        if rng.random() < 0.2:
            progress.save(tmp_path)
            for key in since:
                used[key] = used.get(key, 0) + 1
            since = []
    assert set(used.values()) == {1}
    checkpoint = GroupProgress()
    for number in checkpoint.restore(tmp_path):
        assert all((number, index) in used for index in range(4)), number
    partly = json.loads((tmp_path / "groups.json").read_text())["partly"]
    assert len(used) == 4 * len(checkpoint.behind) + sum(map(len, partly.values()))


@pytest.mark.parametrize("content", [None, "{}", "[1]", '{"first": 1, "ahead": []}', '{"first": "x"'])
def test_a_checkpoint_without_the_groups_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "groups.json").write_text(content)
    with pytest.raises(ModelError, match=r"groups.json does not hold the groups.*mode: async"):
        GroupProgress().restore(tmp_path)


def test_nobody_may_send_a_group_twice_or_unasked():
    progress = arrived(1)
    for number in (0, 7):
        with pytest.raises(ValueError, match="not admitted, or came twice"):
            progress.arrive(group(number))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_group_is_never_split_between_updates_and_every_rank_has_a_row(ranks):
    """The token budget splits it into micro-batches of one update instead."""
    groups = [group(0), group(1, size=1), group(2, size=5)]
    batches = micro_batches(groups, ranks=ranks, token_budget=400)
    rows = [row for batch in batches for row in batch]
    assert all(len(batch) == ranks for batch in batches)
    assert all(row.samples and row.trained for row in rows)
    assert max(len(row.tokens) for row in rows) <= 400
    terms = [
        (s["group_id"], int(token))
        for row in rows
        for s in row.samples
        for token in s["input_ids"][s["completion_mask"] == 1]
    ]
    expected = [
        (s.group, int(token))
        for g in groups
        for s in g.samples
        for token in s.input_ids[s.completion_mask == 1]
    ]
    assert sorted(terms) == sorted(expected)  # each loss term once


def test_a_single_sample_is_shared_by_two_ranks():
    lone = FinishedGroup(0, (sample(0, 0, tokens=9),))
    (batch,) = micro_batches([lone], ranks=2, token_budget=50)
    assert [row.trained for row in batch] == [4, 4]
    (batch,) = micro_batches([FinishedGroup(0, (sample(0, 0, tokens=2),))], ranks=2, token_budget=50)
    assert sorted(row.samples[0]["advantage"] for row in batch) == [0.0, 1.0]
