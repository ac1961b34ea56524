"""What asynchronous updates were composed of: lines that a kill or a resume leaves behind are recognised."""

from __future__ import annotations

import json

import pytest
import torch

from sandbox_rl.errors import DataError
from sandbox_rl.training.asynchronous.compositions import (
    CompositionLog,
    checksum,
    parts_of,
    read_compositions,
)
from sandbox_rl.training.asynchronous.rows import micro_batches, packed_as
from tests.smoke.async_support import played_group


def written(path, number, groups=(0,)):
    log = CompositionLog(path)
    found = [played_group(n, 0) for n in groups]
    for group in found:
        log.arrived(group.number, number - 1)
    rows = micro_batches(found, ranks=1, token_budget=60)
    log.composed(number, groups, rows, [{"a": torch.tensor([number])}])
    log.finished()
    return rows


def test_an_update_is_written_once_it_has_finished_and_not_before(tmp_path):
    path = tmp_path / "c.jsonl"
    log = CompositionLog(path)
    log.composed(1, [0], micro_batches([played_group(0, 0)], ranks=1, token_budget=60), [])
    assert not path.exists()
    log.finished()
    log.finished()
    assert len(path.read_text().splitlines()) == 1


def test_updates_that_are_done_again_replace_those_before_and_what_followed_them(tmp_path):
    path = tmp_path / "c.jsonl"
    for number, group in ((1, 0), (2, 1), (3, 2), (2, 5)):
        written(path, number, (group,))
    assert {n: u.groups for n, u in read_compositions(path).items()} == {1: (0,), 2: (5,)}
    assert read_compositions(path)[2].arrived == ((5, 1),)


def test_a_torn_line_is_left_out_and_the_next_one_stands_by_itself(tmp_path):
    path = tmp_path / "c.jsonl"
    written(path, 1)
    path.write_bytes(path.read_bytes() + b'{"number":2,"arri')
    assert sorted(read_compositions(path)) == [1]
    written(path, 2)
    assert sorted(read_compositions(path)) == [1, 2]
    with pytest.raises(DataError, match="expected what an asynchronous run writes"):
        read_compositions(tmp_path / "none.jsonl")


@pytest.mark.parametrize("ranks", [1, 3, 16])
def test_rows_are_packed_as_they_were_also_samples_that_were_taken_apart(ranks):
    groups = [played_group(n, 0) for n in range(2)]
    before = micro_batches(groups, ranks=ranks, token_budget=60)
    parts = [parts_of(row) for batch in before for row in batch]
    assert ranks < 16 or any(part for row in parts for *_, part in row), "some are in parts"
    samples = {(s.group, s.index): s for group in groups for s in group.samples}
    again = packed_as(json.loads(json.dumps(parts)), samples, ranks=ranks)
    assert [len(batch) for batch in again] == [len(batch) for batch in before]
    for old, new in zip(before, again, strict=True):
        assert checksum([r.pack() for r in old]) == checksum([r.pack() for r in new])


def test_a_checksum_sees_every_bit_name_type_and_shape():
    batch = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3])}
    others = [
        {"a": torch.tensor([1.0, 2.0000002]), "b": torch.tensor([3])},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3])},
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor([3])},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3], dtype=torch.int32)},
    ]
    assert len({checksum([b]) for b in [batch, *others]}) == 5
    assert checksum([batch]) == checksum([dict(reversed(batch.items()))])
