"""After a kill, episodes that had ended are used and not sampled again."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest

from sandbox_rl.cassette.cassette import base_id
from sandbox_rl.journal import read_journal
from sandbox_rl.ledger import SampleEnd, read_ledger
from sandbox_rl.runs.check import check_run
from sandbox_rl.training.reuse import same_updates
from tests.played_runs import SIZE, async_run, sync_run

KINDS = {
    "sync": sync_run,
    "two generations an update": partial(sync_run, rhythm=(2, 4)),
    "two updates a generation": partial(sync_run, rhythm=(2, 1)),
    "refill": partial(sync_run, curriculum={"refill_rounds": 2}),
}


def ledger(run):
    """What was trained, whichever start has sampled it."""

    def plain(group):
        return replace(group, samples=tuple(replace(s, episode=base_id(s.episode)) for s in group.samples))

    updates = read_ledger(run / "ledger.jsonl")
    return [replace(u, time=0.0, groups=tuple(map(plain, u.groups))) for u in updates]


def ended(run):
    """Episodes in the journal that were judged, or masked by choice: id without the attempt → id."""
    records = [r for r in read_journal(run / "journal") if r["reward"] is not None or r["masked"]]
    return {base_id(r["episode_id"]): r["episode_id"] for r in records}


@pytest.mark.parametrize("die_at", [1, 13, 14, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_only_what_had_not_ended_is_sampled_again(kind, die_at, tmp_path):
    """And so what is trained is what an uninterrupted run trains."""
    play = KINDS[kind]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = play(tmp_path / "whole", 6)
    run = play(tmp_path / "killed", 6, save_at=(2,), die_at=die_at)
    before, asked = ended(run), []
    play(tmp_path / "killed", 6, resume=True, asked=asked)
    assert asked
    assert not {base_id(id) for id in asked} & set(before)
    assert ledger(run) == ledger(whole)
    assert check_run(run).violation is None
    used = {s.episode for u in read_ledger(run / "ledger.jsonl") for g in u.groups for s in g.samples}
    assert set(before.values()) <= used


def test_a_run_that_dies_again_and_again_samples_nothing_twice(tmp_path):
    asked: list[str] = []
    sync_run(tmp_path, 6, save_at=(1,), die_at=11, asked=asked)
    for total in (15, 26, 40):
        sync_run(tmp_path, 6, resume=True, die_at=total, asked=asked)
    run = sync_run(tmp_path, 6, resume=True, asked=asked)
    assert check_run(run).violation is None
    again = len(asked) - len({base_id(id) for id in asked})
    faults = sum(s.end is SampleEnd.NOT_JUDGED for u in ledger(run) for g in u.groups for s in g.samples)
    assert again <= 4 * faults, "a fault of ours is tried again by each start"


def test_with_over_sampling_nothing_that_ended_is_sampled_again(tmp_path):
    run = sync_run(tmp_path, 6, over_sample=0.5, save_at=(2,), die_at=40)
    cut = {base_id(r["episode_id"]) for r in read_journal(run / "journal") if r["phase"] == "cancelled"}
    before, asked = set(ended(run)) - cut, []
    sync_run(tmp_path, 6, over_sample=0.5, resume=True, asked=asked)
    assert before
    assert not {base_id(id) for id in asked} & before
    assert check_run(run).violation is None


@pytest.mark.parametrize("refill", [0, 1])
def test_whole_groups_that_are_young_enough_are_trained_by_an_asynchronous_run(tmp_path, refill):
    run = async_run(tmp_path, 6, save_at=(3,), lost_in=6, refill=refill)
    asked: list[str] = []
    before = {r["episode_id"]: max((t["weight_version"] for t in r["turns"]), default=0)
              for r in read_journal(run / "journal")}  # fmt: skip
    async_run(tmp_path, 6, resume=True, refill=refill, asked=asked)
    again = {base_id(id) for id in asked} & set(before)
    assert all(before[id] >= 3 or before[id] == 0 for id in again)
    assert check_run(run).violation is None
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    (reused,) = [line["reused"] for line in lines if line["event"] == "resumed"]
    assert reused
    assert reused % SIZE == 0
    used = {s.episode for u in read_ledger(run / "ledger.jsonl") for g in u.groups for s in g.samples}
    assert len(used & set(before)) >= reused


def test_tokens_that_changed_since_are_sampled_again(tmp_path):
    run = sync_run(tmp_path, 6, save_at=(2,), die_at=30)
    (tokens,) = (run / "journal").glob("0000-*.tokens")
    content = bytearray(tokens.read_bytes())
    content[-1] ^= 1
    tokens.write_bytes(content)
    asked: list[str] = []
    sync_run(tmp_path, 6, resume=True, asked=asked)
    assert check_run(run).violation is None
    assert asked[0].endswith("-r1")


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ((), True),
        (("report_to", "evaluation.tasks", "grpo.save_steps", "rollout.concurrency"), True),
        (("grpo.learning_rate",), False),
        (("grpo.max_steps",), False),
        (("evaluation.tasks", "episode.max_turns"), False),
        (("evaluations",), False),
    ],
)
def test_another_recipe_uses_nothing_of_before(fields, same):
    """The updates in between would be others, and so the weights."""
    assert same_updates(fields) is same
