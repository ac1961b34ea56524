"""The file of the ledger: what is read is what was written, and only whole lines count."""

from __future__ import annotations

import pickle

import pytest

from sandbox_rl.errors import DataError, ModelError
from sandbox_rl.ledger import Group, Ledger, Sample, SampleEnd, Update, read_ledger


def update(number: int, end: SampleEnd = SampleEnd.USED, advantage: float | None = 0.1) -> Update:
    samples = tuple(Sample(f"train-{number:06d}-{i:04d}", end, advantage) for i in range(2))
    groups = (Group(number, "täsk", None, samples), Group(number, "other", 0, samples))
    return Update(number, 1.5 + number, groups)


UPDATES = [update(1), update(2, SampleEnd.NOT_JUDGED, None), Update(3, 4.0, ())]


@pytest.fixture
def path(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for one in UPDATES:
        ledger.write(one)
    return tmp_path / "ledger.jsonl"


def test_what_was_written_is_read(path):
    assert list(read_ledger(path)) == UPDATES


@pytest.mark.parametrize("end", SampleEnd)
def test_each_end_says_why_in_one_sentence_and_crosses_processes(end):
    assert end.why.endswith(".")
    assert end.why.count(". ") == 0
    assert pickle.loads(pickle.dumps(end)) is SampleEnd(end.value) is end


def test_every_cut_leaves_whole_lines_to_read_and_to_go_on_from(path):
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        whole = max(content[:size].count(b"\n") - 1, 0)
        assert list(read_ledger(path)) == UPDATES[:whole]
        again = Ledger(path)
        for one in UPDATES[whole:]:
            again.write(one)
        assert path.read_bytes() == content


def test_a_checkpoint_knows_its_part_of_the_ledger(path, tmp_path):
    Ledger(path).commit(tmp_path)
    size = path.stat().st_size
    Ledger(path).write(update(4))
    assert Ledger.committed(path, tmp_path) == size
    assert Ledger.committed(path, None) == 0
    changed = bytearray(path.read_bytes())
    changed[size // 2] ^= 1
    for content in (bytes(changed), path.read_bytes()[: size - 1], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"ledger.jsonl: the first \d+ bytes are not those"):
            Ledger.committed(path, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="restore"):
        Ledger.committed(path, tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"bytes": 3}', b'{"bytes": "x", "sha256": "y"}'])
def test_a_checkpoint_that_does_not_know_it_is_one_line(path, tmp_path, content):
    if content is not None:
        (tmp_path / "ledger.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"ledger.json does not say which part"):
        Ledger.committed(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b'{"ledger":2}\n', "format 2, expected at most 1; a newer version has written it"),
        (b'{"ledger":"1"}\n', "line 1: no line of a ledger"),
        (b'{"update":1}\n', "line 1: no line of a ledger"),
        (b"[]\n", "line 1: no line of a ledger"),
        (b'\xff\xfe\x00"\n', "line 1: no line of a ledger"),
        (b'{"ledger":1}\n{"update":1,"time":0,"groups":[[]]}\n', "line 2: no line of a ledger"),
        (b'{"ledger":1}\n\n', "line 2: no line of a ledger"),
        (
            b'{"ledger":1}\n{"update":1,"time":0,"groups":[{"number":0,"task":"a","refill":null,"samples":'
            b'[{"episode":"e","end":"unheard_of","advantage":0}]}]}\n',
            "line 2: no line of a ledger",
        ),
    ],
)
def test_what_is_no_ledger_is_one_line(tmp_path, content, said):
    path = tmp_path / "ledger.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        list(read_ledger(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
