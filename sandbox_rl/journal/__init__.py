"""The journal of a run: every episode, turn by turn, on the disk as it happens."""

from sandbox_rl.journal.index import Index, read_journal
from sandbox_rl.journal.records import rollout_from_record, rollout_record, trajectory_from_record
from sandbox_rl.journal.writer import Journal, JournalObserver

__all__ = [
    "Index",
    "Journal",
    "JournalObserver",
    "read_journal",
    "rollout_from_record",
    "rollout_record",
    "trajectory_from_record",
]
