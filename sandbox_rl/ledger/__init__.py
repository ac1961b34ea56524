"""The ledger of a run: how every sample ended, written once its optimizer step has finished."""

from sandbox_rl.ledger.file import Ledger, read_ledger
from sandbox_rl.ledger.records import Group, Sample, SampleEnd, Update

__all__ = ["Group", "Ledger", "Sample", "SampleEnd", "Update", "read_ledger"]
