"""What counts as trained in asynchronous runs: samples of finished updates, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sandbox_rl.errors import ModelError
from sandbox_rl.ledger import Group, Sample, SampleEnd
from sandbox_rl.training import samples
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.asynchronous.rows import micro_batches, samples_of
from sandbox_rl.training.samples import FinishedGroup


def sample(group: int, index: int, tokens: int = 100, versions: int = 0) -> samples.Sample:
    """One of 100 tokens that shares none with others, as in a group without a common prompt."""
    return samples.Sample(
        group=group,
        index=index,
        episode=f"{group}-{index}",
        input_ids=np.arange(1000 * index, 1000 * index + tokens),
        completion_mask=np.array([0] + [1] * (tokens - 1)),
        old_log_probs=np.zeros(tokens, np.float32),
        versions=np.full(tokens, versions, np.int32),
        advantage=1.0,
        reward=0.0,
    )


def group(number: int, size: int = 8, left_out: Sequence[SampleEnd] = ()) -> FinishedGroup:
    """`size` samples to train on, then those that are left out."""
    ends = [SampleEnd.USED] * size + list(left_out)
    record = Group(number, "t", None, tuple(Sample(f"{number}-{i}", end, 0.0) for i, end in enumerate(ends)))
    return FinishedGroup(record, tuple(sample(number, i) for i in range(size)))


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


def test_a_group_is_behind_us_once_its_update_has_finished(tmp_path):
    progress = arrived(2)
    assert behind(progress, tmp_path) == set()
    progress.pack([group(0)])
    assert behind(progress, tmp_path) == set()  # collated, being computed: nothing of it is certain
    assert progress.finish_update() == [group(0).record]
    assert behind(progress, tmp_path) == {0}


def test_what_a_loader_has_looked_ahead_at_is_not_trained(tmp_path):
    progress = arrived(3)
    progress.pack([group(0)])
    progress.finish_update()
    progress.pack([group(1)])
    assert behind(progress, tmp_path) == {0}
    assert [g.number for _, g in progress.waiting] == [2]


def test_what_is_left_out_is_named_and_leaves_no_hole(tmp_path):
    """A group with nothing to train on ends with the next update; until then it is not in the ledger."""
    progress = GroupProgress()
    numbers = [progress.admit(version=0) for _ in range(4)]
    gone = group(0, 0, [SampleEnd.NOT_JUDGED] * 8), group(3, 0, [SampleEnd.EQUAL_REWARDS] * 8)
    partly = group(1, 6, [SampleEnd.OVERLONG, SampleEnd.NO_TOKENS])
    for one in (*gone, partly):
        progress.arrive(one)
    assert partly.left_out == {6: SampleEnd.OVERLONG, 7: SampleEnd.NO_TOKENS}
    assert [g.number for _, g in progress.waiting] == [1]
    assert set(progress.running) == {2}
    assert behind(progress, tmp_path) == set()
    progress.pack([partly])
    assert progress.finish_update() == [gone[0].record, partly.record, gone[1].record]
    assert numbers == [0, 1, 2, 3]
    assert behind(progress, tmp_path) == {0, 1, 3}
    state = json.loads((tmp_path / "groups.json").read_text())
    assert (state["first"], state["ahead"]) == (2, [3])
    resumed = GroupProgress()
    resumed.restore(tmp_path)
    assert [resumed.admit(version=0) for _ in range(3)] == [2, 4, 5]


def test_a_run_killed_and_resumed_at_any_update_has_every_group_once_in_its_ledger(tmp_path):
    """Kills lose the process's memory; what a checkpoint says decides what is done again."""
    rng = np.random.default_rng(0)
    ledger: list[int] = []  # what the weights of the last checkpoint have seen
    since: list[int] = []
    progress = GroupProgress()
    for _ in range(400):
        if rng.random() < 0.1:
            progress, since = GroupProgress(), []
            if (tmp_path / "groups.json").exists():
                progress.restore(tmp_path)
        number = progress.admit(version=0)
        progress.arrive(group(number, size=int(rng.integers(0, 3))))
        waiting = [g for _, g in progress.waiting]
        chosen = [waiting[i] for i in rng.permutation(len(waiting))[: rng.integers(1, 7)]]
        progress.pack(chosen)
        if rng.random() < 0.3:
            continue  # another micro-batch of the same update
        since += [record.number for record in progress.finish_update()]
        if rng.random() < 0.2:
            progress.save(tmp_path)
            ledger, since = ledger + since, []
    assert len(set(ledger)) == len(ledger) > 100
    assert set(ledger) == GroupProgress().restore(tmp_path)


@pytest.mark.parametrize("content", [None, "{}", "[1]", '{"first": 1}', '{"first": "x"'])
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
    lone = FinishedGroup(group(0, 1).record, (sample(0, 0, tokens=9),))
    (batch,) = micro_batches([lone], ranks=2, token_budget=50)
    assert [row.trained for row in batch] == [4, 4]
    (batch,) = micro_batches([replace(lone, samples=(sample(0, 0, tokens=2),))], ranks=2, token_budget=50)
    assert sorted(row.samples[0]["advantage"] for row in batch) == [0.0, 1.0]


@pytest.mark.parametrize(("tokens", "ranks"), [(100, 3), (100, 7), (2, 2)])
def test_parts_of_a_sample_say_where_they_begin(tokens, ranks):
    """Among its sampled tokens; of one that cannot be divided each part has the whole."""
    one = FinishedGroup(Group(0, "t", None, ()), (sample(0, 0, tokens),))
    packed = micro_batches([one], ranks=ranks, token_budget=1000)
    (named,) = samples_of(packed)
    counts = [int(row.samples[0]["completion_mask"].sum()) for row in packed[0]]
    places = sorted(
        (first, count) for ((name, first),), count in zip(named, counts, strict=True) if name == "0-0"
    )
    assert len(places) == ranks
    if tokens == 2:
        assert places == [(0, 1), (0, 1)]
        return
    assert [first for first, _ in places] == [0, *np.cumsum([count for _, count in places])[:-1]]
    assert sum(counts) == tokens - 1
