"""The ledger of a run: how every sample ended, written once its optimizer step has finished."""

from sandbox_rl.ledger.reader import read_ledger
from sandbox_rl.ledger.records import Group, Sample, SampleEnd, Update
from sandbox_rl.ledger.writer import Ledger

__all__ = ["Group", "Ledger", "Sample", "SampleEnd", "Update", "read_ledger"]
