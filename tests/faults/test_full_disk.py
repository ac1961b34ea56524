"""FI-04: the disk that a run is recorded on is full for a while."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_rl.errors import SetupError
from sandbox_rl.fakes import RecordingBackend
from sandbox_rl.journal import Journal, JournalObserver, read_journal
from sandbox_rl.rollout import disk
from sandbox_rl.rollout.disk import DiskSpace
from tests import disks
from tests.unit.rig import SUBMIT, bash, make_engine, request, say


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    with disks.small_disk(tmp_path / "disk", "4m") as place:
        yield place


class FillsDisk(RecordingBackend):
    """While the fourth sandbox is in use somebody else takes all but a MiB of the disk."""

    def __init__(self, junk) -> None:
        super().__init__()
        self.junk, self.made = junk, 0

    def sandbox(self, files=None, *, timeout=60.0):
        self.made += 1
        if self.made == 4:
            self.junk.write_bytes(b"\0" * (3 << 20))
        return super().sandbox(files, timeout=timeout)


def script(episode_id, turn, ids):
    return say(*[(bash("ls"),), (SUBMIT,)][turn])


async def test_a_full_disk_stops_new_episodes_until_there_is_room_and_nothing_is_cut(
    small_disk, monkeypatch, caplog
):
    monkeypatch.setattr(disk, "LOOK_S", 0.02)
    junk = small_disk / "junk"
    backend = FillsDisk(junk)
    settings = {"concurrency": 2, "retries": 0}
    with Journal(small_disk / "journal") as journal:
        async with make_engine(
            script, backend=backend, rollout=settings, disk=DiskSpace(small_disk / "runs" / "r", needed_mb=2)
        ) as engine:
            observer = JournalObserver(journal, lambda _: {})
            requests = [request(f"e-{n}") for n in range(12)]
            running = asyncio.ensure_future(engine.run(requests, observer=observer))
            while not junk.exists():  # noqa: ASYNC110 (a file to look at, not a task)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            assert backend.made <= 5, "what was started goes on, nothing else starts"
            assert not running.done()
            junk.unlink()
            rollouts = await running
    assert all(r.reward.value is not None for r in rollouts)
    assert sorted(record["episode_id"] for record in read_journal(small_disk / "journal")) == sorted(
        r.trajectory.episode_id for r in rollouts
    )
    (said,) = [r.getMessage() for r in caplog.records if "free some space" in r.getMessage()]
    assert "0 MiB are free there, expected 2" in said or "1 MiB are free there, expected 2" in said


async def test_patience_with_a_full_disk_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "PATIENCE_S", 0.05)
    monkeypatch.setattr(disk, "LOOK_S", 0.02)
    with pytest.raises(SetupError, match=r"expected 1099511627776; free some space and go on with --resume"):
        await DiskSpace(tmp_path / "not" / "there", needed_mb=1 << 40).wait()
